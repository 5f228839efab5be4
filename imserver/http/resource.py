"""The resource that serves typed routes: checks in the contract's order, problems, CORS, counters (contract:
HTTP)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import resource, server

from imserver.http.inputs import read_json, read_lines, read_path, read_query
from imserver.http.origins import answer_headers, preflight_headers
from imserver.http.problems import MEDIA, Problem, internal, too_large, wrong_media
from imserver.http.routes import METHODS, TAKEN, Call, Reply, Route, Table
from imserver.http.site import BoundedRequest, Overflow

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
UNMATCHED: Final = "unmatched"
CLIENT_GONE: Final = 499

Authenticate = Callable[[server.Request, str], Awaitable[Any]]
Observe = Callable[[str, str, int, float], None]
log = Logger()


@dataclass(slots=True, eq=False)
class _Exchange:
    """One request on its way to its answer."""

    request: BoundedRequest
    since: float
    template: str = UNMATCHED
    gone: bool = False
    work: Deferred[None] | None = None


class Api(resource.Resource):
    """Serves `routes`.

    `authenticate(request, scheme)` gives the identity of who calls, or raises a Problem (401, 403). `errors`
    says which problem an exception of a function means (the data layer's `Unavailable`: 503); any other is
    logged and is a 500 that tells nothing. `allowed_origins` are those whose pages may call us (`*`: any).
    `observe(template, method, status, seconds)` is told of every request when it has ended; 499 is one whose
    client did not wait. A client that goes away cancels the Deferred that its function waits for.
    """

    isLeaf = True

    def __init__(
        self,
        routes: Sequence[Route],
        authenticate: Authenticate,
        *,
        clock: IReactorTime,
        allowed_origins: Collection[str] = (),
        errors: Mapping[type[Exception], Callable[[Any], Problem]] | None = None,
        observe: Observe | None = None,
    ) -> None:
        super().__init__()
        self._table = Table(routes)
        self._authenticate = authenticate
        self._clock = clock
        self._origins = frozenset(allowed_origins)
        self._errors = dict(errors or {})
        self._observe = observe

    def render(self, request: Any) -> int:
        """Begin to serve a request."""
        exchange = _Exchange(request, self._clock.seconds())
        request.notifyFinish().addBoth(self._ended, exchange).addErrback(
            lambda failure: log.failure("Counting a request failed", failure)
        )
        exchange.work = Deferred.fromCoroutine(self._serve(exchange))
        exchange.work.addErrback(lambda failure: log.failure("Answering failed", failure))
        return server.NOT_DONE_YET

    def _ended(self, result: object, exchange: _Exchange) -> None:
        exchange.gone = isinstance(result, Failure)
        try:
            if self._observe is not None:
                method = exchange.request.method.decode("ascii", "replace")
                self._observe(
                    exchange.template,
                    method if method in (*METHODS, "HEAD", "OPTIONS") else "other",
                    CLIENT_GONE if exchange.gone else exchange.request.code,
                    self._clock.seconds() - exchange.since,
                )
        finally:
            if exchange.gone and exchange.work is not None:
                exchange.work.cancel()

    async def _serve(self, exchange: _Exchange) -> None:
        request = exchange.request
        try:
            reply = await self._answer(exchange)
        except CancelledError as error:
            if exchange.gone:
                return
            reply = self._refusal(error)
        except Exception as error:
            reply = self._refusal(error)
        if exchange.gone or reply is None:
            return
        if request.startedWriting:  # it failed while streaming: all that is left is to end the stream
            request.loseConnection()
            return
        status, headers, body = reply
        if request.overflow is not None:
            headers["Connection"] = "close"
        if status != 204:
            headers["Content-Length"] = str(len(body))
        request.setResponseCode(status, HTTPStatus(status).phrase.encode())
        _set(request, headers)
        request.write(body)
        request.finish()

    async def _answer(self, exchange: _Exchange) -> tuple[int, dict[str, str], bytes] | None:
        """The status, headers and body to send, None when the function has taken the request over."""
        request = exchange.request
        origin = request.getHeader("origin")
        _set(
            request,
            {
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                **answer_headers(origin, self._origins),
            },
        )
        match = self._table.find(request.path.decode(errors="surrogateescape"))
        exchange.template = match.template
        route = match.route(request.method.decode("ascii", "replace"))
        if route is None:
            return 204, preflight_headers(origin, self._origins, match.allowed), b""
        call = await self._call(request, route, match.values)
        result = await route.function(call)
        if result is TAKEN:
            return None
        reply = result if isinstance(result, Reply) else Reply(result)
        status = reply.status or route.status
        headers = dict(reply.headers)
        if status == 204:
            return status, headers, b""
        headers.setdefault("Content-Type", route.media)
        value = {} if reply.value is None else reply.value
        return status, headers, value if isinstance(value, bytes) else msgspec.json.encode(value)

    async def _call(self, request: BoundedRequest, route: Route, values: Mapping[str, str]) -> Call:
        """All checks in the order of the contract's table: 413 announced, 401/403, 415, 413 arrived, 400,
        422."""
        if request.overflow is Overflow.ANNOUNCED:
            raise too_large(request.max_body)
        identity = await self._authenticate(request, route.auth) if route.auth else None
        call = Call(request, {}, identity=identity, raw=request.body())
        lines = False
        if route.body is not None and (call.raw or request.overflow):
            lines = _media(request, route) == NDJSON
        if request.overflow is Overflow.ARRIVED:
            raise too_large(request.max_body)
        if route.query is not None:
            call.query = read_query(request.uri.partition(b"?")[2], route.query)
        if lines:
            call.lines = read_lines(call.raw)
        elif route.body is not None:
            # what our own servers send was looked at where it came in, and is nested deeper by now
            checked = route.auth == "cluster"
            call.body = read_json(call.raw or _nothing(route.body), route.body, checked=checked)
        call.path = read_path(values, route.parameters)
        return call

    def _refusal(self, error: Exception) -> tuple[int, dict[str, str], bytes]:
        """What an exception means to the client."""
        problem: Problem | None = error if isinstance(error, Problem) else None
        for kind in type(error).__mro__:
            if problem is None and kind in self._errors:
                problem = self._errors[kind](error)
        if problem is None:
            log.failure("A call failed", Failure(error))
            problem = internal()
        return problem.status, {**problem.headers, "Content-Type": MEDIA}, problem.body()


def _set(request: server.Request, headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        request.setHeader(name, value)


def _media(request: server.Request, route: Route) -> str:
    """The content type of a body, or 415 when the route does not take it."""
    accepted = (JSON, NDJSON) if route.ndjson else (JSON,)
    media = (request.getHeader("content-type") or "").partition(";")[0].strip().lower()
    coding = (request.getHeader("content-encoding") or "identity").strip().lower()
    if media not in accepted or coding != "identity":
        raise wrong_media(" or ".join(accepted) + ", not compressed")
    return media


def _nothing(kind: Any) -> bytes:
    """What no body at all means: an object without any field, if that is enough for a `kind`; else it is not
    JSON."""
    return b"" if any(field.required for field in msgspec.structs.fields(kind)) else b"{}"
