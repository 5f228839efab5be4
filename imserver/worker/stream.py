"""Receiving over HTTP: Server-Sent Events, one event for each frame (contract: Receiving over HTTP)."""

from __future__ import annotations

import re
from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from imserver.worker.connection import Connection

_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")  # a body comes as it was written: in JSON these are but space
_HEAD = re.compile(rb'\{"op":"([a-z]+)"(?:,"cursor":"([0-9-]+)")?')


@implementer(IPushProducer)
class EventStream:
    """`connection.Face` on a request of twisted.web: frames out, nothing in."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self._full = False
        self._ended = False
        self.connection: Connection | None = None

    def begin(self, connection: Connection) -> None:
        """Write the headers and go on until either side ends it."""
        self.connection = connection
        request = self._request
        request.setHeader("content-type", "text/event-stream; charset=utf-8")
        request.setHeader("x-accel-buffering", "no")  # nginx would hold events back
        request.channel.setTimeout(None)  # the session's own heartbeat watches it
        request.write(b": im\n\n")
        request.registerProducer(self, True)
        request.notifyFinish().addBoth(lambda _: self._lost())

    def _lost(self) -> None:
        self._ended = True
        if self.connection is not None:
            self.connection.lost()

    # -- Face --------------------------------------------------------------------------------------------------

    def send(self, frame: bytes) -> bool:
        """One event; its id is the frame's cursor, so that a browser resumes with it."""
        if self._ended:
            return False
        found = _HEAD.match(frame)
        op, cursor = found.groups() if found else (b"message", None)
        identity = b"id: %s\n" % cursor if cursor else b""
        self._request.write(b"event: %s\n%sdata: %s\n\n" % (op, identity, frame.translate(_ONE_LINE)))
        return self._full

    def ping(self) -> None:
        """Nothing is ever read from a stream: that the comment can be written has to do."""
        if not self._ended:
            self._request.write(b": ping\n\n")
            if self.connection is not None:
                self.connection.heard()

    def close(self, code: int, reason: str) -> None:
        """End the stream; the client learns why when it asks for a new one."""
        if not self._ended:
            self._ended = True
            self._request.unregisterProducer()
            self._request.finish()

    def hold(self) -> None:
        """Nothing is read anyway."""

    def release(self) -> None:
        """Nothing is read anyway."""

    # -- IPushProducer -----------------------------------------------------------------------------------------

    def pauseProducing(self) -> None:
        """The client does not read."""
        self._full = True
        if self.connection is not None:
            self.connection.paused()

    def resumeProducing(self) -> None:
        """It reads again."""
        self._full = False
        if self.connection is not None:
            self.connection.resumed()

    def stopProducing(self) -> None:
        """The connection is gone; the request's end says so."""
