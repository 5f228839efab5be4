"""How much is under way at a time."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import TestCase

from imserver.dispatcher.bounds import Full, Room


class RoomTests(TestCase):
    """`bounds.Room`."""

    def enter(self, room: Room, units: int) -> Deferred[Any]:
        """Somebody who enters."""
        return Deferred.fromCoroutine(room.enter(units))

    def test_in_order(self) -> None:
        """Who came first goes first, even where a smaller one would fit."""
        room = Room(10, 5)
        self.successResultOf(self.enter(room, 6))
        large, small = self.enter(room, 8), self.enter(room, 1)
        self.assertNoResult(large)
        self.assertNoResult(small)
        room.leave(6)
        self.successResultOf(large)
        self.successResultOf(small)
        self.assertEqual(room.used, 9)

    def test_larger_than_the_room(self) -> None:
        """One who wants more than there is goes alone."""
        room = Room(10, 5)
        self.successResultOf(self.enter(room, 50))
        after = self.enter(room, 1)
        self.assertNoResult(after)
        room.leave(50)
        self.successResultOf(after)

    def test_full(self) -> None:
        """Who would be one too many in line is told at once."""
        room = Room(1, 1)
        self.successResultOf(self.enter(room, 1))
        waiting = self.enter(room, 1)
        self.failureResultOf(self.enter(room, 1), Full)
        room.leave(1)
        self.successResultOf(waiting)

    def test_gives_up(self) -> None:
        """One who gives up holds nobody up."""
        room = Room(2, 5)
        self.successResultOf(self.enter(room, 1))
        large, small = self.enter(room, 2), self.enter(room, 1)
        large.cancel()
        self.failureResultOf(large, CancelledError)
        self.successResultOf(small)
        idle = room.idle()
        room.leave(1)
        self.assertNoResult(idle)
        room.leave(1)
        self.successResultOf(idle)
        self.successResultOf(room.idle())
