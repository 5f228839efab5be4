"""A whole cluster on one machine: real processes, and a link of its own for every way between two of them."""

from __future__ import annotations

import asyncio  # noqa: TID251
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

import imserver
from imserver import config
from imserver.demo.addresses import choose
from imserver.demo.generated import to_toml
from tests import servers
from tests.faults.network import Link
from tests.faults.wire import NoAnswer, call

ROOT = str(Path(imserver.__file__).parent.parent)
READY_S = 30.0
END_S = 15.0
SUSPICIOUS = ("Traceback", "Unhandled", " critical ", "never awaited")
"""What a healthy process never writes to its log, whatever happens around it."""

ENDED = (0, -signal.SIGTERM)
"""How an orderly end looks: twistd passes the signal on to itself when everything has stopped."""

WORKERS = 3
DISPATCHERS = 2
BUSINESSES = 2


def settings(directory: Path, redis: str, dispatcher: int, business: int) -> config.Config:
    """Short times, so that a minute sees many faults; bounds so large that nothing leaves an inbox."""
    return servers.settings(
        redis={"url": redis, "command_timeout_s": 1.0},
        database={"url": f"sqlite:///{directory / 'archive.sqlite'}"},
        cluster={"rpc_timeout_s": 1.0, "http_timeout_s": 2.5},
        worker={"lease_ttl_s": 2.0, "lease_renew_s": 0.5, "drain_s": 0.5},
        connection={"heartbeat_s": 4.0},
        delivery={
            "ack_timeout_s": 2.0,
            "ack_flush_s": 0.2,
            "inbox_length": 10_000_000,
            "unacked_max": 60,
        },
        dispatcher={"url": f"http://127.0.0.1:{dispatcher}"},
        business={
            "url": f"http://127.0.0.1:{business}",
            "sweep_s": 0.5,
            "sweep_after_s": 1.5,
            "dispatch_lease_s": 4.0,
            "claim_after_s": 4.0,
            "archive_wait_s": 0.3,
        },
        assignment={"offline_grace_s": 3600.0, "capacity": 1000},
        suspension={"attempts": 0},
        channels={
            "demo": {"api_keys": ["demo-key-0123456789"], "push_per_s": 100_000, "push_burst": 100_000},
            "demo-direct": {"api_keys": ["direct-key-0123456789"], "uplink": "direct"},
            "demo-journal": {"api_keys": ["journal-key-0123456789"], "uplink": "journal", "journal_length": 10_000_000},
        },
    )


