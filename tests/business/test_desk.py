"""The desk of a shop, on a real Valkey: against a model, and under many servers at once."""

from __future__ import annotations

import json
import random
import socket
from importlib import resources
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.business.desk_model import DeskModel
from tests.business.shop import ShopCase
from tests.servers import shared_valkey

SCRIPT = resources.files("imserver.data").joinpath("lua", "shop_desk.lua").read_text()
AGENTS = st.sampled_from(["a1", "a2", "a3"])
CONVERSATIONS = st.sampled_from([f"c{number}" for number in range(8)])


class Wire:
    """A blocking connection to Valkey: a state machine's rules cannot await."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._file = self._socket.makefile("rb")

    def ask(self, *words: object) -> Any:
        """One command and its answer, as text."""
        encoded = [str(word).encode() for word in words]
        self._socket.sendall(
            b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
        )
        return self._answer()

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._socket.close()

    def _answer(self) -> Any:
        line = self._file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise AssertionError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest.decode()
        if kind == b"*":
            return [self._answer() for _ in range(int(rest))]
        if rest == b"-1":
            return None
        return self._file.read(int(rest) + 2)[:-2].decode()


class DeskMachine(RuleBasedStateMachine):
    """Any order of operations: the script does what the model does."""

    strategy = "least_loaded"

    def __init__(self) -> None:
        super().__init__()
        self.wire = Wire(shared_valkey().port)
        self.model = DeskModel(self.strategy)

    def teardown(self) -> None:
        """Hang up."""
        self.wire.close()

    def run(self, operation: str, subject: str, *more: object) -> Any:
        """One operation of the script."""
        online = " ".join(sorted(self.model.online))
        common = (operation, subject, online, self.strategy, 1, self.model.now, "assigned waiting closed")
        return self.wire.ask("EVAL", SCRIPT, 1, "im:{s:demo/x}", *common, *more)

    @initialize(capacities=st.lists(st.integers(1, 2), min_size=2, max_size=2), waiting=st.integers(0, 8))
    def open_shop(self, capacities: list[int], waiting: int) -> None:
        """Two agents who are there, and customers: else most runs would be about an empty shop."""
        for uid, capacity in zip(("a1", "a2"), capacities, strict=True):
            self.put(uid, capacity, frozenset(), "online")
            self.come(uid)
        for number in range(waiting):
            self.start(f"c{number}", "")

    @rule(
        uid=AGENTS,
        capacity=st.integers(0, 3),
        skills=st.frozensets(st.sampled_from(["de", "fr"])),
        status=st.sampled_from(["online", "online", "busy", "away"]),
    )
    def put(self, uid: str, capacity: int, skills: frozenset[str], status: str) -> None:
        """An agent is added or changed."""
        text = json.dumps({"capacity": capacity, "skills": sorted(skills), "status": status})
        self.run("put", uid, text)
        self.model.put(uid, capacity, skills, status)

    @rule(uid=AGENTS)
    def come(self, uid: str) -> None:
        """An agent connects."""
        self.model.online.add(uid)
        self.run("serve", "")
        self.model.serve()

    @rule(uid=AGENTS)
    def go(self, uid: str) -> None:
        """An agent's connection ends; its customers stay with it."""
        self.model.online.discard(uid)

    @rule(conversation=CONVERSATIONS, skill=st.sampled_from(["", "de", "fr", "it"]))
    def start(self, conversation: str, skill: str) -> None:
        """A customer writes."""
        result, _, _ = self.run("start", conversation, "cust-" + conversation, skill, 1000, "", "customer")
        assert result == self.model.start(conversation, skill)

    @precondition(lambda self: self.model.assigned)
    @rule(index=st.integers(0, 7), back=st.booleans())
    def leave(self, index: int, back: bool) -> None:
        """A customer who has an agent is done, and may come back at once."""
        conversation = sorted(self.model.assigned)[index % len(self.model.assigned)]
        self.close(conversation)
        if back:
            self.start(conversation, "")

    @rule(conversation=CONVERSATIONS)
    def close(self, conversation: str) -> None:
        """A conversation is closed, perhaps twice."""
        self.run("close", conversation, "-")
        self.model.close(conversation)

    @rule(conversation=CONVERSATIONS, uid=AGENTS)
    def transfer(self, conversation: str, uid: str) -> None:
        """A conversation is given to another agent."""
        result, _, _ = self.run("transfer", conversation, "-", uid)
        assert result == self.model.transfer(conversation, uid)

    @rule(conversation=CONVERSATIONS)
    def answer(self, conversation: str) -> None:
        """The agent of a conversation writes."""
        self.run("look", conversation, "shop")
        self.model.answer(conversation)

    @rule(pause=st.integers(0, 6), timeout=st.sampled_from([0, 5]))
    def sweep(self, pause: int, timeout: int) -> None:
        """Time passes; agents who are gone or silent lose who waits for their answer."""
        self.model.now += pause
        _, still_open, _ = self.run("sweep", "", 10, timeout)
        self.model.sweep(10, timeout)
        assert int(still_open) >= len(self.model.assigned) + len(self.model.queue)

    @invariant()
    def told(self) -> None:
        """Who heard of every event so far knows where each conversation stands."""
        standing = {}
        for _, flat in self.wire.ask("XRANGE", "im:{s:demo/x}:events", "-", "+"):
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            standing[fields["conversation"]] = (fields["event"], fields["agent"] * (fields["event"] == "assigned"))
        known = {name: ("assigned", agent) for name, agent in self.model.assigned.items()}
        known |= dict.fromkeys(self.model.queue, ("waiting", ""))
        closed = {name: ("closed", "") for name in standing if name not in known}
        assert standing == known | closed, (standing, known)

    @invariant()
    def same(self) -> None:
        """Who has whom, who waits in which order, and the loads are the model's."""
        flat = self.wire.ask("HGETALL", "im:{s:demo/x}:assigned")
        assert dict(zip(flat[::2], flat[1::2], strict=True)) == self.model.assigned
        assert self.wire.ask("ZRANGE", "im:{s:demo/x}:queue", 0, -1) == self.model.queue
        flat = self.wire.ask("HGETALL", "im:{s:demo/x}:load")
        loads = {uid: int(count) for uid, count in zip(flat[::2], flat[1::2], strict=True)}
        assert loads == {uid: self.model.load(uid) for uid in self.model.agents if self.model.load(uid)}

    @invariant()
    def nobody_waits_beside_a_free_agent(self) -> None:
        """Also by the model's own measure: whoever waits has no candidate."""
        for conversation in self.model.queue:
            assert not self.model.candidates(conversation)


