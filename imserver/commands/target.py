"""What a command works on: the servers of a configuration file, or of the demo that runs."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import react

from imserver import config
from imserver.demo import running
from imserver.http.client import Answer, HttpClient, Unreachable

CALL_TIMEOUT_S = 10.0
INTERRUPTED = 130
"""The exit code after Ctrl-C."""

Server = Literal["dispatcher", "business server"]

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class CommandError(Exception):
    """Why a command cannot do what it was asked: one line for stderr, exit code 1."""


def add_config(parser: argparse.ArgumentParser, *, channel: bool = True) -> None:
    """The options that say which servers, and which channel of theirs."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="the servers' configuration; without it, the demo that runs on this machine",
    )
    if channel:
        parser.add_argument("--channel", metavar="C", help="the channel; without it, the first one configured")


def duration(text: str) -> int:
    """A time such as 1d, 12h, 30m, 45s or 45, in seconds; for argparse."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 1d, 12h, 30m or 45s")
    return int(match[1]) * _UNITS[match[2]]


def json_object(text: str) -> dict[str, Any]:
    """A JSON object; for argparse."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object: {error}") from None


class Target:
    """The servers of a configuration, and one channel of it."""

    def __init__(self, settings: config.Config, channel: str | None) -> None:
        self.settings = settings
        if channel is not None and channel not in settings.channels:
            raise CommandError(f"there is no channel {channel}; there is {', '.join(settings.channels)}")
        self.channel = channel or next(iter(settings.channels))

    @property
    def key(self) -> str:
        """An API key of the channel."""
        return self.settings.channels[self.channel].api_keys[0]

    @property
    def dispatcher(self) -> str:
        """The dispatcher's base URL."""
        return self.settings.dispatcher.url.rstrip("/")

    @property
    def business(self) -> str:
        """The business server's base URL."""
        return self.settings.business.url.rstrip("/")

    async def call(
        self, http: HttpClient, method: str, path: str, body: Any = None, *, server: Server = "dispatcher"
    ) -> Any:
        """The decoded answer of a server to a call with the channel's key; `CommandError` says what it said."""
        encoded = None if body is None else msgspec.json.encode(body)
        base = self.dispatcher if server == "dispatcher" else self.business
        try:
            answer = await http.call(method, base + path, body=encoded, token=self.key, timeout=CALL_TIMEOUT_S)
        except Unreachable as error:
            raise CommandError(f"the {server} cannot be reached: {error}") from None
        if answer.status >= 300:
            raise CommandError(_problem(answer, server))
        return msgspec.json.decode(answer.body) if answer.body else None


def shown_time(ts: int) -> str:
    """A time in milliseconds as a reader wants it."""
    return datetime.fromtimestamp(ts / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _problem(answer: Answer, server: Server) -> str:
    """What a problem document says, in one line."""
    try:
        problem = msgspec.json.decode(answer.body, type=dict[str, Any])
    except msgspec.DecodeError:
        return f"the {server} answered {answer.status}"
    field = f"{problem['field']}: " if problem.get("field") else ""
    text = problem.get("detail") or problem.get("title") or ""
    return f"{field}{text} ({answer.status} {problem.get('code', '')})"


def find(options: argparse.Namespace) -> Target:
    """What the options name: the configuration given, or that of the demo that runs."""
    channel = getattr(options, "channel", None)
    try:
        if options.config is not None:
            return Target(config.load(options.config, os.environ), channel)
        demo = running.find(os.environ)
        if demo is None:
            raise CommandError("no demo is running here; start one with imctl demo, or give --config FILE")
        return Target(config.load(Path(demo.config), {}), channel)
    except config.ConfigError as error:
        raise CommandError("; ".join(error.mistakes)) from None


def run(work: Callable[[Any], Awaitable[int]]) -> int:
    """Run a coroutine under the reactor; its result is the exit code, a `CommandError` one line and 1."""
    code = INTERRUPTED

    async def guarded(reactor: Any) -> None:
        nonlocal code
        try:
            code = await work(reactor)
        except CommandError as error:
            complain(str(error))
            code = 1
        except CancelledError:
            raise
        except Exception:
            code = 1
            raise

    with suppress(SystemExit):  # react ends with it; what it says is in `code` already
        react(lambda reactor: Deferred.fromCoroutine(guarded(reactor)))
    return code


def complain(line: str) -> None:
    """Say one line on stderr."""
    print(f"imctl: {' '.join(line.split())}", file=sys.stderr)
