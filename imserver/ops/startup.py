"""How a server starts, fails to start, and ends: what the three taps share.

The rule (contract: Commands): a configuration mistake, a busy port or an unreachable Redis at start is one
clear line on stderr, that line alone, and exit code 1, never a traceback. ``twistd`` by itself prints usage
text for the first, logs the others and exits with 0; so the options, the listening and the start of every
server go through this module.

A tap is then::

    class Options(ServerOptions):
        "Options of im-worker."

    def makeService(options: Options) -> IService:
        from twisted.internet import reactor

        worker = Worker(reactor, options.configuration)
        return serve(reactor, "im-worker", worker.start, worker.stop)
"""

from __future__ import annotations

import atexit
import os
import resource
import sys
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, NoReturn, TypeVar

from twisted.application.service import IService, Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError, ReactorNotRunning
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python import usage

from imserver import config

log = Logger()

Result = TypeVar("Result")

BACKLOG = 1024
"""Connections the kernel queues where the endpoint string does not say; Twisted's 50 are few."""

FILE_LIMIT = 1 << 20
"""The most file descriptors a server asks for: Linux allows no more by default."""

RETRY_FIRST_S = 0.1
RETRY_MOST_S = 1.0

_failed = False


class StartupError(Exception):
    """A server cannot start, for a reason its operator can mend; the message says what and what would do."""


# -- Options -------------------------------------------------------------------------------------------------


