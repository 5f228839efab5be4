"""One timer for everything: a hashed timer wheel, so that a million connections cost one delayed call.

Whoever is scheduled is called at its time or up to one tick later, and says when it wants to be called next.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet import task
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

log = Logger()
TICK_S = 0.1
SLOTS = 1024


class Timed(Protocol):
    """What can be scheduled. `wheel_tick` belongs to the wheel: the tick at which it is due, 0 if none."""

    wheel_tick: int

    def due(self, now: float) -> float | None:
        """Its time has come; when it wants to be called next, None for never."""


class Wheel:
    """Schedules many `Timed` with one `LoopingCall`."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._slots: list[dict[int, Timed]] = [{} for _ in range(SLOTS)]
        self._tick = self._ticks(clock.seconds())
        self._loop = task.LoopingCall(self._turn)
        self._loop.clock = clock

    @staticmethod
    def _ticks(when: float) -> int:
        return int(when / TICK_S) + 1

    def start(self) -> None:
        """Begin to turn."""
        self._loop.start(TICK_S, now=False).addErrback(self._broken)

    def stop(self) -> None:
        """Stop turning."""
        if self._loop.running:
            self._loop.stop()

    def _broken(self, failure: object) -> None:
        log.critical("the timer wheel stopped: {why}", why=failure)

    def schedule(self, timed: Timed, when: float | None) -> None:
        """Call `timed.due` at `when`, instead of any time it was scheduled for before."""
        if timed.wheel_tick:
            self._slots[timed.wheel_tick % SLOTS].pop(id(timed), None)
            timed.wheel_tick = 0
        if when is not None:
            timed.wheel_tick = max(self._ticks(when), self._tick + 1)
            self._slots[timed.wheel_tick % SLOTS][id(timed)] = timed

    def _turn(self) -> None:
        now = self._clock.seconds()
        target = int(now / TICK_S)
        if target - self._tick > SLOTS:  # the process was stopped for long: one look at every slot is enough
            self._tick = target - SLOTS
        while self._tick < target:
            self._tick += 1
            slot = self._slots[self._tick % SLOTS]
            for timed in [timed for timed in slot.values() if timed.wheel_tick <= target]:
                if 0 < timed.wheel_tick <= target:  # another one's turn may have moved or ended it
                    self._call(timed, now)

    def _call(self, timed: Timed, now: float) -> None:
        self.schedule(timed, None)
        try:
            self.schedule(timed, timed.due(now))
        except Exception:
            log.failure("a timer failed")
