"""Tests of imserver.ops.startup: one line on stderr and exit code 1, or a server that runs."""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path

from twisted.application.service import IService
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import TestCase

from imserver.ops.startup import StartupError, insist, listen, raise_file_limit, reason_of, serve
from tests.ops.processes import Process, start_twistd


class Steps:
    """A server for tests: ``start`` waits until told how to end; what happened is in ``events``."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.reactor = MemoryReactorClock()
        self.going: Deferred[None] = Deferred()
        self.stopping: Deferred[None] = Deferred()

    async def start(self) -> None:
        """Begin, and be up when ``going`` fires."""
        self.events.append("start")
        try:
            await self.going
        except CancelledError:
            self.events.append("cancelled")
            raise
        self.events.append("up")

    async def stop(self) -> None:
        """Begin to stop, and be done when ``stopping`` fires."""
        self.events.append("stop")
        await self.stopping

    def service(self) -> IService:
        """Make the service."""
        return serve(
            self.reactor,
            "im-test",
            self.start,
            self.stop,
            give_up=lambda _, line: self.events.append(line),
        )


class ServeTests(TestCase):
    """The service of a server."""

    def setUp(self) -> None:
        """Make a server."""
        self.steps = Steps()
        self.service = self.steps.service()

    def begin(self) -> None:
        """Start it, and the reactor."""
        self.service.startService()
        self.steps.reactor.run()

    def test_start_waits_for_the_reactor(self) -> None:
        """Nothing happens before the reactor runs."""
        self.service.startService()
        self.assertEqual(self.steps.events, [])
        self.steps.reactor.run()
        self.assertEqual(self.steps.events, ["start"])

    def test_stop_is_awaited(self) -> None:
        """``stopService`` fires when ``stop`` is done, not before."""
        self.begin()
        self.steps.going.callback(None)
        stopped = self.service.stopService()
        self.assertEqual(self.steps.events, ["start", "up", "stop"])
        self.assertNoResult(stopped)
        self.steps.stopping.callback(None)
        self.successResultOf(stopped)

    def test_stop_during_start(self) -> None:
        """A start under way is cancelled, which is no failure; then ``stop`` cleans up."""
        self.begin()
        stopped = self.service.stopService()
        self.steps.stopping.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(self.steps.events, ["start", "cancelled", "stop"])

    def test_stop_before_start(self) -> None:
        """A server that never began has nothing to stop, and does not begin afterwards."""
        self.service.startService()
        self.successResultOf(self.service.stopService())
        self.steps.reactor.run()
        self.assertEqual(self.steps.events, [])

    def test_startup_error(self) -> None:
        """The reason for which it cannot start becomes the one line."""
        self.begin()
        self.steps.going.errback(StartupError("no keys; add [tokens.keys.NAME]"))
        self.assertEqual(self.steps.events, ["start", "im-test: no keys; add [tokens.keys.NAME]"])

    def test_busy_port(self) -> None:
        """A port that is in use, when whoever listens does not say so better, becomes the line too."""
        self.begin()
        self.steps.going.errback(CannotListenError("", 8081, OSError(98, "Address already in use")))
        self.assertEqual(self.steps.events[1:], ["im-test: cannot listen on port 8081: address already in use"])

    def test_unexpected(self) -> None:
        """Anything else is a line as well, and its traceback is logged."""
        self.begin()
        self.steps.going.errback(ZeroDivisionError("oh"))
        self.assertEqual(self.steps.events[1:], ["im-test: unexpected ZeroDivisionError: oh (the log has the details)"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_failing_stop(self) -> None:
        """A stop that fails is logged and does not keep the process from ending."""
        self.begin()
        self.steps.going.callback(None)
        self.steps.stopping.errback(ZeroDivisionError("oh"))
        self.successResultOf(self.service.stopService())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class ListenTests(TestCase):
    """Listening at an endpoint string."""

    async def test_busy(self) -> None:
        """A busy port is told with its address, the reason, and the setting to change."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            description = f"tcp:{other.getsockname()[1]}:interface=127.0.0.1"
            error = await self.assertFailure(
                Deferred.fromCoroutine(listen(reactor, description, Factory(), setting="[worker] listen")),
                StartupError,
            )
        self.assertEqual(
            str(error),
            f"cannot listen on {description}: address already in use; choose another [worker] listen",
        )

    async def test_not_an_endpoint(self) -> None:
        """What Twisted cannot make an endpoint of is told with the setting."""
        for description in ("carrier-pigeon:8081", "8081", "tcp:port:number"):
            error = await self.assertFailure(
                Deferred.fromCoroutine(listen(reactor, description, Factory(), setting="--listen")),
                StartupError,
            )
            self.assertIn(f"--listen: {description} is not an endpoint", str(error))

    async def test_backlog(self) -> None:
        """The queue of connections to accept is longer than Twisted's, unless the string says how long."""
        memory = MemoryReactorClock()
        for description in ("tcp:1", "tcp:2:backlog=7"):
            await listen(memory, description, Factory(), setting="--listen")
        self.assertEqual([server[2] for server in memory.tcpServers], [1024, 7])


