"""The search of the page, in a real browser."""

import json
from typing import Any

import pytest

from tests.serve.browser import TEXTS, search_in, sent

PLANTED = "how to print a page of the document"


def test_a_search_finds_the_planted_line(show, url, embedder, english, tmp_path) -> None:
    lines = [*english[:120], "", PLANTED, *english[120:150]]
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(lines))
    page = show(url, TEXTS)
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda request: bodies.append(sent(request)) if request.url.endswith("v1/embeddings") else None)
    hits = search_in(page, path, PLANTED)
    assert (hits[0], len(hits)) == (PLANTED, 10)
    assert page.text_content("#hits .line") == f"line {lines.index(PLANTED) + 1}"
    texts = [line for line in lines if line]
    scores = embedder.encode([PLANTED], prompt_name="query") @ embedder.encode(texts, prompt_name="document").T
    shown = page.eval_on_selector_all("#hits .score", "all => all.map(one => one.firstChild.textContent)")
    assert [float(score) for score in shown] == pytest.approx(sorted(scores[0], reverse=True)[:10], abs=6e-4)
    documents = [body["input"] for body in bodies if body.get("input_type") == "document"]
    assert [text for batch in documents for text in batch] == texts
    assert max(map(len, documents)) <= 50  # the server's max_inputs
    assert bodies[-1]["input_type"] == "query"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", f'id,<i>text</i>\r\n1,"click, the ""button"""\r\n2,"{PLANTED}"\r\n3,"two\nlines"\r\n'),
        ("a.tsv", f"id\tthe text\n1\tclick the button\n2\t{PLANTED}\n"),
        ("a.jsonl", json.dumps({"n": 1, "id": "x", "text": "click"}) + "\n" + json.dumps({"id": "y", "text": PLANTED}) + "\n"),
    ],
)
def test_a_column_of_a_table_is_searched(show, url, tmp_path, name, content) -> None:
    (tmp_path / name).write_bytes(content.encode())
    page = show(url, TEXTS)
    page.set_input_files("#file", tmp_path / name)
    page.wait_for_selector("#column:visible")
    assert page.text_content("#column option:first-child") in ("<i>text</i>", "the text", "text")
    hits = search_in(page, tmp_path / name, PLANTED)
    assert hits[0] == PLANTED
    if name == "a.csv":
        assert set(hits[1:]) == {'click, the "button"', "two\nlines"}
    page.select_option("#column", "id")
    page.wait_for_selector("#encode:visible")


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.txt", b"\xff\xfe\x00", "a.txt is not text in UTF-8. Save it as UTF-8."),
        ("a.jsonl", b'{"a": "b"}\n{', "a.jsonl: line 2 is not JSON."),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_a_line(show, url, tmp_path, name, content, line) -> None:
    (tmp_path / name).write_bytes(content)
    page = show(url, TEXTS)
    page.set_input_files("#file", tmp_path / name)
    page.wait_for_selector("#search-problem:visible")
    assert page.text_content("#search-problem").startswith(line)


def test_a_busy_server_is_asked_again_and_a_stopped_search_keeps_what_it_has(show, url, english, tmp_path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(english[:100]))
    page = show(url, TEXTS, refusals=True)
    answers = iter([429, 200, 503])

    def answer(route: Any) -> None:
        if sent(route.request).get("input_type") == "document" and (status := next(answers, 503)) != 200:
            return route.fulfill(status=status, headers={"Retry-After": "0.2" if status == 429 else "60"}, body="{}")
        return route.continue_()

    page.route("**/v1/embeddings", answer)
    page.set_input_files("#file", path)
    page.click("#encode")
    page.wait_for_function("() => document.querySelector('#search-status').textContent.includes('Next try in 60 s')")
    page.click("#encode-stop")
    page.wait_for_function(
        "() => document.querySelector('#search-status').textContent.startsWith('Stopped after 50 of 100 lines')"
    )
    page.fill("#query", english[3])
    page.wait_for_selector("#hits li")
    assert page.text_content("#hits .text") == english[3]
