"""Agents as a shop has them: who gets a customer, who loses one, and what a customer is told meanwhile."""

from __future__ import annotations

from typing import Any

from tests.business.shop import KEY, ShopCase

NEVER = {"demo": {"api_keys": [KEY], "away_message": "We are asleep.", "opening_hours": ["mon 00:00-00:01"]}}
ALWAYS = {"demo": {"api_keys": [KEY], "away_message": "Nobody is here."}}


class ChoiceTests(ShopCase):
    """Who gets a customer."""

    async def test_skill(self) -> None:
        """Who has the wanted skill, even if others have less to do; who has to wait for it does not hold up others."""
        await self.start()
        await self.agent("alice", skills=["fr"], capacity=1)
        await self.agent("carol", skills=["de"])
        first = await self.say(self.token("c1"), shop="s1", skill="fr")
        second = await self.say(self.token("c2"), shop="s1", skill="fr")
        third = await self.say(self.token("c3"), shop="s1")
        unknown = await self.say(self.token("c4"), shop="s1", skill="nobody has it")
        agents = [one["agent"] for one in (first, second, third, unknown)]
        self.assertEqual(agents, ["alice", None, "carol", "carol"])
        await self.good("POST", f"/v1/conversations/{first['conversation']}/close")
        await self.until(lambda: self.dispatcher.states("c2")[-1:] == [("assigned", "alice", None)])

    async def test_sticky(self) -> None:
        """Who comes back gets the agent of the last time, unless that one is gone."""
        await self.start()
        await self.agent("alice", capacity=1)
        await self.agent("carol", capacity=9)
        bob = self.token("bob")
        first = await self.say(bob, shop="s1")
        self.assertEqual(first["agent"], "alice")
        close = f"/v1/conversations/{first['conversation']}/close"
        await self.good("POST", close)
        self.assertEqual((await self.say(self.token("other"), shop="s1"))["agent"], "carol")
        self.assertEqual((await self.say(bob, shop="s1"))["agent"], "alice")
        await self.good("POST", close)
        await self.disconnect("alice")
        self.assertEqual((await self.say(bob, shop="s1"))["agent"], "carol")

    async def test_round_robin(self) -> None:
        """In turn, however many they have."""
        await self.start(assignment={"strategy": "round_robin", "sticky": False})
        for uid in ("a1", "a2"):
            await self.agent(uid)
        given = [await self.say(self.token(f"c{number}"), shop="s1") for number in range(4)]
        self.assertEqual([one["agent"] for one in given], ["a1", "a2", "a1", "a2"])
        await self.good("POST", f"/v1/conversations/{given[1]['conversation']}/close")
        await self.good("POST", f"/v1/conversations/{given[3]['conversation']}/close")
        more = [await self.say(self.token(f"d{number}"), shop="s1") for number in range(2)]
        self.assertEqual([one["agent"] for one in more], ["a1", "a2"])

    async def test_status(self) -> None:
        """Who is busy or away gets nobody, and keeps whom he has; back online he gets who waits."""
        await self.start()
        alice = await self.agent("alice")
        first = await self.say(self.token("c1"), shop="s1")
        for status in ("busy", "away"):
            await self.good("PUT", "/v1/agents/alice", alice, {"status": status})
            waiting = await self.say(self.token(status), shop="s1")
            self.assertEqual(waiting["state"], "waiting")
        self.assertEqual((await self.say(alice, conversation=first["conversation"]))["state"], "assigned")
        await self.good("PUT", "/v1/agents/alice", alice, {"status": "online"})
        for uid in ("busy", "away"):
            await self.until(lambda uid=uid: self.dispatcher.states(uid)[-1:] == [("assigned", "alice", None)])


