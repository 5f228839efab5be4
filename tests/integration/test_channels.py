"""What a channel's settings do to its clients, over WebSocket and HTTP (contract: Channels)."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.stack import Client, shared_demo
from tests.integration.test_conversation import name


class ChannelCase(SynchronousTestCase):
    """Has a demo with channels of many kinds."""

    def setUp(self) -> None:
        """The demo."""
        self.demo = shared_demo()

    def key(self, channel: str) -> str:
        """The API key of a channel."""
        found: str = self.demo.ready["channels"][channel]["api_key"]
        return found

    def client(self, uid: str, channel: str, role: str = "customer", **more: Any) -> Client:
        """A client that is closed after the test."""
        client = self.demo.client(uid, role, channel, **more)
        self.addCleanup(client.close)
        return client

    def agent(self, uid: str, shop: str, channel: str, **more: Any) -> None:
        """An agent of a shop of a channel."""
        status, answer = self.demo.business("PUT", f"/v1/agents/{uid}", {"shop": shop, **more}, self.key(channel))
        self.assertEqual(status, 200, answer)

    def send(self, client: Client, **more: Any) -> str:
        """What becomes of a client's `send`: `sent`, or the code of the error."""
        answer = client.ask("sent", op="send", **{"cid": name("cid"), "type": "text", "body": {}, **more})
        return "sent" if answer["op"] == "sent" else answer["code"]

    def post(self, key: str, **more: Any) -> tuple[int, Any]:
        """The same over HTTP: the status and the answer."""
        return self.demo.business("POST", "/v1/messages", {"cid": name("cid"), "type": "text", "body": {}, **more}, key)


class SendToTests(ChannelCase):
    """`send_to`: which uids a client may write to."""

    def outcomes(self, channel: str) -> dict[str, str]:
        """What a customer's message to an agent of the channel, to somebody, to another channel's agent and to
        himself becomes; over HTTP the same."""
        agent, stranger, me = name("agent"), name("agent"), name("customer")
        self.agent(agent, name("shop"), channel)
        self.agent(stranger, name("shop"), "other")
        client = self.client(me, channel)
        token = self.demo.token(me, channel=channel)
        found = {}
        for what, to in (("agent", agent), ("stranger", stranger), ("somebody", name("u")), ("self", me)):
            found[what] = self.send(client, to=to)
            status, answer = self.post(token, to=to)
            self.assertEqual((status, answer.get("code")), (202, None) if found[what] == "sent" else (403, found[what]))
        return found

    def test_any(self) -> None:
        """To whomever, in a `business` and in a `direct` channel."""
        for channel in ("other", "other-direct"):
            self.assertEqual(set(self.outcomes(channel).values()), {"sent"}, channel)

    def test_agents(self) -> None:
        """To the channel's own agents, and to oneself."""
        for channel in ("agents-only", "picky"):
            found = self.outcomes(channel)
            expected = {"agent": "sent", "stranger": "not_allowed", "somebody": "not_allowed", "self": "sent"}
            self.assertEqual(found, expected, channel)

    def test_none(self) -> None:
        """To oneself only."""
        for channel in ("shops-only", "mute"):
            found = self.outcomes(channel)
            expected = {"agent": "not_allowed", "stranger": "not_allowed", "somebody": "not_allowed", "self": "sent"}
            self.assertEqual(found, expected, channel)

    def test_to_oneself(self) -> None:
        """One's other devices get it, once."""
        for channel in ("shops-only", "mute"):
            me = name("u")
            first, second = self.client(me, channel), self.client(me, channel, device="d2")
            sent = first.ask("sent", op="send", cid="c", to=me, type="text", body={"n": 1})
            got = second.message()
            self.assertEqual((got["id"], got["from"], got["to"], got["cid"]), (sent["id"], me, me, "c"))
            for client in (first, second):
                self.assertEqual(client.ask("pong", op="ping", ref="last")["op"], "pong")

    def test_shops_and_own_conversations(self) -> None:
        """`send_to` says nothing about these, for either side."""
        for channel in ("agents-only", "shops-only"):
            agent, customer, shop = name("agent"), name("customer"), name("shop")
            self.agent(agent, shop, channel)
            desk, client = self.client(agent, channel, "merchant"), self.client(customer, channel)
            conversation = client.ask("sent", op="send", cid="1", shop=shop, type="text", body={})["conversation"]
            self.assertEqual(self.send(client, conversation=conversation), "sent")
            self.assertEqual(self.send(desk, conversation=conversation), "sent")
            self.assertEqual(self.post(self.demo.token(customer, channel=channel), shop=shop)[0], 202)
            token = self.demo.token(agent, "merchant", channel)
            self.assertEqual(self.post(token, conversation=conversation)[0], 202)
            self.assertEqual(self.send(desk, to=customer), "not_allowed")
            self.assertEqual(self.post(token, to=customer)[0], 403)

    def test_backends(self) -> None:
        """It is a rule for clients: an API key writes to whomever."""
        for channel in ("mute", "shops-only"):
            self.assertEqual(self.post(self.key(channel), to=name("u"), **{"from": "backend"})[0], 202)


