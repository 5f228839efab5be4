"""A run: traffic and faults for so many minutes, then calm, then the verdict.

``python -m tests.faults.soak --minutes 30 --seed 1``, or ``make soak MINUTES=30``. The same seed makes the same plan of
faults. What clients and processes do meanwhile depends on timing: a run is repeated in kind, not in detail.
"""

from __future__ import annotations

import argparse
import asyncio  # noqa: TID251
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from imserver.protocol.ids import conversation_id
from imserver.protocol.tokens import Tokens
from tests.faults.checker import Stored, Violation, awaited, trail, violations
from tests.faults.clients import Device, Stream, World, by_http, by_socket
from tests.faults.cluster import ENDED, Cluster
from tests.faults.schedule import Fault, plan
from tests.faults.wire import NoAnswer, call, redis

KEYS = {"demo": "demo-key-0123456789", "demo-direct": "direct-key-0123456789", "demo-journal": "journal-key-0123456789"}
CHANNELS = tuple(KEYS)
PEOPLE = {"ann": "customer", "bob": "customer", "cid": "customer", "amy": "merchant", "max": "merchant"}
SHOPS = {"shop-amy": "amy", "shop-max": "max"}
SETTLE_S = 45.0
FILES_MAX = 150
SHOWN_MAX = 8
"""Violations of one rule that are printed; the table counts them all."""


class Report(msgspec.Struct):
    """What a run was and what it found."""

    seed: int
    seconds: float = 0.0
    counts: dict[str, int] = msgspec.field(default_factory=dict)
    faults: dict[str, int] = msgspec.field(default_factory=dict)
    violations: list[Violation] = msgspec.field(default_factory=list)
    trails: list[str] = msgspec.field(default_factory=list)

    def table(self) -> str:
        """For people."""
        rows = [
            ("seed", self.seed),
            ("minutes", f"{self.seconds / 60:.1f}"),
            ("messages accepted", self.counts.get("accepted", 0)),
            ("attempts to send", self.counts.get("attempts", 0)),
            ("frames delivered", self.counts.get("shown", 0)),
            ("retransmissions", self.counts.get("retransmissions", 0)),
            ("acknowledgements lost", self.counts.get("acks lost", 0)),
            ("connections", self.counts.get("visits", 0)),
            ("faults", sum(self.faults.values())),
            *((f"  {name}", count) for name, count in sorted(self.faults.items())),
            *((name, n) for name, n in sorted(self.counts.items()) if name.startswith(("close", "answer", "late"))),
            ("violations", len(self.violations)),
            *((f"  {rule}", n) for rule, n in sorted(Counter(v.rule for v in self.violations).items())),
        ]
        return "\n".join(f"{name:<40}{value:>12}" for name, value in rows)


