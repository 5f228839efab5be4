"""Figures, without any load."""

from __future__ import annotations

import msgspec
from twisted.trial.unittest import TestCase

from imserver.bench.figures import Latencies, Report, ratio, text


class LatenciesTests(TestCase):
    """Buckets of durations."""

    def test_quantiles(self) -> None:
        """Quantiles are right within the width of a bucket."""
        found = Latencies()
        for milliseconds in range(1, 1001):
            found.add(milliseconds / 1000)
        for share, expected in ((0.5, 500), (0.95, 950), (0.99, 990)):
            value = found.quantile_ms(share)
            assert value is not None
            self.assertLess(abs(value / expected - 1), 0.03)

    def test_merged(self) -> None:
        """Those of two processes add up, also on their way through JSON."""
        one, other = Latencies(), Latencies()
        one.add(0.001)
        other.add(0.1)
        one.merge(Latencies(msgspec.json.decode(msgspec.json.encode(other.counts))))
        self.assertEqual(len(one), 2)
        low, high = one.quantile_ms(0.5), one.quantile_ms(1.0)
        assert low is not None and high is not None
        self.assertLess(low, 2)
        self.assertGreater(high, 90)

    def test_nothing(self) -> None:
        """No durations have no quantiles; what took no time at all is counted."""
        found = Latencies()
        self.assertIsNone(found.quantile_ms(0.5))
        self.assertEqual(found.columns(), {"p50_ms": None, "p95_ms": None, "p99_ms": None})
        found.add(0.0)
        self.assertEqual(len(found), 1)


class ReportTests(TestCase):
    """Rows and their table."""

    def test_rounded(self) -> None:
        """Three digits, whatever the size; counts stay as they are."""
        report = Report(bench="x")
        row = report.row("a", small=0.0123456, middle=12.3456, large=123456.7, zero=0.0, count=123456, absent=None)
        self.assertEqual(
            row, {"phase": "a", "small": 0.0123, "middle": 12.3, "large": 123457.0, "zero": 0.0, "count": 123456}
        )

    def test_ratio(self) -> None:
        """None if there is nothing to compare."""
        self.assertEqual(ratio(3.0, 2.0), 1.5)
        self.assertIsNone(ratio(None, 2.0))
        self.assertIsNone(ratio(3.0, 0))

    def test_lost(self) -> None:
        """A message that did not arrive, and one too many, are problems that people see."""
        report = Report(bench="x")
        report.expect("even", 5, 5)
        self.assertEqual(report.problems, [])
        report.expect("push", 5, 4)
        report.expect("more", 5, 6)
        self.assertEqual(len(report.problems), 2)
        self.assertIn("PROBLEM: push: 5 accepted, but 4 delivered", text(report))

    def test_text(self) -> None:
        """Columns are aligned, and what a message costs is a table of its own."""
        report = Report(bench="push", parameters={"receivers": 3})
        report.row("echo", per_s=1000.0, echo_us=40.0)
        report.row("push", per_s=100.0, ratio=0.1, worker_us=400.0)
        lines = text(report).splitlines()
        self.assertEqual(lines[0], "push: receivers 3")
        self.assertEqual(lines[2:5], ["phase  per_s  ratio", "echo    1000", "push     100    0.1"])
        self.assertEqual(lines[-3:], ["phase  echo_us  worker_us", "echo        40", "push                  400"])
