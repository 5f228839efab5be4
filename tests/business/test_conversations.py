"""Lists of conversations, unread counts and states, against a model (contract: op `conversations`)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from twisted.internet import defer
from twisted.internet.defer import Deferred

from imserver.business.conversations import partition, prefix
from tests.business.shop import KEY, ShopCase

SHOPS = {"s1": ("alice", "amy"), "s2": ("zoe",)}
CUSTOMERS = ("bob", "carl", "dora")
AGENTS = tuple(uid for agents in SHOPS.values() for uid in agents)
UNCOUNTED = ("system", "recall", "recalled")


@dataclass
class Said:
    """A message of the model."""

    sender: str
    type: str
    ts: int
    cid: str = ""


@dataclass
class Talk:
    """A conversation of the model."""

    id: str
    customer: str
    shop: str
    state: str = "closed"
    agent: str | None = None
    said: list[Said] = field(default_factory=list)
    read: dict[str, int] = field(default_factory=dict)

    def unread(self, uid: str) -> int:
        """Messages of others, of a type that counts, above what was read."""
        return sum(s.type not in UNCOUNTED and s.sender != uid for s in self.said[self.read.get(uid, 0) :])

    def seen_by(self, uid: str) -> bool:
        """Whether it is in somebody's list: the customer's, and its agent's (of a closed one: its last)."""
        return uid in (self.customer, self.agent)


