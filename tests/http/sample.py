"""A small server over a real socket, and a raw client, for the tests of the HTTP framework."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from prometheus_client import CollectorRegistry, Counter
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web import server

from imserver.http import problems
from imserver.http.inputs import read_json
from imserver.http.resource import Api
from imserver.http.routes import TAKEN, Call, Reply, Route
from imserver.http.site import BoundedChannel, Site
from imserver.http.standard import with_standard

Uid = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.:@-]*$")]


class Away(Exception):
    """What the data layer raises when it is away."""


class Push(msgspec.Struct, forbid_unknown_fields=True):
    """One message."""

    to: Uid
    type: Annotated[str, msgspec.Meta(pattern="^[a-z]+$")]
    body: msgspec.Raw
    sender: Uid | msgspec.UnsetType = msgspec.field(name="from", default=msgspec.UNSET)
    ttl_s: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None


class Pushes(msgspec.Struct, forbid_unknown_fields=True):
    """Many messages."""

    messages: Annotated[list[Push], msgspec.Meta(max_length=1000)]


class RawPushes(msgspec.Struct, forbid_unknown_fields=True):
    """Many messages, each to be read on its own."""

    messages: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=1000)]


class Page(msgspec.Struct):
    """A part of a list."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 50
    wait_s: float = 0.0
    state: str | None = None


class Options(msgspec.Struct, forbid_unknown_fields=True):
    """All fields optional."""

    reason: str = "none"


class Seen(msgspec.Struct):
    """What arrived."""

    what: Any = None


class Results(msgspec.Struct):
    """What became of each message."""

    results: list[Any]


