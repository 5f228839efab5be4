"""A bound on what comes in: how much is under way at a time. No I/O."""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred


class Full(Exception):
    """So many wait already that it is better to be told at once."""


class Room:
    """At most `size` units under way at a time and at most `waiting_max` callers that wait, first come first served."""

    def __init__(self, size: int, waiting_max: int) -> None:
        self.used = 0
        self._size = size
        self._waiting_max = waiting_max
        self._waiting: deque[tuple[int, Deferred[None]]] = deque()
        self._idle: list[Deferred[None]] = []

    async def enter(self, units: int) -> None:
        """Wait for room; one who wants more than all of it gets it alone. `Full` if too many wait."""
        if not self._waiting and self._fits(units):
            self.used += units
            return
        if len(self._waiting) >= self._waiting_max:
            raise Full
        waiter: Deferred[None] = Deferred(self._forget)
        self._waiting.append((units, waiter))
        await waiter

    def leave(self, units: int) -> None:
        """Give the room back."""
        self.used -= units
        self._admit()
        if not self.used and not self._waiting:
            idle, self._idle = self._idle, []
            for waiter in idle:
                waiter.callback(None)

    def idle(self) -> Deferred[None]:
        """Fires when nothing is under way and nobody waits."""
        done: Deferred[None] = Deferred()
        if self.used or self._waiting:
            self._idle.append(done)
        else:
            done.callback(None)
        return done

    def _fits(self, units: int) -> bool:
        return not self.used or self.used + units <= self._size

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            units, waiter = self._waiting.popleft()
            self.used += units
            waiter.callback(None)

    def _forget(self, waiter: Deferred[None]) -> None:
        self._waiting = deque(item for item in self._waiting if item[1] is not waiter)
        self._admit()
