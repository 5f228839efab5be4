"""The HTTP/1.1 server below the routes: twisted.web with bounds on what is read and for how long.

twisted.web itself has no bound on a body. Here a request whose body is over the bound is answered at once -
when it announces that by Content-Length, or when the byte over the bound arrives - and what still comes is
read and thrown away for a while: closing a socket with unread bytes makes the kernel reset the connection,
and the client would lose the answer that says why.
"""

from __future__ import annotations

from enum import Enum
from io import BytesIO
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime, ISSLTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, resource, server

from imserver.http.problems import MEDIA, Problem

MAX_BODY = 1024 * 1024
IDLE_S = 60.0
LINGER_S = 5.0
_MAX_DISCARDED = 64 * 1024 * 1024


class Overflow(Enum):
    """How a body is over the bound."""

    ANNOUNCED = "announced"
    ARRIVED = "arrived"


class _BodyTooLarge(Exception):
    """Ends the reading of a body from within."""


class BoundedRequest(server.Request):
    """A request that never holds more than the site's `max_body` bytes of body. `overflow` tells when it had
    more."""

    overflow: Overflow | None = None
    defaultContentType = None
    _arrived = 0

    @property
    def max_body(self) -> int:
        """The bound, in bytes."""
        return self.channel.site.max_body if isinstance(self.channel, BoundedChannel) else MAX_BODY

    def gotLength(self, length: int | None) -> None:
        """Keep the body in memory, whatever its length: it is bounded."""
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        """Take a piece of the body, unless it is one too many."""
        self._arrived += len(data)
        if self._arrived > self.max_body:
            self.overflow = Overflow.ARRIVED
            self.content = BytesIO()
            raise _BodyTooLarge
        super().handleContentChunk(data)

    def process(self) -> None:
        """Look up and render. `OPTIONS *` means nothing here; it is a path like any other that does not
        exist."""
        if self.path == b"*":
            self.path = b"/*"
        super().process()

    def render(self, resrc: Any) -> None:
        """Render, without telling which version of what this is."""
        self.setHeader(b"Server", b"imserver")
        super().render(resrc)

    def body(self) -> bytes:
        """The whole body."""
        return self.content.getvalue() if isinstance(self.content, BytesIO) else b""


class BoundedChannel(http.HTTPChannel):
    """One connection: bounds on headers, and answers that arrive although the client still sends."""

    maxHeaders = 100
    site: Site
    transport: Any  # None before and after the connection, a transport in all that is done here
    _log = Logger()
    _discarding = False
    _discarded = 0
    _closing: IDelayedCall | None = None

    def dataReceived(self, data: bytes) -> None:
        """Parse, or after an overflow throw away."""
        if self._discarding:
            self._discarded += len(data)
            if self._discarded > _MAX_DISCARDED:
                self._drop()
            return
        super().dataReceived(data)

    def headerReceived(self, line: bytes) -> bool:
        """Take a header; a Content-Length of thousands of digits, which int() refuses, is a bad request
        too."""
        try:
            return bool(super().headerReceived(line))
        except ValueError:
            self._respondToBadRequestAndDisconnect()
            return False

    def allHeadersReceived(self) -> None:
        """Refuse a body that announces to be too large before it comes (and before `100 Continue` asks for
        it)."""
        request = self.requests[-1]
        over = self.length is not None and self.length > self.site.max_body
        if over:
            request.overflow = Overflow.ANNOUNCED
            request.requestHeaders.removeHeader(b"Expect")
        super().allHeadersReceived()
        if over:
            self._discard()
            self.length = 0  # the caller takes it for complete then, and has it processed at once

    def rawDataReceived(self, data: bytes) -> None:
        """Take a piece of a body; at the first byte too many the request is processed, without it."""
        if self._discarding:
            return
        try:
            super().rawDataReceived(data)
        except _BodyTooLarge:
            self._discard()
            self.allContentReceived()

    def loseConnection(self) -> None:
        """Close; after an overflow our side first, and the other when the client has, or after LINGER_S
        seconds."""
        if not self._discarding:
            super().loseConnection()
        elif self._closing is None:
            self.transport.unregisterProducer()
            if not ISSLTransport.providedBy(self.transport):  # TLS has no half close
                self.transport.loseWriteConnection()
            self._closing = self.site.reactor.callLater(LINGER_S, self._drop)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """The connection is gone, and with it what waited for that."""
        if self._closing is not None and self._closing.active():
            self._closing.cancel()
        super().connectionLost(reason)

    def _discard(self) -> None:
        self._discarding = True
        self.persistent = False
        self.clearLineBuffer()

    def _drop(self) -> None:
        self.transport.abortConnection()

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Answer what is not HTTP with a problem, too (twisted.web sends a bare 400)."""
        if self._discarding:
            return
        body = Problem(400, "invalid_frame", "This is not well-formed HTTP.").body()
        head = (
            f"HTTP/1.1 400 Bad Request\r\nServer: imserver\r\nContent-Type: {MEDIA}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._discard()
        self.loseConnection()


class Site(server.Site):
    """The factory to listen with: `resource` at the root, bodies of at most `max_body` bytes, connections
    that may be idle for `idle_s` seconds."""

    protocol = BoundedChannel  # type: ignore[assignment]
    requestFactory = BoundedRequest

    def __init__(
        self,
        resource: resource.IResource,
        reactor: IReactorTime,
        *,
        max_body: int = MAX_BODY,
        idle_s: float = IDLE_S,
    ) -> None:
        super().__init__(resource, timeout=idle_s, reactor=reactor, parsePOSTFormSubmission=False)
        self.max_body = max_body

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 only: the bounds are in its channel."""
        return [b"http/1.1"]

    def log(self, request: http.Request) -> None:
        """Write no access log: metrics count the calls."""
