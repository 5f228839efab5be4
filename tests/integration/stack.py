"""One running demo for the tests of a process: real twistd processes, a real Valkey, the public command."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from imserver import config
from imserver.protocol.tokens import Tokens

CHANNELS = """
[channels.picky]
uplink = "direct"
send_to = "agents"

[channels.mute]
uplink = "direct"
send_to = "none"

[channels.agents-only]
send_to = "agents"

[channels.shops-only]
send_to = "none"

[channels.slow]
messages_per_s = 1
messages_burst = 3

[channels.other]

[channels.other-direct]
uplink = "direct"

[channels.other-journal]
uplink = "journal"

[channels.told]
webhook_url = "http://127.0.0.1:9/"
webhook_secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="]

[channels.other-told]
webhook_url = "http://127.0.0.1:9/"
webhook_secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="]

[webhooks]
retry_first_s = 0.1
give_up_s = 0.1
"""
ANSWER_S = 15.0


class Demo:
    """`imctl demo --port 0 --json` and what its ready line says."""

    def __init__(self, config: str = "", workers: int = 2) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="imserver-demo-"))
        self.environ = dict(os.environ, XDG_CACHE_HOME=str(self.directory / "cache"))
        command = [
            imctl(),
            "demo",
            "--port",
            "0",
            "--json",
            "--workers",
            str(workers),
            "--data",
            str(self.directory / "data"),
        ]
        if config:
            extra = self.directory / "extra.toml"
            extra.write_text(config)
            command += ["--config", str(extra)]
        self.log = (self.directory / "log").open("w+")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, env=self.environ, text=True)
        atexit.register(self.stop)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the demo did not start: " + (self.directory / "log").read_text()[-2000:])
        self.ready: dict[str, Any] = json.loads(line)

    def stop(self) -> None:
        """End it as Ctrl-C would and wait."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(15)
        shutil.rmtree(self.directory, ignore_errors=True)

    # -- calls -------------------------------------------------------------------------------------------------

    def call(
        self, method: str, url: str, body: Any = None, key: str | None = None, **headers: str
    ) -> tuple[int, Any, Any]:
        """(status, JSON, headers) of one HTTP call; `key` defaults to the demo channel's, empty sends none."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data=data, method=method)
        if data is not None:
            request.add_header("Content-Type", "application/json")
        key = self.ready["api_key"] if key is None else key
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
                return answer.status, _json(answer.read()), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, _json(error.read()), error.headers

    def dispatcher(self, method: str, path: str, body: Any = None, key: str | None = None) -> tuple[int, Any]:
        """A call on the dispatcher."""
        return self.call(method, self.ready["dispatcher"] + path, body, key)[:2]

    def business(self, method: str, path: str, body: Any = None, key: str | None = None) -> tuple[int, Any]:
        """A call on the business server."""
        return self.call(method, self.ready["business"] + path, body, key)[:2]

    def token(self, uid: str, role: str = "customer", channel: str = "demo", **more: Any) -> str:
        """A user token, from the dispatcher."""
        key = self.ready["channels"][channel]["api_key"]
        status, answer = self.dispatcher("POST", "/v1/tokens", {"uid": uid, "role": role, "ttl_s": 3600, **more}, key)
        assert status == 200, answer
        token: str = answer["token"]
        return token

    def token_of(self, uid: str, channels: Sequence[str], role: str = "customer", **more: Any) -> str:
        """A user token for several channels, which only who has the key can sign."""
        settings = config.load(self.directory / "data" / "imserver.toml", {})
        return Tokens(settings).issue(uid, role, channels, 3600, time.time(), **more)[0]

    def agent(self, uid: str, shop: str, **more: Any) -> dict[str, Any]:
        """Register an agent."""
        status, answer = self.business("PUT", f"/v1/agents/{uid}", {"shop": shop, "status": "online", **more})
        assert status == 200, answer
        found: dict[str, Any] = answer
        return found

    def client(self, uid: str, role: str = "customer", channel: str = "demo", worker: int = 0, **hello: Any) -> Client:
        """A connected client that has said hello."""
        client = Client(self.ready["workers"][worker])
        client.hello(self.token(uid, role, channel), **hello)
        return client


class Client:
    """A third-party WebSocket client, one frame at a time."""

    def __init__(self, url: str, **options: Any) -> None:
        self.socket: ClientConnection = connect(url, max_size=None, legacy=True, **options)
        self.welcome: dict[str, Any] = {}

    def hello(self, token: str, device: str = "d1", **more: Any) -> dict[str, Any]:
        """Say hello and wait for the welcome."""
        self.send(op="hello", token=token, device=device, **more)
        self.welcome = self.receive()
        return self.welcome

    def send(self, **frame: Any) -> None:
        """One frame; `from_` and the like are not needed by clients."""
        self.socket.send(json.dumps(frame))

    def receive(self, timeout: float = ANSWER_S) -> dict[str, Any]:
        """The next frame."""
        found: dict[str, Any] = json.loads(self.socket.recv(timeout))
        return found

    def until(self, op: str, timeout: float = ANSWER_S, **fields: Any) -> dict[str, Any]:
        """The next frame of this op (and with these fields), past any others."""
        deadline = time.monotonic() + timeout
        while True:
            frame = self.receive(max(0.01, deadline - time.monotonic()))
            if frame["op"] == op and all(frame.get(name) == value for name, value in fields.items()):
                return frame

    def waiting(self) -> list[dict[str, Any]]:
        """All frames that are on their way, acknowledged: those before the answer to a ping."""
        ref = os.urandom(4).hex()
        self.send(op="ping", ref=ref)
        found: list[dict[str, Any]] = []
        while (frame := self.receive()).get("ref") != ref:
            found.append(frame)
            if "cursor" in frame:
                self.send(op="ack", cursor=frame["cursor"])
        return found

    def ask(self, answer: str, **frame: Any) -> dict[str, Any]:
        """Send with a ref and wait for its answer or error."""
        frame.setdefault("ref", os.urandom(4).hex())
        self.send(**frame)
        while True:
            got = self.receive()
            if got.get("ref") == frame["ref"] and got["op"] in (answer, "error"):
                return got

    def message(self, **fields: Any) -> dict[str, Any]:
        """The next message, acknowledged."""
        frame = self.until("message", **fields)
        if "cursor" in frame:
            self.send(op="ack", cursor=frame["cursor"])
        return frame

    def closed(self, timeout: float = ANSWER_S) -> tuple[int | None, str | None]:
        """Read on until the server closes; the code and the reason."""
        from websockets.exceptions import ConnectionClosed

        deadline = time.monotonic() + timeout
        try:
            while True:
                self.socket.recv(max(0.01, deadline - time.monotonic()))
        except ConnectionClosed:
            return self.socket.close_code, self.socket.close_reason

    def close(self) -> None:
        """Close it."""
        self.socket.close()


def imctl() -> str:
    """The command beside this Python."""
    return str(Path(sys.executable).with_name("imctl"))


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data


_shared: list[Demo] = []


def shared_demo() -> Demo:
    """The demo of this test process; tests use names of their own, so that none disturbs another."""
    if not _shared:
        _shared.append(Demo(config=CHANNELS))
    return _shared[0]
