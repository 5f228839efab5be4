"""`imctl trace` on the demo: where one message has been."""

from __future__ import annotations

import subprocess

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.stack import imctl, shared_demo


class TraceTests(SynchronousTestCase):
    """What the servers remember of a message."""

    def trace(self, id: str) -> subprocess.CompletedProcess[str]:
        """Run the command."""
        command, environ = [imctl(), "trace", id], shared_demo().environ
        return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=30)

    def test_conversation(self) -> None:
        """Accepted, stored in both inboxes, sent to the agent, acknowledged by him, in this order."""
        demo = shared_demo()
        demo.agent("trace-agent", "trace-shop")
        agent, customer = demo.client("trace-agent", "merchant"), demo.client("trace-customer", worker=1)
        sent = customer.ask("sent", op="send", cid="1", shop="trace-shop", type="text", body={})
        agent.message()
        agent.ask("pong", op="ping")  # what was said before it has been taken in
        found = self.trace(sent["id"])
        self.assertEqual((found.returncode, found.stderr), (0, ""))
        text = found.stdout
        steps = ["accepted as 1 of conversation", "stored in the inbox of trace-agent", "sent to trace-agent on"]
        for step in [*steps, "acknowledged by trace-agent", "stored in the inbox of trace-customer"]:
            self.assertIn(step, text)
        other = demo.ready["channels"]["demo-direct"]["api_key"]  # of another channel: nothing is there for it
        self.assertEqual(demo.dispatcher("GET", f"/v1/messages/{sent['id']}/trail", key=other)[1], {"trail": []})
        for client in (agent, customer):
            client.close()

    def test_unknown(self) -> None:
        """One line, exit code 1."""
        for id in ("0" * 32, "nonsense"):
            found = self.trace(id)
            self.assertEqual((found.returncode, found.stdout, found.stderr.count("\n")), (1, "", 1))
