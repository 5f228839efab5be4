"""As little HTTP as a load generator needs: POST over kept-alive connections, one call at a time on each."""

from __future__ import annotations

from collections import deque
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

Answer = tuple[int, bytes]


class _Line(Protocol):
    """One connection."""

    transport: Any

    def __init__(self, free: Any) -> None:
        self._free = free
        self._answer: Deferred[Answer] | None = None
        self._rest = b""

    def post(self, request: bytes, answer: Deferred[Answer]) -> None:
        self._answer = answer
        self.transport.write(request)

    def dataReceived(self, data: bytes) -> None:
        """An answer, or a part of it; our servers always say its length."""
        self._rest += data
        head, found, body = self._rest.partition(b"\r\n\r\n")
        if not found or self._answer is None:
            return
        size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) < size:
            return
        answer, self._answer, self._rest = self._answer, None, b""
        self._free(self)
        answer.callback((int(head[9:12]), body))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.errback(ConnectionLost())


class Calls:
    """Calls to one server with one key, over a fixed number of connections; the others wait in line."""

    def __init__(self, reactor: Any, base: str, key: str) -> None:
        parts = urlsplit(base)
        self._endpoint = TCP4ClientEndpoint(reactor, parts.hostname or "127.0.0.1", parts.port or 80)
        self._host = parts.netloc
        self._key = key
        self._lines: list[_Line] = []
        self._idle: list[_Line] = []
        self._waiting: deque[tuple[bytes, Deferred[Answer]]] = deque()

    async def open(self, connections: int) -> None:
        """Connect."""
        for _ in range(connections):
            line: _Line = await connectProtocol(self._endpoint, _Line(self._freed))
            line.transport.setTcpNoDelay(True)
            self._lines.append(line)
            self._freed(line)

    def post(self, path: str, body: bytes) -> Deferred[Answer]:
        """The status and body of the answer."""
        answer: Deferred[Answer] = Deferred()
        request = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nAuthorization: Bearer {self._key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        if self._idle:
            self._idle.pop().post(request, answer)
        else:
            self._waiting.append((request, answer))
        return answer

    def _freed(self, line: _Line) -> None:
        if self._waiting:
            line.post(*self._waiting.popleft())
        else:
            self._idle.append(line)

    def close(self) -> None:
        """Close every connection."""
        for line in self._lines:
            line.transport.abortConnection()
