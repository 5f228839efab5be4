"""How fast a channel may call."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from imserver.http.problems import Problem
from imserver.http.rates import Bucket, Rates


class BucketTests(SynchronousTestCase):
    """`rates.Bucket`."""

    def test_rate(self) -> None:
        """The burst passes at once, then the rate; the answer says after how long to come again."""
        bucket = Bucket(10, 20, 0.0)
        self.assertEqual([bucket.take(10, 0.0), bucket.take(10, 0.0)], [0, 0])
        self.assertEqual(bucket.take(1, 0.0), 1)
        self.assertEqual(bucket.take(20, 0.5), 2)
        self.assertEqual(bucket.take(20, 2.0), 0)

    def test_larger_than_the_burst(self) -> None:
        """A call larger than the whole bucket passes when it is full, and is paid off afterwards."""
        bucket = Bucket(10, 20, 0.0)
        self.assertEqual(bucket.take(50, 0.0), 0)
        self.assertEqual(bucket.take(1, 3.0), 1)
        self.assertEqual(bucket.take(1, 3.2), 0)

    def test_clock_set_back(self) -> None:
        """A clock that was set back takes nothing away."""
        bucket = Bucket(10, 20, 100.0)
        self.assertEqual(bucket.take(15, 100.0), 0)
        self.assertEqual(bucket.take(5, 50.0), 0)
        self.assertEqual(bucket.take(1, 50.0), 1)


class RatesTests(SynchronousTestCase):
    """`rates.Rates`."""

    def test_channels(self) -> None:
        """What one channel has used up another still has; who waits as long as it is told passes."""
        clock = Clock()
        rates = Rates({"a": (2, 4), "b": (2, 4)}, clock, "messages")
        for _ in range(4):
            rates.admit("a")
        problem = self.assertRaises(Problem, rates.admit, "a", 3)
        self.assertEqual((problem.status, problem.code, problem.headers["Retry-After"]), (429, "rate_limited", "2"))
        rates.admit("b", 4)
        clock.advance(2)
        rates.admit("a", 3)
