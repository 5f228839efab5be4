"""Webhooks over a running demo: pushes, direct messages, a server that is killed, and `imctl webhooks`."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook
from twisted.trial.unittest import SynchronousTestCase

from tests.integration.stack import Demo, imctl
from tests.servers import free_port

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="
CONFIG = """
[channels.office]
webhook_url = "http://127.0.0.1:{port}/"
webhook_secrets = ["{secret}"]
[channels.office-direct]
uplink = "direct"
webhook_url = "http://127.0.0.1:{port}/"
webhook_secrets = ["{secret}"]
[webhooks]
retry_first_s = 0.2
[cluster]
http_timeout_s = 1.5
[business]
dispatch_lease_s = 2.0
sweep_s = 0.5
sweep_after_s = 1.0
"""


class Office(ThreadingHTTPServer):
    """A back office in a thread; it takes only what a third-party library finds well signed."""

    def __init__(self, port: int) -> None:
        office = self
        self.heard: dict[str, dict[str, Any]] = {}
        self.changed = threading.Condition()

        class Post(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                event = Webhook(SECRET).verify(body, dict(self.headers))
                with office.changed:
                    office.heard[event["id"]] = event
                    office.changed.notify_all()
                self.send_response(204)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                """Quietly."""

        super().__init__(("127.0.0.1", port), Post)
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    def wait(self, wanted: Callable[[dict[str, Any]], bool], timeout: float = 20.0) -> dict[str, Any]:
        """An event like this, once it is heard."""
        deadline = time.monotonic() + timeout
        with self.changed:
            while True:
                for event in self.heard.values():
                    if wanted(event):
                        return event
                if not self.changed.wait(deadline - time.monotonic()):
                    raise AssertionError(f"not told; heard was {list(self.heard.values())}")

    def close(self) -> None:
        """End it."""
        self.shutdown()
        self.server_close()
        self.thread.join()


class WebhookTests(SynchronousTestCase):
    """What the back office of two channels hears."""

    def imctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`imctl webhooks` on this demo."""
        command = [imctl(), "webhooks", "--channel", "office", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=self.demo.environ, timeout=30)

    def test_back_office(self) -> None:
        """Down at first, it hears everything once it is up: what was pushed, sent directly, written to a shop."""
        port = free_port()
        self.demo = demo = Demo(CONFIG.format(port=port, secret=SECRET))
        self.addCleanup(demo.stop)
        keys = {name: channel["api_key"] for name, channel in demo.ready["channels"].items()}
        here = demo.client("here", channel="office")
        for to in ("here", "away"):
            status, answer = demo.dispatcher(
                "POST", "/v1/push", {"to": to, "type": "t", "body": {"n": 1}}, keys["office"]
            )
            self.assertEqual((status, answer["results"][0]["status"] == "queued"), (202, to == "away"))
        here.message()
        direct = demo.client("ann", channel="office-direct", worker=1)
        sent = direct.ask("sent", op="send", cid="1", to="bert", type="text", body={"text": "hi"})
        demo.business("PUT", "/v1/agents/agent", {"shop": "shop", "status": "online"}, keys["office"])
        asked = here.ask("sent", op="send", cid="1", shop="shop", type="text", body={"text": "hello"})
        os.kill(demo.ready["pids"]["business"], signal.SIGKILL)
        office = Office(port)
        self.addCleanup(office.close)
        offline = office.wait(lambda e: e["event"] == "offline" and e["uid"] == "away")
        self.assertEqual((offline["message"]["body"], offline["channel"]), ({"n": 1}, "office"))
        message = office.wait(lambda e: e["event"] == "message" and e["channel"] == "office-direct")
        self.assertEqual((message["message"]["id"], message["message"]["body"]), (sent["id"], {"text": "hi"}))
        office.wait(lambda e: e["event"] == "offline" and e.get("uid") == "bert")
        message = office.wait(lambda e: e["event"] == "message" and e["channel"] == "office")
        self.assertEqual(message["message"]["id"], asked["id"])
        waiting = office.wait(lambda e: e["event"] == "waiting")
        self.assertEqual((waiting["conversation"], waiting["customer"]), (asked["conversation"], "here"))
        self.assertEqual([e["uid"] for e in office.heard.values() if e.get("uid") == "here"], [])

        done = self.imctl("ping")
        self.assertEqual(done.returncode, 0, done.stderr)
        office.wait(lambda e: e["event"] == "ping" and e["id"] in done.stdout)
        for arguments, expected in (((), "last told"), (("retry", "--all"), "0 events"), (("drop", "--all"), "0 ev")):
            done = self.imctl(*arguments)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertIn(expected, done.stdout)
        self.assertEqual(self.imctl("dead").stdout, "")
        self.assertEqual(self.imctl("retry").returncode, 1)
        for client in (here, direct):
            client.close()