class LossTests(ShopCase):
    """Who loses a customer."""

    async def test_no_answer(self) -> None:
        """Who does not answer in time loses the customer to another, with what was written; who answers does not."""
        await self.start(assignment={"answer_timeout_s": 1})
        alice = await self.agent("alice")
        bob, dora = self.token("bob"), self.token("dora")
        first = await self.say(bob, "hello?", shop="s1")
        second = await self.say(dora, "hi", shop="s1")
        await self.say(alice, "hi dora", conversation=second["conversation"])
        await self.agent("carol")
        await self.until(lambda: self.dispatcher.states("bob")[-1:] == [("assigned", "carol", None)])
        await self.until(lambda: self.inbox("carol"))
        self.assertEqual([m["body"] for m in self.inbox("carol")], [{"text": "hello?"}])
        self.assertEqual(self.dispatcher.states("alice")[-1], ("assigned", "carol", None))
        message = {"cid": "x", "type": "text", "body": {}, "conversation": first["conversation"]}
        await self.refused(403, "not_allowed", "POST", "/v1/messages", alice, message)
        agents = {one["uid"]: one["load"] for one in (await self.good("GET", "/v1/shops/s1/agents"))["agents"]}
        self.assertEqual(agents, {"alice": 1, "carol": 1})

    async def test_gone_and_nobody_else(self) -> None:
        """A customer whose agent is gone goes to the head of the queue, and back to him when he returns first."""
        await self.start(assignment={"offline_grace_s": 0.2})
        await self.agent("alice")
        await self.say(self.token("bob"), "help", shop="s1")
        await self.disconnect("alice")
        await self.until(lambda: self.dispatcher.states("bob")[-1:] == [("waiting", None, 1)])
        await self.connect("alice")
        await self.until(lambda: self.dispatcher.states("bob")[-1:] == [("assigned", "alice", None)])


class AwayTests(ShopCase):
    """What a customer is told who has to wait."""

    def said(self, uid: str) -> list[Any]:
        """What the shop said by itself."""
        return [(m["from"], m["type"], m["body"]) for m in self.inbox(uid) if m["from"] != uid]

    async def test_nobody_there(self) -> None:
        """Said once when nobody who takes customers is there; not while all are merely full; it is no answer."""
        await self.start(channels=ALWAYS)
        alice = await self.agent("alice", capacity=1, connected=False)
        bob = self.token("bob")
        sent = await self.say(bob, shop="s1")
        told = [("s1", "text", {"text": "Nobody is here.", "auto": True})]
        await self.until(lambda: len(self.inbox("bob")) == 2)
        self.assertEqual(self.said("bob"), told)
        await self.say(bob, "again", shop="s1")
        await self.connect("alice")
        await self.until(lambda: len(self.inbox("alice")) == 2)
        self.assertEqual([m["body"]["text"] for m in self.inbox("alice")], ["hi", "again"])
        await self.say(self.token("carl"), shop="s1")
        await self.good("PUT", "/v1/agents/alice", alice, {"status": "away"})
        await self.say(self.token("dora"), shop="s1")
        await self.until(lambda: len(self.inbox("dora")) == 2 and self.inbox("carl"))
        self.assertEqual(self.said("dora"), told)
        page = await self.good("GET", f"/v1/conversations/{sent['conversation']}/messages", bob)
        self.assertEqual([m["from"] for m in page["messages"]], ["bob", "s1", "bob"])
        (carls,) = (await self.good("GET", "/v1/conversations", self.token("carl")))["conversations"]
        self.assertEqual(carls["last"]["seq"], 1)

    async def test_closed(self) -> None:
        """Out of hours it is said to whoever has to wait; who finds an agent all the same is not told."""
        await self.start(channels=NEVER)
        await self.agent("alice", capacity=1)
        await self.say(self.token("bob"), shop="s1")
        await self.say(self.token("carl"), shop="s1")
        await self.until(lambda: len(self.inbox("carl")) == 2)
        self.assertEqual(self.said("carl"), [("s1", "text", {"text": "We are asleep.", "auto": True})])
        (bobs,) = (await self.good("GET", "/v1/conversations", self.token("bob")))["conversations"]
        self.assertEqual(bobs["last"]["seq"], 1)
