"""WebSockets: the one module that knows Autobahn.

Autobahn copies some 30 options into every connection and keeps the handshake's leftovers; `protocol_class` makes the
options class attributes, and what only the handshake needed is dropped when it is over (docs: memory).
"""

from __future__ import annotations

import socket
from collections import deque
from typing import Any, Protocol

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket import USES_NVX
from autobahn.websocket.protocol import TrafficStats
from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from zope.interface import implementer

from imserver import config
from imserver.http.addresses import client_address
from imserver.protocol import codes
from imserver.worker.connection import Connection, Face

log = Logger()
SUBPROTOCOL = "im.v1"
HANDSHAKE_MAX = 16384
"""Bytes of a handshake; Autobahn itself has no limit."""
CLOSE_S = 3.0
SLOW_CLOSE_S = 30.0
"""A reader that is too slow gets so long to read why it was closed."""
_NOT_SENT_LOW_WATER = 65536  # unsent bytes the kernel takes per socket: the rest stays where it is counted
_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)


class Hosts(Protocol):
    """What the protocol needs of its worker."""

    settings: config.Config

    def accept(self, face: Face, ip: str) -> Connection | None:
        """A new connection; None if there is no room for it."""


@implementer(IPushProducer)
class ImProtocol(WebSocketServerProtocol):  # type: ignore[misc]
    """One WebSocket: hands frames to its `Connection` and writes what that gives."""

    host: Hosts
    transport: Any
    connection: Connection | None = None
    _full = False

    # -- Autobahn ----------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """A socket was accepted; the handshake follows."""
        super().connectionMade()
        handle = getattr(self.transport, "getHandle", lambda: None)()
        if isinstance(handle, socket.socket) and handle.family != socket.AF_UNIX:
            try:
                handle.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _NOT_SENT_LOW_WATER)
                self.transport.setTcpKeepAlive(True)
            except OSError as error:  # not on this system: the buffer is the kernel's own then
                log.debug("no limit for unsent bytes: {why}", why=str(error))

    def dataReceived(self, data: bytes) -> None:
        """Bytes arrived; too many of them before the handshake is over end the connection."""
        if self.connection is not None:
            self.connection.heard()
        elif self.state == self.STATE_CONNECTING and len(self.data) + len(data) > HANDSHAKE_MAX:
            self.transport.abortConnection()
            return
        self._dataReceived(data)

    def onConnect(self, request: ConnectionRequest) -> str | None:
        """The handshake: which subprotocol, if any; `ConnectionDeny` refuses."""
        if request.path != "/ws":
            raise ConnectionDeny(404, "the WebSocket is at /ws")
        if request.protocols and SUBPROTOCOL not in request.protocols:
            raise ConnectionDeny(400, f"this server speaks {SUBPROTOCOL}")
        return SUBPROTOCOL if request.protocols else None

    def onOpen(self) -> None:
        """The handshake is over."""
        self.transport.registerProducer(self, True)
        self.connection = self.host.accept(self, self._address())
        if self.connection is None:
            self.close(codes.OVERLOADED, "this worker is full, try another")
        self._slim()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """One whole message; Autobahn has checked its size and UTF-8."""
        if self.connection is None:
            return
        if isBinary:
            self.connection.end(codes.BINARY, "frames are text")
        else:
            self.connection.received(payload)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """The connection is gone, whoever ended it."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.lost()

    def _slim(self) -> None:
        """Keep only what differs from connection to connection, which is little (docs/memory.rst).

        What is the same for all at rest becomes an attribute of the class; whatever Autobahn sets later is the
        connection's own again.
        """
        mine, shared = self.__dict__, type(self)
        for name, value in list(mine.items()):
            if name in _LEFTOVERS:
                del mine[name]
            elif value is None or isinstance(value, int) or value in (b"", ""):
                if not hasattr(shared, name):
                    setattr(shared, name, value)
                if getattr(shared, name) is value:
                    del mine[name]
        self.__dict__ = dict(mine)

    def _address(self) -> str:
        peer = str(getattr(self.transport.getPeer(), "host", "")) or "unix"
        forwarded = self.http_headers.get("x-forwarded-for")
        return client_address(peer, forwarded, self.host.settings.worker.trusted_proxies)

    # -- Face --------------------------------------------------------------------------------------------------

    def send(self, frame: bytes) -> bool:
        """Write one frame as it is: one unmasked text frame; true if the buffer was full already."""
        if self.state != self.STATE_OPEN:
            return False
        size = len(frame)
        if size < 126:
            head = bytes((0x81, size))
        elif size < 65536:
            head = b"\x81\x7e" + size.to_bytes(2, "big")
        else:
            head = b"\x81\x7f" + size.to_bytes(8, "big")
        self.transport.writeSequence((head, frame))
        return self._full

    def ping(self) -> None:
        """A ping of the protocol; whatever is read next counts as an answer."""
        if self.state == self.STATE_OPEN:
            self.sendPing()

    def close(self, code: int, reason: str) -> None:
        """Say why and close; what was not read meanwhile is dropped after a while."""
        if self.state != self.STATE_OPEN:
            return
        self.closeHandshakeTimeout = SLOW_CLOSE_S if code == codes.SLOW_READER else CLOSE_S
        # sendClose() would refuse 1001 and 1013
        self.sendCloseFrame(code=code, reasonUtf8=reason.encode()[:120].decode(errors="ignore").encode())

    def hold(self) -> None:
        """Read nothing more for now."""
        self.transport.pauseProducing()

    def release(self) -> None:
        """Read again."""
        self.transport.resumeProducing()

    # -- IPushProducer: the transport's buffer -----------------------------------------------------------------

    def pauseProducing(self) -> None:
        """The transport's buffer is full: the client does not read."""
        self._full = True
        if self.connection is not None:
            self.connection.paused()

    def resumeProducing(self) -> None:
        """It is empty again."""
        self._full = False
        if self.connection is not None:
            self.connection.resumed()

    def stopProducing(self) -> None:
        """The connection is gone; `onClose` says so."""


