"""A headless Chromium, and a watch over what a page asks for and complains about."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
TEXTS = ["click the button", "click a button now", "Κουμπί και 日本 text", "open the file in the editor", "the last one"]
Opener = Callable[..., "Page"]
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextmanager
def launched() -> Iterator["Browser"]:
    """The browser; skips the test where there is none."""
    if not os.path.exists(CHROMIUM):
        pytest.skip("there is no Chromium: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="there is no playwright: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def opened(browser: "Browser", url: str, width: int = 1280, scheme: str = "light", refusals: bool = False) -> Iterator["Page"]:
    """The page at `url`, in a tab of its own. At the end nothing may have failed, and nothing was asked of another host.

    Args:
        refusals: whether the server may refuse requests, which browsers report as errors.
    """
    settings: dict[str, Any] = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    context = browser.new_context(**settings, reduced_motion="reduce")
    page = context.new_page()
    complaints: list[str] = []
    urls: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: urls.append(request.url))
    page.goto(url)
    yield page
    context.close()
    if refusals:
        complaints = [line for line in complaints if not line.startswith("Failed to load resource")]
    assert complaints == []
    origin = "/".join(url.split("/")[:3])
    assert [asked for asked in urls if not asked.startswith((f"{origin}/", "data:"))] == []


def type_texts(page: "Page", texts: list[str]) -> None:
    page.wait_for_selector("#heat tbody td")
    with page.expect_response(
        lambda answer: answer.url.endswith("v1/embeddings") and texts[0] in sent(answer.request)["input"]
    ):
        page.fill("#texts", "\n".join(texts))
    page.wait_for_function("n => document.querySelectorAll('#heat tbody tr').length === n", arg=len(texts))


def sent(request: Any) -> dict[str, Any]:
    return json.loads(request.post_data)


def search_in(page: "Page", path: Path, query: str) -> list[str]:
    page.set_input_files("#file", path)
    page.wait_for_selector("#encode:visible")
    page.click("#encode")
    page.wait_for_selector("#query:focus")
    page.fill("#query", query)
    page.wait_for_selector("#hits li")
    return page.eval_on_selector_all("#hits .text", "all => all.map(one => one.textContent)")
