"""The business server over HTTP, on a real Valkey and a real database."""

from __future__ import annotations

from tests.business.shop import KEY, ShopCase


class MessageTests(ShopCase):
    """From a customer to an agent and back."""

    async def test_conversation(self) -> None:
        """A customer writes to a shop, its agent answers; both inboxes, both states and the history have it all."""
        await self.start()
        alice = await self.agent("alice")
        bob = self.token("bob", info={"name": "Bob"})
        sent = await self.say(bob, "hello", "c1", shop="s1")
        self.assertEqual((sent["seq"], sent["agent"], sent["state"]), (1, "alice", "assigned"))
        conversation = sent["conversation"]
        await self.until(lambda: self.inbox("alice") and self.inbox("bob"))
        (got,) = self.inbox("alice")
        self.assertEqual(
            got,
            {
                "id": sent["id"],
                "from": "bob",
                "to": "alice",
                "channel": "demo",
                "type": "text",
                "body": {"text": "hello"},
                "ts": sent["ts"],
                "conversation": conversation,
                "seq": 1,
            },
        )
        self.assertEqual(self.inbox("bob"), [{**got, "cid": "c1"}])
        answer = await self.say(alice, "welcome", conversation=conversation)
        self.assertEqual(answer["seq"], 2)
        await self.until(lambda: len(self.inbox("bob")) == 2)
        self.assertEqual(self.inbox("bob")[1]["to"], "bob")
        self.assertIn(("assigned", "alice", None), self.dispatcher.states("bob"))
        self.assertIn(("assigned", "alice", None), self.dispatcher.states("alice"))
        for _ in range(2):
            page = await self.good("GET", f"/v1/conversations/{conversation}/messages", alice)
            self.assertEqual([m["body"]["text"] for m in page["messages"]], ["hello", "welcome"])
            self.assertFalse(page["more"])
            await self.archived()
        (listed,) = (await self.good("GET", "/v1/conversations", alice))["conversations"]
        self.assertEqual(
            (listed["unread"], listed["with"], listed["state"], listed["last"]["seq"]),
            (1, {"uid": "bob", "info": {"name": "Bob"}}, "assigned", 2),
        )

    async def test_duplicates(self) -> None:
        """The same cid gives the same answer, and nothing twice, even at once and with another target."""
        await self.start()
        await self.agent("alice")
        bob = self.token("bob")
        first = await self.say(bob, "x", "same", shop="s1")
        second = await self.say(bob, "x", "same", shop="s1")
        third = await self.say(bob, "x", "same", to="carl")
        for answer in (second, third):
            self.assertEqual({**first, "duplicate": True}, answer)
        page = await self.good("GET", f"/v1/conversations/{first['conversation']}/messages", bob)
        self.assertEqual(len(page["messages"]), 1)

    async def test_origin(self) -> None:
        """The connection that sent it is named, so that it does not get its own message."""
        await self.start()
        await self.agent("alice")
        sent = await self.say(self.token("bob", conn="conn-1"), shop="s1")
        await self.until(lambda: self.inbox("bob"))
        self.assertEqual(self.dispatcher.origins["bob", sent["id"]], "conn-1")
        self.assertEqual(self.dispatcher.origins["alice", sent["id"]], "")

    async def test_to(self) -> None:
        """A message to a uid is in no conversation."""
        await self.start()
        sent = await self.say(self.token("bob"), to="carl")
        self.assertEqual(set(sent), {"id", "ts"})
        await self.until(lambda: self.inbox("carl") and self.inbox("bob"))
        self.assertNotIn("conversation", self.inbox("carl")[0])
        await self.archived()

    async def test_refused(self) -> None:
        """What is not allowed is refused, and nothing is stored."""
        await self.start()
        alice = await self.agent("alice")
        bob = self.token("bob")
        text = {"cid": "c", "type": "text", "body": {}}
        await self.refused(409, "no_agent", "POST", "/v1/messages", bob, {**text, "shop": "none"})
        await self.refused(403, "not_allowed", "POST", "/v1/messages", alice, {**text, "shop": "s1"})
        await self.refused(403, "not_allowed", "POST", "/v1/messages", bob, {**text, "to": "x", "type": "system"})
        await self.refused(422, "invalid_frame", "POST", "/v1/messages", bob, {**text})
        await self.refused(422, "invalid_frame", "POST", "/v1/messages", bob, {**text, "to": "x", "shop": "s1"})
        await self.refused(422, "invalid_frame", "POST", "/v1/messages", bob, {**text, "to": "x", "body": []})
        await self.refused(404, "not_found", "POST", "/v1/messages", bob, {**text, "conversation": "0" * 32})
        large = {**text, "to": "x", "body": {"t": "x" * 70000}}
        await self.refused(422, "invalid_frame", "POST", "/v1/messages", bob, large)
        self.assertEqual((await self.good("GET", "/v1/conversations", bob))["conversations"], [])
        conversation = (await self.say(bob, shop="s1"))["conversation"]
        stranger, other = self.token("eve"), self.token("alice", "merchant", "demo-direct")
        for who in (stranger, other, "direct-key-0123456789"):
            body = {**text, "conversation": conversation, **({"from": "x"} if who.startswith("direct") else {})}
            await self.refused(404, "not_found", "POST", "/v1/messages", who, body)
            await self.refused(404, "not_found", "GET", f"/v1/conversations/{conversation}/messages", who)
            await self.refused(404, "not_found", "POST", f"/v1/conversations/{conversation}/close", who)
        await self.refused(403, "not_allowed", "POST", f"/v1/conversations/{conversation}/read", KEY, {"seq": 1})
        await self.refused(404, "not_found", "GET", "/v1/conversations/NO%20SUCH/messages", bob)

    async def test_recall(self) -> None:
        """One's own message can be taken back: history shows that, from the journal and from the archive."""
        await self.start()
        alice = await self.agent("alice")
        bob = self.token("bob")
        conversation = (await self.say(bob, "oops", shop="s1"))["conversation"]
        recall = {"cid": "r", "type": "recall", "body": {"seq": 1}, "conversation": conversation}
        await self.refused(403, "not_allowed", "POST", "/v1/messages", alice, recall)
        await self.good("POST", "/v1/messages", bob, recall)
        await self.refused(403, "not_allowed", "POST", "/v1/messages", bob, {**recall, "cid": "r2"})
        for _ in range(2):
            page = await self.good("GET", f"/v1/conversations/{conversation}/messages", alice)
            self.assertEqual(
                [(m["type"], m["body"]) for m in page["messages"]], [("recalled", {}), ("recall", {"seq": 1})]
            )
            await self.archived()
        (listed,) = (await self.good("GET", "/v1/conversations", alice))["conversations"]
        self.assertEqual(listed["unread"], 0)


