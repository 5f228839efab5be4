"""A customer and a shop's agent, over the demo's real servers (contract: WebSocket; Business server)."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.stack import Client, Demo, shared_demo


def name(prefix: str) -> str:
    """A name no other test has."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def text(words: str) -> dict[str, Any]:
    """A text message."""
    return {"type": "text", "body": {"text": words}}


class ConversationTests(SynchronousTestCase):
    """What a shop does all day."""

    def setUp(self) -> None:
        """A shop with one agent and a customer."""
        self.demo = shared_demo()
        self.shop, self.a, self.c = name("shop"), name("agent"), name("customer")
        self.demo.agent(self.a, self.shop, capacity=2)

    def client(self, uid: str, role: str = "customer", **more: Any) -> Client:
        """A client that is closed after the test."""
        client = self.demo.client(uid, role, **more)
        self.addCleanup(client.close)
        return client

    def start(self, customer: Client, words: str = "hello") -> dict[str, Any]:
        """Write to the shop."""
        return customer.ask("sent", op="send", cid=name("cid"), shop=self.shop, **text(words))

    def test_there_and_back(self) -> None:
        """A message goes to the agent and an answer comes back; each side hears of the state; seq has no gaps."""
        agent, customer = self.client(self.a, "merchant"), self.client(self.c, worker=1)
        sent = self.start(customer)
        self.assertEqual(sent["seq"], 1)
        conversation = sent["conversation"]
        self.assertEqual(customer.until("state")["state"], "assigned")
        got = agent.message()
        self.assertEqual((got["id"], got["from"], got["to"], got["seq"]), (sent["id"], self.c, self.a, 1))
        self.assertNotIn("cid", got)
        answer = agent.ask("sent", op="send", cid="c", conversation=conversation, **text("yes?"))
        self.assertEqual(answer["seq"], 2)
        self.assertEqual(customer.message()["body"], {"text": "yes?"})
        history = customer.ask("history", op="history", conversation=conversation)
        self.assertEqual([m["seq"] for m in history["messages"]], [1, 2])
        self.assertFalse(history["more"])

    def test_agent_was_away(self) -> None:
        """Nobody online: the customer waits; the agent who comes gets the customer and all that was written."""
        customer = self.client(self.c)
        sent = self.start(customer, "one")
        waiting = customer.until("state")
        self.assertEqual((waiting["state"], waiting["agent"], waiting["position"]), ("waiting", None, 1))
        customer.ask("sent", op="send", cid="2", conversation=sent["conversation"], **text("two"))
        agent = self.client(self.a, "merchant")
        self.assertEqual([agent.message()["body"]["text"] for _ in range(2)], ["one", "two"])
        self.assertEqual(customer.until("state")["agent"], self.a)

    def test_assigned_agent_was_away(self) -> None:
        """What is written to an agent who has gone offline is there on his next hello, and only once acknowledged."""
        agent, customer = self.client(self.a, "merchant"), self.client(self.c)
        sent = self.start(customer)
        agent.message()
        agent.close()
        customer.ask("sent", op="send", cid="2", conversation=sent["conversation"], **text("still there?"))
        again = self.client(self.a, "merchant", worker=1)
        self.assertEqual(again.message()["body"]["text"], "still there?")
        again.close()
        third = self.client(self.a, "merchant")
        self.assertEqual(third.ask("pong", op="ping")["op"], "pong")

    def test_all_devices(self) -> None:
        """Every device of both sides gets every message, the sending connection excepted; cid comes to one's own."""
        agent, agent2 = self.client(self.a, "merchant"), self.client(self.a, "merchant", device="d2", worker=1)
        customer, customer2 = self.client(self.c), self.client(self.c, device="d2", worker=1)
        sent = customer.ask("sent", op="send", cid="mine", shop=self.shop, **text("hi"))
        self.assertEqual({m.message()["id"] for m in (agent, agent2, customer2)}, {sent["id"]})
        agent.ask("sent", op="send", cid="his", conversation=sent["conversation"], **text("ho"))
        self.assertEqual(agent2.message()["cid"], "his")
        self.assertEqual(customer.message()["seq"], 2)
        self.assertNotIn("cid", customer2.message())

    def test_cid(self) -> None:
        """The same cid is the same message, over WebSocket and HTTP, however many at once; nobody sees it twice."""
        agent, customer = self.client(self.a, "merchant"), self.client(self.c)
        token = self.demo.token(self.c)
        first = customer.ask("sent", op="send", cid="same", shop=self.shop, **text("once"))
        again = customer.ask("sent", op="send", cid="same", shop=self.shop, **text("once"))
        self.assertTrue(again["duplicate"])
        results: list[Any] = []

        def post() -> None:
            body = {"cid": "same2", "shop": self.shop, **text("twice?")}
            results.append(self.demo.business("POST", "/v1/messages", body, token))

        threads = [threading.Thread(target=post) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual({status for status, _ in results}, {202})
        self.assertEqual(len({answer["id"] for _, answer in results}), 1)
        self.assertEqual(sum("duplicate" not in answer for _, answer in results), 1)
        self.assertEqual((again["id"], again["seq"]), (first["id"], first["seq"]))
        self.assertEqual([agent.message()["seq"] for _ in range(2)], [1, 2])
        history = customer.ask("history", op="history", conversation=first["conversation"])
        self.assertEqual(len(history["messages"]), 2)

    def test_read_and_typing(self) -> None:
        """Unread counts are exact; `read` reaches the other side and one's other devices; typing is not stored."""
        agent, customer = self.client(self.a, "merchant"), self.client(self.c)
        customer2 = self.client(self.c, device="d2", worker=1)
        conversation = self.start(customer)["conversation"]
        for number in range(3):
            agent.ask("sent", op="send", cid=str(number), conversation=conversation, **text("x"))
        (mine,) = customer.ask("conversations", op="conversations")["conversations"]
        self.assertEqual((mine["unread"], mine["state"], mine["agent"]), (3, "assigned", self.a))
        self.assertEqual(mine["with"]["uid"], self.a)
        self.assertEqual(mine["last"]["seq"], 4)
        customer.send(op="read", conversation=conversation, seq=3)
        for other in (agent, customer2):
            read = other.until("read")
            self.assertEqual((read["from"], read["seq"], read["conversation"]), (self.c, 3, conversation))
        (mine,) = customer.ask("conversations", op="conversations")["conversations"]
        self.assertEqual(mine["unread"], 1)
        agent.send(op="typing", conversation=conversation)
        self.assertEqual(customer.until("typing")["from"], self.a)

    def test_recall(self) -> None:
        """One's own message can be taken back; another's cannot; history shows what is left of it."""
        agent, customer = self.client(self.a, "merchant"), self.client(self.c)
        conversation = self.start(customer, "oops")["conversation"]
        agent.message(type="text")
        refused = agent.ask("sent", op="send", cid="r", conversation=conversation, type="recall", body={"seq": 1})
        self.assertEqual(refused["code"], "not_allowed")
        done = customer.ask("sent", op="send", cid="r", conversation=conversation, type="recall", body={"seq": 1})
        self.assertEqual(done["seq"], 2)
        self.assertEqual(agent.message()["body"], {"seq": 1})
        messages = customer.ask("history", op="history", conversation=conversation)["messages"]
        self.assertEqual([(m["type"], m["body"]) for m in messages], [("recalled", {}), ("recall", {"seq": 1})])

    def test_close_and_reopen(self) -> None:
        """Closing frees the agent, twice changes nothing; a later message opens it again."""
        agent, customer = self.client(self.a, "merchant"), self.client(self.c)
        conversation = self.start(customer)["conversation"]
        token = self.demo.token(self.a, "merchant")
        for _ in range(2):
            self.assertEqual(self.demo.business("POST", f"/v1/conversations/{conversation}/close", {}, token)[0], 200)
        customer.until("state", state="closed")
        status, shop = self.demo.business("GET", f"/v1/shops/{self.shop}/agents")
        self.assertEqual((status, shop["agents"][0]["load"], shop["agents"][0]["online"]), (200, 0, True))
        again = customer.ask("sent", op="send", cid="again", conversation=conversation, **text("one more"))
        self.assertEqual(again["seq"], 2)
        self.assertEqual(customer.until("state", state="assigned")["agent"], self.a)
        agent.until("message", seq=2)

    def test_queue(self) -> None:
        """Beyond capacity customers wait in order; closing one serves the next and moves the others up."""
        agent = self.client(self.a, "merchant")
        served = [self.client(name("c")) for _ in range(2)]
        first = [self.start(one)["conversation"] for one in served]
        waiting = [self.client(name("c")) for _ in range(2)]
        for place, one in enumerate(waiting, 1):
            self.start(one)
            state = one.until("state", state="waiting")
            self.assertEqual(state["position"], place)
        queue = self.demo.business("GET", f"/v1/shops/{self.shop}/queue")[1]["queue"]
        self.assertEqual([entry["position"] for entry in queue], [1, 2])
        self.demo.business("POST", f"/v1/conversations/{first[0]}/close", {}, self.demo.token(self.a, "merchant"))
        self.assertEqual(waiting[0].until("state")["agent"], self.a)
        self.assertEqual(waiting[1].until("state")["position"], 1)
        agent.close()

    def test_transfer(self) -> None:
        """A transfer tells both sides by a stored system message; the new agent has the conversation."""
        other = name("agent")
        self.demo.agent(other, self.shop)
        self.demo.agent(other, self.shop, status="busy")
        agent, customer = self.client(self.a, "merchant"), self.client(self.c)
        conversation = self.start(customer)["conversation"]
        agent.message()
        self.demo.agent(other, self.shop, status="online")
        second = self.client(other, "merchant")
        token = self.demo.token(self.a, "merchant")
        path = f"/v1/conversations/{conversation}/transfer"
        self.assertEqual(self.demo.business("POST", path, {"agent": other}, token)[0], 200)
        self.assertEqual(customer.until("message")["type"], "system")
        second.until("message", type="system")
        second.ask("sent", op="send", cid="x", conversation=conversation, **text("I am new here"))
        self.assertEqual(customer.until("message", type="text")["from"], other)
        self.assertEqual(agent.ask("sent", op="send", cid="y", conversation=conversation, **text("?"))["op"], "error")

    def test_refusals(self) -> None:
        """No such shop, no such conversation, not yours, not for clients, blocked words."""
        customer, stranger = self.client(self.c), self.client(name("stranger"))
        nobody = customer.ask("sent", op="send", cid="1", shop=name("noshop"), **text("?"))
        self.assertEqual(nobody["code"], "no_agent")
        conversation = self.start(customer)["conversation"]
        self.assertEqual(stranger.ask("history", op="history", conversation=conversation)["code"], "not_found")
        sent = stranger.ask("sent", op="send", cid="1", conversation=conversation, **text("let me in"))
        self.assertEqual(sent["code"], "not_found")
        system = customer.ask("sent", op="send", cid="s", conversation=conversation, type="system", body={})
        self.assertEqual(system["code"], "not_allowed")
        word = "zorb" + uuid.uuid4().hex[:6].translate(str.maketrans("0123456789", "ghijklmnop"))
        self.assertEqual(self.demo.business("PUT", f"/v1/words/{word}", {"action": "block"})[0], 200)
        self.addCleanup(self.demo.business, "DELETE", f"/v1/words/{word}")
        blocked = customer.ask("sent", op="send", cid="w", conversation=conversation, **text(f"a {word.upper()}!"))
        self.assertEqual(blocked["code"], "blocked_content")


class DeathTests(SynchronousTestCase):
    """What a kill -9 costs: nothing that was accepted."""

    def setUp(self) -> None:
        """A demo of its own, whose workers may die."""
        self.demo = Demo(config="[worker]\nlease_ttl_s = 2.0\nlease_renew_s = 0.5\n")
        self.addCleanup(self.demo.stop)

    def test_kill_a_worker(self) -> None:
        """The client reconnects to the other worker and goes on at its cursor."""
        demo = self.demo
        client = demo.client("u", worker=0)
        demo.dispatcher("POST", "/v1/push", {"to": "u", "type": "n", "body": {"n": 1}})
        first = client.message()
        os.kill(demo.ready["pids"]["worker-1"], signal.SIGKILL)
        status, pushed = demo.dispatcher("POST", "/v1/push", {"to": "u", "type": "n", "body": {"n": 2}})
        self.assertEqual((status, pushed["results"][0]["status"]), (202, "queued"))
        again = demo.client("u", worker=1, since=first["cursor"])
        self.assertTrue(again.welcome["resumed"])
        self.assertEqual(again.message()["body"], {"n": 2})
        self.assertEqual(again.ask("pong", op="ping")["op"], "pong")
        back = None
        while back is None:  # the supervisor starts it again on its old address
            try:
                back = demo.client("u", worker=0, device="d2", since="$")
            except OSError:
                continue
        demo.dispatcher("POST", "/v1/push", {"to": "u", "type": "n", "body": {"n": 3}})
        self.assertEqual([back.message()["body"], again.message()["body"]], [{"n": 3}] * 2)

    def test_interrupt_leaves_nothing(self) -> None:
        """After Ctrl-C no process is left, and what was accepted is there at the next start."""
        pids = list(self.demo.ready["pids"].values())
        self.demo.process.send_signal(signal.SIGINT)
        self.assertEqual(self.demo.process.wait(10), 0)
        for pid in pids:
            self.assertRaises(ProcessLookupError, os.kill, pid, 0)