class WatchedChannel(BoundedChannel):
    """Tells when it has closed."""

    def connectionMade(self) -> None:
        """Be counted."""
        super().connectionMade()
        self.gone: Deferred[None] = Deferred()
        self.factory.open.append(self)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Be gone."""
        super().connectionLost(reason)
        self.factory.open.remove(self)
        self.gone.callback(None)


class Sample:
    """The server; `address` is its base URL, `seen` what `observe` was told, `cancelled` fires when a call
    was."""

    def __init__(self, **settings: Any) -> None:
        self.seen: list[tuple[str, str, int]] = []
        self.cancelled: Deferred[None] = Deferred()
        self.waiting: Deferred[None] = Deferred()
        self.checks: dict[str, Any] = {}
        registry = CollectorRegistry()
        Counter("calls", "Calls", registry=registry).inc()
        max_body = settings.pop("max_body", 1024 * 1024)
        self.routes = with_standard(
            self.own_routes(),
            title="Sample",
            version="1",
            checks=self.checks,
            registry=registry,
            clock=reactor,
        )
        self.api = Api(
            self.routes,
            self.authenticate,
            clock=reactor,  # type: ignore[arg-type]
            errors={Away: lambda error: problems.unavailable("The data layer is away.")},
            observe=lambda template, method, status, seconds: self.seen.append((template, method, status)),
            **settings,
        )
        site = Site(self.api, reactor, max_body=max_body)  # type: ignore[arg-type]
        site.protocol = WatchedChannel  # type: ignore[assignment]
        self.open: list[WatchedChannel] = []
        site.open = self.open  # type: ignore[attr-defined]
        self.port = reactor.listenTCP(0, site, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.number = self.port.getHost().port
        self.address = f"http://127.0.0.1:{self.number}"

    async def stop(self) -> None:
        """Stop listening and close what is open."""
        await self.port.stopListening()
        for channel in [*self.open]:
            channel.transport.abortConnection()
            await channel.gone

    async def authenticate(self, request: server.Request, scheme: str) -> str:
        """Know one key, and one that may do nothing."""
        given = request.getHeader("authorization")
        if given == "Bearer poor":
            raise problems.forbidden("Not with this key.")
        if given != "Bearer good":
            raise problems.unauthorized()
        return "channel"

    def own_routes(self) -> list[Route]:
        """One route of each kind."""

        async def push(call: Call) -> Seen:
            return Seen({"to": call.body.to, "body": call.body.body, "identity": call.identity})

        async def batch(call: Call) -> Results:
            raws = call.lines if call.lines is not None else call.body.messages
            results: list[Any] = []
            for index, raw in enumerate(raws):
                try:
                    results.append(read_json(raw, Push, prefix=f"messages[{index}]", checked=call.lines is None).to)
                except problems.Problem as problem:
                    results.append({"error": problem.document()})
            return Results(results)

        async def typed(call: Call) -> Seen:
            return Seen(len(call.body.messages))

        async def user(call: Call) -> Seen:
            return Seen(call.path["uid"])

        async def close(call: Call) -> Seen:
            return Seen(call.body.reason)

        async def page(call: Call) -> Seen:
            return Seen(call.query)

        async def nothing(call: Call) -> None:
            return None

        async def broken(call: Call) -> None:
            raise ValueError("secret")

        async def away(call: Call) -> None:
            raise Away

        async def busy(call: Call) -> Reply:
            raise problems.rate_limited(7)

        async def taken(call: Call) -> None:
            raise problems.conflict("No.", "no_agent")

        async def wait(call: Call) -> None:
            self.waiting.callback(None)
            try:
                await Deferred()
            except CancelledError:
                self.cancelled.callback(None)
                raise

        async def stream(call: Call) -> Any:
            call.request.setHeader("Content-Type", "text/event-stream")
            call.request.write(b"data: 1\n\n")
            call.request.finish()
            return TAKEN

        def get(path: str, function: Any, **more: Any) -> Route:
            return Route(method="GET", path=path, function=function, summary=path, **more)

        def post(path: str, function: Any, **more: Any) -> Route:
            return Route(method="POST", path=path, function=function, summary=path, **more)

        return [
            post("/v1/push", push, body=Push, answer=Seen, status=202, auth="key", tag="push"),
            post(
                "/v1/push/batch",
                batch,
                body=RawPushes,
                body_shown=Pushes,
                answer=Results,
                ndjson=True,
                status=202,
                auth="key or token",
                tag="push",
            ),
            post("/v1/typed", typed, body=Pushes, answer=Seen),
            get("/v1/users/{uid}", user, parameters={"uid": Uid}, answer=Seen, tag="users"),
            get("/v1/users/me", nothing, tag="users"),
            Route(
                method="DELETE",
                path="/v1/users/{uid}",
                function=close,
                body=Options,
                answer=Seen,
                summary="close",
                parameters={"uid": Uid},
                tag="users",
            ),
            get("/v1/page", page, query=Page, answer=Seen),
            post("/v1/ack", nothing, status=204),
            get("/v1/broken", broken),
            get("/v1/away", away),
            get("/v1/busy", busy),
            get("/v1/taken", taken),
            get("/v1/wait", wait),
            get("/v1/stream", stream, stream=True, media="text/event-stream"),
        ]


class Wire(Protocol):
    """A raw TCP client: `ended` fires with all that came when the other side has closed."""

    def __init__(self) -> None:
        self.received = b""
        self.ended: Deferred[bytes] = Deferred()
        self._wanted: list[tuple[bytes, Deferred[bytes]]] = []

    def dataReceived(self, data: bytes) -> None:
        """Keep it, and tell who waits for it."""
        self.received += data
        for marker, found in [*self._wanted]:
            if marker in self.received:
                self._wanted.remove((marker, found))
                found.callback(self.received)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end."""
        self.ended.callback(self.received)

    def until(self, marker: bytes) -> Deferred[bytes]:
        """All that came as soon as `marker` is in it."""
        found: Deferred[bytes] = Deferred()
        self._wanted.append((marker, found))
        self.dataReceived(b"")
        return found


async def connect(number: int) -> Any:
    """A raw connection to a port of this machine."""
    from twisted.internet.endpoints import TCP4ClientEndpoint

    return await TCP4ClientEndpoint(reactor, "127.0.0.1", number).connect(Factory.forProtocol(Wire))
