"""Nothing of one channel is visible to another's keys and tokens: one scenario for every call and every op.

The calls are those of the servers' own descriptions. A call without a scenario fails `test_nothing_is_forgotten`.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.trial.unittest import SynchronousTestCase

from imserver.protocol.frames import OPS
from tests.integration.stack import ANSWER_S, Client, shared_demo
from tests.integration.test_conversation import name

A, B = "demo", "other"
PUBLIC = {f"GET {path}" for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs")}
"""Calls without credentials: what they tell is the operator's, and nobody's messages."""

Test = TypeVar("Test", bound=Callable[..., None])


def covers(*calls: str) -> Callable[[Test], Test]:
    """This test is the scenario of a call (`POST /v1/push`) or an op (`op send`)."""

    def marked(test: Test) -> Test:
        test.covers = calls  # type: ignore[attr-defined]
        return test

    return marked


class IsolationCase(SynchronousTestCase):
    """Has channels A and B, of one kind, and who has to do with either or both."""

    def setUp(self) -> None:
        """Names of this test's own."""
        self.demo = shared_demo()
        self.keys = {channel: found["api_key"] for channel, found in self.demo.ready["channels"].items()}
        self.u, self.a, self.shop = name("user"), name("agent"), name("shop")

    def client(self, uid: str, *channels: str, role: str = "customer", device: str = "d1", **hello: Any) -> Client:
        """A client whose token covers these channels; it is closed after the test."""
        client = Client(self.demo.ready["workers"][0])
        self.addCleanup(client.close)
        client.hello(self.demo.token_of(uid, channels, role), device, **hello)
        self.assertEqual(client.welcome["op"], "welcome", client.welcome)
        return client

    def everywhere(self) -> dict[str, Client]:
        """One uid's connections: of A, of B, and of both."""
        return {
            "A": self.client(self.u, A, device="in-a"),
            "B": self.client(self.u, B, device="in-b"),
            "both": self.client(self.u, A, B, device="in-both"),
        }

    def received(self, clients: dict[str, Client]) -> dict[str, list[Any]]:
        """The messages each has got before one that is pushed now: their `n` and their channel."""
        marks = {channel: self.push(channel, 0)["id"] for channel in (A, B)}
        found: dict[str, list[Any]] = {}
        for who, client in clients.items():
            due = {marks[channel] for channel, names in ((A, ("A", "both")), (B, ("B", "both"))) if who in names}
            found[who] = []
            while due:
                message = client.message()
                if message["id"] in due:
                    due.remove(message["id"])
                elif message["body"]["n"]:  # else an earlier mark
                    found[who].append((message["body"]["n"], message["channel"]))
        return found

    def dispatcher(self, method: str, path: str, body: Any = None, channel: str = A) -> Any:
        """A call with a channel's key that has to succeed."""
        status, answer = self.demo.dispatcher(method, path, body, self.keys[channel])
        self.assertIn(status, (200, 202), answer)
        return answer

    def business(self, method: str, path: str, body: Any = None, key: str = "") -> Any:
        """The same on the business server; A's key by default."""
        status, answer = self.demo.business(method, path, body, key or self.keys[A])
        self.assertIn(status, (200, 202), answer)
        return answer

    def push(self, channel: str, n: int, **more: Any) -> Any:
        """A push to the user."""
        return self.dispatcher("POST", "/v1/push", {"to": self.u, "type": "t", "body": {"n": n}, **more}, channel)

    def conversation(self, channel: str = A) -> str:
        """The user's conversation with the shop, whose agent is connected, in a channel."""
        self.business("PUT", f"/v1/agents/{self.a}", {"shop": self.shop}, self.keys[channel])
        self.desk = self.client(self.a, channel, role="merchant", device=f"desk-{channel}")
        body = {"cid": name("cid"), "type": "text", "body": {"n": 1}, "shop": self.shop}
        found: str = self.business("POST", "/v1/messages", body, self.demo.token_of(self.u, [channel]))["conversation"]
        self.desk.message(conversation=found)
        return found

    def strangers(self) -> dict[str, str]:
        """Keys of other channels, and tokens of B for the very same people."""
        keys = {channel: self.keys[channel] for channel in (B, "other-direct", "demo-journal")}
        return keys | {
            f"{role} {uid}": self.demo.token_of(uid, [B], role)
            for uid, role in ((self.u, "customer"), (self.a, "merchant"), (name("x"), "system"))
        }

    def refused(self, statuses: set[int], method: str, path: str, body: Any = None) -> None:
        """No stranger gets anywhere with a call of the business server."""
        for who, key in self.strangers().items():
            sent = {**body, "from": self.u} if path == "/v1/messages" and who in self.keys else body
            status, answer = self.demo.business(method, path, sent, key)
            self.assertIn(status, statuses, (who, answer))

    def state(self, conversation: str) -> Any:
        """All that A's key, the customer and the agent see of a conversation."""
        path = f"/v1/conversations/{conversation}/messages"
        credentials = [self.keys[A], self.demo.token_of(self.u, [A]), self.demo.token_of(self.a, [A], "merchant")]
        lists = [self.business("GET", f"/v1/conversations?uid={self.u}", None, credentials[0])]
        lists += [self.business("GET", "/v1/conversations", None, key) for key in credentials[1:]]
        return lists, [self.business("GET", path, None, key) for key in credentials]


