"""``imctl demo``."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogFilterPredicate,
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    PredicateResult,
    globalLogBeginner,
)
from twisted.python.logfile import LogFile

from imserver import config
from imserver.commands.target import CommandError
from imserver.demo import generated
from imserver.demo.addresses import DemoError, PortTaken
from imserver.demo.output import Output
from imserver.demo.service import CUSTOMER, Demo
from imserver.ops.logging import text_line

log = Logger()

LOG_FILE = "demo.log"
PORT_TRIES = 3
_LOG_BYTES = 16 * 1024 * 1024
_LOG_FILES = 3


def add(commands: Any) -> None:
    """Put this command among the others."""
    parser = commands.add_parser(
        "demo",
        help="run everything on this machine",
        description="Start Valkey, the three servers and a page to try them on. Ctrl-C ends everything.",
    )
    parser.add_argument("--workers", metavar="N", type=int, default=2, help="how many workers: 2")
    parser.add_argument(
        "--port",
        metavar="P",
        type=int,
        default=8080,
        help="the page's port, 8080; the others follow; 0: any that are free",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="where data lives and survives restarts; without it, in the cache directory",
    )
    parser.add_argument(
        "--json", action="store_true", help="say where things are as one line of JSON, and log to stderr"
    )
    parser.add_argument("--config", metavar="FILE", help="settings of your own (TOML), over those of the demo")
    parser.set_defaults(run=demo)


def demo(options: argparse.Namespace) -> int:
    """Run everything until a signal comes."""
    data = Path(options.data or generated.cache_directory(os.environ) / "demo").absolute()
    try:
        extra = config.read(options.config) if options.config is not None else None
    except config.ConfigError as error:
        raise CommandError("; ".join(error.mistakes)) from None
    return Stage(data, options, extra).run()


class Stage:
    """The process that a demo runs in: its signals, its output, its exit code."""

    def __init__(self, data: Path, options: argparse.Namespace, extra: generated.Tree | None) -> None:
        from twisted.internet import reactor

        self._reactor: Any = reactor
        self._json: bool = options.json
        self._data = data
        self._output = Output(sys.stderr.buffer)
        self._file: Any = None
        self._starting: Deferred[None] | None = None
        self._failure: str | None = None
        self._options = options
        self._extra = extra
        try:
            self._demo = self._made()
        except DemoError as error:
            raise CommandError(str(error)) from None
        if not self._json:
            self._file = LogFile(
                LOG_FILE, str(data), rotateLength=_LOG_BYTES, maxRotatedFiles=_LOG_FILES, defaultMode=0o600
            )

    def _made(self) -> Demo:
        return Demo(
            self._reactor,
            data=self._data,
            port=self._options.port,
            workers=self._options.workers,
            extra=self._extra,
            environ=os.environ,
            say=self._say,
        )

    def run(self) -> int:
        """Run until it has ended; the exit code."""
        globalLogBeginner.beginLoggingTo(self._observers(), redirectStandardIO=False)
        self._reactor.callWhenRunning(self._begin)
        self._reactor.addSystemEventTrigger("before", "shutdown", lambda: Deferred.fromCoroutine(self._end()))
        self._reactor.run()
        self._output.close()
        if self._failure is not None:
            raise CommandError(self._failure)
        return 0

    def _begin(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: self._reactor.callFromThread(self._signalled))
        if not self._json:
            self._output.say(f"Starting Valkey and the servers; they log to {self._data / LOG_FILE}")
        self._starting = Deferred.fromCoroutine(self._start())

    async def _start_somewhere(self) -> None:
        """Start; with `--port 0` on other ports if somebody took one of ours in between."""
        for left in reversed(range(PORT_TRIES)):
            try:
                await self._demo.start()
            except PortTaken as error:
                if self._options.port != 0 or not left:
                    raise
                log.warn("{error}: other ports are chosen", error=error)
                await self._demo.stop()
                self._demo = self._made()
            else:
                return

    async def _start(self) -> None:
        try:
            await self._start_somewhere()
        except CancelledError:
            return
        except DemoError as error:
            self._failure = str(error)
        except Exception as error:
            log.failure("the demo failed to start")
            self._failure = f"unexpected {type(error).__name__}: {error}"
        else:
            self._tell(self._demo.ready_line())
            return
        self._stop()

    def _tell(self, ready: dict[str, Any]) -> None:
        text = msgspec.json.encode(ready).decode() if self._json else _welcome(ready)
        try:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        except OSError as error:
            log.warn("nobody reads where things are: {error}", error=error)

    async def _end(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            await self._starting
        try:
            await self._demo.stop()
        except Exception:
            log.failure("the demo failed to end in order")
            self._demo.supervisor.kill()

    def _signalled(self) -> None:
        """The first time in order, the second at once."""
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            self._demo.supervisor.kill()

    def _stop(self) -> None:
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            log.debug("it is ending already")

    # -- Logs ----------------------------------------------------------------------------------------------

    def _say(self, line: str) -> None:
        """A line of a child: to stderr, or to the file where people would not want to see it."""
        if self._file is None:
            self._output.say(line)
        else:
            self._file.write(line.encode("utf-8", "replace").decode() + "\n")

    def _observers(self) -> list[ILogObserver]:
        """For our own log: all where the children's lines go, and warnings to where people see them."""

        def ours(event: LogEvent) -> Any:
            known = str(event.get("log_namespace", "")).startswith("imserver")
            level = event.get("log_level", LogLevel.info)
            return PredicateResult.yes if level >= (LogLevel.info if known else LogLevel.warn) else PredicateResult.no

        everything = _observer(lambda line: self._say(f"[demo] {line}"))
        found: list[ILogObserver] = [FilteringLogObserver(everything, [cast(ILogFilterPredicate, ours)])]
        if self._file is not None:
            found.append(FilteringLogObserver(_observer(self._output.say), [LogLevelFilterPredicate(LogLevel.warn)]))
        return found


class _Writer:
    """Hands on the lines of what a log observer writes."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def write(self, text: str) -> None:
        for line in text.splitlines():
            self._say(line)

    def flush(self) -> None:
        """Nothing is kept."""


def _observer(say: Callable[[str], None]) -> ILogObserver:
    return FileLogObserver(cast(Any, _Writer(say)), text_line)


def _welcome(ready: dict[str, Any]) -> str:
    """What a person who tries it wants to know."""
    push = shlex.quote(msgspec.json.encode({"to": CUSTOMER, "type": "text", "body": {"text": "Hello"}}).decode())
    imctl = "imctl" if shutil.which("imctl") else os.path.relpath(sys.argv[0])
    lines = [
        "",
        f"  imserver is ready: {ready['web']}/",
        "",
        "  A customer and an agent write to each other on that page. From a shell:",
        "",
        f"    {imctl} send --to {CUSTOMER} --text Hello",
        f"    {imctl} listen --uid {CUSTOMER}",
        f"    {imctl} status",
        f"    curl -H 'Authorization: Bearer {ready['api_key']}' -H 'Content-Type: application/json' \\",
        f"         -d {push} {ready['dispatcher']}/v1/push",
        "",
        f"  The dispatcher's calls        {ready['dispatcher']}/docs",
        f"  The business server's calls   {ready['business']}/docs",
        *(f"  Worker {i + 1}                      {url}" for i, url in enumerate(ready["workers"])),
        "",
        "  Channels and their API keys:",
        *(f"    {name:<16} {one['uplink']:<10} {one['api_key']}" for name, one in ready["channels"].items()),
        "",
        "  Ctrl-C ends everything.",
        "",
    ]
    return "\n".join(lines)