class ServerOptions(usage.Options):
    """Options of a server: ``--config FILE``; what it and the environment say is then in ``configuration``.

    A subclass adds its own ``optParameters`` (Twisted gathers those of all classes) and extends
    ``postOptions``, first calling this one; what is wrong there it raises as ``usage.UsageError``, which
    becomes one line too.
    """

    optParameters: ClassVar[list[list[Any]]] = [
        ["config", "c", None, "The TOML file to read; IM_SECTION__KEY in the environment overrides it."],
    ]

    configuration: config.Config
    """The whole configuration, checked."""

    @property
    def server(self) -> str:
        """The name of this server to its operator, the subcommand of twistd: ``im-worker``."""
        parent = getattr(self, "parent", None)
        return str(parent.subCommand) if parent is not None and parent.subCommand else "imserver"

    def parseOptions(self, options: list[str] | None = None) -> None:
        """Parse the command line; a mistake there or in the configuration ends the process with one line."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            refuse(f"{self.server}: {error}")

    def postOptions(self) -> None:
        """Read and check the configuration."""
        if self["config"] is None:
            raise usage.UsageError("--config FILE is missing; imctl genconfig prints a first one")
        try:
            self.configuration = config.load(self["config"], os.environ)
        except config.ConfigError as error:
            refuse(f"{self.server}: " + "; ".join(error.mistakes))


# -- Start and end -------------------------------------------------------------------------------------------


def serve(
    reactor: Any,
    name: str,
    start: Callable[[], Awaitable[None]],
    stop: Callable[[], Awaitable[None]],
    *,
    give_up: Callable[[Any, str], None] | None = None,
) -> IService:
    """Make the service of one server from its coroutines ``start`` and ``stop``.

    ``start`` runs as soon as the reactor does. A ``StartupError`` or a busy port ends the process with one
    line on stderr and exit code 1; anything unexpected likewise, and its traceback goes to the log.
    ``stop`` runs before the reactor ends and may take as long as it needs; it must cope with what ``start``
    did not reach, for after a failed start it runs too, and on SIGTERM during the start, which is cancelled
    then.

    ``give_up(reactor, line)`` is what a failed start calls; tests have their own.
    """
    return _Server(reactor, name, start, stop, give_up or end_process)


class _Server(Service):
    """The service that ``serve`` makes."""

    def __init__(
        self,
        reactor: Any,
        name: str,
        start: Callable[[], Awaitable[None]],
        stop: Callable[[], Awaitable[None]],
        give_up: Callable[[Any, str], None],
    ) -> None:
        self._reactor = reactor
        self._name = name
        self._start = start
        self._stop = stop
        self._give_up = give_up
        self._starting: Deferred[None] | None = None

    def startService(self) -> None:
        """Start when the reactor runs: before, twistd could not be ended and signals would not be seen."""
        super().startService()
        raise_file_limit()
        self._reactor.callWhenRunning(self._begin)

    def stopService(self) -> Deferred[None]:
        """Stop, having interrupted a start under way; fires when ``stop`` is done."""
        super().stopService()
        return Deferred.fromCoroutine(self._finish())

    def _begin(self) -> None:
        if self.running:
            self._starting = Deferred.fromCoroutine(self._attempt()).addCallback(self._conclude)

    async def _attempt(self) -> str | None:
        """Run the start; the result is why it failed, None when it did not."""
        try:
            await self._start()
        except CancelledError:
            return "interrupted"
        except StartupError as error:
            return str(error)
        except CannotListenError as error:
            where = f"port {error.port}" if isinstance(error.port, int) else str(error.port)
            return f"cannot listen on {where}: {reason_of(error.socketError)}"
        except Exception as error:
            log.failure("{server} failed to start", server=self._name)
            return f"unexpected {type(error).__name__}: {error} (the log has the details)"
        return None

    def _conclude(self, reason: str | None) -> None:
        if not self.running:
            return  # it is being stopped, which is no failure
        if reason is None:
            log.info("{server} is up, process {pid}", server=self._name, pid=os.getpid())
            return
        line = f"{self._name}: {reason}"
        log.critical("{line}", line=line)
        self._give_up(self._reactor, line)

    async def _finish(self) -> None:
        if self._starting is None:
            return
        self._starting.cancel()
        await self._starting
        try:
            await self._stop()
        except Exception:
            log.failure("{server} failed to stop in order", server=self._name)


def end_process(reactor: Any, line: str) -> None:
    """Say ``line`` on stderr and end the process in order, with exit code 1.

    twistd's own end does all it does otherwise (services are stopped, the pid file goes), but it knows no
    exit code: the interpreter's end is made to set it.
    """
    global _failed
    _say(line)
    if not _failed:
        _failed = True
        atexit.register(_leave)
    try:
        reactor.stop()
    except ReactorNotRunning:
        log.debug("the reactor is stopping already")


def refuse(line: str) -> NoReturn:
    """Say ``line`` on stderr and end the process at once with exit code 1; for before the reactor runs."""
    _say(line)
    raise SystemExit(1)


def _say(line: str) -> None:
    """Write one line to the real stderr; ``sys.stderr`` will not do, since twistd sends it to the log."""
    stream = sys.__stderr__
    if stream is not None:
        stream.write(" ".join(line.split()) + "\n")
        stream.flush()


def _leave() -> None:
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()
    os._exit(1)


# -- Steps of a start ----------------------------------------------------------------------------------------


async def listen(reactor: Any, description: str, factory: IProtocolFactory, *, setting: str) -> IListeningPort:
    """Listen at an endpoint string, such as ``tcp:8081:interface=127.0.0.1``.

    ``setting`` is the key that says it, such as ``[worker] listen``: the ``StartupError`` names it.
    """
    try:
        endpoint = serverFromString(reactor, _with_backlog(description))
    except Exception as error:  # whatever the endpoint's plugin raises for an argument it does not like
        reason = str(error) or type(error).__name__
        raise StartupError(f"{setting}: {description} is not an endpoint to listen on: {reason}") from error
    try:
        return await endpoint.listen(factory)
    except CannotListenError as error:
        reason = reason_of(error.socketError)
        raise StartupError(f"cannot listen on {description}: {reason}; choose another {setting}") from error


def _with_backlog(description: str) -> str:
    kind, _, arguments = description.partition(":")
    if kind in ("tcp", "tcp6", "ssl", "unix") and "backlog=" not in arguments:
        return f"{description}:backlog={BACKLOG}"
    return description


async def insist(
    clock: IReactorTime,
    attempt: Callable[[], Awaitable[Result]],
    *,
    wait_s: float,
    what: str,
    errors: tuple[type[Exception], ...],
) -> Result:
    """Call ``attempt`` until it does not raise one of ``errors``, for ``wait_s`` seconds at the most.

    For what comes up beside us, such as Redis (contract: ``startup_wait_s``). After that raises
    ``StartupError``, saying why ``what`` (such as ``Redis at ...; see [redis] url``) cannot be reached.
    """
    deadline = clock.seconds() + wait_s
    pause = RETRY_FIRST_S
    while True:
        try:
            return await attempt()
        except errors as error:
            left = deadline - clock.seconds()
            reason = reason_of(error)
            if left <= 0:
                raise StartupError(f"cannot reach {what}: {reason} (tried for {wait_s:g} s)") from error
        log.info("{what} is not there yet: {reason}", what=what, reason=reason)
        await deferLater(clock, min(pause, left))
        pause = min(pause * 2, RETRY_MOST_S)


def reason_of(error: BaseException) -> str:
    """Say why in plain words: ``address already in use`` for an OSError, else the exception's own."""
    if isinstance(error, OSError) and error.errno:
        text = os.strerror(error.errno)
        return text[:1].lower() + text[1:]
    return str(error) or type(error).__name__


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one, ``FILE_LIMIT`` at the most; the limit then.

    Each connection is one file, and 1024, the usual soft limit, is few.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILE_LIMIT if hard == resource.RLIM_INFINITY else min(hard, FILE_LIMIT)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError) as error:
            log.warn("the limit of open files stays at {soft}: {reason}", soft=soft, reason=reason_of(error))
            return soft
        log.debug("the limit of open files is {limit}", limit=wanted)
        return wanted
    return soft
