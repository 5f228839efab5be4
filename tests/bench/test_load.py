"""The two ways to make load, and the smallest WebSocket, without servers."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import TestCase

from imserver.bench.load import looped, paced
from imserver.bench.websocket import WebSocket


class PacedTests(TestCase):
    """Load at a rate."""

    def test_each_at_its_time(self) -> None:
        """As many as the rate asks for, none early."""
        clock, fired = Clock(), list[tuple[int, float]]()
        done = Deferred.fromCoroutine(paced(clock, 10, 1.0, lambda i: fired.append((i, round(clock.seconds(), 3)))))
        clock.pump([0.01] * 100)
        self.assertEqual([number for number, _ in fired], list(range(10)))
        self.assertTrue(all(number / 10 <= at <= number / 10 + 0.02 for number, at in fired))
        self.assertLess(self.successResultOf(done), 0.02)

    def test_late(self) -> None:
        """Who could not keep up catches up, and says how late it was."""
        clock, fired = Clock(), list[int]()
        done = Deferred.fromCoroutine(paced(clock, 10, 1.0, fired.append))
        clock.advance(5.0)
        self.assertEqual(fired, list(range(10)))
        self.assertAlmostEqual(self.successResultOf(done), 4.9)

    def test_failure(self) -> None:
        """An exception ends it."""
        done = Deferred.fromCoroutine(paced(Clock(), 10, 1.0, lambda i: 1 / 0))
        self.failureResultOf(done, ZeroDivisionError)


class LoopedTests(TestCase):
    """Load as fast as the answers come."""

    def test_width(self) -> None:
        """So many at a time, each the next when the one before is done, until the time is over."""
        clock, waiting = Clock(), list[Deferred[None]]()

        async def one(number: int) -> None:
            waiting.append(Deferred())
            await waiting[-1]

        done = Deferred.fromCoroutine(looped(clock, 3, 1.0, one))
        self.assertEqual(len(waiting), 3)
        waiting[0].callback(None)
        self.assertEqual(len(waiting), 4)
        clock.advance(1.0)
        for answer in waiting[1:]:
            answer.callback(None)
        self.assertEqual(len(waiting), 4)
        self.assertEqual(self.successResultOf(done), 1.0)

    def test_failure(self) -> None:
        """The first exception is the result."""

        async def one(number: int) -> None:
            raise ValueError("no")

        self.failureResultOf(Deferred.fromCoroutine(looped(Clock(), 2, 1.0, one)), ValueError)


class _Transport(StringTransport):
    def setTcpNoDelay(self, enabled: bool) -> None:
        """As a TCP transport has it."""


class WebSocketTests(TestCase):
    """Frames, however they are cut."""

    def setUp(self) -> None:
        """One connection that notes all."""
        self.heard: list[object] = []
        self.socket = WebSocket("h", lambda: self.heard.append("open"), self.heard.append, self.heard.append)
        self.wire = _Transport()
        self.socket.makeConnection(self.wire)

    def test_frames(self) -> None:
        """Short and long frames and a ping, byte by byte."""
        sent = (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x02{}\x89\x01p\x81\x7e\x01\x00"
            + b"x" * 256
        )
        self.wire.clear()
        for byte in sent:
            self.socket.dataReceived(bytes([byte]))
        self.assertEqual(self.heard, ["open", b"{}", b"x" * 256])
        self.assertEqual(self.wire.value(), b"\x8a\x81\0\0\0\0p")

    def test_together(self) -> None:
        """All at once."""
        self.socket.dataReceived(b"HTTP/1.1 101 x\r\n\r\n\x81\x01a\x81\x01b")
        self.assertEqual(self.heard, ["open", b"a", b"b"])

    def test_refused(self) -> None:
        """Another answer than 101 ends it, and is told."""
        self.socket.dataReceived(b"HTTP/1.1 404 Not Found\r\n\r\n")
        self.assertTrue(self.wire.disconnecting)
        self.socket.connectionLost()
        self.assertEqual(self.heard, ["HTTP/1.1 404 Not Found"])

    def test_sizes(self) -> None:
        """What is sent is masked, with the shortest length that does."""
        for size, head in (
            (5, b"\x81\x85"),
            (300, b"\x81\xfe\x01\x2c"),
            (70000, b"\x81\xff" + (70000).to_bytes(8, "big")),
        ):
            self.wire.clear()
            self.socket.send(b"y" * size)
            self.assertEqual(self.wire.value(), head + b"\0\0\0\0" + b"y" * size)
