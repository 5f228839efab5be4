"""As little WebSocket as a load generator needs, so that it costs less than what it measures.

Frames go out masked with zeros, which is what the server has to unmask all the same; what comes in is neither masked
nor cut into fragments by our servers.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from typing import Any

from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

_HEAD_MAX = 16384
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10


class WebSocket(Protocol):
    """One connection: `opened()` after the handshake, `received(frame)` for each text frame, `closed(why)` once."""

    transport: Any

    def __init__(
        self, host: str, opened: Callable[[], None], received: Callable[[bytes], None], closed: Callable[[str], None]
    ) -> None:
        self._host = host
        self._opened = opened
        self._received = received
        self._closed = closed
        self._open = False
        self._rest = b""
        self._why = ""

    def connectionMade(self) -> None:
        """Begin the handshake."""
        self.transport.setTcpNoDelay(True)
        key = base64.b64encode(os.urandom(16)).decode()
        self.transport.write(
            f"GET /ws HTTP/1.1\r\nHost: {self._host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def dataReceived(self, data: bytes) -> None:
        """The handshake's answer, then frames."""
        if self._rest:
            data = self._rest + data
        if not self._open:
            head, found, data = data.partition(b"\r\n\r\n")
            if not found:
                self._rest = head
                if len(head) > _HEAD_MAX:
                    self.transport.abortConnection()
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self._why = head.split(b"\r\n", 1)[0].decode("latin-1")
                self.transport.loseConnection()
                return
            self._open, self._rest = True, b""
            self._opened()
        self._frames(data)

    def _frames(self, data: bytes) -> None:
        start, end = 0, len(data)
        while end - start >= 2:
            size = data[start + 1]
            body = start + 2
            if size == 126:
                body += 2
                size = int.from_bytes(data[start + 2 : body], "big")
            elif size == 127:
                body += 8
                size = int.from_bytes(data[start + 2 : body], "big")
            if end < body + size:
                break
            self._frame(data[start] & 15, data[body : body + size])
            start = body + size
        self._rest = data[start:]

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == _TEXT:
            self._received(payload)
        elif opcode == _PING:
            self._write(_PONG, payload)
        elif opcode == _CLOSE:
            self._why = f"{int.from_bytes(payload[:2], 'big')} {payload[2:].decode('utf-8', 'replace')}"
            self.transport.loseConnection()

    def send(self, text: bytes) -> None:
        """One text frame."""
        self._write(_TEXT, text)

    def _write(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            head = bytes((0x80 | opcode, 0x80 | size))
        elif size < 65536:
            head = bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2, "big")
        else:
            head = bytes((0x80 | opcode, 0xFF)) + size.to_bytes(8, "big")
        self.transport.write(head + b"\0\0\0\0" + payload)

    def close(self) -> None:
        """Be gone."""
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is gone, whoever ended it."""
        self._closed(self._why or reason.getErrorMessage())