class InsistTests(TestCase):
    """Trying again until something is there."""

    def setUp(self) -> None:
        """Count the attempts and fail those before ``good``."""
        self.clock = Clock()
        self.attempts = 0
        self.good = 3

    async def attempt(self) -> str:
        """Connect, or not."""
        self.attempts += 1
        if self.attempts < self.good:
            raise ConnectionRefusedError(111, "Connection refused")
        return "connected"

    def begin(self) -> Deferred[str]:
        """Insist for 30 seconds."""
        return Deferred.fromCoroutine(insist(self.clock, self.attempt, wait_s=30, what="Redis", errors=(OSError,)))

    def test_success(self) -> None:
        """The first attempt that succeeds gives the result."""
        result = self.begin()
        self.assertNoResult(result)
        self.clock.pump([0.1, 0.2])
        self.assertEqual(self.successResultOf(result), "connected")

    def test_too_late(self) -> None:
        """After the time it gives up and says why; the attempts have become rare, at most one a second."""
        self.good = 1000
        result = self.begin()
        self.clock.pump([0.1] * 299)
        self.assertNoResult(result)
        self.clock.pump([0.1] * 2)
        error = self.failureResultOf(result, StartupError).value
        self.assertEqual(str(error), "cannot reach Redis: connection refused (tried for 30 s)")
        self.assertLess(self.attempts, 40)

    def test_another_error(self) -> None:
        """An error that waiting does not mend is not retried."""

        async def broken() -> str:
            raise ZeroDivisionError

        self.attempt = broken
        self.failureResultOf(self.begin(), ZeroDivisionError)


class LimitTests(TestCase):
    """The limit of open files, and words for errors."""

    def test_raise_file_limit(self) -> None:
        """The soft limit becomes the hard one."""
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] - 1, before[1]))
        limit = raise_file_limit()
        self.assertEqual(resource.getrlimit(resource.RLIMIT_NOFILE), (limit, before[1]))
        self.assertGreaterEqual(limit, before[0] - 1)

    def test_reason(self) -> None:
        """An exception without words is at least named."""
        self.assertEqual(reason_of(FileNotFoundError(2, "")), "no such file or directory")
        self.assertEqual(reason_of(ValueError("odd")), "odd")
        self.assertEqual(reason_of(ValueError()), "ValueError")


PLUGIN = """
from twisted.application.service import ServiceMaker
test = ServiceMaker("test", "startup_tap", "A server for a test.", "im-test")
"""

TAP = """
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from imserver.ops.startup import ServerOptions, StartupError, listen, serve

class Options(ServerOptions):
    optParameters = [["behave", None, "well"]]

def makeService(options):
    from twisted.internet import reactor

    async def start():
        print("begun")
        match options["behave"].split("=", 1):
            case ["listen", where]:
                await listen(reactor, where, Factory(), setting="[test] listen")
            case ["fail"]:
                raise StartupError("cannot: two\\nlines")
            case ["crash"]:
                raise ZeroDivisionError("oh")
            case ["hang"]:
                await Deferred()
        print("started")

    async def stop():
        print("stopped")

    return serve(reactor, "im-test", start, stop)
"""