class RoundRobinMachine(DeskMachine):
    """The same with the other strategy."""

    strategy = "round_robin"


BUDGET = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class ModelTests(SynchronousTestCase):
    """The script against the model."""

    def test_least_loaded(self) -> None:
        """Least loaded first."""
        run_state_machine_as_test(DeskMachine, settings=BUDGET)

    def test_round_robin(self) -> None:
        """In turn."""
        run_state_machine_as_test(RoundRobinMachine, settings=BUDGET)


class AnswerTests(SynchronousTestCase):
    """An agent has `answer_timeout_s` to answer, from when the customer is his."""

    def setUp(self) -> None:
        """A shop with two agents who take one customer each."""
        self.wire = Wire(shared_valkey().port)
        self.addCleanup(self.wire.close)
        for uid in ("a1", "a2"):
            self.run_at(0, "put", uid, json.dumps({"capacity": 1, "skills": [], "status": "online"}))

    def run_at(self, now: int, operation: str, subject: str, *more: object) -> Any:
        """One operation while both agents are connected."""
        common = (operation, subject, "a1 a2", "least_loaded", 1, now, "")
        return self.wire.ask("EVAL", SCRIPT, 1, "im:{s:demo/x}", *common, *more)

    def start(self, now: int, conversation: str) -> None:
        """A customer writes."""
        self.run_at(now, "start", conversation, "cust-" + conversation, "", 1000, "", "customer")

    def sweep(self, now: int) -> dict[str, str]:
        """Who has whom after a sweep with an answer timeout of 50."""
        self.run_at(now, "sweep", "", 1000, 50)
        flat = self.wire.ask("HGETALL", "im:{s:demo/x}:assigned")
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def test_waiting_is_not_silence(self) -> None:
        """What a customer waited in the queue is not held against the agent he gets."""
        for conversation in ("c1", "c2", "c3"):
            self.start(0, conversation)
        for conversation in ("c2", "c1"):
            self.run_at(100, "close", conversation, "-")
        self.assertEqual(self.sweep(149), {"c3": "a2"})
        self.assertEqual(self.sweep(150), {"c3": "a1"})
        self.assertEqual(self.sweep(199), {"c3": "a1"})

    def test_nobody_else(self) -> None:
        """While nobody else is free he keeps the customer; who becomes free then gets him at once."""
        self.start(0, "c1")
        self.start(0, "c2")
        self.run_at(0, "look", "c2", "shop")
        self.assertEqual(self.sweep(60), {"c1": "a1", "c2": "a2"})
        self.run_at(60, "close", "c2", "-")
        self.assertEqual(self.sweep(61), {"c1": "a2"})

    def test_answered(self) -> None:
        """An answer ends it, until the customer writes again."""
        self.start(0, "c1")
        self.run_at(10, "look", "c1", "shop")
        self.assertEqual(self.sweep(100), {"c1": "a1"})
        self.run_at(100, "look", "c1", "customer")
        self.run_at(120, "look", "c1", "customer")
        self.assertEqual(self.sweep(150), {"c1": "a2"})


