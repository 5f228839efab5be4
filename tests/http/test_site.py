"""Bounds on what is read: the 413 arrives although the client still sends, and nothing is kept."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock, cooperate
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from imserver.http.client import HttpClient
from imserver.http.resource import Api
from imserver.http.routes import Call, Route
from imserver.http.site import LINGER_S, Site
from tests.http.sample import Options, Sample, Wire, connect

HEAD = b"POST /v1/push HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\nContent-Type: application/json\r\n"
MIB = 1024 * 1024


class Pipe(StringTransport):
    """A transport that remembers what was asked of it."""

    half_closed = False

    def loseWriteConnection(self) -> None:
        """Close our side."""
        self.half_closed = True


class Times(TestCase):
    """How long a connection may be of no use."""

    def setUp(self) -> None:
        """Make a connection, with a clock to turn."""

        async def nobody(request: object, scheme: str) -> None:
            raise AssertionError("nothing here needs a key")

        async def take(call: Call) -> None:
            return None

        self.clock, self.pipe = Clock(), Pipe()
        routes = [Route(method="POST", path="/v1/push", function=take, summary="Take", body=Options)]
        api = Api(routes, nobody, clock=self.clock)
        site = Site(api, self.clock, max_body=10)
        self.channel: Any = site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        self.channel.makeConnection(self.pipe)

    def test_idle(self) -> None:
        """One on which nothing comes is closed after 60 s, also within a request."""
        self.channel.dataReceived(HEAD + b"Content-Length: 9\r\n\r\n1")
        self.clock.advance(59)
        self.assertFalse(self.pipe.disconnecting)
        self.clock.advance(2)
        self.assertTrue(self.pipe.disconnecting)

    def test_lingering(self) -> None:
        """After an overflow our side is closed, what comes is thrown away, and after a while all is
        closed."""
        self.channel.dataReceived(HEAD + b"Content-Length: 11\r\n\r\n")
        self.assertIn(b"413", self.pipe.value())
        self.assertTrue(self.pipe.half_closed)
        self.channel.dataReceived(b"x" * 100_000)
        self.assertFalse(self.pipe.disconnecting)
        self.clock.advance(LINGER_S)
        self.assertTrue(self.pipe.disconnected or self.pipe.disconnecting)
        self.assertEqual(self.pipe.value().count(b"HTTP/1.1 "), 1)


class Bounds(TestCase):
    """What happens to those who send too much."""

    def setUp(self) -> None:
        """Start the server."""
        self.sample = Sample()

    async def tearDown(self) -> None:
        """Stop it."""
        await self.sample.stop()

    async def wire(self, head: bytes) -> Wire:
        """A raw connection on which `head` was sent."""
        wire: Wire = await connect(self.sample.number)
        self.addCleanup(wire.transport.abortConnection)  # type: ignore[union-attr]
        wire.transport.write(head)  # type: ignore[union-attr]
        return wire

    def check(self, received: bytes, status: bytes, code: bytes) -> None:
        """Check that exactly one answer came, and this one."""
        self.assertTrue(received.startswith(b"HTTP/1.1 " + status), received)
        self.assertEqual(received.count(b"HTTP/1.1 "), 1, received)
        self.assertIn(b'"code":"%s"' % code, received)
        self.assertIn(b"connection: close", received.lower())

    async def test_announced(self) -> None:
        """A body that announces to be too large is refused before it comes, and without `100 Continue`."""
        wire = await self.wire(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (MIB + 1))
        self.check(await wire.ended, b"413", b"too_large")

    async def test_announced_still_sending(self) -> None:
        """Who goes on sending gets the answer all the same, and then the end of the connection."""
        wire = await self.wire(HEAD + b"Content-Length: %d\r\n\r\n" % (9 * MIB) + b"x" * 300_000)
        await wire.until(b"too_large")

        def more() -> Iterator[None]:
            for _ in range(8):
                wire.transport.write(b"x" * MIB)  # type: ignore[union-attr]
                yield

        await cooperate(more()).whenDone()
        self.check(await wire.ended, b"413", b"too_large")

    async def test_ordinary_client(self) -> None:
        """A client that sends everything before it looks for an answer finds it."""

        def call() -> tuple[int, bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", self.sample.number, timeout=10)
            try:
                headers = {"Authorization": "Bearer good", "Content-Type": "application/json"}
                connection.request("POST", "/v1/push", b"x" * (5 * MIB), headers)
                answer = connection.getresponse()
                return answer.status, answer.read()
            finally:
                connection.close()

        status, body = await deferToThread(call)
        self.assertEqual(status, 413)
        self.assertIn(b"too_large", body)

    async def test_chunked(self) -> None:
        """Chunks of an unannounced length: 413 at the byte too many, though no end was in sight."""
        wire = await self.wire(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        wire.transport.write(chunk * 17)  # type: ignore[union-attr]
        await wire.until(b"too_large")
        wire.transport.write(chunk * 4 + b"0\r\n\r\n" + HEAD + b"\r\n")  # type: ignore[union-attr]
        self.check(await wire.ended, b"413", b"too_large")

    async def test_exactly_the_bound(self) -> None:
        """1 MiB itself is not over 1 MiB, chunked or announced."""
        start, end = b'{"to":"u1","type":"text","body":"', b'"}'
        body = start + b"x" * (MIB - len(start) - len(end)) + end
        for head in (
            b"Content-Length: %d\r\n\r\n%s" % (MIB, body),
            b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (MIB, body),
        ):
            wire = await self.wire(HEAD + head)
            self.assertIn(b"HTTP/1.1 202", await wire.until(b"\r\n\r\n"))

    async def test_order(self) -> None:
        """404 and 405 before 413 announced, that before 401; but 401 and 415 before 413 arrived."""
        announced, chunked = (
            b"Content-Length: 99999999\r\n\r\n",
            b"Transfer-Encoding: chunked\r\n\r\n200000\r\n",
        )
        for head, status in (
            (HEAD.replace(b"/v1/push", b"/nowhere") + announced, b"404"),
            (HEAD.replace(b"POST", b"PUT") + announced, b"405"),
            (HEAD.replace(b"good", b"bad") + announced, b"413"),
            (HEAD.replace(b"good", b"bad") + chunked + b"x" * (MIB + 1), b"401"),
            (HEAD.replace(b"/json", b"/xml") + chunked + b"x" * (MIB + 1), b"415"),
        ):
            wire = await self.wire(head)
            received = await wire.ended
            self.assertTrue(received.startswith(b"HTTP/1.1 " + status), received[:300])

    async def test_not_http(self) -> None:
        """What is not HTTP, or has endless headers, gets one problem and the end of the connection."""
        for sent in (
            b"what is this\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n",
            b"GET / HTTP/1.1\r\n" + (b"A: " + b"b" * 5000 + b"\r\n") * 4 + b"\r\n",
            HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\nA: b\r\n\r\n",
            HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        ):
            wire = await self.wire(sent)
            self.check(await wire.ended, b"400", b"invalid_frame")

    async def test_pipelined(self) -> None:
        """Requests sent at once are answered one after the other."""
        wire = await self.wire(b"GET /v1/users/a HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        wire.transport.write(b"GET /v1/users/last HTTP/1.1\r\nHost: x\r\n\r\n")  # type: ignore[union-attr]
        received = await wire.until(b'{"what":"last"}')
        self.assertEqual(received.count(b'{"what":"a"}'), 3)

    async def test_phrase(self) -> None:
        """The status line of a 422 has its phrase, which twisted.web does not know."""
        wire = await self.wire(HEAD + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}")
        received = await wire.ended
        self.assertTrue(received.startswith(b"HTTP/1.1 422 Unprocessable "), received)

    async def test_after_a_refusal(self) -> None:
        """The next call of a client whose last one was too large is served as ever."""
        client = HttpClient(reactor)
        url = self.sample.address + "/v1/push"
        answer = await client.call("POST", url, body=b"x" * (2 * MIB), token="good")
        self.assertEqual(answer.status, 413)
        answer = await client.call("POST", url, body=b'{"to":"u","type":"t","body":{}}', token="good")
        self.assertEqual(answer.status, 202)
        await client.close()
