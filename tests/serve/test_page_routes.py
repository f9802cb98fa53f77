"""The files of the page: where they are, with which headers, and that nothing in them comes from elsewhere."""

import re
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from cluster.serve import page
from tests.serve.test_front import client

FOLDER = Path(page.__file__).parent
PATHS = [route.path for route in page.routes()]
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
KINDS = {".js": "text/javascript", ".css": "text/css", "": "text/html"}


@pytest.mark.parametrize("path", PATHS)
def test_every_file_has_its_type_and_the_policy(path) -> None:
    answer = client().get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == f"{KINDS[Path(path).suffix]}; charset=utf-8"
    assert answer.headers["content-security-policy"] == POLICY
    assert (answer.headers["cache-control"], answer.headers["x-content-type-options"]) == ("no-cache", "nosniff")


@pytest.mark.parametrize("path", PATHS)
def test_a_file_that_the_browser_has_is_not_sent_again(path) -> None:
    tag = client().get(path).headers["etag"]
    again = client().get(path, headers={"If-None-Match": tag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client().get(path, headers={"If-None-Match": '"other"'}).status_code == 200


def test_all_files_of_the_folder_are_served() -> None:
    names = {path.name for path in FOLDER.iterdir() if path.suffix not in (".py", "")}
    assert {Path(path).name for path in PATHS if path not in page.OPEN_PATHS} | {"index.html", "docs.html"} == names


def test_pages_need_no_key_but_their_data_does() -> None:
    server = client(keys=("k",))
    assert {server.get(path).status_code for path in PATHS} == {200}
    assert {server.get(path).status_code for path in ("/v1/models", "/openapi.json", "/pages", "/docs/x", "/page")} == {401}


@pytest.mark.parametrize("keys", [(), ("k",)])
def test_pages_are_found_below_a_path(keys) -> None:
    server = TestClient(Starlette(routes=[Mount("/models/greek", app=client(keys=keys).app)]))
    assert {server.get(f"/models/greek{path}").status_code for path in (*PATHS, "/health")} == {200}
    assert server.get("/models/greek/v1/models").status_code == (401 if keys else 200)
    bare = server.get("/models/greek", follow_redirects=False)
    assert bare.status_code == 307
    assert bare.headers["location"].endswith("/models/greek/")


@pytest.mark.parametrize("keys", [(), ("k",)])
def test_the_path_itself_leads_to_the_page(keys) -> None:
    """As Ray Serve asks for it, with the whole path and the prefix."""
    server = TestClient(client(keys=keys).app, root_path="/greek")
    assert server.get("/greek/docs").status_code == 200
    bare = server.get("/greek", follow_redirects=False)
    assert (bare.status_code, bare.headers["location"]) == (307, "http://testserver/greek/")


@pytest.mark.parametrize("name", ["index.html", "docs.html"])
def test_urls_are_relative_and_of_this_server(name) -> None:
    content = (FOLDER / name).read_text()
    urls = re.findall(r'(?:href|src|action)="([^"]*)"', content)
    assert urls
    assert not [url for url in urls if re.match(r"(?!data:,)[a-z]+:|/", url)]
    assert not re.findall(r"<style|\sstyle=|<script>|\son[a-z]+=", content)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.js")), ids=lambda path: path.name)
def test_modules_put_no_text_in_as_html_and_name_no_host(path) -> None:
    content = path.read_text()
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?://|localStorage", content)
    assert len(content.splitlines()) < 400