class Run:
    """One run over one cluster."""

    def __init__(self, directory: Path, seed: int, say: Callable[[str], None]) -> None:
        self.cluster = Cluster(directory)
        self.world = World(self.cluster, random.Random(seed))
        self.report = Report(seed)
        self._say = say
        self._faults: Counter[str] = Counter()
        self._devices: list[Device] = []
        self._living: list[asyncio.Task[None]] = []
        self._found: list[Violation] = []
        self._opened: list[tuple[str, str]] = []
        self._tokens: dict[str, str] = {}

    async def run(self, seconds: float, *, every_s: float, rate: float) -> Report:
        """Everything, in order."""
        begun = time.monotonic()
        try:
            await self.cluster.start()
            self._say("the cluster is ready")
            await self._populate()
            talking = [asyncio.create_task(stream.run()) for stream in self._streams(rate)]
            await self._strike(seconds, every_s)
            await self._settle(talking)
            await self._collect()
            await self._leave()
            self._found += [Violation("a process ends in order", text) for text in await self.cluster.stop()]
            self._found += [Violation("a quiet log", text) for text in self.cluster.complaints()]
        finally:
            for task in self._living:
                task.cancel()
            self.cluster.destroy()
        self._judge()
        self.report.seconds = time.monotonic() - begun
        return self.report

    # -- Who is there ------------------------------------------------------------------------------------------

    async def _populate(self) -> None:
        tokens = Tokens(self.cluster.configuration)
        self._tokens = {uid: tokens.issue(uid, role, CHANNELS, 86_400, time.time())[0] for uid, role in PEOPLE.items()}
        for shop, agent in SHOPS.items():
            body = {"shop": shop, "capacity": 1000, "status": "online"}
            port = self.cluster.http_ports["business-1"]
            status, answer = await call("PUT", port, f"/v1/agents/{agent}", body, KEYS["demo"])
            assert status == 200, answer
        for uid in PEOPLE:
            for name, streaming in (("phone", False), ("desk", False), ("tab", True)):
                self._connect(Device(self.world, uid, name, self._tokens[uid], streaming=streaming))

    def _connect(self, device: Device) -> None:
        self._devices.append(device)
        self._living.append(asyncio.create_task(device.live()))

    def _streams(self, rate: float) -> list[Stream]:
        """Everybody talks to everybody, in every way there is; `rate` messages a second together."""
        world, made = self.world, []

        def add(name: str, sender: str, ways: list[Any], describe: Callable[[], dict[str, Any]]) -> None:
            made.append((name, sender, ways, describe))

        sockets = {uid: [d for d in self._devices if d.uid == uid and d.name != "tab"] for uid in PEOPLE}
        for a in PEOPLE:
            add(
                f"journal:{a}",
                a,
                [by_socket(world, sockets[a], lambda: {"channel": "demo-journal"})],
                dict,
            )
            for b in PEOPLE:
                if a != b:
                    self._pair(add, sockets, a, b)
        for shop, agent in SHOPS.items():
            for customer in (uid for uid, role in PEOPLE.items() if role == "customer"):
                self._conversation(add, sockets, customer, agent, shop)
        for number in range(3):
            self._pushes(add, number)
        every_s = len(made) / rate
        return [Stream(world, *parts, every_s) for parts in made]

    def _pair(self, add: Any, sockets: Any, a: str, b: str) -> None:
        world, both = self.world, {"receivers": (a, b)}
        add(
            f"direct:{a}.{b}",
            a,
            [by_socket(world, sockets[a], lambda: {"channel": "demo-direct", "to": b})],
            lambda: both,
        )
        to = {"channel": "demo", "to": b}
        ways = [by_socket(world, sockets[a], lambda: to)]
        ways.append(by_http(world, "businesses", "/v1/messages", self._tokens[a], lambda sending: to))
        add(f"to:{a}.{b}", a, ways, lambda: both)

    def _conversation(self, add: Any, sockets: Any, customer: str, agent: str, shop: str) -> None:
        world, id = self.world, conversation_id("demo", customer, shop)
        described = {"receivers": (customer, agent), "conversation": id}
        mine, answer = {"channel": "demo", "shop": shop}, {"channel": "demo", "conversation": id}
        ways = [by_socket(world, sockets[customer], lambda: mine), by_socket(world, sockets[customer], lambda: mine)]
        ways.append(by_http(world, "businesses", "/v1/messages", self._tokens[customer], lambda sending: mine))
        for half in ("1", "2"):  # two streams: what one person writes on two devices at a time
            add(f"ask{half}:{customer}.{shop}", customer, ways, lambda: described)
        back = [by_socket(world, sockets[agent], lambda: answer)]
        back.append(by_http(world, "businesses", "/v1/messages", self._tokens[agent], lambda sending: answer))
        self._opened.append((customer, shop))
        add(f"reply:{customer}.{shop}", agent, [self._once_open(id, way) for way in back], lambda: described)

    def _once_open(self, conversation: str, way: Any) -> Any:
        """An agent cannot write before the customer has."""

        async def send(sending: Any, cid: str) -> Any:
            if conversation not in self.world.opened:
                await asyncio.sleep(0.1)
                raise NoAnswer("nobody has asked yet")
            return await way(sending, cid)

        return send

    def _pushes(self, add: Any, number: int) -> None:
        world = self.world

        def fields(sending: Any) -> dict[str, Any]:
            more = {"only": {"device": sending.only}} if sending.only else {}
            return {"to": list(sending.receivers), **more}

        def describe() -> dict[str, Any]:
            many = tuple(world.choice.sample(list(PEOPLE), world.choice.randint(1, len(PEOPLE))))
            return {"receivers": many, "only": "phone" if world.choice.random() < 0.1 else ""}

        way = by_http(world, "dispatchers", "/v1/push", KEYS["demo"], fields)
        add(f"push:{number}", "demo", [way], describe)

    # -- Faults ------------------------------------------------------------------------------------------------

    async def _strike(self, seconds: float, every_s: float) -> None:
        # a generator of its own: the plan is the same whatever the clients do
        faults = plan(
            random.Random(self.report.seed),
            seconds,
            every_s,
            list(self.cluster.programs),
            list(self.cluster.links),
            "valkey",
        )
        begun, striking = time.monotonic(), []
        said = begun
        for fault in faults:
            while (left := begun + fault.at - time.monotonic()) > 0:
                await asyncio.sleep(min(left, 1.0))
            striking.append(asyncio.create_task(self._one(fault)))
            if time.monotonic() - said > 30:
                said = time.monotonic()
                counts = self.world.counts
                self._say(
                    f"{said - begun:.0f} s, {sum(self._faults.values())} faults, {counts['accepted']} accepted,"
                    f" {counts['shown']} delivered, {len(self.world.odd)} odd answers"
                )
        await asyncio.sleep(max(0.0, begun + seconds - time.monotonic()))
        await asyncio.gather(*striking)
        for link in self.cluster.links.values():
            link.heal()

    async def _one(self, fault: Fault) -> None:
        kind = fault.target.rpartition(".")[2] if "." in fault.target else fault.target.partition("-")[0]
        self._faults[f"{fault.kind} {kind}"] += 1
        self.world.evidence.faults.append((self.world.now(), f"{fault.kind} {fault.target} for {fault.lasts} s"))
        if fault.target == "valkey":
            await self._strike_store(fault)
        elif fault.target in self.cluster.links:
            await self._strike_link(fault)
        else:
            await self._strike_process(fault)

    async def _strike_store(self, fault: Fault) -> None:
        valkey = self.cluster.valkey
        if fault.kind == "kill":
            await asyncio.to_thread(valkey.kill)
            await asyncio.sleep(fault.lasts)
            await asyncio.to_thread(valkey.start)
        else:
            assert valkey.process is not None
            valkey.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(fault.lasts)
            valkey.process.send_signal(signal.SIGCONT)

    async def _strike_link(self, fault: Fault) -> None:
        link = self.cluster.links[fault.target]
        if fault.kind == "reset":
            link.reset()
            return
        if fault.kind == "cut":
            link.cut_off()
        elif fault.kind == "silence":
            link.silence()
        else:
            link.delay_s = 0.1
        await asyncio.sleep(fault.lasts)
        if fault.kind == "silence" and int(fault.lasts * 100) % 2:
            link.reset()  # what was under way never arrives
        link.heal()

    async def _strike_process(self, fault: Fault) -> None:
        program = self.cluster.programs[fault.target]
        process = program.process
        assert process is not None
        if process.poll() is not None:
            self._found.append(Violation("a process lives", f"{program.name} had ended with {process.returncode}"))
            program.start()
            return
        if fault.kind == "stop":
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(fault.lasts)
            process.send_signal(signal.SIGCONT)
            return
        if fault.kind == "end":
            process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 15
            while process.poll() is None and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            if process.returncode not in ENDED:
                text = f"{program.name}: {process.returncode} at SIGTERM"
                self._found.append(Violation("a process ends in order", text))
        program.kill()
        await asyncio.sleep(fault.lasts)
        program.start()

    # -- Calm --------------------------------------------------------------------------------------------------

    async def _settle(self, talking: list[asyncio.Task[None]]) -> None:
        """Everything is healed: now all of it has to arrive, everywhere, within bounds."""
        world = self.world
        self._found += [Violation("a process lives", text) for text in self.cluster.dead()]
        world.talking, world.calm = False, True
        for name in self.cluster.programs:
            await self.cluster.until_ready(name)
        _, unfinished = await asyncio.wait(talking, timeout=SETTLE_S)
        world.giving_up = True
        for task in talking:
            if task.done() and task.exception() is not None:
                raise RuntimeError("a sender broke") from task.exception()
        for uid in PEOPLE:  # a device that is new gets all that is kept
            self._connect(Device(world, uid, "late", self._tokens[uid]))
        self._say(f"calm: {world.counts['accepted']} accepted, {len(unfinished)} senders still trying")
        if unfinished:
            await asyncio.wait(unfinished, timeout=10)
        known = {(device.uid, device.name): device for device in self._devices}
        left = list(awaited(world.evidence))
        deadline = time.monotonic() + SETTLE_S
        while left and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
            left = [one for one in left if one[2] not in known[one[0], one[1]].keys]
        for key, sending in world.evidence.sendings.items():
            if not sending.accepted:
                last = sending.attempts[-1].outcome if sending.attempts else "never tried"
                self._found.append(Violation("accepted in the end", f"still refused after healing: {last}", key))
        self._say(f"settled: {len(left)} not arrived")

    async def _collect(self) -> None:
        """What is stored, as the checker wants it."""
        evidence, port = self.world.evidence, self.cluster.valkey.port
        for uid in PEOPLE:
            rows = await redis(port, "XRANGE", f"im:{{u:{uid}}}:inbox", "-", "+")
            evidence.inboxes[uid] = [_stored(cursor.decode(), fields) for cursor, fields in rows]
        business = self.cluster.http_ports["business-1"]
        for customer, shop in self._opened:
            id = conversation_id("demo", customer, shop)
            found: list[Stored] = []
            more = True
            while more:
                after = found[-1].seq if found else 0
                path = f"/v1/conversations/{id}/messages?limit=200&after={after}"
                status, answer = await call("GET", business, path, key=KEYS["demo"])
                if status != 200:
                    self._found.append(Violation("history", f"{id}: {status} {answer}"))
                    break
                found += [
                    Stored(str(m["seq"]), m["body"].get("key", "?"), m["id"], seq=m["seq"]) for m in answer["messages"]
                ]
                more = answer["more"] and bool(answer["messages"])
            evidence.histories[id] = found
        evidence.journal, after = [], "0-0"
        while True:
            path = f"/v1/journal?limit=1000&after={after}"
            status, answer = await call("GET", self.cluster.http_ports["dispatcher-1"], path, key=KEYS["demo-journal"])
            if status != 200 or not answer["entries"]:
                break
            after = answer["next"]
            evidence.journal += [Stored(e["cursor"], e["body"]["key"], e["id"]) for e in answer["entries"]]

    # -- The end -----------------------------------------------------------------------------------------------

    async def _leave(self) -> None:
        """All clients go: nothing may be left of them."""
        for task in self._living:
            task.cancel()
        await asyncio.wait(self._living)
        dispatcher, port = self.cluster.http_ports["dispatcher-1"], self.cluster.valkey.port

        async def connections() -> str:
            _, answer = await call("GET", dispatcher, "/v1/workers", key=KEYS["demo"])
            left = {worker["id"]: worker["connections"] for worker in answer["workers"]}
            return "" if left == dict.fromkeys(self.cluster.workers, 0) else f"connections: {left}"

        async def archived() -> str:
            names = await redis(port, "KEYS", "im:{c:*}:journal")
            left = sum([await redis(port, "XLEN", name.decode()) for name in names])
            return f"{left} journal entries are not archived" if left else ""

        async def outboxes() -> str:
            patterns = ("im:{c:*}:pending", "im:{c:*}:out:*", "im:{c:*}:lease:*")
            left = [name for pattern in patterns for name in await redis(port, "KEYS", pattern)]
            return f"left in Redis: {left}" if left else ""

        async def records() -> str:
            left = await redis(port, "KEYS", "im:{u:*}:conns")
            return f"left in Redis: {left}" if left else ""

        for what in (connections, archived, outboxes):
            await self._until("nothing is left", what)
        # a record of a worker that was killed is removed by whoever comes across it
        body = {"to": list(PEOPLE), "type": "text", "body": {"key": "goodbye"}}
        await call("POST", dispatcher, "/v1/push", body, KEYS["demo"])
        await self._until("nothing is left", records)
        for name, program in self.cluster.programs.items():
            assert program.process is not None
            directory = Path(f"/proc/{program.process.pid}/fd")
            files = len(list(directory.iterdir())) if directory.is_dir() else 0
            if files > FILES_MAX:
                self._found.append(Violation("nothing is left", f"{name} has {files} files open"))

    async def _until(self, rule: str, what: Callable[[], Any], within_s: float = 20.0) -> None:
        deadline = time.monotonic() + within_s
        why = "?"
        while why and time.monotonic() < deadline:
            try:
                why = await what()
            except NoAnswer as error:
                why = str(error)
            if why:
                await asyncio.sleep(0.2)
        if why:
            self._found.append(Violation(rule, why))

    def _judge(self) -> None:
        world, report = self.world, self.report
        world.counts["visits"] = len(world.evidence.visits)
        report.counts, report.faults = dict(world.counts), dict(self._faults)
        self._found += [Violation("answers make sense", text, key) for text, key in world.odd]
        report.violations = self._found + violations(world.evidence)
        told = {v.rule: v.key for v in reversed(report.violations) if v.key}  # the first message of each rule
        report.trails = [trail(world.evidence, key) for key in dict.fromkeys(told.values())]


