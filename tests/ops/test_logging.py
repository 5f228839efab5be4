"""Tests of imserver.ops.logging: what a line says, how long it may be, and how long files are kept."""

from __future__ import annotations

import io
import json
from pathlib import Path

from twisted.logger import FileLogObserver, LimitedHistoryLogObserver, LogEvent, Logger, LogLevel
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from imserver.ops import logging
from tests.ops.processes import start_twistd


def event(log_format: str, **more: object) -> LogEvent:
    """Make an event as a Logger does."""
    return {
        "log_format": log_format,
        "log_level": LogLevel.warn,
        "log_namespace": "tests",
        "log_time": 1700000000.25,
        **more,
    }


def failure(text: str) -> Failure:
    """Make a failure with a traceback."""
    try:
        raise ValueError(text)
    except ValueError:
        return Failure()


class LineTests(TestCase):
    """A line of the log."""

    def test_json(self) -> None:
        """A JSON line has what a reader looks for."""
        line = logging.json_line(event("{uid} joined", uid="alice"))
        self.assertTrue(line.endswith("}\n"))
        fields = json.loads(line)
        self.assertIn("test_logging.py:", fields.pop("source"))
        self.assertEqual(
            fields,
            {
                "time": "2023-11-14T22:13:20.250Z",
                "level": "warn",
                "namespace": "tests",
                "message": "alice joined",
            },
        )

    def test_text(self) -> None:
        """A text line has the same."""
        line = logging.text_line(event("{uid} joined", uid="alice"))
        self.assertTrue(line.startswith("2023-11-14T22:13:20.250Z warn     tests: alice joined ("), line)

    def test_source(self) -> None:
        """The source is where the log was called, not the machinery; of a replayed event it is not known."""
        output = io.StringIO()
        observer = FileLogObserver(output, logging.json_line)
        history = LimitedHistoryLogObserver()
        for logger in (Logger(observer=observer), Logger(observer=history)):
            logger.info("here")
        history.replayTo(observer)
        now, replayed = [json.loads(line) for line in output.getvalue().splitlines()]
        self.assertRegex(now["source"], r"\btest_logging\.py:\d+$")
        self.assertNotIn("source", replayed)

    def test_failure(self) -> None:
        """A failure comes with its traceback."""
        fields = json.loads(logging.json_line(event("oh", log_failure=failure("no such thing"))))
        self.assertIn("Traceback", fields["failure"])
        self.assertIn("no such thing", fields["failure"])

    def test_bounds(self) -> None:
        """Neither a long message nor a long failure makes an endless line; of the failure the end is kept."""
        fields = json.loads(
            logging.json_line(event("{text}", text="x" * 10**6, log_failure=failure("y" * 10**6 + "end")))
        )
        self.assertLess(len(fields["message"]), logging.MESSAGE_LIMIT + 50)
        self.assertIn("more characters", fields["message"])
        self.assertLessEqual(len(fields["failure"]), logging.FAILURE_LIMIT)
        self.assertIn("end", fields["failure"][-10:])

    def test_hostile(self) -> None:
        """Line ends in a message do not begin a line of their own; lone surrogates do no harm."""
        text = "a\n2023-11-14T22:13:20.250Z info     tests: forged\r\x85\u2028b\ud800"
        line = logging.json_line(event("{text}", text=text))
        self.assertEqual(json.loads(line)["message"], text)
        self.assertEqual(len(line.splitlines()), 1)
        first, *others = logging.text_line(event("{text}", text=text)).splitlines()
        self.assertTrue(all(other.startswith("    ") for other in others))

    def test_broken(self) -> None:
        """An event that cannot be formatted still makes a line."""
        self.assertIn("message", json.loads(logging.json_line({"log_format": "{missing}"})))


class DailyTests(TestCase):
    """A file for each day."""

    def test_retention(self) -> None:
        """Of past days as many files are kept as asked for, by date and not by name; other files stay."""
        directory = Path(self.mktemp())
        directory.mkdir()
        others = ["test.log.2026_1_9.gz", "other.log.2020_1_1"]
        for name in [f"test.log.2026_1_{day}" for day in (2, 9, 10, 11)] + others:
            (directory / name).touch()
        self.addCleanup(logging.open_daily(str(directory), "test.log", 3).close)
        self.assertEqual(
            sorted(path.name for path in directory.iterdir()),
            sorted(["test.log", *others, *(f"test.log.2026_1_{day}" for day in (9, 10, 11))]),
        )

    def test_rotation(self) -> None:
        """When the day is over, its file is renamed after it and a new one begun; the oldest goes."""
        directory = Path(self.mktemp())
        log = logging.open_daily(str(directory), "test.log", 1)
        self.addCleanup(lambda: log.close())
        for day in (1, 2):
            log.write("a day\n")
            log.lastDate = (2026, 1, day)
        log.write("today\n")
        self.assertEqual(
            {path.name: path.read_text() for path in directory.iterdir()},
            {"test.log": "today\n", "test.log.2026_1_2": "a day\n"},
        )


TAC = """
from twisted.application.service import Application
from twisted.internet import reactor
from twisted.logger import Logger

application = Application("test")
log = Logger("test")

def say():
    log.debug("unheard")
    log.info("up")
    print("printed")
    reactor.stop()

reactor.callWhenRunning(say)
"""


class ProcessTests(TestCase):
    """The log of a real twistd process."""

    timeout = 60

    def start(self, logger: str, **environ: str) -> None:
        """Run a server that logs something."""
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        (self.directory / "test.tac").write_text(TAC)
        self.process = start_twistd(
            self,
            ["--logger", f"imserver.ops.logging.{logger}", "-y", "test.tac"],
            directory=str(self.directory),
            environ=environ,
        )

    async def test_stdout(self) -> None:
        """Without a directory JSON lines go to stdout, what is printed too, and nothing to stderr."""
        self.start("json_lines")
        await self.process.when_ended()
        self.assertEqual(self.process.err, "")
        lines = [json.loads(line) for line in self.process.out.splitlines()]
        said = {line["message"]: line["source"] for line in lines if line["namespace"] == "test"}
        self.assertEqual(said, {"up": "test.tac:11"})

    async def test_file(self) -> None:
        """With one they go to the file there."""
        self.start("text_lines", IM_LOG_DIR="log/here", IM_LOG_NAME="test.log", IM_LOG_LEVEL="debug")
        await self.process.when_ended()
        self.assertEqual((self.process.out, self.process.err), ("", ""))
        self.assertIn("test: unheard", (self.directory / "log" / "here" / "test.log").read_text())

    async def test_wrong_level(self) -> None:
        """A level that does not exist is one line on stderr."""
        self.start("text_lines", IM_LOG_LEVEL="loud")
        self.assertEqual(await self.process.when_ended(), 1)
        self.assertEqual(
            self.process.err,
            "IM_LOG_LEVEL: loud is not a level; use debug, info, warn, error or critical\n",
        )
