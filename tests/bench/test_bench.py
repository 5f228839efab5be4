"""`imctl bench` as a process, with a few clients and for half a second: are its tables consistent?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

from tests.integration.stack import shared_demo

ROOT = Path(__file__).parents[2]


class Bench(TestCase):
    """One scenario at a time."""

    timeout = 180

    def bench(self, *arguments: str, environ: Mapping[str, str] = os.environ) -> list[dict[str, Any]]:
        """What it says, as JSON; nothing may be wrong."""
        done = subprocess.run(
            [sys.executable, "-m", "imserver.cli", "bench", *arguments, "--json"],
            capture_output=True,
            text=True,
            timeout=150,
            env={**environ, "PYTHONPATH": str(ROOT)},
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        reports: list[dict[str, Any]] = json.loads(done.stdout)["reports"]
        self.assertEqual([report["problems"] for report in reports], [[]] * len(reports))
        return reports

    def running(self, *arguments: str) -> dict[str, Any]:
        """The same on the demo that runs for the tests."""
        (report,) = self.bench(*arguments, "--running", "--seconds", "0.5", environ=shared_demo().environ)
        return report

    def phases(self, report: dict[str, Any], *names: str) -> None:
        """These have been measured after the echo, and all that was accepted was delivered."""
        rows = {row["phase"]: row for row in report["rows"]}
        self.assertEqual(list(rows), ["echo paced", "echo full", *names])
        for name, row in rows.items():
            self.assertGreater(row["per_s"], 0)
            self.assertLessEqual(row["p50_ms"], row["p95_ms"])
            self.assertLessEqual(row["p95_ms"], row["p99_ms"])
            if name in names:
                self.assertGreater(row["accepted"], 0)
                self.assertEqual(row["accepted"], row["delivered"])
                self.assertIn("rate_ratio" if name.endswith("full") else "latency_ratio", row)

    def test_idle(self) -> None:
        """On a stack of its own: memory for ours and for stock Autobahn, and their ratio."""
        (report,) = self.bench("idle", "--connections", "60")
        ours, stock = report["rows"]
        self.assertEqual((ours["phase"], stock["phase"]), ("worker", "stock Autobahn"))
        self.assertEqual((ours["connections"], stock["connections"]), (60, 60))
        self.assertIn("memory_ratio", ours)

    def test_push(self) -> None:
        """Single pushes and batches."""
        report = self.running("push", "--receivers", "6", "--rate", "40")
        self.phases(report, "push paced", "push full", "push/batch paced", "push/batch full")
        self.assertEqual(next(row for row in report["rows"] if row["phase"] == "push paced")["accepted"], 20)

    def test_direct(self) -> None:
        """From worker to worker."""
        self.phases(self.running("direct", "--pairs", "4", "--rate", "40"), "direct paced", "direct full")

    def test_business(self) -> None:
        """With the archive behind it."""
        report = self.running("business", "--customers", "4", "--agents", "2", "--rate", "20")
        self.phases(report, "business paced", "business full")
        self.assertTrue(all("archived_per_s" in row for row in report["rows"][2:]))

    def test_archive(self) -> None:
        """On both databases: everything that was accepted is there, once, and the lag was looked at."""
        reports = self.bench("archive", "--messages", "1000", "--rate", "200", "--seconds", "0.6")
        self.assertEqual([report["parameters"]["database"] for report in reports], ["sqlite", "postgresql"])
        for report in reports:
            plain, drain, paced = report["rows"]
            self.assertEqual([row["phase"] for row in report["rows"]], ["plain", "drain", "paced"])
            self.assertEqual((plain["rows"], drain["rows"], paced["rows"]), (1000, 1000, 120))
            self.assertGreater(drain["rate_ratio"], 0)
            self.assertLessEqual(paced["lag_p50_s"], paced["lag_max_s"])
            self.assertIn(paced["kept_up"], ("yes", "no"))

    def test_words(self) -> None:
        """Both kinds of texts, without and with hits, and what they are compared with."""
        (report,) = self.bench("words", "--words", "200", "--seconds", "0.4")
        self.assertEqual(
            [row["phase"] for row in report["rows"]],
            ["latin, 0 hits", "latin, 20 hits", "chinese, 0 hits", "chinese, 20 hits"],
        )
        for row in report["rows"]:
            self.assertLessEqual(row["p50_ms"], row["p99_ms"])
            self.assertGreater(row["json_ratio"], 0)
            self.assertGreater(row["tenth_ratio"], 0)


class Refusals(TestCase):
    """One clear line."""

    def refused(self, *arguments: str) -> tuple[int, str]:
        """The exit code and the last line."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "imserver.cli", "bench", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "XDG_CACHE_HOME": str(directory), "PYTHONPATH": str(ROOT)},
        )
        self.assertEqual(done.stdout, "")
        self.assertNotIn("Traceback", done.stderr)
        return done.returncode, done.stderr.strip().splitlines()[-1]

    def test_options(self) -> None:
        """What makes no sense is refused."""
        self.assertEqual(self.refused("idle", "--connections", "0")[0], 2)
        self.assertEqual(self.refused("push", "--seconds", "-1")[0], 2)
        code, line = self.refused("push", "--config", "x", "--running")
        self.assertEqual((code, line), (1, "imctl: give --config or --running, not both"))
        self.assertEqual(self.refused("archive", "--running")[0], 2)
        code, line = self.refused("archive", "--database", "mongo")
        self.assertEqual(code, 2)
        self.assertIn("'mongo' is not sqlite, postgresql, both or a URL", line)

    def test_nothing_runs(self) -> None:
        """No demo to load."""
        code, line = self.refused("push", "--running")
        self.assertEqual(code, 1)
        self.assertIn("no demo is running", line)
