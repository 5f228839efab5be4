"""Tests of what ``pip install`` installs: everything, and in a place where twistd finds it."""

from __future__ import annotations

import shutil
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, TestCase

from tests.ops.processes import ROOT, start_process

SOURCES = ("imserver", "twisted", "setup.cfg", "pyproject.toml", "README.rst", "LICENSE")
TWISTD = ("-c", "from twisted.scripts.twistd import run; run()")


def is_source(path: Path) -> bool:
    """Whether a file in the source folders is a source, and not what Python or Twisted left there."""
    return path.is_file() and "__pycache__" not in path.parts and path.name != "dropin.cache"


class InstalledTests(TestCase):
    """The wheel, and an environment in which it is installed."""

    timeout = 180

    def setUp(self) -> None:
        """Have a directory away from the sources."""
        if not Path(ROOT, "setup.cfg").exists():
            raise SkipTest("there are no sources beside imserver; run the tests in a checkout")
        self.away = Path(self.mktemp()).absolute()
        self.away.mkdir()

    async def run_to_end(self, *arguments: str | Path) -> str:
        """Run a command that must succeed, away from the sources; gives its stdout."""
        process = start_process(self, [str(argument) for argument in arguments], directory=str(self.away))
        code = await process.when_ended()
        self.assertEqual(code, 0, f"{arguments}: {process.out}{process.err}")
        return process.out

    async def build(self) -> Path:
        """Build the wheel, from a copy, since building leaves things behind."""
        copy = self.away / "copy"
        copy.mkdir()
        for name in SOURCES:
            source = Path(ROOT, name)
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "dropin.cache"))
            else:
                shutil.copy(source, copy)
        await self.run_to_end(
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
            *("--wheel-dir", self.away, copy),
        )
        (wheel,) = self.away.glob("imserver-*.whl")
        sources = {
            str(path.relative_to(copy))
            for folder in ("imserver", "twisted")
            for path in (copy / folder).rglob("*")
            if is_source(path)
        }
        with zipfile.ZipFile(wheel) as archive:
            packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        self.assertEqual(packed, sources, "the wheel holds other files than the sources")
        return wheel

    async def install(self, wheel: Path) -> Path:
        """Install it in an environment that has all else from ours; gives the folder of its commands."""
        environment = self.away / "environment"
        venv.create(environment, symlinks=True)
        (packages,) = environment.glob("lib/python*/site-packages")
        (packages / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
        await self.run_to_end(
            *(sys.executable, "-m", "pip", "--disable-pip-version-check"),
            *("--python", environment / "bin" / "python"),
            *("install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel),
        )
        return environment / "bin"

    async def test_installed(self) -> None:
        """Installed from its wheel, imserver has all its files, its command, and its servers in twistd."""
        commands = await self.install(await self.build())
        where = await self.run_to_end(commands / "python", "-c", "import imserver; print(imserver.__file__)")
        self.assertTrue(where.startswith(str(self.away)), where)
        helped = await self.run_to_end(commands / "python", *TWISTD, "--help")
        for server in ("im-worker", "im-dispatcher", "im-business"):
            self.assertRegex(helped, rf"\n +{server} +[A-Z]")
        self.assertTrue((commands / "imctl").exists())

    async def test_no_package(self) -> None:
        """``twisted`` and ``twisted.plugins`` are Twisted's: an ``__init__.py`` of ours would hide them."""
        self.assertEqual([str(path) for path in Path(ROOT, "twisted").rglob("__init__.py")], [])

    async def test_plugin_without_reactor(self) -> None:
        """Looking for the servers installs no reactor: the choice is ``twistd --reactor``'s."""
        code = (
            "import sys; from twisted.plugin import getPlugins; "
            "from twisted.application.service import IServiceMaker; "
            "print([p.tapname for p in getPlugins(IServiceMaker) if p.tapname.startswith('im-')]); "
            "print('twisted.internet.reactor' in sys.modules)"
        )
        process = start_process(
            self, [sys.executable, "-c", code], directory=str(self.away), environ={"PYTHONPATH": ROOT}
        )
        self.assertEqual(await process.when_ended(), 0, process.err)
        names, reactor, _ = process.out.split("\n")
        for server in ("im-worker", "im-dispatcher", "im-business"):
            self.assertIn(f"'{server}'", names)
        self.assertEqual(reactor, "False")
