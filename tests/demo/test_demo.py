"""A whole demo as its user runs it: real processes, started, killed, asked, ended."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase
from websockets.sync.client import connect

from imserver.demo import service
from imserver.demo.addresses import HOST, PortTaken

ROOT = Path(__file__).parents[2]
WITHIN_S = 60.0
FIELDS = "ready web dispatcher business workers worker_http redis database api_key channel channels shop pids"
SERVERS = ("imserver.worker.tap", "imserver.dispatcher.tap", "imserver.business.tap")


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until the condition holds; what it gave."""
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)  # other processes are what is waited for: there is nothing here to be told by
    raise AssertionError(f"not within {WITHIN_S} s: {what}")


def get(url: str) -> bytes | None:
    """What is there, if it answers with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bytes(answer.read()) if answer.status == 200 else None
    except (urllib.error.URLError, OSError):
        return None


class Demo(SynchronousTestCase):
    """One demo for a test."""

    def setUp(self) -> None:
        """Start it and read its ready line."""
        missing = [name for name in SERVERS if importlib.util.find_spec(name) is None]
        if missing:
            raise SkipTest(f"not there yet: {', '.join(missing)}")
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)
        self.data = self.directory / "data"
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("IM_")},
            "XDG_CACHE_HOME": str(self.directory / "cache"),
            "PYTHONPATH": str(ROOT),
        }
        self.errors = (self.directory / "stderr").open("wb")
        self.addCleanup(self.errors.close)
        self.demo = self.start()
        line = self.demo.stdout.readline()  # type: ignore[union-attr]
        if not line:
            self.fail((self.directory / "stderr").read_text()[-4000:])
        self.ready: dict[str, Any] = json.loads(line)
        self.addCleanup(self.end)

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """Start a demo on free ports."""
        arguments = ["demo", "--port", "0", "--json", "--data", str(self.data), *more]
        return subprocess.Popen(
            [sys.executable, "-m", "imserver.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            stdin=subprocess.DEVNULL,
            env=self.environ,
        )

    def end(self) -> None:
        """End what a failed test left."""
        if self.demo.poll() is None:
            self.demo.terminate()
            self.demo.wait(20)
        self.demo.stdout.close()  # type: ignore[union-attr]

    def imctl(self, *arguments: str) -> str:
        """What another command prints; it has to find the demo by itself."""
        done = subprocess.run(
            [sys.executable, "-m", "imserver.cli", *arguments],
            capture_output=True, text=True, timeout=60, env=self.environ, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self.assertEqual((done.returncode, done.stderr), (0, ""), arguments)
        return done.stdout

    def pids(self) -> dict[str, int]:
        """The processes as they are now."""
        told: dict[str, int] = json.loads((self.data / "demo.json").read_text())["ready"]["pids"]
        return told

    def urls(self) -> dict[str, str]:
        """Where each server can be asked whether it is ready."""
        workers = {f"worker-{i + 1}": url for i, url in enumerate(self.ready["worker_http"])}
        return {"dispatcher": self.ready["dispatcher"], "business": self.ready["business"], **workers}

    def test_demo(self) -> None:
        """Ready, used, each process killed and back, used again, ended: nothing is left."""
        self.check_ready_line()
        self.check_use("one")
        for name in ("valkey", "worker-1", "worker-2", "dispatcher", "business"):
            self.check_back(name)
        until(lambda: all(get(url + "/readyz") for url in self.urls().values()), "all are ready again")
        self.check_use("two")
        pids = self.pids()
        began = time.monotonic()
        self.demo.send_signal(signal.SIGTERM)
        self.assertEqual(self.demo.wait(20), 0)
        self.assertLess(time.monotonic() - began, 10.0)
        self.assertEqual([name for name, pid in pids.items() if Path(f"/proc/{pid}").exists()], [])
        self.assertFalse((self.directory / "cache" / "imserver" / "demo.json").exists())

    def check_ready_line(self) -> None:
        """Everything that the contract names is there and is so."""
        ready = self.ready
        self.assertEqual(set(ready), set(FIELDS.split()))
        self.assertEqual(set(ready["pids"]), {"valkey", "worker-1", "worker-2", "dispatcher", "business"})
        self.assertEqual({name: c["uplink"] for name, c in ready["channels"].items()}["demo-journal"], "journal")
        session = json.loads(get(ready["web"] + "/session.json") or b"")
        self.assertEqual((session["shop"], session["customer"]["uid"]), ("demo-shop", "demo-customer"))
        self.assertIn(b"<html", (get(ready["web"]) or b"").lower())
        listed = json.loads(self.ask("GET", ready["business"] + "/v1/shops/demo-shop/agents"))
        self.assertEqual([agent["uid"] for agent in listed["agents"]], ["demo-agent"])

    def ask(self, method: str, url: str) -> bytes:
        """Call a server with the demo's key."""
        headers = {"Authorization": f"Bearer {self.ready['api_key']}"}
        with urllib.request.urlopen(urllib.request.Request(url, method=method, headers=headers)) as answer:
            return bytes(answer.read())

    def check_use(self, uid: str) -> None:
        """A token, a push, a connection of somebody else's making that gets it."""
        self.assertIn(uid, self.imctl("send", "--to", uid, "--text", "hello"))
        token = self.imctl("token", "--uid", uid, "--role", "customer").strip()
        with connect(self.ready["workers"][0], subprotocols=["im.v1"]) as socket:  # type: ignore[list-item]
            socket.send(json.dumps({"op": "hello", "token": token, "device": "test"}))
            self.assertEqual(json.loads(socket.recv(10))["op"], "welcome")
            message = json.loads(socket.recv(10))
            self.assertEqual((message["op"], message["body"]), ("message", {"text": "hello"}))
            socket.send(json.dumps({"op": "ack", "cursor": message["cursor"]}))
        self.assertIn("worker-2", self.imctl("status"))

    def check_back(self, name: str) -> None:
        """Killed, it comes back as another process, on its old address."""
        old = self.pids()[name]
        os.kill(old, signal.SIGKILL)
        until(lambda: self.pids().get(name) not in (None, old), f"{name} is started again")
        if name in self.urls():
            until(lambda: get(self.urls()[name] + "/readyz"), f"{name} is ready again")


class PortTests(TestCase):
    """Somebody takes a port between its choice and its use."""

    timeout = 60

    async def test_taken(self) -> None:
        """It is told as what it is, so that `--port 0` may choose others."""
        data = Path(self.mktemp()).absolute()
        said: list[str] = []
        demo = service.Demo(
            reactor, data=data, port=0, workers=1, extra=None, environ=dict(os.environ), say=said.append
        )
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind((HOST, demo.addresses.dispatcher))
            other.listen()
            try:
                with self.assertRaisesRegex(PortTaken, "dispatcher does not start.*already in use"):
                    await demo.start()
            finally:
                await demo.stop()
