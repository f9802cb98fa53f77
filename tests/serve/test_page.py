"""The page in a real browser: what a user sees and does."""

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import uvicorn
from scipy.stats import spearmanr
from starlette.applications import Starlette
from starlette.routing import Mount

from cluster.serve.config import ServeConfig
from cluster.serve.process import serve_in_process
from tests.serve.browser import TEXTS, search_in, sent
from tests.serve.test_front import client
from trainer.embedder import Embedder

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def choose(page: "Page", **values: str) -> dict[str, Any]:
    """Sets choices one by one; the body of the last request for vectors that they cause."""
    for name, value in values.items():
        with page.expect_response(lambda answer: answer.url.endswith("v1/embeddings")) as caught:
            page.select_option(f"#choice-{name}", value)
        page.wait_for_timeout(50)
    return sent(caught.value.request)


def cells(page: "Page") -> np.ndarray:
    rows = page.eval_on_selector_all(
        "#heat tbody tr", "rows => rows.map(r => [...r.querySelectorAll('td')].map(c => c.textContent))"
    )
    return np.array([[float(value.replace("−", "-")) for value in row] for row in rows])


def cosines(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def hamming(vectors: np.ndarray) -> np.ndarray:
    bits = vectors > 0
    return 1 - 2 * (bits[:, None] != bits[None]).mean(axis=2)


def assert_shown(page: "Page", expected: np.ndarray) -> None:
    assert np.abs(cells(page) - expected).max() <= 0.005 + 1e-5


def test_the_number_of_a_pair_is_in_its_cell(show, url, embedder) -> None:
    page = show(url, TEXTS)
    assert_shown(page, cosines(embedder.encode(TEXTS)))
    assert page.text_content("#heat tbody tr:nth-child(3) th .cut") == TEXTS[2]
    assert TEXTS[4] in (page.text_content("#heat thead th:nth-child(6)") or "")
    assert page.get_attribute("#heat thead th", "scope") == "col"
    assert page.get_attribute("#heat tbody th", "scope") == "row"


@pytest.mark.parametrize(
    ("values", "body", "options", "similarity"),
    [
        ({"dimensions": "8"}, {"dimensions": 8}, {"dimensions": 8}, cosines),
        ({"layer": "1"}, {"layer": 1, "dimensions": 32}, {"layers": 1}, cosines),
        ({"dtype": "int8"}, {"output_dtype": "int8"}, {"output_dtype": "int8"}, cosines),
        ({"dtype": "uint8", "layer": "1"}, {"output_dtype": "uint8"}, {"layers": 1, "output_dtype": "int8"}, cosines),
        ({"dtype": "binary"}, {"output_dtype": "binary"}, {}, hamming),
        ({"dtype": "ubinary", "dimensions": "8"}, {"output_dtype": "ubinary", "dimensions": 8}, {"dimensions": 8}, hamming),
        ({"inputType": "sts"}, {"input_type": "sts"}, {"prompt_name": "sts"}, cosines),
        (
            {"inputType": "query", "indexVersion": "old"},
            {"input_type": "query", "index_version": "old"},
            {"prompt_name": "query", "index": "old"},
            cosines,
        ),
    ],
)
def test_a_choice_changes_the_request_and_the_numbers(show, url, embedder, values, body, options, similarity) -> None:
    page = show(url, TEXTS)
    before = cells(page)
    asked = choose(page, **values)
    assert {key: asked[key] for key in body} == body
    expected = similarity(embedder.encode(TEXTS, **options))
    assert np.abs(before - expected).max() > 0.001
    assert_shown(page, expected)


def test_only_what_the_model_offers_can_be_chosen(show, url) -> None:
    page = show(url, TEXTS)
    offered = lambda name: page.eval_on_selector_all(f"#choice-{name} option", "all => all.map(one => one.value)")  # noqa: E731
    assert [offered(name) for name in ("dimensions", "layer")] == [["32", "8"], ["", "1"]]
    assert offered("inputType") == ["", "query", "document", "sts"]
    assert offered("indexVersion") == ["", "old"]
    choose(page, dtype="int8")
    assert not page.is_visible("#choice-indexVersion")  # bytes are measured for the embedder's own vectors
    choose(page, dtype="float")
    assert page.is_visible("#choice-indexVersion")
    choose(page, dimensions="8")
    assert not page.is_visible("#choice-indexVersion")  # there is no map at this width with all layers


def test_pairs_are_listed_from_the_nearest_on(show, url, embedder) -> None:
    page = show(url, TEXTS)
    found = cosines(embedder.encode(TEXTS))
    order = sorted(((found[i, j], i, j) for i in range(5) for j in range(i)), reverse=True)
    scores = page.eval_on_selector_all("#pairs .score", "all => all.map(one => one.textContent)")
    assert [float(score.replace("−", "-")) for score in scores] == pytest.approx([value for value, *_ in order], abs=6e-4)
    texts = page.eval_on_selector_all("#pairs li:first-child .text", "all => all.map(one => one.textContent)")
    assert set(texts) == {TEXTS[order[0][1]], TEXTS[order[0][2]]}


CONTRASTS = """cells => cells.map(cell => {
  const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const style = getComputedStyle(cell);
  const isClear = style.backgroundColor === 'rgba(0, 0, 0, 0)';
  const paper = isClear ? getComputedStyle(document.body).backgroundColor : style.backgroundColor;
  const [a, b] = [light(style.color), light(paper)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05); })"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_are_readable_on_every_colour(show, url, scheme) -> None:
    page = show(url, TEXTS, scheme=scheme)
    page.wait_for_selector("#cost-table tbody tr")
    for selector in ("#heat tbody td", ".status", ".chip", "#cost-table td", "#heat th"):
        assert min(page.eval_on_selector_all(selector, CONTRASTS)) >= 4.5, selector
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") is (scheme == "light")


def test_cells_take_new_colours_with_the_scheme(show, url) -> None:
    page = show(url, TEXTS)
    colour = "getComputedStyle(document.querySelector('#heat tbody td:nth-child(3)')).backgroundColor"
    before = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"before => {colour} !== before", arg=before)


def test_too_many_texts_are_refused_with_a_line(show, url) -> None:
    page = show(url, TEXTS)
    page.fill("#texts", "\n".join(f"text {number}" for number in range(43)))
    page.wait_for_selector("#similarity-problem:visible")
    assert page.text_content("#similarity-problem") == "These are 43 texts. At most 40 are compared: remove 3."
    page.fill("#texts", "one\n\n  \n")
    page.wait_for_selector("#similarity-problem", state="hidden")
    assert page.text_content("#similarity-status") == "Write two texts or more."
    assert not page.is_visible("#heat")


def test_the_last_texts_win(show, url, embedder) -> None:
    """Also where an earlier answer comes later."""
    page = show(url, TEXTS)

    def slow(route: Any) -> None:
        if "slow" in sent(route.request)["input"]:
            time.sleep(0.7)
        route.continue_()

    page.route("**/v1/embeddings", slow)
    page.fill("#texts", "slow\nclick")
    page.wait_for_timeout(400)
    page.fill("#texts", "\n".join(TEXTS[:3]))
    page.wait_for_timeout(1500)
    assert_shown(page, cosines(embedder.encode(TEXTS[:3])))


def rows_of(page: "Page") -> dict[tuple[str, ...], list[str]]:
    script = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    return {tuple(row[:3]): row[3:] for row in page.eval_on_selector_all("#cost-table tbody tr", script)}


def test_the_cost_of_every_choice_is_measured(show, url, embedder) -> None:
    page = show(url, TEXTS)
    page.click("#measure")
    page.wait_for_function("() => document.querySelectorAll('#cost-table tbody tr').length === 20", timeout=60_000)
    page.wait_for_selector("#measure-stop", state="hidden", timeout=60_000)
    assert page.evaluate("document.activeElement.id") == "measure"
    rows = rows_of(page)
    assert next(iter(rows)) == ("32", "all", "float")
    assert rows["32", "all", "float"][:2] == ["128 bytes", "128 MB"]
    assert rows["32", "first 1", "int8"][:2] == ["32 bytes", "32 MB"]
    assert rows["8", "first 1", "ubinary"][:2] == ["1 byte", "1 MB"]
    assert all(float(row[2]) > 0 for row in rows.values())
    assert rows["32", "all", "float"][3:] == ["–", "–"]
    upper = np.triu_indices(len(TEXTS), 1)
    whole, short = cosines(embedder.encode(TEXTS))[upper], cosines(embedder.encode(TEXTS, 8, 1))[upper]
    bits = hamming(embedder.encode(TEXTS))[upper]
    for key, values in {("8", "first 1", "float"): short, ("32", "all", "binary"): bits}.items():
        change, order = (float(value.replace("−", "-")) for value in rows[key][3:])
        assert change == pytest.approx(np.abs(values - whole).mean(), abs=6e-4)
        assert order == pytest.approx(spearmanr(values, whole).statistic, abs=6e-4)
    assert f"{sum(map(len, embedder.tokenize(TEXTS)))} tokens" in page.text_content("#cost-note")


def test_choices_that_are_tried_are_collected(show, url) -> None:
    page = show(url, TEXTS)
    page.wait_for_selector("#cost-table tbody tr")
    choose(page, dimensions="8")
    page.wait_for_function("() => document.querySelectorAll('#cost-table tbody tr').length === 2")
    assert list(rows_of(page)) == [("32", "all", "float"), ("8", "all", "float")]
    assert page.text_content("#cost-table [aria-current] th") == "8"


def test_tokens_join_to_their_text(show, url, embedder) -> None:
    page = show(url, TEXTS)
    page.wait_for_function("() => document.querySelectorAll('.split').length === 5")
    script = """all => all.map(one => [...one.querySelectorAll('.chips')].map(side =>
        [...side.querySelectorAll('.chip:not(.special)')].map(chip => chip.textContent)))"""
    for text, (own, source), row in zip(
        TEXTS, page.eval_on_selector_all(".split", script), embedder.tokenize(TEXTS), strict=True
    ):
        assert "".join(own) == text
        assert len(own) == len(row) - 2
        assert "".join(source) == text or "<0x" in "".join(source)
    own = sum(len(row) - 2 for row in embedder.tokenize(TEXTS))
    assert (page.text_content("#tokens-status") or "").startswith(f"{own} tokens without special ones")
    assert f"{len(embedder.tokenize(TEXTS[:1])[0]) - 2} tokens" in page.text_content(".split .side")


def test_what_the_vocabulary_cannot_spell_is_crossed_out(show, url) -> None:
    page = show(url, TEXTS)
    page.wait_for_selector(".chip.unknown")
    assert page.text_content(".split:nth-child(3) .chip.unknown").strip() in TEXTS[2]
    assert "unknown: the model cannot read" in page.text_content(".split:nth-child(3) .side")
    assert "unknown" not in page.text_content(".split:nth-child(1)")
    assert "unknown; the tokenizer" in page.text_content("#tokens-status")


def test_lines_run_in_the_direction_of_their_text(show, url) -> None:
    page = show(url, ["שלום עולם", "click"])
    page.wait_for_function("() => document.querySelectorAll('.split').length === 2")
    direction = "all => all.map(one => getComputedStyle(one).direction)"
    assert page.eval_on_selector_all(".split .chips", direction)[::2] == ["rtl", "ltr"]
    assert page.eval_on_selector_all("#heat .cut", direction) == ["rtl", "ltr"]


def test_markup_in_texts_stays_text(show, url, tmp_path) -> None:
    texts = ["<img src=x onerror=alert(1)>", "<b>bold</b> & <script>alert(2)</script>", "plain"]
    page = show(url, texts)
    page.wait_for_selector(".split")
    (tmp_path / "a.txt").write_text("\n".join(texts))
    assert set(search_in(page, tmp_path / "a.txt", texts[0])) == set(texts)
    assert page.locator("img, b, main script").count() == 0
    assert page.text_content("#heat tbody th .cut") == texts[0]


def test_a_reload_keeps_texts_and_choices_and_nothing_outlives_the_tab(show, url, browser) -> None:
    page = show(url, TEXTS)
    choose(page, dimensions="8", layer="1", indexVersion="old")
    page.reload()
    page.wait_for_selector("#heat tbody td")
    assert page.input_value("#texts") == "\n".join(TEXTS)
    assert [page.input_value(f"#choice-{name}") for name in ("dimensions", "layer", "indexVersion")] == ["8", "1", "old"]
    assert page.evaluate("localStorage.length + document.cookie.length + location.hash.length") == 0
    other = show(url)
    assert other.input_value("#texts") != "\n".join(TEXTS)


@pytest.mark.parametrize("width", [320, 768, 1600])
@pytest.mark.parametrize("path", ["", "docs"])
def test_no_page_scrolls_sideways(show, url, tmp_path, width, path) -> None:
    long = ["word" * 40, "Ο καιρός είναι υπέροχος " * 6, *(f"text {number}" for number in range(38))]
    page = show(url + path, None if path else long, width=width)
    if path:
        page.wait_for_selector("table.keys")
    else:
        (tmp_path / "a.txt").write_text("\n".join(long))
        search_in(page, tmp_path / "a.txt", long[0])
        page.wait_for_selector("#cost-table tbody tr")
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_tab_reaches_every_control_and_arrows_every_cell(show, url, tmp_path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    page = show(url, TEXTS)
    search_in(page, tmp_path / "a.txt", TEXTS[0])
    page.wait_for_selector("#cost-frame:visible")
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    selector = "a[href], button:not(:disabled), input, select, textarea, [tabindex='0']"
    is_seen = "one.checkVisibility() && one.getClientRects().length > 0"
    visible = f"all => all.filter(one => {is_seen}).map((one, place) => one.dataset.stop = String(place))"
    stops = set(page.eval_on_selector_all(selector, visible))
    reached: list[str] = []
    for _ in range(len(stops) + 6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.dataset.stop ?? ''"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or not reached[-1], reached
    assert stops <= set(reached)
    page.focus("#heat td[tabindex='0']")
    for key, place in (
        ("ArrowDown", "1 1"),
        ("ArrowDown", "2 1"),
        ("End", "2 4"),
        ("ArrowLeft", "2 3"),
        ("Home", "2 0"),
        ("ArrowLeft", "2 0"),
    ):
        page.keyboard.press(key)
        assert page.evaluate("`${document.activeElement.dataset.row} ${document.activeElement.dataset.column}`") == place
    assert TEXTS[2] in page.text_content("#pair")
    assert page.locator("#heat td[tabindex='0']").count() == 1


@pytest.fixture(scope="module")
def locked(browser: "Browser", folder: str) -> Iterator[str]:
    """A server that wants a key and takes short bodies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCION_API_KEYS", "one,κλειδί")
        with serve_in_process(ServeConfig(model=folder, name="tiny", port=0, max_body_bytes=2000)) as base:
            yield base.removesuffix("v1")


@pytest.mark.parametrize("path", ["", "docs"])
def test_the_page_asks_for_the_key_that_the_server_wants(show, locked, path) -> None:
    drawn = "table.keys" if path else "#heat tbody td"
    page = show(locked + path, refusals=True)
    page.wait_for_selector("#key-note:visible")
    assert page.text_content("#key-note") == "This server wants an API key."
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#key-note').textContent === 'The server does not know this API key.'")
    page.fill("#key", "κλειδί")
    page.keyboard.press("Enter")
    page.wait_for_selector(drawn)
    assert not page.is_visible("#key-note")
    assert page.input_value("#key") == ""
    page.reload()
    page.wait_for_selector(drawn)
    assert page.evaluate("JSON.stringify(localStorage) + document.cookie") == "{}"


def test_an_error_of_the_server_is_shown_as_it_is(show, locked) -> None:
    page = show(locked, refusals=True)
    page.fill("#key", "one")
    page.keyboard.press("Enter")
    page.wait_for_selector("#heat tbody td")
    page.fill("#texts", "a\n" + "b " * 2000)
    page.wait_for_selector("#similarity-problem:visible")
    assert page.text_content("#similarity-problem") == "the body has more than 2,000 bytes. Send fewer inputs in a request."
    assert not page.is_visible("#heat")
    type_again = ["a", "b"]
    page.fill("#texts", "\n".join(type_again))
    page.wait_for_selector("#heat tbody td")
    assert not page.is_visible("#similarity-problem")


def test_the_page_works_below_a_path(show) -> None:
    app = Starlette(routes=[Mount("/models/greek", app=client().app)])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        base = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/models/greek"
        page = show(base, refusals=True)  # its model takes six letters, and the examples have more
        page.fill("#texts", "abc\nabd")
        page.wait_for_selector("#heat tbody td")
        assert set(cells(page).ravel()) == {1.0}
        page.click("text=API reference >> nth=0")
        page.wait_for_selector("table.keys")
        assert f"curl {base}/v1/embeddings" in page.text_content("pre")
    finally:
        server.should_exit = True
        thread.join()


def test_the_reference_names_every_path_and_key(show, url) -> None:
    page = show(url + "docs")
    page.wait_for_selector("table.keys")
    content = page.text_content("#reference") or ""
    spec = page.evaluate("fetch('openapi.json').then(answer => answer.json())")
    for path in spec["paths"]:
        assert path in content
    for key, about in spec["components"]["schemas"]["TokenizeRequest"]["properties"].items():
        assert key in content
        assert about["description"] in content


def test_the_numbers_of_the_page_are_not_all_alike(embedder: Embedder) -> None:
    """A canary: the tests above could not tell cells apart."""
    found = cosines(embedder.encode(TEXTS))[np.triu_indices(len(TEXTS), 1)]
    assert np.ptp(found) > 0.03