CONFIG = """
[cluster]
secret = "0123456789abcdef0123456789abcdef"
[tokens.keys.main]
secret = "0123456789abcdef0123456789abcdef"
[channels.test]
api_keys = ["0123456789abcdef"]
"""


class ProcessTests(TestCase):
    """The same in a real twistd process."""

    timeout = 60

    def start(self, *arguments: str, config: str = CONFIG, environ: dict[str, str] | None = None) -> Process:
        """Run a server that behaves as it is told to."""
        self.directory = Path(self.mktemp()).absolute()
        (self.directory / "twisted" / "plugins").mkdir(parents=True)
        (self.directory / "twisted" / "plugins" / "startup_plugins.py").write_text(PLUGIN)
        (self.directory / "startup_tap.py").write_text(TAP)
        (self.directory / "test.toml").write_text(config)
        return start_twistd(
            self,
            ["--pidfile=test.pid", "im-test", "--config", "test.toml", *arguments],
            directory=str(self.directory),
            environ=environ,
        )

    async def refused(self, process: Process) -> str:
        """Wait for the end that the contract asks for; gives the line."""
        code = await process.when_ended()
        self.assertEqual(code, 1, process.out)
        self.assertEqual(process.err.count("\n"), 1, process.err)
        self.assertTrue(process.err.startswith("im-test: "), process.err)
        self.assertFalse((self.directory / "test.pid").exists())
        return process.err[len("im-test: ") : -1]

    async def test_up_and_down(self) -> None:
        """A server starts, and stops in order on SIGTERM, with nothing on stderr."""
        process = self.start()
        await process.when_written("started")
        await process.when_written("im-test is up")
        process.signal("TERM")
        await process.when_written("stopped")
        self.assertIn(await process.when_ended(), (0, -15))
        self.assertEqual(process.err, "")

    async def test_terminated_while_starting(self) -> None:
        """SIGTERM during the start ends it, in order too."""
        process = self.start("--behave", "hang")
        await process.when_written("begun")
        process.signal("TERM")
        await process.when_written("stopped")
        self.assertIn(await process.when_ended(), (0, -15))
        self.assertEqual(process.err, "")

    async def test_failure(self) -> None:
        """A failed start is one line, however many its reason has, and what began is stopped."""
        process = self.start("--behave", "fail")
        self.assertEqual(await self.refused(process), "cannot: two lines")
        self.assertIn("stopped", process.out)
        self.assertNotIn("Traceback", process.out)

    async def test_crash(self) -> None:
        """A crash at start is one line, and the traceback is in the log."""
        process = self.start("--behave", "crash")
        self.assertIn("unexpected ZeroDivisionError: oh", await self.refused(process))
        self.assertIn("Traceback", process.out)

    async def test_busy_port(self) -> None:
        """A busy port is one line."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            where = f"tcp:{other.getsockname()[1]}:interface=127.0.0.1"
            process = self.start("--behave", f"listen={where}")
            line = await self.refused(process)
        self.assertEqual(line, f"cannot listen on {where}: address already in use; choose another [test] listen")

    async def test_configuration(self) -> None:
        """All mistakes of a configuration, the environment's too, are in one line."""
        process = self.start(config="[redis]\nulr = 1\n", environ={"IM_REDIS__STARTUP_WAIT_S": "soon"})
        line = await self.refused(process)
        self.assertIn("redis.ulr", line)
        self.assertIn("redis.startup_wait_s", line)
        self.assertEqual(process.out, "")

    async def test_command_line(self) -> None:
        """A wrong option is one line, without the usage text."""
        process = self.start("--bogus")
        self.assertIn("bogus", await self.refused(process))
        self.assertEqual(process.out, "")

    async def test_wrong_log(self) -> None:
        """So is a log that cannot be written."""
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        process = start_twistd(
            self,
            ["--logger", "imserver.ops.logging.json_lines", "-y", "test.tac"],
            directory=str(self.directory),
            environ={"IM_LOG_DIR": os.devnull},
        )
        tac = "from twisted.application.service import Application; application = Application('test')"
        (self.directory / "test.tac").write_text(tac)
        self.assertEqual(await process.when_ended(), 1)
        self.assertEqual(process.err, "IM_LOG_DIR: cannot write a log in /dev/null: file exists\n")
