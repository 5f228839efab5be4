"""A short run with real processes, faults and third-party clients: nothing accepted is lost, repeated or reordered.

`make soak MINUTES=30` runs the same for longer.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

SEED = 3
MINUTES = "0.4"
BOUND_S = 240


class FaultTests(SynchronousTestCase):
    """The checker looks for violations; that it finds what there is, `test_checker` shows."""

    def test_short_run(self) -> None:
        """Kills, stops, cuts and restarts while people talk; at the end no violation."""
        command = [sys.executable, "-m", "tests.faults.soak", "--minutes", MINUTES, "--seed", str(SEED)]
        root = Path(__file__).parents[2]
        run = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S, cwd=root)
        self.assertEqual(run.returncode, 0, run.stdout[-6000:] + run.stderr[-2000:])
        self.assertRegex(run.stdout, r"messages accepted +\d{3,}")
        self.assertRegex(run.stdout, r"violations +0\n")