class UplinkTests(ChannelCase):
    """What does not fit a channel's uplink is not allowed."""

    def test_journal(self) -> None:
        """What clients append is read in order, once each, with a cursor that `sent` named already."""
        channel, uid = "other-journal", name("u")
        client = self.client(uid, channel, device="printer")
        sent = [
            client.ask("sent", op="send", cid=f"c{n}", type="log", body={"n": n, "text": "é\u2028"}) for n in range(5)
        ]
        again = client.ask("sent", op="send", cid="c2", type="log", body={"n": 2})
        self.assertEqual((again["cursor"], again["duplicate"]), (sent[2]["cursor"], True))
        found: list[Any] = []
        after = ""
        while True:
            path = f"/v1/journal?limit=2{after}"
            status, page = self.demo.dispatcher("GET", path, key=self.key(channel))
            self.assertEqual(status, 200)
            if not page["entries"]:
                break
            self.assertEqual(page["next"], page["entries"][-1]["cursor"])
            found += page["entries"]
            after = f"&after={page['next']}"
        mine = [entry for entry in found if entry["from"] == uid]
        self.assertEqual([(e["cursor"], e["id"]) for e in mine], [(s["cursor"], s["id"]) for s in sent])
        self.assertEqual({(e["device"], e["type"]) for e in mine}, {("printer", "log")})
        self.assertEqual(mine[3]["body"], {"n": 3, "text": "é\u2028"})

    def test_journal_waits(self) -> None:
        """A call that waits is answered by what comes next."""
        channel = "other-journal"
        client = self.client(name("u"), channel)
        last = client.ask("sent", op="send", cid="first", type="log", body={})["cursor"]
        client.send(op="send", ref="r", cid="second", type="log", body={"n": 2})
        _, page = self.demo.dispatcher("GET", f"/v1/journal?after={last}&wait_s=10", key=self.key(channel))
        self.assertEqual([entry["body"] for entry in page["entries"]], [{"n": 2}])

    def test_what_does_not_fit(self) -> None:
        """Over WebSocket and HTTP."""
        shop = name("shop")
        for channel, targets in (
            ("other-journal", ({"to": "u"}, {"shop": shop}, {"conversation": "0" * 32})),
            ("other-direct", ({}, {"shop": shop}, {"conversation": "0" * 32})),
        ):
            client, token = self.client(name("u"), channel), self.demo.token(name("u"), channel=channel)
            for target in targets:
                self.assertEqual(self.send(client, **target), "not_allowed", (channel, target))
            for target in targets:
                if set(target) & {"to", "shop"}:
                    status, answer = self.post(token, **target)
                    self.assertEqual((status, answer["code"]), (403, "not_allowed"), (channel, target))
        self.assertEqual(self.demo.dispatcher("GET", "/v1/journal", key=self.key("other"))[0], 404)


class RateTests(ChannelCase):
    """`messages_per_s` and `messages_burst`."""

    def test_too_many(self) -> None:
        """429 with Retry-After, `rate_limited` over WebSocket; other channels go on, and it is counted."""
        uid = name("u")
        client, other = self.client(uid, "slow"), self.client(uid, "other")
        token = self.demo.token(uid, channel="slow")
        outcomes = {self.send(client, to=uid) for _ in range(8)}
        self.assertEqual(outcomes, {"sent", "rate_limited"})
        body = {"cid": name("cid"), "type": "text", "body": {}, "to": uid}
        url = f"{self.demo.ready['business']}/v1/messages"
        answers = [self.demo.call("POST", url, body, token) for _ in range(4)]
        limited = [headers for status, _, headers in answers if status == 429]
        self.assertTrue(limited)
        self.assertGreaterEqual(int(limited[0]["Retry-After"]), 1)
        self.assertEqual({answer["code"] for status, answer, _ in answers if status == 429}, {"rate_limited"})
        self.assertEqual({self.send(other, to=uid) for _ in range(8)}, {"sent"})
        metrics = self.demo.call("GET", f"{self.demo.ready['business']}/metrics", key="")[1].decode()
        self.assertNotIn('im_messages_rate_limited_total{channel="slow"} 0.0', metrics)
        self.assertIn('im_messages_rate_limited_total{channel="other"} 0.0', metrics)


class SkillTests(ChannelCase):
    """The optional `skill` of a `send`."""

    def test_skill(self) -> None:
        """A customer who asks for a skill gets the agent who has it."""
        shop, plain, fluent = name("shop"), name("agent"), name("agent")
        self.agent(plain, shop, "other", skills=["refunds"])
        self.agent(fluent, shop, "other", skills=["refunds", "français"])
        desks = [self.client(uid, "other", "merchant") for uid in (plain, fluent)]
        for skill, expected in (("français", {fluent}), ("refunds", {plain, fluent})):
            for _ in range(2):
                customer = self.client(name("c"), "other")
                customer.ask("sent", op="send", cid="1", shop=shop, type="text", body={}, skill=skill)
                self.assertIn(customer.until("state", state="assigned")["agent"], expected)
        self.assertEqual(len(desks), 2)
        wrong = customer.ask("sent", op="send", cid="2", shop=shop, type="text", body={}, skill=" ")
        self.assertEqual((wrong["code"], wrong["field"]), ("invalid_frame", "skill"))