class DispatcherTests(IsolationCase):
    """The calls of backends."""

    @covers("POST /v1/push")
    def test_push(self) -> None:
        """It reaches what covers its channel; with another channel's conversation in it, that stays as it was."""
        conversation = self.conversation()
        clients = self.everywhere()
        self.received(clients)
        before = self.state(conversation)
        self.assertEqual(self.push(A, 1)["results"][0]["connections"], 2)
        self.assertEqual(self.push(B, 2, conversation=conversation, seq=2)["results"][0]["connections"], 2)
        got = self.received(clients)
        self.assertEqual(got, {"A": [(1, A)], "B": [(2, B)], "both": [(1, A), (2, B)]})
        self.assertEqual(self.state(conversation), before)
        self.assertEqual([frame for frame in self.desk.waiting() if frame["op"] == "message"], [])
        ids = {self.push(channel, 3, cid="same", **{"from": "x"})["id"] for channel in (A, B)}
        self.assertEqual(len(ids), 2)

    @covers("POST /v1/push/batch")
    def test_batch(self) -> None:
        """The same."""
        clients = self.everywhere()
        message = {"to": self.u, "type": "t", "body": {"n": 1}}
        self.dispatcher("POST", "/v1/push/batch", {"messages": [message]}, B)
        self.assertEqual(self.received(clients), {"A": [], "B": [(1, B)], "both": [(1, B)]})

    @covers("POST /v1/broadcast")
    def test_broadcast(self) -> None:
        """It reaches, and counts, its own channel's connections."""
        clients = self.everywhere()
        quiet = self.dispatcher("POST", "/v1/broadcast", {"type": "t", "body": {}}, "mute")
        self.assertEqual(quiet["connections"], 0)
        self.dispatcher("POST", "/v1/broadcast", {"type": "t", "body": {"n": 1}}, B)
        self.assertEqual(self.received(clients), {"A": [], "B": [(1, B)], "both": [(1, B)]})

    @covers("POST /v1/deliveries")
    def test_deliveries(self) -> None:
        """It is for the cluster's servers: no key and no token of a user opens it."""
        delivery = {"to": self.u, "channel": A, "id": "0" * 32, "frame": {}}
        for key in (self.keys[A], *self.strangers().values()):
            status, _ = self.demo.dispatcher("POST", "/v1/deliveries", {"deliveries": [delivery]}, key)
            self.assertEqual(status, 403)

    @covers("GET /v1/messages/{id}/trail")
    def test_trail(self) -> None:
        """A message leaves one in its own channel, whatever its body says."""
        client = self.client(self.u, A, B)
        id = self.push(A, 1, body={"channel": B})["id"]
        self.assertEqual(client.message()["id"], id)
        self.assertEqual({step["event"]["what"] for step in self.trail(id, A)} >= {"stored", "sent"}, True)
        self.assertEqual(self.trail(id, B), [])

    def trail(self, id: str, channel: str) -> Any:
        """What a channel's key sees of a message's way."""
        return self.dispatcher("GET", f"/v1/messages/{id}/trail", None, channel)["trail"]

    @covers("GET /v1/users/{uid}")
    def test_user(self) -> None:
        """Connections and messages of one's own channel are shown and counted."""
        path = f"/v1/users/{self.u}"
        self.client(self.u, A, device="in-a")
        self.push(A, 1)
        shown = self.dispatcher("GET", path, None, B)
        self.assertEqual((shown["online"], shown["connections"]), (False, []))
        self.assertEqual(shown["inbox"], {"length": 0, "last": None})
        self.client(self.u, B, device="in-b")
        self.push(B, 2)
        self.push(A, 3)
        for channel, device, length in ((A, "in-a", 2), (B, "in-b", 1)):
            shown = self.dispatcher("GET", path, None, channel)
            self.assertEqual([each["device"] for each in shown["connections"]], [device])
            self.assertEqual((shown["online"], shown["inbox"]["length"]), (True, length))

    @covers("POST /v1/presence")
    def test_presence(self) -> None:
        """Who is online in another channel only is offline."""
        self.client(self.u, A, platform="ios")
        for channel, expected in ((A, {"online": True, "platforms": ["ios"]}), (B, {"online": False, "platforms": []})):
            found = self.dispatcher("POST", "/v1/presence", {"uids": [self.u]}, channel)
            self.assertEqual(found, {self.u: expected})

    @covers("DELETE /v1/users/{uid}/connections")
    def test_close(self) -> None:
        """Connections of another channel stay open, and are not counted."""
        clients = self.everywhere()
        self.assertEqual(self.dispatcher("DELETE", f"/v1/users/{self.u}/connections", None, B), {"closed": 2})
        self.assertEqual([clients[who].closed()[0] for who in ("B", "both")], [4409, 4409])
        self.assertEqual(clients["A"].waiting(), [])

    @covers("DELETE /v1/users/{uid}/connections/{conn}")
    def test_close_one(self) -> None:
        """Nor does its id help."""
        client = self.client(self.u, A)
        path = f"/v1/users/{self.u}/connections/{client.welcome['conn']}"
        for channel in (B, "other-direct"):
            self.assertEqual(self.dispatcher("DELETE", path, None, channel), {"closed": 0})
        self.assertEqual(client.waiting(), [])

    @covers("GET /v1/endpoint")
    def test_endpoint(self) -> None:
        """It tells of a worker, and nothing of the user."""
        self.client(self.u, A)
        self.assertEqual(set(self.dispatcher("GET", f"/v1/endpoint?uid={self.u}", None, B)), {"url", "worker"})

    @covers("GET /v1/workers")
    def test_workers(self) -> None:
        """Workers serve all channels: what is told of them is no channel's."""
        fields = {"id", "url", "http", "host", "connections", "load", "version", "since_ts", "draining"}
        for worker in self.dispatcher("GET", "/v1/workers", None, B)["workers"]:
            self.assertEqual(set(worker), fields)

    @covers("GET /v1/journal")
    def test_journal(self) -> None:
        """Each journal channel has its own; a cursor of one is but a place in the other."""
        body = {"secret": name("s")}
        cursor = self.client(self.u, "demo-journal").ask("sent", op="send", cid="1", type="l", body=body)["cursor"]
        for query in ("limit=1000", f"after={cursor}&limit=1000", "after=0-0&limit=1000"):
            page = self.dispatcher("GET", f"/v1/journal?{query}", None, "other-journal")
            self.assertNotIn(body, [entry["body"] for entry in page["entries"]])
        self.assertEqual(self.demo.dispatcher("GET", "/v1/journal", key=self.keys[B])[0], 404)

    @covers(
        "GET /v1/blacklist/{kind}/{value}", "PUT /v1/blacklist/{kind}/{value}", "DELETE /v1/blacklist/{kind}/{value}"
    )
    def test_blacklist(self) -> None:
        """An entry is one channel's: others neither see nor feel nor lift it."""
        path = f"/v1/blacklist/uid/{self.u}"
        clients = self.everywhere()
        self.dispatcher("PUT", path, {"reason": "spam"}, B)
        self.assertEqual([clients[who].closed()[0] for who in ("B", "both")], [4403, 4403])
        self.assertEqual(clients["A"].waiting(), [])
        self.client(self.u, A, device="again")
        self.business("GET", "/v1/conversations", None, self.demo.token_of(self.u, [A]))
        for method in ("GET", "DELETE"):
            self.assertEqual(self.demo.dispatcher(method, path, key=self.keys[A])[0], 404)
        self.assertEqual(self.dispatcher("GET", path, None, B)["reason"], "spam")
        self.dispatcher("PUT", path, {"reason": "mine"}, A)
        self.dispatcher("DELETE", path, None, A)
        self.assertEqual(self.dispatcher("DELETE", path, None, B)["reason"], "spam")

    @covers("POST /v1/tokens")
    def test_tokens(self) -> None:
        """A key's tokens are for its own channel."""
        conversation = self.conversation()
        for more in ({"channel": A}, {"channels": [A]}):
            status, _ = self.demo.dispatcher("POST", "/v1/tokens", {"uid": self.u, **more}, self.keys[B])
            self.assertEqual(status, 422)
        token = self.dispatcher("POST", "/v1/tokens", {"uid": self.u, "info": {"channel": A}}, B)["token"]
        path = f"/v1/conversations/{conversation}/messages"
        self.assertEqual(self.demo.business("GET", path, key=token)[0], 404)


