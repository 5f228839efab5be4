"""The two ways to make load: at a rate, whatever comes back, and as fast as the answers come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList


async def paced(reactor: Any, rate: float, seconds: float, fire: Callable[[int], object]) -> float:
    """Call `fire(0)`, `fire(1)`, ... `rate` times a second for `seconds`, each at its own time.

    Gives how late the latest was, in seconds: a generator that falls behind measures itself.
    """
    done: Deferred[float] = Deferred()
    start = reactor.seconds()
    total = max(1, round(rate * seconds))
    fired = 0
    latest = 0.0

    def turn() -> None:
        nonlocal fired, latest
        try:
            now = reactor.seconds()
            latest = max(latest, now - start - fired / rate)
            while fired < total and start + fired / rate <= now:
                fire(fired)
                fired += 1
        except Exception:
            done.errback()
            return
        if fired == total:
            done.callback(latest)
        else:
            reactor.callLater(max(0.0, start + fired / rate - reactor.seconds()), turn)

    turn()
    return await done


async def looped(reactor: Any, width: int, seconds: float, one: Callable[[int], Awaitable[object]]) -> float:
    """`width` loops that each await `one(i)` again and again for `seconds`; how long that took in the end.

    `i` is the number of the loop. The first exception ends it.
    """
    start = reactor.seconds()
    failed = False

    async def loop(number: int) -> None:
        nonlocal failed
        try:
            while not failed and reactor.seconds() < start + seconds:
                await one(number)
        except Exception:
            failed = True
            raise

    results: list[Any] = await DeferredList(
        [Deferred.fromCoroutine(loop(number)) for number in range(width)], consumeErrors=True
    )
    for succeeded, value in results:
        if not succeeded:
            value.raiseException()
    return float(reactor.seconds() - start)
