"""Tests of the rules of the house that a program can check."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from twisted.trial.unittest import SkipTest, TestCase

from tests.ops.processes import ROOT, start_process

VAGUE = ("util", "helper", "manager", "handler", "processor", "misc", "common")
"""Names that say nothing about what is in the room."""


class HouseTests(TestCase):
    """Imports and names."""

    timeout = 120

    async def test_imports(self) -> None:
        """The contracts of import-linter hold."""
        if not Path(ROOT, "setup.cfg").exists():
            raise SkipTest("there is no setup.cfg beside imserver; run the tests in a checkout")
        code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
        process = start_process(
            self,
            [sys.executable, "-c", code, "--no-logo", "--no-cache"],
            directory=ROOT,
            environ={"PYTHONPATH": ROOT},
        )
        self.assertEqual(await process.when_ended(), 0, process.out + process.err)

    def test_names(self) -> None:
        """No module and no class is called helper, manager or the like."""
        vague = []
        for path in Path(ROOT, "imserver").rglob("*.py"):
            names = [path.stem, path.parent.name]
            names += [n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef)]
            vague += [f"{path}: {n}" for n in names if n.lower().rstrip("s").endswith(VAGUE)]
        self.assertEqual(vague, [])
