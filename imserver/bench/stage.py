"""What a scenario runs on: servers (a stack of its own, or some that run already), clients, and what each costs."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psutil
from twisted.internet.defer import Deferred, DeferredList

from imserver import config
from imserver.bench.calls import Calls
from imserver.bench.figures import CPU, Row
from imserver.bench.orders import Child
from imserver.demo.addresses import HOST
from imserver.demo.service import Demo
from imserver.http.client import HttpClient
from imserver.protocol.tokens import Tokens

CALL_S = 10.0
OPEN_S = 120.0
END_S = 20.0
AT_ONCE = 50
"""Connections that one process of clients opens at a time."""
_TOKENS_MAX = 2000
_BUSY = 0.9
_SAID_MAX = 40

# Limits that protect a server from its clients would be what is measured.
UNBOUND: dict[str, Any] = {
    "connection": {"frames_per_s": 1_000_000, "frames_burst": 1_000_000},
    "suspension": {"attempts": 0},
    "channels": {
        name: dict.fromkeys(("push_per_s", "push_burst", "messages_per_s", "messages_burst"), 10_000_000)
        for name in ("demo", "demo-direct", "demo-journal")
    },
}


class BenchError(Exception):
    """Why a scenario cannot run: one line that says what would do."""


class Servers(msgspec.Struct, kw_only=True):
    """Servers that run already: `pids` of those on this machine whose cost is to be told."""

    settings: config.Config
    workers: list[str]
    pids: dict[str, int] = {}


class Usage:
    """CPU time of processes since it was made; of those in `trees` with their children."""

    def __init__(self, pids: Mapping[str, int], trees: Mapping[str, int] | None = None) -> None:
        self._trees = dict(trees or {})
        self._pids = {**pids, **self._trees}
        self._since = time.monotonic()
        self._before = {name: self._cpu_s(name) for name in self._pids}

    def _cpu_s(self, name: str) -> float:
        return _tree_cpu_s(self._pids[name]) if name in self._trees else _cpu_s(self._pids[name])

    def spent(self) -> dict[str, float]:
        """Seconds of CPU by process; all workers are one."""
        found: dict[str, float] = {}
        for name in self._pids:
            kind = "workers" if name.startswith("worker-") else name
            found[kind] = found.get(kind, 0.0) + self._cpu_s(name) - self._before[name]
        return found

    def columns(self, messages: int) -> Row:
        """Microseconds of CPU for each of so many messages, by process."""
        spent = self.spent().items()
        return {f"{name}{CPU}": seconds / max(1, messages) * 1e6 for name, seconds in spent if seconds}

    def busiest(self) -> str | None:
        """Which process of the load generator had hardly a moment to itself, None if none: it was the limit then."""
        elapsed = time.monotonic() - self._since
        for name in ("clients", "feeder", "bench"):
            share = self.spent().get(name, 0.0) / elapsed if elapsed else 0.0
            if share > _BUSY:
                return f"the load generator ({name}) used {share:.0%} of a core: it was the limit, or near it"
        return None


class Stage:
    """Servers, and the bench's own processes; `start` and `stop`."""

    def __init__(
        self,
        reactor: Any,
        servers: Servers | None = None,
        *,
        workers: int = 2,
        extra: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        self.run = f"bench-{secrets.token_hex(3)}"
        """Begins every uid, so that no run meets what another left."""
        self._reactor = reactor
        self._servers = servers
        self._count = workers
        self._extra = {**UNBOUND, **(extra or {})}
        self._demo: Demo | None = None
        self._directory: Path | None = None
        self._children: dict[str, Child] = {}
        self._calls: list[Calls] = []
        self._said: deque[str] = deque(maxlen=_SAID_MAX)
        self.interrupted = False
        """Whether it ends because the process was told to."""
        self._trigger: Any = None

    async def start(self) -> None:
        """Start a stack, unless there is one."""
        self._trigger = self._reactor.addSystemEventTrigger("before", "shutdown", self._shut_down)
        if self._servers is None:
            self._directory = Path(tempfile.mkdtemp(prefix="imserver-bench-"))
            self._demo = Demo(
                self._reactor,
                data=self._directory / "data",
                port=0,
                workers=self._count,
                extra=self._extra,
                environ={**os.environ, "XDG_CACHE_HOME": str(self._directory)},
                say=self._said.append,
            )
            await self._demo.start()
            self._servers = Servers(
                settings=self._demo.settings, workers=self._demo.workers, pids=self._demo.supervisor.pids
            )
        self.tokens = Tokens(self.settings)

    def _shut_down(self) -> Deferred[None]:
        self._trigger = None  # it runs, and cannot be removed any more
        self.interrupted = True
        return Deferred.fromCoroutine(self.stop())

    async def stop(self) -> None:
        """End everything that was started here."""
        if self._trigger is not None:
            self._reactor.removeSystemEventTrigger(self._trigger)
            self._trigger = None
        for calls in self._calls:
            calls.close()
        children, self._children = self._children, {}
        await DeferredList([Deferred.fromCoroutine(child.end()) for child in children.values()], consumeErrors=True)
        demo, self._demo = self._demo, None
        if demo is not None:
            await demo.stop()
        directory, self._directory = self._directory, None
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)

    @property
    def said(self) -> list[str]:
        """The last lines of the servers and of our own processes."""
        return list(self._said)

    # -- the servers -------------------------------------------------------------------------------------------

    @property
    def servers(self) -> Servers:
        """Where they are."""
        assert self._servers is not None
        return self._servers

    @property
    def settings(self) -> config.Config:
        """Their configuration."""
        return self.servers.settings

    def channel(self, uplink: str) -> str:
        """The first channel with this uplink."""
        for name, channel in self.settings.channels.items():
            if channel.uplink == uplink:
                return name
        raise BenchError(f"the configuration has no channel with uplink {uplink}")

    def key(self, channel: str) -> str:
        """A channel's API key."""
        return self.settings.channels[channel].api_keys[0]

    def token(self, uid: str, channel: str, role: str = "customer") -> str:
        """A token of a user."""
        return self.tokens.issue(uid, role, [channel], 7200, time.time())[0]

    def pid(self, name: str) -> int:
        """The process of a server; `BenchError` if it is not known to be on this machine."""
        pid = self.servers.pids.get(name)
        if pid is None:
            raise BenchError(f"the process of {name} is not known here: leave out --config, or use --running")
        return pid

    async def call(self, method: str, url: str, channel: str, body: Any = None) -> Any:
        """A call that is not part of the load."""
        http = HttpClient(self._reactor, max_persistent=1)
        try:
            encoded = None if body is None else msgspec.json.encode(body)
            answer = await http.call(method, url, body=encoded, token=self.key(channel), timeout=CALL_S)
        finally:
            await http.close()
        if answer.status >= 300:
            raise BenchError(f"{method} {url}: {answer.status} {answer.body[:300].decode('utf-8', 'replace')}")
        return answer.body

    async def calls(self, base: str, channel: str, connections: int) -> Calls:
        """Kept-alive connections to a server, for load."""
        made = Calls(self._reactor, base, self.key(channel))
        self._calls.append(made)
        await made.open(connections)
        return made

    # -- our own processes -------------------------------------------------------------------------------------

    def child(self, name: str, module: str) -> Child:
        """The process of this name, started when it is first asked for."""
        if name not in self._children:
            self._children[name] = Child(self._reactor, f"imserver.bench.{module}", self._said.append)
        return self._children[name]

    @property
    def clients(self) -> Child:
        """A process full of clients."""
        return self.child("clients", "crowd")

    async def open(self, child: Child, url: str, tokens: list[str | None]) -> float:
        """Connect a client for each token; how many seconds that took."""
        parts = urlsplit(url)
        seconds = 0.0
        for start in range(0, len(tokens), _TOKENS_MAX):
            done = await child.ask(
                "open",
                OPEN_S,
                host=parts.hostname or HOST,
                port=parts.port or 80,
                tokens=tokens[start : start + _TOKENS_MAX],
                at_once=AT_ONCE,
            )
            seconds += done["seconds"]
        return seconds

    async def echo(self) -> str:
        """The URL of a stock Autobahn echo server."""
        port = (await self.child("echo", "echo").ask("listen", CALL_S))["port"]
        return f"ws://{HOST}:{port}/ws"

    # -- what it costs -----------------------------------------------------------------------------------------

    def usage(self, trees: Mapping[str, int] | None = None) -> Usage:
        """Counts from now on what each process uses, our own included (as `clients` and `bench`).

        `trees` are further ones, each with its children.
        """
        own = {name: child.pid for name, child in self._children.items()}
        return Usage({**self.servers.pids, **own, "bench": os.getpid()}, trees)


def memory_bytes(pid: int) -> int:
    """The resident memory of a process."""
    return int(psutil.Process(pid).memory_info().rss)


def _tree_cpu_s(pid: int) -> float:
    """That of a process, of its children, and of those that have ended."""
    own = psutil.Process(pid)
    ended = own.cpu_times()
    total = _cpu_s(pid) + float(ended.children_user + ended.children_system)
    for child in own.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += _cpu_s_of(child)
    return total


def _cpu_s(pid: int) -> float:
    try:
        return _cpu_s_of(psutil.Process(pid))
    except psutil.NoSuchProcess:
        raise BenchError(f"process {pid} has gone while it was measured") from None


def _cpu_s_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
