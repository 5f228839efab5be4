"""Work that repeats in the background: named, counted, and not able to die silently; and work side by side."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from twisted.internet import task
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

log = Logger()
Result = TypeVar("Result")


async def together(calls: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Run coroutines side by side: all results, in order; the first exception, once all have ended."""
    work = list(calls)
    if len(work) == 1:
        return [await work[0]]
    outcomes: list[Any] = await DeferredList([Deferred.fromCoroutine(one) for one in work], consumeErrors=True)
    for succeeded, value in outcomes:
        if not succeeded:
            value.raiseException()
    return [value for _, value in outcomes]


class Repeated:
    """Runs `work` every `every_s` seconds, the next one not before the last has ended.

    `expected` exceptions are what happens when a part is away: one line in the log at the first of a row.  Any other
    goes to the log whole.  Either way the work goes on at the next turn.
    """

    def __init__(
        self,
        clock: IReactorTime,
        name: str,
        every_s: float,
        work: Callable[[], Awaitable[Any]],
        expected: tuple[type[Exception], ...] = (),
    ) -> None:
        self.name = name
        self.failures = 0
        """Failed turns in a row."""
        self._every_s = every_s
        self._work = work
        self._expected = expected
        self._running: Deferred[None] | None = None
        self._loop = task.LoopingCall(self._turn)
        self._loop.clock = clock

    def start(self, now: bool = False) -> None:
        """Begin, at once if `now`."""
        self._loop.start(self._every_s, now=now)

    def run_now(self) -> None:
        """An extra turn at once, beside the regular ones."""
        Deferred.fromCoroutine(self._guarded())

    def stop(self) -> None:
        """End it; what runs is cancelled."""
        if self._loop.running:
            self._loop.stop()
        if self._running is not None:
            self._running.cancel()

    def _turn(self) -> Deferred[None]:
        self._running = Deferred.fromCoroutine(self._guarded())
        return self._running.addCallback(self._ended)

    def _ended(self, result: None) -> None:
        self._running = None

    async def _guarded(self) -> None:
        try:
            await self._work()
            self.failures = 0
        except CancelledError:
            log.debug("{name} was cancelled", name=self.name)
        except self._expected as error:
            self.failures += 1
            if self.failures == 1:
                log.warn("{name} cannot go on for now: {why}", name=self.name, why=str(error))
        except Exception:
            self.failures += 1
            log.failure("{name} failed", name=self.name)