class DeskTests(ShopCase):
    """Agents, queue, transfer, close."""

    async def test_queue(self) -> None:
        """Who finds nobody free waits, is told its position, and is served in order, with what it wrote."""
        await self.start()
        alice = await self.agent("alice", capacity=1)
        first = await self.say(self.token("c1"), shop="s1")
        second = await self.say(self.token("c2"), "two", shop="s1")
        third = await self.say(self.token("c3"), "three", shop="s1")
        self.assertEqual((second["state"], second["agent"], third["state"]), ("waiting", None, "waiting"))
        await self.say(self.token("c2"), "two again", shop="s1")
        queue = (await self.good("GET", "/v1/shops/s1/queue"))["queue"]
        self.assertEqual([(w["uid"], w["position"]) for w in queue], [("c2", 1), ("c3", 2)])
        await self.refused(
            403,
            "not_allowed",
            "POST",
            "/v1/messages",
            alice,
            {"cid": "x", "type": "text", "body": {}, "conversation": second["conversation"]},
        )
        await self.good("POST", f"/v1/conversations/{first['conversation']}/close", alice)
        await self.good("POST", f"/v1/conversations/{first['conversation']}/close", alice)
        await self.until(lambda: len(self.inbox("alice")) == 3)
        self.assertEqual([m["body"]["text"] for m in self.inbox("alice")], ["hi", "two", "two again"])
        self.assertEqual(self.dispatcher.states("c2")[-1], ("assigned", "alice", None))
        self.assertEqual(self.dispatcher.states("c3"), [("waiting", None, 2), ("waiting", None, 1)])
        self.assertEqual(self.dispatcher.states("c1")[-1][0], "closed")
        (agent,) = (await self.good("GET", "/v1/shops/s1/agents"))["agents"]
        self.assertEqual((agent["load"], agent["online"]), (1, True))
        await self.good("PUT", "/v1/agents/alice", body={"capacity": 2})
        await self.until(lambda: self.dispatcher.states("c3")[-1] == ("assigned", "alice", None))
        reopened = await self.say(self.token("c1"), "back", shop="s1")
        self.assertEqual((reopened["seq"], reopened["state"]), (2, "waiting"))

    async def test_comes_online(self) -> None:
        """A customer of a shop whose agent is away waits; the agent who connects gets the backlog."""
        await self.start()
        await self.agent("alice", connected=False)
        sent = await self.say(self.token("bob"), "anybody?", shop="s1")
        self.assertEqual(sent["state"], "waiting")
        await self.connect("alice")
        await self.until(lambda: self.inbox("alice"))
        self.assertEqual(self.inbox("alice")[0]["body"], {"text": "anybody?"})

    async def test_transfer(self) -> None:
        """Both sides are told by a system message; the new agent can answer, the old one cannot."""
        await self.start()
        alice, carol = await self.agent("alice"), await self.agent("carol", connected=False)
        bob = self.token("bob")
        conversation = (await self.say(bob, shop="s1"))["conversation"]
        path = f"/v1/conversations/{conversation}/transfer"
        await self.refused(409, "conflict", "POST", path, alice, {"agent": "carol"})
        await self.refused(422, "invalid_frame", "POST", path, alice, {"agent": "nobody"})
        await self.connect("carol")
        await self.refused(403, "not_allowed", "POST", path, carol, {"agent": "carol"})
        await self.refused(403, "not_allowed", "POST", path, bob, {"agent": "carol"})
        await self.good("POST", path, alice, {"agent": "carol"})
        await self.until(lambda: len(self.inbox("carol")) == 2 and len(self.inbox("bob")) == 2)
        self.assertEqual([m["type"] for m in self.inbox("carol")], ["text", "system"])
        self.assertEqual(self.inbox("bob")[1]["body"], {"event": "transfer", "from": "alice", "to": "carol"})
        await self.say(carol, "hello", conversation=conversation)
        message = {"cid": "x", "type": "text", "body": {}, "conversation": conversation}
        await self.refused(403, "not_allowed", "POST", "/v1/messages", alice, message)
        await self.until(lambda: len(self.inbox("bob")) == 3)
        self.assertEqual((await self.good("GET", "/v1/conversations", alice))["conversations"], [])
        (listed,) = (await self.good("GET", "/v1/conversations", bob))["conversations"]
        self.assertEqual((listed["agent"], listed["unread"]), ("carol", 1))
        await self.good("POST", f"/v1/conversations/{conversation}/read", bob, {"seq": 99})
        (listed,) = (await self.good("GET", "/v1/conversations", bob))["conversations"]
        self.assertEqual(listed["unread"], 0)
        await self.until(lambda: any(op == "read" and to == "carol" for to, op, _, _ in self.dispatcher.passed))

    async def test_agent_gone(self) -> None:
        """Customers nobody answered go to another agent when theirs has been gone for long."""
        await self.start(assignment={"offline_grace_s": 0.2})
        await self.agent("alice")
        sent = await self.say(self.token("bob"), "help", shop="s1")
        self.assertEqual(sent["agent"], "alice")
        await self.agent("carol")
        await self.disconnect("alice")
        await self.until(lambda: self.inbox("carol"))
        self.assertEqual(self.inbox("carol")[0]["body"], {"text": "help"})


