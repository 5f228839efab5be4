"""The client: deadlines, retries and bounds, against a real server that misbehaves as it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from imserver.http.client import AnswerTooLarge, HttpClient, Unreachable, backoff

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Kind: good\r\n\r\nok"
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
BIG = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000
HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\nx"


class Script(Protocol):
    """Answers each request with the next of the script's answers; None closes, b"" is silence."""

    factory: Any

    def connectionMade(self) -> None:
        """Be counted."""
        self.factory.connections += 1
        self.factory.open.add(self)

    def dataReceived(self, data: bytes) -> None:
        """Take one request (they are small) and answer."""
        self.factory.requests.append(data)
        answer = self.factory.answers.pop(0)
        if answer is None:
            self.transport.abortConnection()  # type: ignore[union-attr]
        else:
            self.transport.write(answer)  # type: ignore[union-attr]
        self.factory.arrived()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Be gone."""
        self.factory.open.remove(self)
        if not self.factory.open and self.factory.empty is not None:
            self.factory.empty.callback(None)


class Clients(TestCase):
    """What becomes of calls."""

    def setUp(self) -> None:
        """Start the server."""
        self.script: Any = Factory.forProtocol(Script)
        self.script.connections, self.script.requests, self.script.open = 0, [], set()
        self.script.empty = None
        self.script.arrived = lambda: None
        self.port = reactor.listenTCP(0, self.script, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.port.getHost().port}/x"
        self.clients: list[HttpClient] = []

    async def tearDown(self) -> None:
        """Close everything and wait until the server has seen it."""
        for client in self.clients:
            await client.close()
        await maybeDeferred(self.port.stopListening)
        if self.script.open:
            self.script.empty = Deferred()
            for one in [*self.script.open]:
                one.transport.loseConnection()
            await self.script.empty

    def client(self, *answers: bytes | None, **settings: Any) -> HttpClient:
        """A client to a server that answers so."""
        self.script.answers = [*answers]
        self.clients.append(HttpClient(reactor, jitter=lambda: 0.0, **settings))
        return self.clients[-1]

    def arrival(self) -> Deferred[None]:
        """Fires when the next request has arrived."""
        arrived: Deferred[None] = Deferred()

        def fire() -> None:
            self.script.arrived = lambda: None
            arrived.callback(None)

        self.script.arrived = fire
        return arrived

    async def test_call(self) -> None:
        """A call with a body and a token, over one kept connection."""
        client = self.client(OK, OK)
        answer = await client.call("POST", self.url, body=b"{}", token="secret")
        await client.call("GET", self.url)
        self.assertEqual((answer.status, answer.body, answer.headers["x-kind"]), (200, b"ok", "good"))
        self.assertEqual(self.script.connections, 1)
        first = self.script.requests[0].lower()
        for line in (
            b"authorization: bearer secret",
            b"content-type: application/json",
            b"content-length: 2",
        ):
            self.assertIn(line, first)
        self.assertNotIn(b"authorization", self.script.requests[1].lower())

    async def test_retried(self) -> None:
        """Connection errors and 503 are tried again when asked to."""
        client = self.client(None, BUSY, OK)
        answer = await client.call("POST", self.url, body=b"{}", retries=2)
        self.assertEqual((answer.status, len(self.script.requests)), (200, 3))

    async def test_not_retried(self) -> None:
        """Not without being asked: the answer is what came, or Unreachable."""
        client = self.client(BUSY, None)
        self.assertEqual((await client.call("POST", self.url, body=b"{}")).status, 503)
        await self.assertFailure(Deferred.fromCoroutine(client.call("POST", self.url, body=b"{}")), Unreachable)

    async def test_retries_end(self) -> None:
        """When all retries are used up, the last answer counts."""
        client = self.client(BUSY, BUSY, OK)
        self.assertEqual((await client.call("GET", self.url, retries=1)).status, 503)

    async def test_refused(self) -> None:
        """Nobody listens there."""
        client = self.client()
        await self.port.stopListening()
        await self.assertFailure(Deferred.fromCoroutine(client.call("GET", self.url, retries=1)), Unreachable)

    async def test_deadline(self) -> None:
        """The deadline is for everything, retries included: before the answer, within it, and in the
        backoff."""
        for answers in ((b"",) * 9, (HALF,) * 9, (BUSY,) * 9):
            client = self.client(*answers)
            calling = Deferred.fromCoroutine(client.call("GET", self.url, timeout=0.05, retries=8))
            error = await self.assertFailure(calling, Unreachable)
            self.assertIn("no answer in time", str(error))
            self.assertLessEqual(len(self.script.requests), 2)
            self.script.requests.clear()

    async def test_cancelled(self) -> None:
        """Who cancels gets a CancelledError and no retry."""
        client = self.client(b"", OK)
        arrived = self.arrival()
        calling = Deferred.fromCoroutine(client.call("GET", self.url, retries=3))
        await arrived
        calling.cancel()
        await self.assertFailure(calling, CancelledError)
        self.assertEqual(len(self.script.requests), 1)

    async def test_bounds(self) -> None:
        """One on the wire, one in line, the next is refused at once; and an answer that is too large."""
        client = self.client(b"", OK, max_concurrent=1, max_waiting=1)
        arrived = self.arrival()
        first = Deferred.fromCoroutine(client.call("GET", self.url))
        await arrived
        second = Deferred.fromCoroutine(client.call("GET", self.url))
        error = self.failureResultOf(Deferred.fromCoroutine(client.call("GET", self.url)), Unreachable)
        self.assertIn("waiting", str(error.value))
        next(iter(self.script.open)).transport.write(OK)
        self.assertEqual([(await one).status for one in (first, second)], [200, 200])
        client = self.client(BIG, max_answer=4999)
        await self.assertFailure(Deferred.fromCoroutine(client.call("GET", self.url)), AnswerTooLarge)

    def test_backoff(self) -> None:
        """It doubles up to a bound, and up to half of it is left to chance."""
        check: Callable[..., None] = self.assertAlmostEqual
        for attempt, jitter, seconds in (
            (0, 0.0, 0.05),
            (0, 1.0, 0.1),
            (2, 0.0, 0.2),
            (50, 0.0, 1.0),
            (50, 1.0, 2.0),
        ):
            check(backoff(attempt, jitter), seconds)
        self.assertEqual([backoff(n, 1.0, 2.0, 30.0) for n in range(6)], [2, 4, 8, 16, 30, 30])
        self.assertEqual(backoff(999, 0.5, 2.0, 600.0), 450.0)
