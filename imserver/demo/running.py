"""Which demo runs: how it tells where it is, and how other commands find it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from imserver.demo.addresses import DemoError
from imserver.demo.generated import cache_directory, write_private

FILE = "demo.json"
LOCK = "demo.lock"


class Running(msgspec.Struct, frozen=True):
    """A demo that runs: its data directory, its configuration file, and its ready line."""

    pid: int
    data: str
    config: str
    ready: dict[str, Any]


class Lock:
    """Held as long as a demo uses a data directory; the kernel lets go of it when the process ends."""

    def __init__(self, data: Path) -> None:
        self._descriptor = os.open(data / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise DemoError(f"another demo is using {data}; end it, or give this one a --data DIR of its own") from None

    def release(self) -> None:
        """Let another demo use the directory."""
        os.close(self._descriptor)


def announce(running: Running, environ: Mapping[str, str]) -> None:
    """Write down where this demo is, in its data directory and where other commands look."""
    text = msgspec.json.encode(running).decode() + "\n"
    write_private(Path(running.data) / FILE, text)
    pointer = cache_directory(environ) / FILE
    pointer.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(pointer, text)


def withdraw(data: Path, environ: Mapping[str, str]) -> None:
    """Take that back; another demo's pointer stays."""
    (data / FILE).unlink(missing_ok=True)
    pointer = cache_directory(environ) / FILE
    known = _read(pointer)
    if known is not None and known.pid == os.getpid():
        pointer.unlink(missing_ok=True)


def find(environ: Mapping[str, str]) -> Running | None:
    """The demo that runs, the last one started if there are several; None if there is none."""
    known = _read(cache_directory(environ) / FILE)
    return known if known is not None and _in_use(Path(known.data)) else None


def _read(path: Path) -> Running | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Running)
    except (OSError, msgspec.DecodeError):
        return None


def _in_use(data: Path) -> bool:
    try:
        with (data / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