class ModelTests(ShopCase):
    """Several customers, shops and agents do as they like; every list is what the model says.

    Ordered by the last message, none missing or doubled however it is paged; `last`, `unread` and `state` exact.
    """

    timeout = 60

    async def test_first_history(self) -> None:
        """One seed."""
        await self.history_of(1)

    async def test_second_history(self) -> None:
        """Another."""
        await self.history_of(2)

    async def test_third_history(self) -> None:
        """And another."""
        await self.history_of(3)

    async def history_of(self, seed: int) -> None:
        """What they do, and a look at every list now and then."""
        self.rng = random.Random(seed)
        self.running = await self.start()
        self.talks: dict[tuple[str, str], Talk] = {}
        self.count = 0
        self.keys = {uid: self.token(uid) for uid in CUSTOMERS}
        for shop, agents in SHOPS.items():
            for uid in agents:
                self.keys[uid] = await self.agent(uid, shop, capacity=100)
        steps = [
            *[self.customer_writes] * 6,
            *[self.agent_writes] * 5,
            *[self.reads] * 5,
            *[self.recalls] * 2,
            *[self.system] * 2,
            *[self.closes] * 2,
            *(self.transfers, self.repeats, self.two_at_once, self.lost_and_brought_back, self.restart),
        ]
        for step in range(120):
            await self.rng.choice(steps)()
            if step % 6 == 0:
                await self.check(f"seed {seed}, step {step}")
        await self.check(f"seed {seed}, at the end")

    # -- what they do --------------------------------------------------------------------------------------------

    def some(self, *states: str) -> Talk | None:
        """A conversation in one of these states."""
        found = [talk for talk in self.talks.values() if talk.state in states or not states]
        return self.rng.choice(found) if found else None

    async def write(self, who: str, type: str = "text", body: Any = None, key: str = "", **target: Any) -> Any:
        """A message, and the answer to it."""
        self.count += 1
        message = {"cid": f"c{self.count}", "type": type, "body": body or {"n": self.count}, **target}
        return message["cid"], await self.good("POST", "/v1/messages", key or self.keys[who], message)

    def said(self, talk: Talk, who: str, type: str, cid: str, answer: Any) -> None:
        """The model takes it in."""
        self.assertEqual(answer["seq"], len(talk.said) + 1)
        talk.said.append(Said(who, type, answer["ts"], cid))
        talk.state, talk.agent = answer["state"], answer["agent"]

    async def customer_writes(self) -> None:
        """To a shop, or into a conversation."""
        who, shop = self.rng.choice(CUSTOMERS), self.rng.choice(list(SHOPS))
        known = self.talks.get((who, shop))
        if known is not None and self.rng.random() < 0.5:
            cid, answer = await self.write(who, conversation=known.id)
        else:
            cid, answer = await self.write(who, shop=shop)
        talk = self.talks.setdefault((who, shop), Talk(answer["conversation"], who, shop))
        self.assertEqual(talk.id, answer["conversation"])
        self.said(talk, who, "text", cid, answer)
        self.assertIn(talk.agent, SHOPS[shop])

    async def agent_writes(self) -> None:
        """The one who has it; a closed one any of the shop's opens."""
        talk = self.some()
        if talk is None:
            return
        who = talk.agent if talk.state == "assigned" else self.rng.choice(SHOPS[talk.shop])
        assert who is not None
        cid, answer = await self.write(who, conversation=talk.id)
        self.said(talk, who, "text", cid, answer)
        self.assertEqual((talk.state, talk.agent), ("assigned", who))

    async def system(self) -> None:
        """A backend's message, which opens nothing and counts for nobody."""
        talk = self.some()
        if talk is not None:
            more = {"conversation": talk.id, "from": talk.shop}
            cid, answer = await self.write("", "system", key=KEY, **more)
            self.said(talk, talk.shop, "system", cid, answer)

    async def recalls(self) -> None:
        """One takes back a message of one's own."""
        talk = self.some()
        own = [(n, s) for n, s in enumerate(talk.said, 1) if s.type == "text"] if talk is not None else []
        if talk is not None and own:
            seq, said = self.rng.choice(own)
            cid, answer = await self.write(said.sender, "recall", {"seq": seq}, conversation=talk.id)
            said.type = "recalled"
            self.said(talk, said.sender, "recall", cid, answer)

    async def reads(self) -> None:
        """On one device or another, also what was read before, and more than there is."""
        talk = self.some()
        if talk is None:
            return
        who = self.rng.choice([talk.customer, talk.agent or talk.customer])
        role = "merchant" if who in AGENTS else "customer"
        token = self.token(who, role, conn=f"{who}-{self.rng.randint(1, 3)}") if self.rng.random() < 0.5 else ""
        seq = self.rng.randint(0, len(talk.said) + 2)
        path = f"/v1/conversations/{talk.id}/read"
        answer = await self.good("POST", path, token or self.keys[who], {"seq": seq})
        talk.read[who] = max(talk.read.get(who, 0), min(seq, len(talk.said)))
        self.assertEqual(answer, {"seq": talk.read[who]})

    async def closes(self) -> None:
        """By whoever may, once more too."""
        talk = self.some()
        if talk is not None:
            key = self.rng.choice([KEY, self.keys[talk.customer], self.keys[talk.agent or talk.customer]])
            await self.good("POST", f"/v1/conversations/{talk.id}/close", key)
            talk.state = "closed"

    async def transfers(self) -> None:
        """To the shop's other agent; a message of type `system` says so."""
        talk = self.some("assigned")
        others = [uid for uid in SHOPS[talk.shop] if uid != talk.agent] if talk is not None else []
        if talk is not None and others:
            await self.good("POST", f"/v1/conversations/{talk.id}/transfer", body={"agent": others[0]})
            talk.agent = others[0]
            page = await self.good("GET", f"/v1/conversations/{talk.id}/messages?limit=1")
            (told,) = page["messages"]
            self.assertEqual((told["type"], told["seq"]), ("system", len(talk.said) + 1))
            talk.said.append(Said(talk.shop, "system", told["ts"]))

    async def repeats(self) -> None:
        """A client sends again what it was never answered: nothing changes."""
        talk = self.some()
        mine = [(n, s) for n, s in enumerate(talk.said, 1) if s.type == "text"] if talk is not None else []
        if talk is not None and mine:
            seq, said = self.rng.choice(mine)
            body = {"cid": said.cid, "type": "text", "body": {}, "conversation": talk.id}
            answer = await self.good("POST", "/v1/messages", self.keys[said.sender], body)
            self.assertEqual((answer["duplicate"], answer["seq"], answer["ts"]), (True, seq, said.ts))

    async def two_at_once(self) -> None:
        """Both sides of several conversations write in the same moment, most likely in the same millisecond."""
        talks = [talk for talk in self.talks.values() if talk.state == "assigned"]
        writing = [(talk, who) for talk in talks for who in (talk.customer, talk.agent)]
        answers = await defer.gatherResults(
            [Deferred.fromCoroutine(self.write(str(who), conversation=talk.id)) for talk, who in writing]
        )
        for (talk, who), (cid, answer) in sorted(
            zip(writing, answers, strict=True), key=lambda pair: int(pair[1][1]["seq"])
        ):
            self.said(talk, str(who), "text", cid, answer)

    async def restart(self) -> None:
        """The business server, while nothing is under way."""
        await self.running.stop()
        self.running = await self.start()

    async def lost_and_brought_back(self) -> None:
        """Redis forgets a conversation; the archive brings it back."""
        talk = self.some()
        if talk is None:
            return
        start = prefix(partition(talk.id))

        async def dispatched() -> bool:
            return await self.redis.command("ZSCORE", f"{start}:pending", talk.id) is None

        await self.archived()
        await self.until(dispatched)
        keys = [f"{start}:{name}:{talk.id}" for name in ("conv", "senders", "unanswered")]
        await self.redis.command("DEL", f"{start}:whole", *keys)

    # -- what they see -------------------------------------------------------------------------------------------

    async def check(self, when: str) -> None:
        """Everybody's list, a shop's and a backend's view of one."""
        for uid, token in self.keys.items():
            expected = [talk for talk in self.talks.values() if talk.seen_by(uid)]
            await self.compare(expected, uid, token, "", f"{when}: {uid}")
            await self.compare(expected, uid, KEY, f"uid={uid}", f"{when}: {uid} with a key")
            closed = [talk for talk in expected if talk.state == "closed"]
            await self.compare(closed, uid, token, "state=closed", f"{when}: {uid}, closed")
        for shop, agents in SHOPS.items():
            theirs = [talk for talk in self.talks.values() if talk.shop == shop]
            await self.compare(theirs, agents[0], self.keys[agents[0]], f"shop={shop}", f"{when}: {shop}")

    async def compare(self, expected: list[Talk], viewer: str, key: str, query: str, when: str) -> None:
        """All pages of a list with what they have to be."""
        limit = self.rng.choice([1, 2, 3, 50])
        found: list[Any] = []
        before = ""
        while True:
            page = await self.good("GET", f"/v1/conversations?limit={limit}{before}&{query}", key)
            found += page["conversations"]
            if not page["more"]:
                break
            before = f"&before={found[-1]['ts']}"
        by_id = {talk.id: talk for talk in expected}
        ids = [each["conversation"] for each in found]
        self.assertEqual(sorted(ids), sorted(by_id), (when, limit))
        times = [each["ts"] for each in found]
        self.assertEqual(times, sorted(times, reverse=True), when)
        for each in found:
            talk = by_id[each["conversation"]]
            last = talk.said[-1]
            self.assertEqual(
                (each["ts"], each["unread"], each["state"], each["agent"], each["shop"], each["customer"]),
                (last.ts, talk.unread(viewer), talk.state, talk.agent, talk.shop, talk.customer),
                (when, talk),
            )
            shown = "text" if last.type == "recalled" else last.type
            got = each["last"]
            self.assertEqual((got["seq"], got["type"], got["from"]), (len(talk.said), shown, last.sender), when)