class FaultTests(ShopCase):
    """What happens when a part is away."""

    async def test_dispatcher_away(self) -> None:
        """What was accepted while no dispatcher was there arrives when one is, in order."""
        await self.start()
        await self.agent("alice")
        self.dispatcher.away = True
        for number in range(5):
            await self.say(self.token("bob"), str(number), shop="s1")
        self.dispatcher.away = False
        await self.until(lambda: len(self.inbox("alice")) == 5)
        self.assertEqual([m["seq"] for m in self.inbox("alice")], [1, 2, 3, 4, 5])
        self.assertEqual([m["seq"] for m in self.inbox("bob")], [1, 2, 3, 4, 5])

    async def test_undispatched_of_a_dead_server(self) -> None:
        """What a server had accepted and not dispatched when it died, another dispatches, and lists."""
        first = await self.start(business={"dispatch_lease_s": 0.5})
        await self.agent("alice")
        self.dispatcher.away = True
        sent = await self.say(self.token("bob"), shop="s1")
        await first.stop()
        self.dispatcher.away = False
        await self.redis.command("DEL", "im:{u:bob}:convs:demo")
        await self.start()
        await self.until(lambda: self.inbox("alice"))
        self.assertEqual(self.inbox("alice")[0]["id"], sent["id"])
        (listed,) = (await self.good("GET", "/v1/conversations", self.token("bob")))["conversations"]
        self.assertEqual(listed["conversation"], sent["conversation"])