class BusinessTests(IsolationCase):
    """The calls of clients and backends."""

    @covers("POST /v1/messages")
    def test_send(self) -> None:
        """Neither into another channel's conversation, nor to its shops, nor in its name."""
        conversation = self.conversation()
        before = self.state(conversation)
        text = {"cid": "c", "type": "text", "body": {"n": 2}}
        self.refused({404}, "POST", "/v1/messages", {**text, "conversation": conversation})
        self.refused(
            {404},
            "POST",
            "/v1/messages",
            {**text, "conversation": conversation, "type": "recall"} | {"body": {"seq": 1}},
        )
        self.refused({403}, "POST", "/v1/messages", {**text, "channel": A, "to": self.u})
        self.refused({403, 409}, "POST", "/v1/messages", {**text, "shop": self.shop})
        clients = self.everywhere()
        self.received(clients)
        self.business("POST", "/v1/messages", {**text, "to": self.u, "from": self.a}, self.keys[B])
        got = clients["B"].message()
        self.assertEqual((got["body"], got["channel"]), ({"n": 2}, B))
        self.assertEqual(self.received(clients), {"A": [], "B": [], "both": [(2, B)]})
        self.assertEqual(self.state(conversation), before)
        token = self.demo.token_of(self.u, [A, B])
        self.assertEqual(self.business("POST", "/v1/messages", {**text, "conversation": conversation}, token)["seq"], 2)
        status, _ = self.demo.business(
            "POST", "/v1/messages", {**text, "conversation": conversation, "channel": B}, token
        )
        self.assertEqual(status, 404)

    @covers("GET /v1/conversations")
    def test_conversations(self) -> None:
        """Each key and token lists its own; one for both channels says which is which."""
        self.conversation()
        for query in (f"?uid={self.u}", f"?shop={self.shop}", f"?uid={self.u}&shop={self.shop}"):
            found = self.business("GET", f"/v1/conversations{query}", None, self.keys[B])
            self.assertEqual(found, {"conversations": [], "more": False})
        for uid, role in ((self.u, "customer"), (self.a, "merchant")):
            found = self.business("GET", "/v1/conversations", None, self.demo.token_of(uid, [B], role))
            self.assertEqual(found["conversations"], [])
        merchant = self.demo.token_of(self.a, [B], "merchant")
        self.assertEqual(self.demo.business("GET", f"/v1/conversations?shop={self.shop}", key=merchant)[0], 403)
        told = self.demo.token_of(self.u, [B], info={"name": "known in B"})
        self.business("GET", "/v1/conversations", None, told)
        desk = self.demo.token_of(self.a, [A], "merchant")
        (seen,) = self.business("GET", "/v1/conversations", None, desk)["conversations"]
        self.assertEqual(seen["with"], {"uid": self.u, "info": {}})
        self.conversation(B)
        for channels in ([A], [B], [A, B]):
            for uid, role in ((self.u, "customer"), (self.a, "merchant")):
                token = self.demo.token_of(uid, channels, role)
                for query in ("", f"?shop={self.shop}"):
                    found = self.business("GET", f"/v1/conversations{query}", None, token)["conversations"]
                    self.assertEqual(sorted(each["channel"] for each in found), channels, (uid, query))

    @covers("GET /v1/conversations/{id}/messages")
    def test_history(self) -> None:
        """As if there were no such conversation."""
        self.refused({404}, "GET", f"/v1/conversations/{self.conversation()}/messages")

    @covers("POST /v1/conversations/{id}/read")
    def test_read(self) -> None:
        """Nobody else's reading counts."""
        conversation = self.conversation()
        before = self.state(conversation)
        self.refused({403, 404}, "POST", f"/v1/conversations/{conversation}/read", {"seq": 1})
        self.assertEqual(self.state(conversation), before)

    @covers("POST /v1/conversations/{id}/typing")
    def test_typing(self) -> None:
        """Nor writing; what is told of it goes to one's own channel."""
        conversation = self.conversation()
        self.refused({403, 404}, "POST", f"/v1/conversations/{conversation}/typing", {})
        clients = self.everywhere()
        self.assertEqual([f for f in self.desk.waiting() if f["op"] == "typing"], [])
        for client in clients.values():
            client.waiting()
        self.desk.send(op="typing", conversation=conversation)
        clients["A"].until("typing")
        clients["both"].until("typing")
        self.assertEqual(clients["B"].waiting(), [])

    @covers("POST /v1/conversations/{id}/transfer")
    def test_transfer(self) -> None:
        """Nobody else's to give away."""
        conversation = self.conversation()
        before = self.state(conversation)
        self.refused({404}, "POST", f"/v1/conversations/{conversation}/transfer", {"agent": self.a})
        self.assertEqual(self.state(conversation), before)

    @covers("POST /v1/conversations/{id}/close")
    def test_close(self) -> None:
        """Nor to close; and who hears of it is of the channel."""
        conversation = self.conversation()
        before = self.state(conversation)
        self.refused({404}, "POST", f"/v1/conversations/{conversation}/close", {})
        self.assertEqual(self.state(conversation), before)
        clients = self.everywhere()
        self.business("POST", f"/v1/conversations/{conversation}/close", {})
        for who in ("A", "both"):
            clients[who].until("state", state="closed")
        self.assertEqual([f["op"] for f in clients["B"].waiting()], [])

    @covers("PUT /v1/agents/{uid}")
    def test_agents(self) -> None:
        """One uid may be an agent in both channels; each has its own shop, capacity and status there."""
        self.business("PUT", f"/v1/agents/{self.a}", {"shop": self.shop, "capacity": 3})
        agents = f"/v1/shops/{self.shop}/agents"
        before = self.business("GET", agents)
        path = f"/v1/agents/{self.a}"
        token = self.demo.token_of(self.a, [B], "merchant")
        self.assertEqual(self.demo.business("PUT", path, {"status": "away"}, token)[0], 404)
        self.assertEqual(self.demo.business("PUT", path, {"capacity": 1}, self.keys[B])[0], 422)
        other = self.business("PUT", path, {"shop": self.shop, "capacity": 7, "status": "busy"}, self.keys[B])
        self.assertEqual((other["capacity"], other["load"]), (7, 0))
        self.business("PUT", path, {"status": "away"}, token)
        self.assertEqual(self.business("GET", agents), before)
        self.client(self.a, B, role="merchant")
        self.assertEqual(self.business("GET", agents), before)
        self.assertEqual(self.business("GET", agents, None, self.keys[B])["agents"][0]["online"], True)

    @covers("GET /v1/shops/{shop}/agents")
    def test_shop(self) -> None:
        """A shop of another channel is none; one of the same name is another shop."""
        self.conversation()
        path = f"/v1/shops/{self.shop}/agents"
        self.refused({404}, "GET", path)
        mine = name("agent")
        self.business("PUT", f"/v1/agents/{mine}", {"shop": self.shop}, self.keys[B])
        self.assertEqual([a["uid"] for a in self.business("GET", path, None, self.keys[B])["agents"]], [mine])
        self.assertEqual([a["uid"] for a in self.business("GET", path)["agents"]], [self.a])
        both = self.demo.token_of(mine, [A, B], "merchant")
        self.assertEqual([a["uid"] for a in self.business("GET", path, None, both)["agents"]], [mine])

    @covers("GET /v1/shops/{shop}/queue")
    def test_queue(self) -> None:
        """Nor are those who wait there to be seen."""
        self.business("PUT", f"/v1/agents/{self.a}", {"shop": self.shop})
        text = {"cid": "c", "type": "text", "body": {}, "shop": self.shop}
        waiting = self.business("POST", "/v1/messages", text, self.demo.token_of(self.u, [A]))
        self.assertEqual(waiting["state"], "waiting")
        path = f"/v1/shops/{self.shop}/queue"
        self.refused({404}, "GET", path)
        self.business("PUT", f"/v1/agents/{self.a}", {"shop": self.shop}, self.keys[B])
        self.client(self.a, B, role="merchant")
        self.assertEqual(self.business("GET", path, None, self.keys[B])["queue"], [])
        self.assertEqual([each["uid"] for each in self.business("GET", path)["queue"]], [self.u])

    @covers("GET /v1/words", "GET /v1/words/{word}", "PUT /v1/words/{word}", "DELETE /v1/words/{word}")
    def test_words(self) -> None:
        """A channel's list is its own."""
        word = name("word").replace("-", "x")
        path = f"/v1/words/{word}"
        self.business("PUT", path, {"action": "block"})
        self.addCleanup(self.business, "DELETE", path)
        self.assertNotIn(
            word, [each["word"] for each in self.business("GET", "/v1/words", None, self.keys[B])["words"]]
        )
        for method in ("GET", "DELETE"):
            self.assertEqual(self.demo.business(method, path, key=self.keys[B])[0], 404)
        text = {"cid": name("c"), "type": "text", "body": {"text": word}, "to": self.u, "from": "x"}
        self.assertEqual(self.demo.business("POST", "/v1/messages", text)[0], 422)
        self.business("POST", "/v1/messages", text, self.keys[B])
        self.business("PUT", path, {"action": "flag"}, self.keys[B])
        self.business("DELETE", path, None, self.keys[B])
        self.assertEqual(self.business("GET", path)["action"], "block")

    @covers("GET /v1/flagged")
    def test_flagged(self) -> None:
        """Nor is what was flagged there to be seen."""
        word = name("word").replace("-", "x")
        self.business("PUT", f"/v1/words/{word}", {"action": "flag"})
        self.addCleanup(self.business, "DELETE", f"/v1/words/{word}")
        text = {"cid": name("c"), "type": "text", "body": {"text": word}, "to": self.u, "from": "x"}
        id = self.business("POST", "/v1/messages", text)["id"]
        self.assertIn(id, [each["id"] for each in self.business("GET", "/v1/flagged?limit=200")["flagged"]])
        found = self.business("GET", "/v1/flagged?limit=200", None, self.keys[B])["flagged"]
        self.assertNotIn(id, [each["id"] for each in found])

    @covers(
        "GET /v1/webhook",
        "POST /v1/webhook/ping",
        "GET /v1/webhook/dead",
        "POST /v1/webhook/dead/retry",
        "POST /v1/webhook/dead/drop",
    )
    def test_webhook(self) -> None:
        """A channel's webhook, and what its back office was not told, is its own. (Nobody listens at either.)"""
        told, other = self.keys["told"], self.keys["other-told"]
        id = self.business("POST", "/v1/webhook/ping", None, told)["id"]
        while not self.business("GET", "/v1/webhook", None, told)["dead"]:
            continue
        (dead,) = self.business("GET", "/v1/webhook/dead", None, told)["dead"]
        self.assertEqual(dead["id"], id)
        state = self.business("GET", "/v1/webhook", None, other)
        self.assertEqual((state["waiting"], state["dead"], state["failed_ts"]), (0, 0, None))
        self.assertEqual(self.business("GET", "/v1/webhook/dead", None, other)["dead"], [])
        for what in ("retry", "drop"):
            body = {"cursors": [dead["cursor"]]}
            for nothing in (body, {}):
                self.assertEqual(self.business("POST", f"/v1/webhook/dead/{what}", nothing, other), {"moved": 0})
            for key in (self.keys[A], self.demo.token_of(self.u, ["told"])):
                status, _ = self.demo.business("POST", f"/v1/webhook/dead/{what}", body, key)
                self.assertIn(status, (200, 403, 409))
        token = self.demo.token_of(self.u, ["told"], "system")
        for method, path in (("GET", ""), ("GET", "/dead"), ("POST", "/ping")):
            self.assertEqual(self.demo.business(method, f"/v1/webhook{path}", None, token)[0], 403)
        self.assertEqual(self.business("GET", "/v1/webhook/dead", None, told)["dead"], [dead])

    @covers("GET /v1/messages/{id}")
    def test_lookup(self) -> None:
        """Neither before nor after it is archived."""
        self.conversation()
        text = {"cid": "c", "type": "text", "body": {}, "shop": self.shop}
        id = self.business("POST", "/v1/messages", text, self.demo.token_of(self.u, [A]))["id"]
        path = f"/v1/messages/{id}"
        self.refused({403, 404}, "GET", path)
        while not self.business("GET", path)["archived"]:
            self.assertEqual(self.demo.business("GET", path, key=self.keys[B])[0], 404)
        self.refused({403, 404}, "GET", path)


