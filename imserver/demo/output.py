"""Where the lines go that a demo and its children say: never in the way of the reactor, never without
bound.
"""

from __future__ import annotations

import queue
import threading
from typing import BinaryIO

LINE_MAX = 8192
_LINES_MAX = 5000
_FLUSH_S = 1.0


class Output:
    """Writes lines to a stream from a thread of its own.

    A reader of our stderr that does not read must not stop the supervisor, nor through it the servers:
    lines that find no room are dropped and counted.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lines: queue.Queue[bytes | None] = queue.Queue(_LINES_MAX)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()

    def say(self, line: str) -> None:
        """Write a line as soon as there is room."""
        try:
            if self._dropped:
                self._lines.put_nowait(f"[demo] {self._dropped} lines were dropped: nobody read them\n".encode())
                self._dropped = 0
            self._lines.put_nowait(line[:LINE_MAX].encode("utf-8", "replace") + b"\n")
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Write what waits, for a second at the most."""
        try:
            self._lines.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(_FLUSH_S)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line)
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):  # whoever read it has gone; the servers go on
                return


class Lines:
    """Cuts what a process writes into lines of bounded length."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, data: bytes) -> list[str]:
        """The lines that are complete now."""
        *whole, rest = (self._rest + data).split(b"\n")
        pieces = [piece for line in whole for piece in _cut(line)]
        *long, self._rest = _cut(rest)
        return [piece.decode("utf-8", "replace").rstrip("\r") for piece in pieces + long]

    def end(self) -> list[str]:
        """What was left without an end of line."""
        rest, self._rest = self._rest, b""
        return [rest.decode("utf-8", "replace")] if rest else []


def _cut(line: bytes) -> list[bytes]:
    return [line[i : i + LINE_MAX] for i in range(0, len(line) or 1, LINE_MAX)]