class PageTests(ShopCase):
    """Pages of a list."""

    async def test_one_moment(self) -> None:
        """Conversations of one millisecond are never parted, nor doubled or left out, however many; filtered or not."""
        await self.start()
        await self.agent("alice", capacity=100)
        bob, ids = self.token("bob"), []
        for number in range(7):
            await self.agent(f"a{number}", f"shop{number}")
            ids.append((await self.say(bob, shop=f"shop{number}"))["conversation"])
        for same, limits in ((7, (1, 2, 6, 7, 50)), (3, (1, 2, 3, 4))):
            for place, id in enumerate(ids):
                await self.redis.command("ZADD", "im:{u:bob}:convs:demo", 1000 + max(0, place - same + 1), id)
            for limit in limits:
                for query in ("", "&state=assigned"):
                    found: list[str] = []
                    path, before = f"/v1/conversations?limit={limit}{query}", ""
                    while True:
                        page = await self.good("GET", path + before, bob)
                        found += [each["conversation"] for each in page["conversations"]]
                        if not page["more"]:
                            break
                        before = f"&before={page['conversations'][-1]['ts']}"
                    self.assertEqual((len(found), set(found)), (7, set(ids)), (same, limit, query))


class UnreadTests(ShopCase):
    """Unread counts are exact."""

    async def test_against_a_model(self) -> None:
        """Sends, system messages, recalls, reads and a lost Redis, in any order: unread is what the model says."""
        await self.start()
        rng = random.Random(11)
        tokens = {"bob": self.token("bob"), "alice": await self.agent("alice")}
        conversation = (await self.say(tokens["bob"], shop="s1"))["conversation"]
        model: list[dict[str, Any]] = [{"from": "bob", "counts": True}]
        read = {"bob": 0, "alice": 0}
        for step in range(120):
            who = rng.choice(["bob", "alice"])
            what = rng.choice(["text", "text", "read", "recall", "system"])
            if what == "text":
                await self.say(tokens[who], conversation=conversation)
                model.append({"from": who, "counts": True})
            elif what == "system":
                body = {"cid": f"s{step}", "type": "system", "body": {}, "conversation": conversation, "from": "shop"}
                await self.good("POST", "/v1/messages", KEY, body)
                model.append({"from": "shop", "counts": False})
            elif what == "read":
                seq = rng.randint(0, len(model) + 2)
                await self.good("POST", f"/v1/conversations/{conversation}/read", tokens[who], {"seq": seq})
                read[who] = max(read[who], min(seq, len(model)))
            else:
                own = [i for i, m in enumerate(model) if m["from"] == who and m["counts"]]
                if own:
                    seq = rng.choice(own)
                    body = {"cid": f"r{step}", "type": "recall", "body": {"seq": seq + 1}, "conversation": conversation}
                    await self.good("POST", "/v1/messages", tokens[who], body)
                    model[seq]["counts"] = False
                    model.append({"from": who, "counts": False})
            if step == 60:  # Redis loses the conversation: the archive brings it back
                await self.archived()
                await self.until(lambda: len(self.inbox("alice")) == len(model))
                for name in ("conv", "senders", "unanswered"):
                    await self.redis.command("DEL", f"{prefix(partition(conversation))}:{name}:{conversation}")
                await self.redis.command("DEL", f"{prefix(partition(conversation))}:whole")
            if step % 5 == 0:
                for uid, token in tokens.items():
                    (listed,) = (await self.good("GET", "/v1/conversations", token))["conversations"]
                    expected = sum(m["counts"] and m["from"] != uid for m in model[read[uid] :])
                    self.assertEqual(listed["unread"], expected, (step, uid))