class WorkerTests(IsolationCase):
    """Receiving, and what clients ask for."""

    def stream(self, channel: str, device: str, count: int, **headers: str) -> list[Any]:
        """The next messages of a stream."""
        url = f"{self.demo.ready['worker_http'][0]}/v1/stream?device={device}"
        token = self.demo.token_of(self.u, [channel])
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}", **headers})
        found: list[Any] = []
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            for line in answer:
                if line.startswith(b"data: ") and (frame := json.loads(line[6:]))["op"] == "message":
                    found.append(frame)
                if len(found) == count:
                    return found
        return found

    @covers("GET /v1/stream")
    def test_stream(self) -> None:
        """Of its token's channel only; what it acknowledges with Last-Event-ID is of that channel, too."""
        for channel, n in ((A, 1), (B, 2), (A, 3), (B, 4)):
            self.push(channel, n)
        found = self.stream(B, "s", 2)
        self.assertEqual([frame["body"]["n"] for frame in found], [2, 4])
        self.push(B, 5)
        found = self.stream(B, "s", 1, **{"Last-Event-ID": found[-1]["cursor"]})
        self.assertEqual(found[0]["body"]["n"], 5)
        self.assertEqual([frame["body"]["n"] for frame in self.stream(A, "s", 2)], [1, 3])

    @covers("POST /v1/ack")
    def test_acknowledge(self) -> None:
        """A device's cursor in one channel hides nothing of another from it."""
        self.push(A, 1)
        last = self.push(B, 2)["results"][0]["cursor"]
        url = f"{self.demo.ready['worker_http'][0]}/v1/ack?device=d1"
        self.assertEqual(self.demo.call("POST", url, {"cursor": last}, self.demo.token_of(self.u, [B]))[0], 204)
        self.assertEqual(self.received({"A": self.client(self.u, A)}), {"A": [(1, A)]})
        self.assertEqual(self.received({"B": self.client(self.u, B)}), {"B": []})

    @covers("op hello", "op ping")
    def test_hello(self) -> None:
        """The backlog, and what comes later, is of the token's channels; ids and cursors of others do not help."""
        first = self.push(A, 1)["results"][0]["cursor"]
        self.push(B, 2)
        clients = self.everywhere()
        self.assertEqual(self.received(clients), {"A": [(1, A)], "B": [(2, B)], "both": [(1, A), (2, B)]})
        for since in ("0-0", first):
            self.assertEqual(self.received({"B": self.client(self.u, B, since=since)}), {"B": [(2, B)]})
        self.assertEqual(set(clients["B"].ask("pong", op="ping")), {"op", "ref", "ts"})
        self.assertEqual(set(clients["A"].welcome), set(clients["B"].welcome))

    @covers("op refresh")
    def test_refresh(self) -> None:
        """From then on the new token's channels count, and no others."""
        client = self.client(self.u, A)
        self.push(A, 1)
        self.assertEqual(self.received({"A": client}), {"A": [(1, A)]})
        answer = client.ask("refreshed", op="refresh", token=self.demo.token_of(self.u, [B]))
        self.assertEqual(answer["op"], "refreshed")
        self.push(A, 2)
        self.push(B, 3)
        self.assertEqual(self.received({"B": client}), {"B": [(3, B)]})
        refused = client.ask("sent", op="send", cid="c", channel=A, to=self.u, type="t", body={})
        self.assertEqual(refused["code"], "not_allowed")
        self.assertEqual(self.dispatcher("GET", f"/v1/users/{self.u}")["online"], False)
        self.assertEqual(self.received({"A": self.client(self.u, A)}), {"A": [(2, A)]})

    @covers("op send")
    def test_send(self) -> None:
        """Not in another channel's name, nor into its conversations or to its shops; a token for both says which."""
        conversation = self.conversation()
        before = self.state(conversation)
        clients = self.everywhere()
        text = {"op": "send", "cid": "c", "type": "text", "body": {"n": 2}}
        for more, code in (
            ({"channel": A, "to": self.u}, "not_allowed"),
            ({"channel": A, "conversation": conversation}, "not_allowed"),
            ({"conversation": conversation}, "not_found"),
            ({"shop": self.shop}, "no_agent"),
        ):
            self.assertEqual(clients["B"].ask("sent", **text, **more)["code"], code, more)
        self.assertEqual(clients["both"].ask("sent", **text, conversation=conversation)["code"], "invalid_frame")
        wrong = clients["both"].ask("sent", **text, conversation=conversation, channel=B)
        self.assertEqual(wrong["code"], "not_found")
        self.assertEqual(self.state(conversation), before)
        direct = self.client(self.u, "demo-direct", device="in-direct")
        for client in (*clients.values(), direct):
            client.waiting()
        self.assertEqual(self.client(name("x"), "demo-direct").ask("sent", **text, to=self.u)["op"], "sent")
        self.assertEqual(direct.message()["channel"], "demo-direct")
        self.assertEqual(self.received(clients), {"A": [], "B": [], "both": []})

    @covers("op ack")
    def test_ack(self) -> None:
        """An `ack` with one channel's token hides nothing of another from the same device."""
        self.push(A, 1)
        self.push(B, 2)
        client = self.client(self.u, B)
        self.assertEqual(self.received({"B": client}), {"B": [(2, B)]})
        client.close()
        self.assertEqual(self.received({"A": self.client(self.u, A)}), {"A": [(1, A)]})
        self.assertEqual(self.received({"B": self.client(self.u, B)}), {"B": []})

    @covers("op history", "op conversations", "op read", "op typing")
    def test_conversations(self) -> None:
        """Another channel's are not found, not listed and not changed, for customer and agent alike."""
        conversation = self.conversation()
        before = self.state(conversation)
        for uid, role in ((self.u, "customer"), (self.a, "merchant")):
            client = self.client(uid, B, role=role, device="in-b")
            for frame in (
                {"op": "history"},
                {"op": "read", "seq": 1},
                {"op": "typing"},
            ):
                answer = client.ask("history", **frame, conversation=conversation)
                self.assertEqual((answer["op"], answer.get("code")), ("error", "not_found"), frame)
            self.assertEqual(client.ask("conversations", op="conversations")["conversations"], [])
        self.assertEqual(self.state(conversation), before)


class CoverageTests(SynchronousTestCase):
    """Every call has its scenario."""

    def test_nothing_is_forgotten(self) -> None:
        """A new call or op needs a scenario above, or a place in PUBLIC."""
        demo = shared_demo()
        ready = demo.ready
        calls = {f"op {op}" for op in OPS}
        public = set()
        for base in (ready["dispatcher"], ready["business"], ready["worker_http"][0]):
            for path, methods in demo.call("GET", f"{base}/openapi.json", key="")[1]["paths"].items():
                for method, described in methods.items():
                    (calls if described["security"] else public).add(f"{method.upper()} {path}")
        covered = [
            call
            for case in (DispatcherTests, BusinessTests, WorkerTests)
            for test in vars(case).values()
            for call in getattr(test, "covers", ())
        ]
        self.assertEqual(sorted(covered), sorted(calls))
        self.assertEqual(public, PUBLIC)
