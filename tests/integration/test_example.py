"""docs/examples/todo_backend.py as its reader would run it: a process that knows a dispatcher's address and a key."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.stack import ANSWER_S, Client, shared_demo
from tests.integration.test_conversation import name
from tests.servers import free_port

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "todo_backend.py"


class TodoTests(SynchronousTestCase):
    """A business server of another kind, which only pushes."""

    def setUp(self) -> None:
        """One that runs."""
        self.demo = shared_demo()
        self.port = free_port()
        self.database = Path(self.mktemp()).absolute()
        self.start()

    def start(self) -> None:
        """Start the script, and wait until it listens."""
        ready = self.demo.ready
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), f"tcp:{self.port}:interface=127.0.0.1", str(self.database)],
            env=dict(os.environ, DISPATCHER=ready["dispatcher"], API_KEY=ready["api_key"]),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.addCleanup(self.kill, self.process)
        self.logged("starting on")

    def kill(self, process: subprocess.Popen[str]) -> None:
        """kill -9."""
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()

    def logged(self, words: str) -> str:
        """Wait for a line of its log with these words."""
        assert self.process.stdout is not None
        late = threading.Timer(ANSWER_S, self.process.kill)
        late.start()
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if words in line.lower():
                late.cancel()
                return line
        raise AssertionError(f"no {words!r} in {''.join(lines)}")

    def remember(self, who: str, what: str, in_s: float = 0) -> str:
        """Post a to-do; its id."""
        url = f"http://127.0.0.1:{self.port}/todos"
        status, answer, _ = self.demo.call("POST", url, {"who": who, "what": what, "in_s": in_s}, "")
        self.assertEqual(status, 201)
        found: str = answer["id"]
        return found

    def screen(self, client: Client, uid: str) -> list[str]:
        """What a client shows: the texts of the to-dos before a push that is made now, each id once."""
        mark = self.demo.dispatcher("POST", "/v1/push", {"to": uid, "type": "mark", "body": {}})[1]["id"]
        shown = {}
        while (message := client.message())["id"] != mark:
            if message["type"] == "todo":
                shown[message["id"]] = message["body"]["text"]
        return list(shown.values())

    def test_online_and_offline(self) -> None:
        """It reaches who is there at once, and who is not when he comes."""
        here, away = name("ann"), name("bob")
        client = self.demo.client(here)
        self.addCleanup(client.close)
        todo = self.remember(here, "Call the hotel")
        message = client.message()
        self.assertEqual((message["type"], message["body"]), ("todo", {"id": todo, "text": "Call the hotel"}))
        self.assertEqual((message["from"], message["channel"]), ("demo", "demo"))
        self.assertIn("queued", self.logged(f"to-do {self.remember(away, 'Pack')}: 202"))
        late = self.demo.client(away, worker=1)
        self.addCleanup(late.close)
        self.assertEqual(late.message()["body"]["text"], "Pack")

    def test_killed(self) -> None:
        """What was due while it was dead is told once; what was told already is not shown again."""
        uid = name("ann")
        client = self.demo.client(uid)
        self.addCleanup(client.close)
        first = self.remember(uid, "one")
        self.logged(f"to-do {first}: 202")
        self.remember(uid, "two", in_s=0.5)
        self.kill(self.process)
        # as if it had died between the dispatcher's answer and its own note of it
        with sqlite3.connect(self.database) as database:
            database.execute("UPDATE todos SET told = 0")
        database.close()
        self.start()
        self.assertIn("duplicate", self.logged(f"to-do {first}: 202"))
        self.logged("202")
        self.assertEqual(self.screen(client, uid), ["one", "two"])
        again = self.demo.client(uid, device="another")
        self.addCleanup(again.close)
        self.assertEqual(self.screen(again, uid), ["one", "two"])
