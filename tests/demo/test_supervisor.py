"""The supervisor, with small stand-ins as children: real processes that end in every way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from imserver.demo.supervisor import Program, Supervisor

ENVIRON = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
STAYS = "import signal; print('up', flush=True); signal.pause()"
STUBBORN = "import signal\nsignal.signal(15, signal.SIG_IGN)\nprint('up', flush=True)\nwhile True: signal.pause()"
POLITE = """
import signal, sys, time
signal.signal(15, lambda *_: (print('leaving', flush=True), sys.exit()))
print('up', flush=True)
signal.pause()
"""


def program(name: str, code: str) -> Program:
    """A child that runs this."""
    return Program(name, (sys.executable, "-c", code), dict(os.environ))


def alive(pid: int) -> bool:
    """Whether there is such a process, one that has ended and was not waited for not counted."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


class Supervised(TestCase):
    """Children start, die, start again, and end."""

    timeout = 30

    def setUp(self) -> None:
        """Nothing said yet."""
        self.lines: list[str] = []
        self._waiting: list[tuple[str, Deferred[None]]] = []
        self.changes = 0
        self.supervisor: Supervisor | None = None

    async def tearDown(self) -> None:
        """End what a failed test left."""
        if self.supervisor is not None:
            await self.supervisor.stop()

    def start(self, *stages: tuple[list[Program], float]) -> Supervisor:
        """Run these."""
        self.supervisor = Supervisor(reactor, stages, say=self.say, changed=self.changed)
        self.supervisor.start()
        return self.supervisor

    def changed(self) -> None:
        """Count."""
        self.changes += 1

    def say(self, line: str) -> None:
        """A line of a child."""
        self.lines.append(line)
        for wanted, waiter in list(self._waiting):
            if wanted == line:
                self._waiting.remove((wanted, waiter))
                waiter.callback(None)

    def expect(self, line: str) -> Deferred[None]:
        """The next time a child says this."""
        waiter: Deferred[None] = Deferred()
        self._waiting.append((line, waiter))
        return waiter.addTimeout(10, reactor)

    async def test_started_again(self) -> None:
        """A child that is killed comes back as another process."""
        up = self.expect("[a] up")
        supervisor = self.start(([program("a", STAYS)], 5.0))
        await up
        first = supervisor.pids["a"]
        up = self.expect("[a] up")
        os.kill(first, signal.SIGKILL)
        await up
        self.assertNotEqual(supervisor.pids["a"], first)
        self.assertFalse(alive(first))
        self.assertEqual(self.changes, 3)

    async def test_own_group(self) -> None:
        """Ctrl-C in the terminal reaches the supervisor alone: children have process groups of their own."""
        up = self.expect("[a] up")
        supervisor = self.start(([program("a", STAYS)], 5.0))
        await up
        pid = supervisor.pids["a"]
        self.assertEqual(os.getpgid(pid), pid)

    async def test_order_of_the_end(self) -> None:
        """The last stage ends first, and nobody is left."""
        up = [self.expect("[first] up"), self.expect("[last] up")]
        supervisor = self.start(([program("first", POLITE)], 5.0), ([program("last", POLITE)], 5.0))
        for each in up:
            await each
        pids = supervisor.pids
        await supervisor.stop()
        self.assertEqual(self.lines[-2:], ["[last] leaving", "[first] leaving"])
        self.assertEqual([alive(pid) for pid in pids.values()], [False, False])
        self.assertEqual(supervisor.pids, {})

    async def test_stubborn(self) -> None:
        """Who does not end when asked is killed after its time."""
        up = self.expect("[a] up")
        supervisor = self.start(([program("a", STUBBORN)], 0.3))
        await up
        pid = supervisor.pids["a"]
        await supervisor.stop()
        self.assertFalse(alive(pid))

    async def test_end_while_waiting(self) -> None:
        """Who waits to be started again is not, once the end has come."""
        up = self.expect("[a] oops")
        supervisor = self.start(([program("a", "import sys; print('oops', file=sys.stderr); sys.exit(3)")], 5.0))
        await up
        child = supervisor.children[0]
        while child.pid is not None:
            gone: Deferred[None] = Deferred()
            reactor.callLater(0, gone.callback, None)  # type: ignore[attr-defined]
            await gone
        self.assertEqual(child.last_words, "oops")
        await supervisor.stop()
        self.assertEqual(supervisor.pids, {})

    async def test_long_lines(self) -> None:
        """A line of any length is cut, not kept."""
        code = "print('x' * 100000); print('end', flush=True); import time; time.sleep(60)"
        up = self.expect("[a] end")
        self.start(([program("a", code)], 5.0))
        await up
        self.assertLess(max(map(len, self.lines)), 9000)
        self.assertEqual(sum(line.count("x") for line in self.lines), 100000)

    async def test_killed_supervisor(self) -> None:
        """Children do not outlive a supervisor that is killed, whatever they think of signals."""
        if sys.platform != "linux":
            raise self.skipTest("only Linux ties a child to its parent")  # type: ignore[func-returns-value]
        code = (
            "import os, sys\n"
            "from twisted.internet import reactor\n"
            "from imserver.demo.supervisor import Program, Supervisor\n"
            f"child = Program('a', (sys.executable, '-c', {STUBBORN!r}), dict(os.environ))\n"
            "told = lambda line: print(supervisor.pids['a'], flush=True)\n"
            "supervisor = Supervisor(reactor, [([child], 1.0)], say=told)\n"
            "reactor.callWhenRunning(supervisor.start)\n"
            "reactor.run()\n"
        )
        outer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=ENVIRON)
        assert outer.stdout is not None
        pid = int(outer.stdout.readline())
        self.assertTrue(alive(pid))
        outer.kill()
        outer.stdout.read()  # ends when the child, which does not hold it, and the supervisor are gone
        outer.wait()
        outer.stdout.close()
        for _ in range(1000):
            if not alive(pid):
                break
            turn: Deferred[None] = Deferred()
            reactor.callLater(0.005, turn.callback, None)  # type: ignore[attr-defined]
            await turn
        self.assertFalse(alive(pid))
