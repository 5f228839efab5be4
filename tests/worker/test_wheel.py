"""The timer wheel: one delayed call for everybody."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet import task
from twisted.trial.unittest import SynchronousTestCase

from imserver.worker.wheel import SLOTS, TICK_S, Wheel


class Alarm:
    """Something that is scheduled; writes down when it was called."""

    def __init__(self, then: Callable[[float], float | None] = lambda now: None) -> None:
        self.wheel_tick = 0
        self.calls: list[float] = []
        self._then = then

    def due(self, now: float) -> float | None:
        """Time has come."""
        self.calls.append(now)
        return self._then(now)


class WheelTests(SynchronousTestCase):
    """What `wheel` promises."""

    def setUp(self) -> None:
        """A turning wheel."""
        self.clock = task.Clock()
        self.clock.advance(1_700_000_000.03)
        self.start = self.clock.seconds()
        self.wheel = Wheel(self.clock)
        self.wheel.start()
        self.addCleanup(self.wheel.stop)

    def run_for(self, seconds: float) -> None:
        """Let time pass, tick by tick."""
        self.clock.pump([TICK_S] * round(seconds / TICK_S))

    def test_in_time(self) -> None:
        """Never early, at most a tick or two late, called once; with one delayed call for all."""
        alarms = [Alarm() for _ in range(100)]
        for number, alarm in enumerate(alarms):
            self.wheel.schedule(alarm, self.start + number * 0.07)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.run_for(10)
        for number, alarm in enumerate(alarms):
            (called,) = alarm.calls
            self.assertGreaterEqual(called - self.start, number * 0.07)
            self.assertLess(called - self.start, number * 0.07 + 2.1 * TICK_S)

    def test_again(self) -> None:
        """It says when it wants to be called next."""
        alarm = Alarm(lambda now: now + 1)
        self.wheel.schedule(alarm, self.start + 1)
        self.run_for(10)
        self.assertIn(len(alarm.calls), (8, 9, 10))

    def test_moved(self) -> None:
        """A new time replaces the old one; None forgets it."""
        moved, forgotten = Alarm(), Alarm()
        self.wheel.schedule(moved, self.start + 1)
        self.wheel.schedule(moved, self.start + 5)
        self.wheel.schedule(forgotten, self.start + 1)
        self.wheel.schedule(forgotten, None)
        self.run_for(4)
        self.assertEqual((moved.calls, forgotten.calls), ([], []))
        self.run_for(2)
        self.assertEqual(len(moved.calls), 1)

    def test_far(self) -> None:
        """More than one turn of the wheel away."""
        alarm = Alarm()
        self.wheel.schedule(alarm, self.start + 2.5 * SLOTS * TICK_S)
        self.run_for(2.4 * SLOTS * TICK_S)
        self.assertEqual(alarm.calls, [])
        self.run_for(0.2 * SLOTS * TICK_S)
        self.assertEqual(len(alarm.calls), 1)

    def test_past(self) -> None:
        """What is late already comes with the next tick."""
        alarm = Alarm()
        self.wheel.schedule(alarm, self.start - 100)
        self.run_for(0.3)
        self.assertEqual(len(alarm.calls), 1)

    def test_stopped_for_long(self) -> None:
        """After the process was stopped for hours, everybody who is due is called once, and the others later."""
        due, later = Alarm(), Alarm()
        self.wheel.schedule(due, self.start + 200)
        self.wheel.schedule(later, self.start + 7300)
        self.clock.advance(7200)
        self.assertEqual((len(due.calls), later.calls), (1, []))
        self.run_for(101)
        self.assertEqual(len(later.calls), 1)

    def test_failure(self) -> None:
        """One that fails is logged, and stops nobody else."""

        def fail(now: float) -> float | None:
            raise RuntimeError("broken")

        broken, other = Alarm(fail), Alarm()
        self.wheel.schedule(broken, self.start + 1)
        self.wheel.schedule(other, self.start + 1)
        self.run_for(3)
        self.assertEqual((len(broken.calls), len(other.calls)), (1, 1))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_forgotten_in_the_same_tick(self) -> None:
        """One that another ends, in the very tick in which it is due, does not stay on the wheel."""
        second = Alarm()

        def end_other(now: float) -> float | None:
            self.wheel.schedule(second, None)
            return None

        first = Alarm(end_other)
        self.wheel.schedule(first, self.start + 1)
        self.wheel.schedule(second, self.start + 1)
        self.run_for(5)
        self.assertEqual((len(first.calls), second.calls, second.wheel_tick), (1, [], 0))
