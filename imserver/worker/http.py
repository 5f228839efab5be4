"""The worker's HTTP calls: the event stream, its acknowledgement, and what every server has."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta
from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request as WebRequest

from imserver.data.interface import Inboxes
from imserver.http.addresses import client_address
from imserver.http.problems import bad_query, forbidden, unauthorized, unavailable
from imserver.http.routes import TAKEN, Call, Route
from imserver.protocol.syntax import Cursor, Device, Platform, position, valid
from imserver.protocol.tokens import Claims, TokenError, Tokens
from imserver.worker.acknowledgements import Acknowledgements
from imserver.worker.actions import Admit
from imserver.worker.admission import Admission
from imserver.worker.stream import EventStream
from imserver.worker.websocket import Hosts


class StreamQuery(msgspec.Struct, frozen=True):
    """Who receives; a browser's EventSource cannot send headers, so the token may come here."""

    device: Device
    token: str = ""
    platform: Platform = "web"


class AckQuery(msgspec.Struct, frozen=True):
    """Which device acknowledges."""

    device: Device


class AckBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything up to and including `cursor` has arrived."""

    cursor: Annotated[Cursor, Meta(description="a position in the user's inbox")]


class Calls:
    """The functions behind the worker's routes."""

    def __init__(
        self,
        clock: IReactorTime,
        tokens: Tokens,
        admission: Admission,
        inboxes: Inboxes,
        acknowledgements: Acknowledgements,
        host: Hosts,
    ) -> None:
        self._clock = clock
        self._tokens = tokens
        self._admission = admission
        self._inboxes = inboxes
        self._acknowledgements = acknowledgements
        self._host = host

    async def authenticate(self, request: WebRequest, scheme: str) -> Claims:
        """The claims of the token in the header, or for a stream in the query."""
        header = request.getHeader("authorization") or ""
        kind, _, token = header.partition(" ")
        if not header and request.args and request.path == b"/v1/stream":
            token = request.args.get(b"token", [b""])[-1].decode("ascii", "replace")
        elif kind.lower() != "bearer":
            raise unauthorized()
        try:
            return self._tokens.verify(token.strip(), self._clock.seconds())
        except TokenError:
            raise unauthorized() from None

    async def stream(self, call: Call) -> Any:
        """`GET /v1/stream`."""
        claims: Claims = call.identity
        request: Any = call.request
        peer = str(getattr(request.getClientAddress(), "host", "unix"))
        trusted = self._host.settings.worker.trusted_proxies
        address = client_address(peer, request.getHeader("x-forwarded-for"), trusted)
        refusal = await self._admission.check(claims, address)
        if refusal is not None:
            raise forbidden(refusal)
        since = request.getHeader("last-event-id") or None
        if since is not None:
            if not valid(Cursor, since):
                raise bad_query("this cursor was not given by this server", "Last-Event-ID")
            await self._acknowledge(claims, call.query.device, since)
        face = EventStream(request)
        connection = self._host.accept(face, address)
        if connection is None:
            raise unavailable("this worker is full, try another")
        face.begin(connection)
        connection.admit_stream(Admit(claims, call.query.device, claims.platform or call.query.platform, since))
        return TAKEN

    async def acknowledge(self, call: Call) -> None:
        """`POST /v1/ack`."""
        await self._acknowledge(call.identity, call.query.device, call.body.cursor)

    async def _acknowledge(self, claims: Claims, device: str, cursor: str) -> None:
        """Never past what the inbox has had: a cursor from the future would hide what is to come."""
        _, last = await self._inboxes.length(claims.uid)
        if last is not None:
            self._acknowledgements.put(claims.uid, device, claims.channels, min(cursor, last, key=position))
            await self._acknowledgements.flush()

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route(
                method="GET",
                path="/v1/stream",
                function=self.stream,
                query=StreamQuery,
                auth="token",
                media="text/event-stream",
                stream=True,
                problems=(403, 503),
                tag="receiving",
                summary="Receive frames as Server-Sent Events",
                description="Each event is one server frame; `Last-Event-ID` acknowledges and resumes.",
            ),
            Route(
                method="POST",
                path="/v1/ack",
                function=self.acknowledge,
                query=AckQuery,
                body=AckBody,
                status=204,
                auth="token",
                problems=(503,),
                tag="receiving",
                summary="Acknowledge everything up to a cursor",
            ),
        ]
