"""Runs programs as child processes, starts again those that die, and ends all of them in order."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, TimeoutError, gatherResults
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from imserver.demo.output import Lines

log = Logger()

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 5.0
STABLE_S = 10.0
"""Who has lived for so long starts again after the first delay."""

# Ours until it becomes the program itself: leaves our process group, so that Ctrl-C reaches us alone, and
# asks the kernel (Linux only) to end it with us, however we end.
_TETHER = """\
import os, sys
os.setpgid(0, 0)
if sys.platform == "linux":
    import ctypes, signal
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Program(msgspec.Struct, frozen=True):
    """What to run: `args` with the whole path of the program first."""

    name: str
    args: tuple[str, ...]
    environ: Mapping[str, str]


class Child(ProcessProtocol):
    """One program, running or about to run again."""

    def __init__(self, reactor: Any, program: Program, say: Callable[[str], None], changed: Callable[[], None]) -> None:
        self.program = program
        self.pid: int | None = None
        self.last_words = ""
        """The last line it wrote to its stderr."""
        self.deaths = 0
        """How often it has ended without being asked to."""
        self._reactor = reactor
        self._say = say
        self._changed = changed
        self._streams: dict[int, Lines] = {}
        self._delay = FIRST_DELAY_S
        self._born = 0.0
        self._retry: Any = None
        self._wanted = False
        self._gone: list[Deferred[None]] = []

    def start(self) -> None:
        """Run it, again and again, until `stop`."""
        self._wanted = True
        self._retry = None
        self._streams = {1: Lines(), 2: Lines()}
        self._born = self._reactor.seconds()
        args = [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid()), *self.program.args]
        nothing = os.open(os.devnull, os.O_RDONLY)
        try:
            process = self._reactor.spawnProcess(
                self, args[0], args, env=dict(self.program.environ), childFDs={0: nothing, 1: "r", 2: "r"}
            )
        finally:
            os.close(nothing)
        self.pid = process.pid
        self._changed()

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.pid is not None and self.transport is not None:
            try:
                self.transport.signalProcess(number)  # type: ignore[attr-defined]
            except ProcessExitedAlready:
                log.debug("{name} has ended already", name=self.program.name)

    async def stop(self, patience_s: float) -> None:
        """End it: politely, and after `patience_s` seconds surely."""
        self._wanted = False
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self.signal(signal.SIGTERM)
        try:
            await self._ended().addTimeout(patience_s, self._reactor)
        except TimeoutError:
            log.warn(
                "{name} did not end within {patience} s and is killed",
                name=self.program.name,
                patience=patience_s,
            )
            self.signal(signal.SIGKILL)
            await self._ended()

    def _ended(self) -> Deferred[None]:
        ended: Deferred[None] = Deferred()
        if self.pid is None:
            ended.callback(None)
        else:
            self._gone.append(ended)
        return ended

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Pass its lines on, with its name in front."""
        self._pass_on(childFD, self._streams[childFD].add(data))

    def processEnded(self, reason: Failure) -> None:
        """Start it again, unless it is meant to be gone."""
        for number, lines in self._streams.items():
            self._pass_on(number, lines.end())
        self.pid = None
        self._changed()
        gone, self._gone = self._gone, []
        for ended in gone:
            if not ended.called:
                ended.callback(None)
        if not self._wanted:
            return
        self.deaths += 1
        if self._reactor.seconds() - self._born >= STABLE_S:
            self._delay = FIRST_DELAY_S
        log.warn(
            "{name} has died ({how}) and is started again in {delay} s",
            name=self.program.name,
            how=_how(reason.value),
            delay=self._delay,
        )
        self._retry = self._reactor.callLater(self._delay, self.start)
        self._delay = min(self._delay * 2, LONGEST_DELAY_S)

    def _pass_on(self, number: int, lines: list[str]) -> None:
        for line in lines:
            if number == 2 and line.strip():
                self.last_words = line
            self._say(f"[{self.program.name}] {line}")


def _how(end: Any) -> str:
    if getattr(end, "signal", None) is not None:
        return signal.Signals(end.signal).name
    return f"exit code {getattr(end, 'exitCode', None)}"


class Supervisor:
    """Children in stages: started all at once, ended the last stage first.

    `changed` is called whenever a child's process comes or goes; `say` is given every line that one writes.
    """

    def __init__(
        self,
        reactor: Any,
        stages: Sequence[tuple[Sequence[Program], float]],
        *,
        say: Callable[[str], None],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._stages = [
            ([Child(reactor, program, say, changed) for program in programs], patience_s)
            for programs, patience_s in stages
        ]

    @property
    def children(self) -> list[Child]:
        """All of them, in the order given."""
        return [child for stage, _ in self._stages for child in stage]

    @property
    def pids(self) -> dict[str, int]:
        """The process of each child that runs now."""
        return {child.program.name: child.pid for child in self.children if child.pid is not None}

    def start(self) -> None:
        """Start all."""
        for child in self.children:
            child.start()

    async def stop(self) -> None:
        """End all; each stage is given the seconds that it came with."""
        for stage, patience_s in reversed(self._stages):
            await gatherResults([Deferred.fromCoroutine(child.stop(patience_s)) for child in stage])

    def kill(self) -> None:
        """End all at once, now."""
        for child in self.children:
            child.signal(signal.SIGKILL)
