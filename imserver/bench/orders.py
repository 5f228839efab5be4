"""What the bench tells its child processes to do, and what they answer: a JSON object a line, on stdin and stdout.

A child ends when its stdin does, so none outlives the bench.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
from twisted.internet import stdio
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.error import ProcessExitedAlready, ReactorNotRunning
from twisted.internet.protocol import ProcessProtocol, connectionDone
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

LINE_MAX = 4 * 1024 * 1024
END_S = 3.0


class ChildError(Exception):
    """A child could not do what it was told, or has gone."""


class _Order(msgspec.Struct):
    number: int
    do: str
    fields: dict[str, Any] = {}


class _Result(msgspec.Struct):
    number: int
    value: Any = None
    error: str | None = None


class Child(ProcessProtocol):
    """The bench's side: one child process that runs a module."""

    def __init__(self, reactor: Any, module: str, say: Callable[[str], None]) -> None:
        self._reactor = reactor
        self._module = module
        self._say = say
        self._rest = b""
        self._numbers = 0
        self._asked: dict[int, Deferred[Any]] = {}
        self._gone = False
        self._ending: list[Deferred[None]] = []
        process = reactor.spawnProcess(self, sys.executable, [sys.executable, "-m", module], env=None)
        self.pid: int = process.pid

    async def ask(self, do: str, timeout_s: float, **fields: Any) -> Any:
        """Have it do something, and wait for what it says; `ChildError` if it cannot, or not in time."""
        if self.transport is None or self._gone:
            raise ChildError(f"{self._module} has gone")
        self._numbers += 1
        answer: Deferred[Any] = Deferred()
        self._asked[self._numbers] = answer
        order = msgspec.json.encode(_Order(self._numbers, do, fields))
        self.transport.write(order + b"\n")  # type: ignore[call-arg, arg-type]
        try:
            return await answer.addTimeout(timeout_s, self._reactor)
        except TimeoutError:
            raise ChildError(f"{self._module} did not {do} within {timeout_s:g} s") from None

    async def end(self) -> None:
        """Close its stdin, and wait until it has gone."""
        if self._gone or self.transport is None:
            return
        self.transport.closeStdin()  # type: ignore[attr-defined]
        try:
            await self._when_gone().addTimeout(END_S, self._reactor)
        except TimeoutError:
            with suppress(ProcessExitedAlready):
                self.transport.signalProcess("KILL")  # type: ignore[attr-defined]
            await self._when_gone()

    def _when_gone(self) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()
        if self._gone:
            waiter.callback(None)
        else:
            self._ending.append(waiter)
        return waiter

    def outReceived(self, data: bytes) -> None:
        """Answers."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            result = msgspec.json.decode(line, type=_Result)
            asked = self._asked.pop(result.number, None)
            if asked is None or asked.called:
                continue
            if result.error is not None:
                asked.errback(ChildError(f"{self._module}: {result.error}"))
            else:
                asked.callback(result.value)

    def errReceived(self, data: bytes) -> None:
        """Its complaints."""
        for line in data.decode("utf-8", "replace").splitlines():
            self._say(f"[{self._module}] {line}")

    def processEnded(self, reason: Failure) -> None:
        """It has gone; nobody answers what is still asked."""
        self._gone = True
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            if not answer.called:
                answer.errback(ChildError(f"{self._module} has gone: {reason.getErrorMessage()}"))
        ending, self._ending = self._ending, []
        for waiter in ending:
            if not waiter.called:
                waiter.callback(None)


class _Orders(LineOnlyReceiver):
    """The child's side."""

    delimiter = b"\n"
    MAX_LENGTH = LINE_MAX

    def __init__(self, reactor: Any, servant: Any) -> None:
        self._reactor = reactor
        self._servant = servant

    def lineReceived(self, line: bytes) -> None:
        order = msgspec.json.decode(line, type=_Order)
        Deferred.fromCoroutine(getattr(self._servant, f"do_{order.do}")(**order.fields)).addCallbacks(
            lambda value: self._say(_Result(order.number, value)),
            lambda failure: self._say(_Result(order.number, error=f"{failure.type.__name__}: {failure.value}")),
        )

    def _say(self, result: _Result) -> None:
        self.sendLine(msgspec.json.encode(result))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        with suppress(ReactorNotRunning):
            self._reactor.stop()


def serve(servant: Any) -> None:
    """Be a child: each order `x` is done by the coroutine `servant.do_x`, until stdin ends."""
    from twisted.internet import reactor

    stdio.StandardIO(_Orders(reactor, servant))
    reactor.run()  # type: ignore[attr-defined]