class RaceTests(ShopCase):
    """Several servers, many customers at once."""

    async def test_fifty_starts(self) -> None:
        """50 customers start at once over two servers while agents come and go: nobody over capacity, nobody twice."""
        await self.start()
        urls = [self.url]
        await self.start()
        urls.append(self.url)
        for number in range(4):
            await self.agent(f"a{number}", capacity=5)
        rng = random.Random(7)

        async def customer(number: int) -> Any:
            self.url = rng.choice(urls)
            return await self.say(self.token(f"c{number}"), shop="s1")

        async def churn() -> None:
            for _ in range(10):
                await self.disconnect("a3")
                await self.connect("a3")

        work = [Deferred.fromCoroutine(customer(number)) for number in range(50)]
        await defer.gatherResults([*work, Deferred.fromCoroutine(churn())], consumeErrors=True)

        async def settled() -> bool:
            agents = (await self.good("GET", "/v1/shops/s1/agents"))["agents"]
            assert all(agent["load"] <= agent["capacity"] for agent in agents), agents
            return [agent["load"] for agent in agents] == [5, 5, 5, 5]

        await self.until(settled)
        queue = (await self.good("GET", "/v1/shops/s1/queue"))["queue"]
        self.assertEqual([waiting["position"] for waiting in queue], list(range(1, 31)))
        listed = await self.good("GET", "/v1/conversations?shop=s1&state=assigned&limit=200")
        self.assertEqual(len(listed["conversations"]), 20)
        await self.until(lambda: sum(len(self.inbox(f"a{number}")) for number in range(4)) == 20)
        for conversation in listed["conversations"]:
            self.url = rng.choice(urls)
            await self.good("POST", f"/v1/conversations/{conversation['conversation']}/close")
        await self.until(settled)
        await self.until(lambda: sum(len(self.inbox(f"a{number}")) for number in range(4)) == 40)
        await self.archived()

    async def test_order(self) -> None:
        """Messages of one conversation sent over two servers arrive in seq order everywhere, none missing."""
        await self.start()
        urls = [self.url]
        await self.start()
        urls.append(self.url)
        await self.agent("alice")
        bob = self.token("bob")
        await self.say(bob, shop="s1")

        async def one(number: int) -> None:
            self.url = urls[number % 2]
            await self.say(bob, str(number), shop="s1")

        await defer.gatherResults([Deferred.fromCoroutine(one(number)) for number in range(60)])
        for uid in ("alice", "bob"):
            await self.until(lambda uid=uid: len(self.inbox(uid)) == 61)
            self.assertEqual([m["seq"] for m in self.inbox(uid)], list(range(1, 62)))