def _stored(cursor: str, fields: list[bytes]) -> Stored:
    by_name = dict(zip(fields[::2], fields[1::2], strict=True))
    head = json.loads(by_name[b"h"])  # id, channel, origin, expires, only; what is empty at the end is left out
    id, _, origin, _, only = head + ["", "", "", 0, None][len(head) :]
    frame = json.loads(b"{" + by_name[b"t"])
    return Stored(
        cursor=cursor,
        key=frame["body"].get("key", f"?{id}"),
        id=id,
        prev=by_name[b"p"].decode(),
        origin=origin or "",
        only=(only or {}).get("device", ""),
        seq=frame.get("seq", 0),
    )


def soak(
    seconds: float, seed: int, *, every_s: float, rate: float, say: Callable[[str], None], keep: Path | None = None
) -> Report:
    """One run; its logs are in `keep` afterwards, if that is given."""
    directory = Path(tempfile.mkdtemp(prefix="imserver-faults-"))
    try:
        return asyncio.run(Run(directory, seed, say).run(seconds, every_s=every_s, rate=rate))
    finally:
        if keep is not None:
            shutil.copytree(directory, keep, dirs_exist_ok=True)
        shutil.rmtree(directory, ignore_errors=True)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two faults, on average")
    parser.add_argument("--rate", type=float, default=60.0, help="messages a second")
    parser.add_argument("--keep", type=Path, help="a directory for the logs of the processes")
    args = parser.parse_args()
    report = soak(
        args.minutes * 60,
        args.seed,
        every_s=args.every,
        rate=args.rate,
        say=lambda line: print(line, flush=True),
        keep=args.keep,
    )
    shown: Counter[str] = Counter()
    for violation in report.violations:  # some of each rule: many of one must not hide another
        shown[violation.rule] += 1
        if shown[violation.rule] <= SHOWN_MAX:
            print(f"VIOLATION {violation.rule}: {violation.text} {violation.key}")
    for text in report.trails:
        print(text)
    print(report.table())
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