class Program:
    """One server process; started again when a fault has killed it."""

    def __init__(self, name: str, arguments: list[str], environ: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self._arguments = arguments
        self._environ = environ

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environ,
                cwd=self.log.parent,
            )

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Cluster:
    """Valkey, workers, dispatchers, business servers, and the links between them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.links: dict[str, Link] = {}
        self.programs: dict[str, Program] = {}
        self.valkey = servers.Valkey()
        self.http_ports: dict[str, int] = {}
        """Where each server's own HTTP is, past all links: for those who look, not for those who are tested."""
        self.configuration: config.Config
        self.workers = [f"worker-{i + 1}" for i in range(WORKERS)]

    async def start(self) -> None:
        """Start everything and wait until it is ready."""
        # ports of processes that are started again: never one that an outgoing connection may have got meanwhile
        ports = iter(choose(0, 8).ports())
        dispatchers = {f"dispatcher-{i + 1}": next(ports) for i in range(DISPATCHERS)}
        businesses = {f"business-{i + 1}": next(ports) for i in range(BUSINESSES)}
        dispatcher = await self._link("dispatchers", *dispatchers.values())
        business = await self._link("businesses", *businesses.values())
        self.configuration = settings(self.directory, self.valkey.url, dispatcher, business)
        file = self.directory / "imserver.toml"
        file.write_text(to_toml(msgspec.to_builtins(self.configuration)))
        for name, port in dispatchers.items():
            await self._program(name, "im-dispatcher", port, {"IM_DISPATCHER__LISTEN": _endpoint(port)})
        for name, port in businesses.items():
            await self._program(name, "im-business", port, {"IM_BUSINESS__LISTEN": _endpoint(port)})
        for name in self.workers:
            ws, http, rpc = next(ports), next(ports), next(ports)
            outside = {kind: await self._link(f"{name}.{kind}", port) for kind, port in _kinds(ws, http, rpc)}
            environ = {
                "IM_WORKER__LISTEN": _endpoint(ws),
                "IM_WORKER__HTTP_LISTEN": _endpoint(http),
                "IM_WORKER__RPC_LISTEN": _endpoint(rpc),
                "IM_WORKER__URL": f"ws://127.0.0.1:{outside['ws']}/ws",
                "IM_WORKER__HTTP_URL": f"http://127.0.0.1:{outside['http']}",
                "IM_WORKER__RPC_ADDRESS": f"tcp:127.0.0.1:{outside['rpc']}",
            }
            await self._program(name, "im-worker", http, environ, "--id", name)
        for program in self.programs.values():
            program.start()
        for name in self.programs:
            await self.until_ready(name)

    async def _link(self, name: str, *targets: int) -> int:
        link = self.links[name] = Link(name, *targets)
        await link.start()
        return link.port

    async def _program(self, name: str, server: str, http: int, own: dict[str, str], *more: str) -> None:
        redis = await self._link(f"{name}.redis", self.valkey.port)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("IM_", "PYTHON"))}
        environ = inherited | {"PYTHONPATH": ROOT, "IM_REDIS__URL": f"redis://127.0.0.1:{redis}/0"} | own
        logger = "--logger=imserver.ops.logging.text_lines"
        arguments = ["-n", "--pidfile=", logger, server, "--config", str(self.directory / "imserver.toml"), *more]
        self.programs[name] = Program(name, arguments, environ, self.directory / f"{name}.log")
        self.http_ports[name] = http

    async def until_ready(self, name: str, within_s: float = READY_S) -> None:
        """Wait until a server says that it and its parts are there."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                status, _ = await call("GET", self.http_ports[name], "/readyz", timeout=2)
                if status == 200:
                    return
            except NoAnswer:
                pass
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} is not ready: {self.programs[name].log.read_text()[-2000:]}")
            await asyncio.sleep(0.1)

    def dead(self) -> list[str]:
        """Servers that have ended without having been killed by a fault (those are started again at once)."""
        return [
            f"{name} ended with {program.process.returncode}"
            for name, program in self.programs.items()
            if program.process is not None and program.process.poll() is not None
        ]

    async def stop(self) -> list[str]:
        """End everything as an operator would; what did not go as it should."""
        found: list[str] = []
        order = [name for name in self.programs if name.startswith("worker")]
        for names in (order, [name for name in self.programs if name not in order]):
            for name in names:
                process = self.programs[name].process
                if process is not None and process.poll() is None:
                    process.send_signal(signal.SIGCONT)
                    process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + END_S
            for name in names:
                process = self.programs[name].process
                while process is not None and process.poll() is None and time.monotonic() < deadline:
                    await asyncio.sleep(0.05)
                if process is not None and process.poll() is None:
                    found.append(f"{name} did not end within {END_S:g} s of SIGTERM")
                elif process is not None and process.returncode not in ENDED:
                    found.append(f"{name} ended with {process.returncode} at SIGTERM")
        self.destroy()
        for link in self.links.values():
            await link.stop()
        return found

    def destroy(self) -> None:
        """End everything at once."""
        for program in self.programs.values():
            program.kill()
        self.valkey.stop()

    def complaints(self) -> list[str]:
        """What is in the logs and should never be."""
        found: list[str] = []
        for name, program in self.programs.items():
            lines = program.log.read_text("utf-8", "replace").splitlines() if program.log.exists() else []
            for number, line in enumerate(lines):
                if any(word in line for word in SUSPICIOUS):
                    found.append(f"{name}: " + "\n    ".join(lines[max(0, number - 1) : number + 25]))
                    break
        return found


def _kinds(ws: int, http: int, rpc: int) -> list[tuple[str, int]]:
    return [("ws", ws), ("http", http), ("rpc", rpc)]


def _endpoint(port: int) -> str:
    return f"tcp:{port}:interface=127.0.0.1"