class _Unheard:
    """Stands in for the Deferreds `is_open` and `is_closed`, for which nobody waits here."""

    def callback(self, result: object) -> None:
        """Nobody hears it."""


_LEFTOVERS = frozenset(
    {
        *("http_headers", "http_request_data", "http_response_data", "http_request_host", "http_request_params"),
        *("http_request_path", "http_request_uri", "http_status_line", "websocket_extensions", "websocket_protocols"),
        *("websocket_key", "_wskey", "_transport_details", "peer"),
        *("is_open", "is_closed", "trafficStats", "send_queue", "_valid_events", "_results"),
    }
)
"""Of the handshake, or things that Autobahn makes for each connection and that one for all can stand in for."""


def server_factory(host: Hosts) -> WebSocketServerFactory:
    """What a worker listens with on its `listen`."""
    if not USES_NVX:
        log.critical("Autobahn runs without its NVX extension: large frames take 20 times as long; install its wheel")
    limits = host.settings.connection
    factory = WebSocketServerFactory(protocols=[SUBPROTOCOL], server="imserver")
    factory.setProtocolOptions(
        webStatus=False,
        allowedOrigins=host.settings.worker.allowed_origins,
        allowNullOrigin="*" in host.settings.worker.allowed_origins,
        maxFramePayloadSize=limits.max_frame,
        maxMessagePayloadSize=limits.max_frame,
        failByDrop=False,
        echoCloseCodeReason=False,
        openHandshakeTimeout=limits.hello_timeout_s + 1.0,  # Autobahn's timers fire up to a second early
        closeHandshakeTimeout=CLOSE_S,
        tcpNoDelay=True,
        autoPingInterval=0,
        autoFragmentSize=0,
        utf8validateIncoming=True,
        requireMaskedClientFrames=True,
        perMessageCompressionAccept=lambda offers: None,
    )
    factory.protocol = protocol_class(factory, host)
    factory.noisy = False
    return factory


def protocol_class(factory: Any, host: Hosts) -> type[ImProtocol]:
    """`ImProtocol` with the factory's options as class attributes, so that no connection has a copy of them."""
    options = {}
    for name in ImProtocol.CONFIG_ATTRS:
        value = getattr(factory, name)
        options[name] = staticmethod(value) if callable(value) else value
    shared = {"is_open": _Unheard(), "is_closed": _Unheard(), "trafficStats": TrafficStats(), "send_queue": deque()}
    return type("ImProtocol", (ImProtocol,), {**options, **shared, "host": host, "peer": None})
