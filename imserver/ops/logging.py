"""Where a server's log goes and what a line of it looks like: observers for ``twistd --logger``.

``twistd -n --logger imserver.ops.logging.json_lines im-worker ...`` writes one JSON object a line,
``text_lines`` the same for people. Both write to stdout, for the journal or a container; or, when the
environment names a directory, to a file there, a new one each day. The environment and not the configuration
says so because twistd makes the log before it knows any server:

``IM_LOG_DIR``
    the directory; it is created
``IM_LOG_NAME``
    the file's name in it, ``imserver.log`` without; each process needs its own
``IM_LOG_DAYS``
    how many past days are kept, 14 without
``IM_LOG_LEVEL``
    ``debug``, ``info`` (without), ``warn``, ``error`` or ``critical``: what is below is not written
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import IO, Any, cast

from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    InvalidLogLevelError,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
)
from twisted.python.logfile import DailyLogFile

from imserver.ops.startup import reason_of, refuse

MESSAGE_LIMIT = 8 * 1024
"""Characters of a message that are written; a client's input may be in it."""

FAILURE_LIMIT = 16 * 1024
"""Characters of a traceback that are written; of a longer one the end, which says what happened."""

DAYS = 14


def json_lines() -> ILogObserver:
    """Make the observer that writes JSON lines.

    Each has ``time`` (ISO 8601, UTC), ``level``, ``namespace``, ``source`` (file:line of the call that logged
    it, where that is known), ``message``, and ``failure`` (a traceback) when there is one.
    """
    return _observer(json_line, os.environ)


def text_lines() -> ILogObserver:
    """Make the observer that writes the same for people to read."""
    return _observer(text_line, os.environ)


# -- Lines ---------------------------------------------------------------------------------------------------


def json_line(event: LogEvent) -> str:
    """Format an event as a line of JSON.

    In pure ASCII, by the standard library: what clients send gets into messages, and lone surrogates, which
    neither ujson nor msgspec encodes, must not cost the line.
    """
    return json.dumps(_fields(event)) + "\n"


def text_line(event: LogEvent) -> str:
    """Format an event as a line of text; its further lines are indented, so that none passes for an event."""
    fields = _fields(event)
    source = f" ({fields['source']})" if "source" in fields else ""
    text = f"{fields['time']} {fields['level']:<8} {fields['namespace']}: {fields['message']}{source}"
    if "failure" in fields:
        text += "\n" + fields["failure"]
    lines = text.encode("utf-8", "backslashreplace").decode().splitlines()
    return "\n    ".join(lines) + "\n"


def _fields(event: LogEvent) -> dict[str, str]:
    level = event.get("log_level", LogLevel.info)
    moment = datetime.fromtimestamp(event.get("log_time", 0.0), UTC)
    fields = {
        "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": level.name,
        "namespace": str(event.get("log_namespace", "")),
    }
    if source := _source():
        fields["source"] = source
    fields["message"] = _shorten(formatEvent(event))
    if (failure := event.get("log_failure")) is not None:
        fields["failure"] = failure.getTraceback()[-FAILURE_LIMIT:]
    return fields


def _shorten(message: str) -> str:
    more = len(message) - MESSAGE_LIMIT
    return message if more <= 0 else f"{message[:MESSAGE_LIMIT]}... ({more} more characters)"


def _source() -> str:
    """Find the file and line that logged: the first caller outside the logging machinery.

    Empty for what was logged before there was an observer and is only now replayed.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if frame.f_code.co_name == "replayTo":
            return ""
        if module != __name__ and not module.startswith(("twisted.logger", "twisted.python.log")):
            return f"{_short_path(frame.f_code.co_filename)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _short_path(path: str) -> str:
    """The path from its package on: ``imserver/worker/session.py`` rather than where it is installed."""
    parts = path.replace(os.sep, "/").split("/")
    for package in ("imserver", "twisted"):
        if package in parts[:-1]:
            return "/".join(parts[len(parts) - 1 - parts[::-1].index(package) :])
    return parts[-1]


# -- Where they go -------------------------------------------------------------------------------------------


def _observer(line: Callable[[LogEvent], str], environ: Mapping[str, str]) -> ILogObserver:
    """Make the observer that the environment asks for; a mistake there is one line on stderr and the end."""
    level = environ.get("IM_LOG_LEVEL", "info")
    try:
        threshold = LogLevelFilterPredicate(LogLevel.levelWithName(level))
    except InvalidLogLevelError:
        refuse(f"IM_LOG_LEVEL: {level} is not a level; use debug, info, warn, error or critical")
    output: IO[Any] = sys.stdout
    if directory := environ.get("IM_LOG_DIR"):
        days = environ.get("IM_LOG_DAYS", str(DAYS))
        if not days.isdecimal() or int(days) < 1:
            refuse(f"IM_LOG_DAYS: {days} is not a number of days; use 1 or more")
        try:
            output = cast(IO[Any], open_daily(directory, environ.get("IM_LOG_NAME", "imserver.log"), int(days)))
        except OSError as error:
            refuse(f"IM_LOG_DIR: cannot write a log in {directory}: {reason_of(error)}")
    return FilteringLogObserver(FileLogObserver(output, line), [threshold])


def open_daily(directory: str, name: str, days: int) -> DailyFile:
    """Open the log file ``name`` in ``directory``, which is created; ``days`` past days' files are kept."""
    os.makedirs(directory, mode=0o750, exist_ok=True)
    return DailyFile(name, directory, days)


class DailyFile(DailyLogFile):
    """A log file that is renamed after its day (``NAME.2026_1_31``) once that is over; ``days`` are kept."""

    def __init__(self, name: str, directory: str, days: int) -> None:
        self.days = days
        super().__init__(name, directory, defaultMode=0o640)
        self._prune()

    def rotate(self) -> None:
        """Begin a new day's file."""
        super().rotate()
        self._prune()

    def _prune(self) -> None:
        """Delete the files of the oldest days; a file that is not named like one of ours stays."""
        past = []
        for path in Path(self.directory).iterdir():
            if match := re.fullmatch(re.escape(self.name) + r"\.(\d{4})_(\d\d?)_(\d\d?)", path.name):
                past.append((tuple(map(int, match.groups())), path))
        for _, path in sorted(past)[: -self.days]:
            path.unlink(missing_ok=True)
