"""Real processes for tests: started, watched line by line, ended."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

import imserver

ROOT = str(Path(imserver.__file__).parent.parent)
"""Where the tests' imserver comes from: processes are to run the same one."""


class Process(ProcessProtocol):
    """A process; ``out`` and ``err`` are what it wrote so far, ``code`` its exit code or minus its signal."""

    def __init__(self) -> None:
        self.out = ""
        self.err = ""
        self.code: int | None = None
        self._waiting: list[tuple[str, Deferred[None]]] = []
        self._ending: list[Deferred[int]] = []

    def signal(self, name: str) -> None:
        """Send it a signal, such as ``TERM``."""
        self.transport.signalProcess(name)

    def when_written(self, text: str) -> Deferred[None]:
        """Fire when it has written ``text`` to stdout; fail if it ends before."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append((text, waiting))
        self._look()
        return waiting

    def when_ended(self) -> Deferred[int]:
        """Fire with the exit code."""
        ending: Deferred[int] = Deferred()
        if self.code is not None:
            ending.callback(self.code)
        else:
            self._ending.append(ending)
        return ending

    def outReceived(self, data: bytes) -> None:
        """Keep what it wrote to stdout."""
        self.out += data.decode()
        self._look()

    def errReceived(self, data: bytes) -> None:
        """Keep what it wrote to stderr."""
        self.err += data.decode()

    def processEnded(self, reason: Failure) -> None:
        """Tell those who wait."""
        self.code = -reason.value.signal if reason.value.signal else reason.value.exitCode
        for _, waiting in self._waiting:
            waiting.errback(AssertionError(f"ended with {self.code}; stderr: {self.err}; stdout: {self.out}"))
        self._waiting = []
        for ending in self._ending:
            ending.callback(self.code)
        self._ending = []

    def _look(self) -> None:
        for text, waiting in list(self._waiting):
            if text in self.out:
                self._waiting.remove((text, waiting))
                waiting.callback(None)


def start_process(
    case: TestCase, arguments: list[str], *, directory: str, environ: dict[str, str] | None = None
) -> Process:
    """Start a process that does not outlive the test.

    Its environment is ours without what would configure imserver, with ``environ`` over it.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("IM_", "PYTHON"))}
    process = Process()
    transport = reactor.spawnProcess(process, arguments[0], arguments, env=inherited | (environ or {}), path=directory)

    async def end() -> None:
        if process.code is None:
            transport.signalProcess("KILL")
            await process.when_ended()

    case.addCleanup(lambda: Deferred.fromCoroutine(end()))
    return process


def start_twistd(
    case: TestCase,
    arguments: list[str],
    *,
    directory: str,
    environ: dict[str, str] | None = None,
) -> Process:
    """Start ``twistd -n`` with this imserver, and with the modules and plugins in ``directory``."""
    path = {"PYTHONPATH": os.pathsep.join([directory, ROOT])}
    command = [
        sys.executable,
        "-c",
        "from twisted.scripts.twistd import run; run()",
        "-n",
        "--pidfile=",
        *arguments,
    ]
    return start_process(case, command, directory=directory, environ=path | (environ or {}))
