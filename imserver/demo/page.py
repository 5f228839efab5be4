"""The demo's own web site: the page where a customer and an agent write to each other, and their tokens."""

from __future__ import annotations

import mimetypes
from collections.abc import Callable
from importlib import resources
from typing import Any

import msgspec
from twisted.web import resource, server
from twisted.web.iweb import IRequest

_HOSTS = frozenset({"127.0.0.1", "localhost"})
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_POLICY = (
    "default-src 'self'; connect-src 'self' ws: http:; img-src 'self' data: http: https:; style-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Server": "imserver",
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_PLAIN = "text/plain; charset=utf-8"


class Page(resource.Resource):
    """The files of `imserver.web`, and ``/session.json`` with what `session` gives at each request.

    It hands out tokens, so a request under a name other than the loopback's is refused: a page elsewhere
    whose name is suddenly said to be 127.0.0.1 must not read them.
    """

    isLeaf = True

    def __init__(self, session: Callable[[], dict[str, Any]]) -> None:
        super().__init__()
        self._session = session

    def render(self, request: IRequest) -> bytes:
        """Answer any request."""
        status, kind, body, more = self._answer(request)
        request.setResponseCode(status)
        for name, value in {
            **_HEADERS,
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            **more,
        }.items():
            request.setHeader(name, value)
        return b"" if request.method == b"HEAD" else body

    def _answer(self, request: Any) -> tuple[int, str, bytes, dict[str, str]]:
        if request.getRequestHostname().decode("latin-1").lower() not in _HOSTS:
            return 403, _PLAIN, b"This page is served to 127.0.0.1 and localhost only.\n", {}
        if request.method not in (b"GET", b"HEAD"):
            return 405, _PLAIN, b"Only GET and HEAD.\n", {"Allow": "GET, HEAD"}
        path = request.path.decode("latin-1").removeprefix("/") or "index.html"
        if path == "session.json":
            return 200, "application/json", msgspec.json.encode(self._session()), {}
        content = _file(path)
        if content is None:
            return 404, _PLAIN, b"There is no such file here.\n", {}
        return 200, _type(path), content, {}


def site(session: Callable[[], dict[str, Any]]) -> server.Site:
    """The page as something to listen with."""
    made = server.Site(Page(session), timeout=60)
    made.noisy = False
    made.displayTracebacks = False
    return made


def _file(path: str) -> bytes | None:
    """A file of the package's folder, which has no folders in it; code of Python is not for the page."""
    name = path.rpartition("/")[2]
    if name != path or name.startswith((".", "_")) or name.endswith((".py", ".pyc")):
        return None
    file = resources.files("imserver").joinpath("web", name)
    return file.read_bytes() if file.is_file() else None


def _type(path: str) -> str:
    ending = path[path.rfind(".") :]
    kind = _TYPES.get(ending) or mimetypes.guess_type(path)[0] or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind
