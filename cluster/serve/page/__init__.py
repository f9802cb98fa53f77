"""The page that shows what the served embedder does, and the reference of its API. Needs no key, build or other host.

`index.html` and `docs.html` at `/` and `/docs`; their style and modules at `/page/NAME`. All URLs are relative, so that the
pages work below any path of a proxy.
"""

import hashlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

ASSETS = "/page/"
OPEN_PATHS = ("/", "/docs")
"""Paths of the pages, whose assets are below ASSETS."""
_FOLDER = Path(__file__).parent
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HEADERS = {
    "Cache-Control": "no-cache",  # kept by the browser, which asks each time whether it has changed
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def routes() -> list[Route]:
    """Routes of the pages and of their assets, whose files are read now."""
    files = {path.name: path for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES}
    paths = {"index.html": "/", "docs.html": "/docs"}
    return [Route(paths.get(name, ASSETS + name), _answer(path), methods=["GET"]) for name, path in files.items()]


def _answer(path: Path) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """Answers with a file, or 304 to a browser that has it."""
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = _HEADERS | {"ETag": tag, "Content-Type": f"{_TYPES[path.suffix]}; charset=utf-8"}

    async def answer(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=_HEADERS | {"ETag": tag})
        return Response(content, headers=headers)

    return answer
