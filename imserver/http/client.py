"""HTTP calls to our other servers: kept-alive connections, a deadline on each call, and bounds on
everything."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from treq.client import HTTPClient as TreqClient
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, TimeoutError
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionClosed, DNSLookupError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    HTTPConnectionPool,
    RequestNotSent,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers

_WORTH_RETRYING = frozenset({502, 503, 504})
_CONNECTION_ERRORS = (
    ConnectError,
    ConnectionClosed,
    DNSLookupError,
    RequestNotSent,
    RequestTransmissionFailed,
    ResponseFailed,
    TimeoutError,
)
_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 2.0
_KEEP_S = 30  # less than the idle time after which our servers close


class Unreachable(Exception):
    """No answer: the connection failed, the deadline passed, or too many calls are waiting already."""


class AnswerTooLarge(Unreachable):
    """An answer came, but a larger one than we are ready to take."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `headers` have lower-case names; of a repeated one the last counts."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class HttpClient:
    """Calls with at most `max_concurrent` on the wire and `max_waiting` more in line; the next is Unreachable
    at once.

    Up to `max_persistent` connections per host are kept. An answer may have at most `max_answer` bytes.
    `connect_timeout` is in seconds. `jitter` gives numbers in [0, 1).
    """

    def __init__(
        self,
        reactor: Any,
        *,
        max_persistent: int = 16,
        max_concurrent: int = 64,
        max_waiting: int = 1000,
        max_answer: int = 8 * 1024 * 1024,
        connect_timeout: float = 5.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._reactor = reactor
        self._pool = HTTPConnectionPool(reactor, persistent=True)
        self._pool.maxPersistentPerHost = max_persistent
        self._pool.cachedConnectionTimeout = _KEEP_S
        self._pool.retryAutomatically = False
        self._treq = TreqClient(Agent(reactor, connectTimeout=connect_timeout, pool=self._pool))
        self._slots = DeferredSemaphore(max_concurrent)
        self._max_waiting = max_waiting
        self._max_answer = max_answer
        self._jitter = jitter

    async def call(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
        retries: int = 0,
    ) -> Answer:
        """One call and its answer, whatever its status; raises Unreachable.

        `timeout` is for everything together, waiting in line and retries included, in seconds. With
        `retries`, which only those ask for whose call may arrive twice, it is made again after a connection
        error, 502, 503 or 504. The `body` goes as JSON unless `headers` say something else; `token` as
        `Authorization: Bearer`.
        """
        if len(self._slots.waiting) >= self._max_waiting:
            raise Unreachable(f"{method} {url}: too many calls are waiting already")
        sent = {
            "User-Agent": "imserver",
            **({"Content-Type": "application/json"} if body is not None else {}),
        }
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        sent.update(headers or {})
        deadline = self._reactor.seconds() + timeout
        calling = Deferred.fromCoroutine(self._attempts(method, url, body, sent, retries))
        calling.addTimeout(timeout, self._reactor)
        try:
            return await calling
        except _CONNECTION_ERRORS as error:
            raise Unreachable(f"{method} {url}: {_reason(error)}") from error
        except Exception as error:
            if self._reactor.seconds() < deadline:
                raise
            # a connection that is cancelled while it is being made may end with whatever its endpoint raises
            raise Unreachable(f"{method} {url}: no answer in {timeout:g} s") from error

    async def close(self) -> None:
        """Close all kept connections."""
        await self._pool.closeCachedConnections()

    async def _attempts(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], retries: int
    ) -> Answer:
        attempt = 0
        while True:
            try:
                async with self._slots:
                    answer = await self._once(method, url, body, headers)
                if answer.status not in _WORTH_RETRYING or attempt >= retries:
                    return answer
            except _CONNECTION_ERRORS:
                if attempt >= retries:
                    raise
            await deferLater(self._reactor, backoff(attempt, self._jitter()))
            attempt += 1

    async def _once(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        try:
            response = await self._treq.request(
                method,
                url,
                data=body,
                headers=Headers({name: [value] for name, value in headers.items()}),
                allow_redirects=False,
                unbuffered=True,
            )
            content = await _collected(response, self._max_answer)
        except (ConnectingCancelledError, ResponseFailed, RequestTransmissionFailed) as error:
            # what a cancelled request ends with; to be told from a failure, or the deadline would be retried
            reasons = getattr(error, "reasons", [Failure(error)])
            if any(reason.check(CancelledError, ConnectingCancelledError) for reason in reasons):
                raise CancelledError from error
            raise
        names = response.headers.getAllRawHeaders()
        return Answer(
            response.code,
            content,
            {name.decode("latin-1").lower(): values[-1].decode("latin-1") for name, values in names},
        )


def backoff(
    attempt: int, jitter: float, first_s: float = _FIRST_BACKOFF_S, longest_s: float = _LONGEST_BACKOFF_S
) -> float:
    """Seconds to wait after the failed `attempt` (0 is the first): doubling, bounded, half of it at
    random."""
    whole = min(longest_s, first_s * 2.0 ** min(attempt, 30))
    return whole * (0.5 + 0.5 * jitter)


class _Collector(Protocol):
    """Takes a body of at most `limit` bytes; a longer one, or nobody waiting any more, closes the
    connection."""

    def __init__(self, limit: int) -> None:
        self._pieces: list[bytes] = []
        self._left = limit
        self.collected: Deferred[bytes] = Deferred(lambda _: self._drop())

    def dataReceived(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left >= 0:
            self._pieces.append(data)
        elif not self.collected.called:
            self.collected.errback(AnswerTooLarge("the answer is too large"))
            self._drop()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.collected.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.collected.callback(b"".join(self._pieces))
        else:
            self.collected.errback(reason)

    def _drop(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()


def _collected(response: Any, limit: int) -> Deferred[bytes]:
    """The body of a response."""
    collector = _Collector(limit)
    response.deliverBody(collector)
    return collector.collected


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    reasons = getattr(error, "reasons", None)
    return str(reasons[0].getErrorMessage() if reasons else error) or type(error).__name__
