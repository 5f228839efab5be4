"""From a delivery to its receivers' connections, with twins in memory (design: How a message travels, 3 to 5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw
from twisted.internet import task
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from imserver.config import WebhookEvent
from imserver.data.interface import ConnectionRecord, Lease, Unavailable
from imserver.data.memory import MemoryConnections, MemoryInboxes, MemoryLeases
from imserver.protocol.deliveries import Delivery, Head, Only, decode_head
from imserver.protocol.webhooks import Event
from imserver.routing.router import Router
from imserver.routing.workers import Workers
from imserver.rpc.interface import Peer, Pushed, RpcError
from imserver.rpc.memory import LocalPeer
from tests.servers import settings


class Receiver:
    """A worker that writes down what it is told; so many next calls fail."""

    def __init__(self) -> None:
        self.pushed: list[Pushed] = []
        self.told: list[tuple[Any, ...]] = []
        self.failures = 0
        self.tries = 0

    def _try(self) -> None:
        self.tries += 1
        if self.failures:
            self.failures -= 1
            raise RpcError("not now")

    def deliver(self, pushed: Sequence[Pushed]) -> list[int]:
        """One connection each."""
        self._try()
        self.pushed += pushed
        return [1] * len(pushed)

    def broadcast(self, role: str | None, platform: str | None, head: bytes, tail: bytes) -> int:
        """Three connections."""
        self._try()
        self.told.append((role, platform, decode_head(head), tail))
        return 3

    def close(self, uid: str, conn: str | None, channels: Sequence[str], code: int, reason: str) -> int:
        """One connection."""
        self._try()
        self.told.append((uid, conn, channels, code, reason))
        return 1

    def sever(self, kind: str, value: str, channels: Sequence[str], code: int, reason: str) -> int:
        """Two connections."""
        self._try()
        self.told.append((kind, value, channels, code, reason))
        return 2

    def present(self, uids: Sequence[str], role: str, channel: str) -> list[str]:
        """Nobody."""
        return []


class Peers:
    """The ways to the receivers."""

    def __init__(self) -> None:
        self.receivers: dict[str, Receiver] = {}
        self.kept: set[str] = set()

    def peer(self, address: str) -> Peer:
        """The way to one."""
        return LocalPeer(self.receivers[address])

    def keep(self, addresses: set[str]) -> None:
        """Write it down."""
        self.kept = addresses


class Leases(MemoryLeases):
    """Leases that count the looks at them, and let a test hold a look back or make it fail."""

    looks = 0
    away = False
    gate: Deferred[None] | None = None

    async def all(self) -> list[Lease]:
        """Every live worker."""
        self.looks += 1
        if self.away:
            raise Unavailable("away")
        found = await super().all()
        if self.gate is not None:
            await self.gate
        return found


class Mailboxes:
    """Mailboxes in a list."""

    def __init__(self) -> None:
        self.mail: list[tuple[str, str, str]] = []
        self.away = False

    async def put(self, incarnation: str, uid: str, cursor: str) -> None:
        """Keep a hint."""
        if self.away:
            raise Unavailable("away")
        self.mail.append((incarnation, uid, cursor))


class Connections(MemoryConnections):
    """Connections that can be away."""

    away = False

    async def of(self, uid: str) -> tuple[ConnectionRecord, ...]:
        """All records."""
        if self.away:
            raise Unavailable("away")
        return await super().of(uid)


class BackOffice:
    """Wants to hear of `offline` in channel `demo`; it can be away."""

    def __init__(self) -> None:
        self.told: list[Event] = []
        self.away = False

    def wants(self, channel: str, event: WebhookEvent) -> bool:
        """Only this."""
        return (channel, event) == ("demo", "offline")

    async def record(self, channel: str, events: Sequence[Event]) -> None:
        """Keep them."""
        if self.away:
            raise Unavailable("away")
        self.told += events


class Stage(TestCase):
    """Two workers, `w1` and `w2`."""

    async def setUp(self) -> None:
        """Start both."""
        self.clock = task.Clock()
        self.clock.advance(1_700_000_000)
        self.leases = Leases(self.clock, 10.0)
        self.connections = Connections()
        self.inboxes = MemoryInboxes(self.clock, settings().delivery, self.connections)
        self.peers = Peers()
        self.mailboxes = Mailboxes()
        self.counted: Counter[str] = Counter()
        self.workers = Workers(self.leases, self.peers)
        self.office = BackOffice()
        self.router = Router(
            *(self.inboxes, self.connections, self.workers, self.peers, self.mailboxes),
            lambda name: self.count(name),
            webhooks=self.office,
        )
        self.w1, self.w2 = await self.start("w1"), await self.start("w2")
        await self.workers.refresh()

    def count(self, strategy: str) -> None:
        """As the metric does."""
        self.counted[strategy] += 1

    def lease(self, name: str, incarnation: str = "", **more: Any) -> Lease:
        """A worker's lease."""
        return Lease(
            id=name,
            incarnation=incarnation or f"{name}.1",
            url="",
            http="",
            rpc=f"tcp:{name}",
            host="h",
            version="0",
            since_ts=1,
            **more,
        )

    async def start(self, name: str) -> Receiver:
        """A worker announces itself."""
        receiver = self.peers.receivers[f"tcp:{name}"] = Receiver()
        await self.leases.renew(self.lease(name))
        return receiver

    async def connect(self, uid: str, *conns: str) -> None:
        """`w1.1.a` is connection a of worker w1's first run."""
        for conn in conns:
            incarnation = conn.rpartition(".")[0]
            worker = incarnation.partition(".")[0]
            record = ConnectionRecord(conn, worker, incarnation, "customer", "web", ("demo",), "d", "127.0.0.1", 1)
            await self.connections.add(uid, record)

    def message(self, number: int, to: str = "u", **more: Any) -> Delivery:
        """A message whose id is its number."""
        return Delivery(to=to, channel="demo", id=f"{number:032x}", frame=Raw(b' {"n":%d}' % number), **more)

    def sent(self, number: int, to: str, **more: Any) -> Delivery:
        """A message that says who sent it and when."""
        frame = Raw(b'{"from":"bob","to":"%s","ts":%d}' % (to.encode(), number))
        return msgspec.structs.replace(self.message(number, to, **more), frame=frame)


class DeliverTests(Stage):
    """Storing and pushing."""

    async def test_grouped(self) -> None:
        """Each worker that has connections of the receiver is called once, whatever their number."""
        await self.connect("u", "w1.1.a", "w1.1.b", "w2.1.a")
        await self.connect("v", "w2.1.b")
        first, second, third = await self.router.deliver(
            [self.message(1), self.message(2, to="v", only=Only(platform="web")), self.message(3, to="nobody")]
        )
        self.assertEqual([p.uid for p in self.w1.pushed], ["u"])
        self.assertEqual([p.uid for p in self.w2.pushed], ["u", "v"])
        self.assertEqual((first.connections, second.connections, third.connections), (2, 1, 0))
        self.assertEqual((first.to, second.to, third.to), ("u", "v", "nobody"))
        (pushed,) = self.w1.pushed
        self.assertEqual((pushed.op, pushed.cursor, pushed.prev), ("message", first.cursor, "0-0"))
        self.assertEqual((decode_head(pushed.head), pushed.tail), (Head(f"{1:032x}", "demo"), b'"n":1}'))
        self.assertEqual(self.counted, {"rpc": 3, "inbox": 1})
        self.assertEqual((await self.inboxes.length("nobody"))[0], 1)

    async def test_order(self) -> None:
        """What goes to one uid is stored and pushed in the order in which it was given."""
        await self.connect("u", "w1.1.a")
        outcomes = await self.router.deliver([self.message(n, to="uv"[n % 2]) for n in range(20)])
        self.assertEqual([p.tail for p in self.w1.pushed], [b'"n":%d}' % n for n in range(0, 20, 2)])
        pushed = self.w1.pushed
        self.assertEqual([p.prev for p in pushed], ["0-0", *(p.cursor for p in pushed[:-1])])
        self.assertEqual([p.cursor for p in pushed], [outcomes[n].cursor for n in range(0, 20, 2)])

    async def test_nobody_online(self) -> None:
        """The back office hears of a message whose receiver has nobody online in the channel."""
        await self.connect("here", "w1.1.a")
        await self.connect("gone", "w9.1.a")
        elsewhere = ConnectionRecord("w1.1.c", "w1", "w1.1", "customer", "web", ("other",), "d", "127.0.0.1", 1)
        await self.connections.add("elsewhere", elsewhere)
        uids = ("here", "gone", "nobody", "elsewhere", "bob")
        await self.router.deliver([self.sent(n, to) for n, to in enumerate(uids)])
        await self.router.deliver([self.sent(2, "nobody")])
        told = [(event.event, event.uid, event.ts) for event in self.office.told]
        self.assertEqual(
            sorted(told[:3]), [("offline", "elsewhere", 3), ("offline", "gone", 1), ("offline", "nobody", 2)]
        )
        self.assertEqual(told[3:], [("offline", "nobody", 2)], "a repeat is the same event")
        self.assertEqual(len({event.id for event in self.office.told}), 3)
        await self.router.deliver([self.sent(9, "nobody", store=False)])
        await self.router.deliver([msgspec.structs.replace(self.sent(10, "nobody"), channel="quiet")])
        self.assertEqual(len(self.office.told), 4)

    async def test_back_office_unreachable(self) -> None:
        """What may be tried again is; what would arrive twice by that is not."""
        self.office.away = True
        once, not_once = await self.router.deliver([self.sent(1, "a"), self.sent(2, "b", once=False)])
        self.assertEqual((once.error, not_once.error), ("away", None))

    async def test_signals(self) -> None:
        """What is not stored goes to who is online, and is in no inbox."""
        await self.connect("u", "w1.1.a")
        found = await self.router.deliver(
            [self.message(1, op="typing"), self.message(2, store=False), self.message(3, to="nobody", store=False)]
        )
        self.assertEqual([(p.op, p.cursor) for p in self.w1.pushed], [("typing", ""), ("message", "")])
        self.assertEqual([outcome.cursor for outcome in found], [None, None, None])
        self.assertEqual(self.counted, {"rpc": 2, "nobody": 1})
        self.assertEqual((await self.inboxes.length("u"))[0], 0)

    async def test_duplicate(self) -> None:
        """A repeat is stored once, and pushed again as something that has to be read from the inbox."""
        await self.connect("u", "w1.1.a")
        (first,) = await self.router.deliver([self.message(1)])
        await self.router.deliver([self.message(2)])
        (again,) = await self.router.deliver([self.message(1)])
        self.assertEqual((first.duplicate, again.duplicate, again.cursor), (False, True, first.cursor))
        self.assertEqual((self.w1.pushed[-1].cursor, self.w1.pushed[-1].prev), (first.cursor, ""))
        self.assertEqual((await self.inboxes.length("u"))[0], 2)

    async def test_dead_worker(self) -> None:
        """Records of a worker without a lease are removed, and only those."""
        await self.connect("u", "w0.1.a", "w1.0.a", "w1.1.a")
        (found,) = await self.router.deliver([self.message(1)])
        self.assertEqual(found.connections, 1)
        self.assertEqual([record.conn for record in await self.connections.of("u")], ["w1.1.a"])
        self.assertEqual(self.leases.looks, 2)
        self.assertEqual(self.counted, {"rpc": 1})
        self.clock.advance(11)
        await self.connect("v", "w2.0.a")
        (found,) = await self.router.deliver([self.message(2, to="v")])
        self.assertEqual((found.connections, await self.connections.of("v")), (0, ()))
        self.assertEqual(self.counted, {"rpc": 1, "inbox": 1})

    async def test_new_worker(self) -> None:
        """A worker that started a moment ago is found, however fresh the view is."""
        w3 = await self.start("w3")
        await self.connect("u", "w3.1.a")
        (found,) = await self.router.deliver([self.message(1)])
        self.assertEqual((found.connections, len(w3.pushed)), (1, 1))
        self.assertEqual(self.peers.kept, {"tcp:w1", "tcp:w2", "tcp:w3"})

    async def test_new_worker_during_a_look(self) -> None:
        """A look at the leases that began before a worker came does not tell that it is dead."""
        self.leases.gate = Deferred()
        early = Deferred.fromCoroutine(self.workers.refresh())
        w3 = await self.start("w3")
        await self.connect("u", "w3.1.a")
        sending = Deferred.fromCoroutine(self.router.deliver([self.message(1)]))
        gate, self.leases.gate = self.leases.gate, None
        gate.callback(None)
        await early
        (found,) = await sending
        self.assertEqual((found.connections, len(w3.pushed), len(await self.connections.of("u"))), (1, 1, 1))

    async def test_looks_are_shared(self) -> None:
        """Many who are in doubt at once share one look."""
        for number in range(50):
            await self.connect(f"u{number}", "w0.1.a")
        self.leases.gate = Deferred()
        looking = Deferred.fromCoroutine(self.router.deliver([self.message(n, to=f"u{n}") for n in range(50)]))
        gate, self.leases.gate = self.leases.gate, None
        gate.callback(None)
        await looking
        self.assertEqual(self.leases.looks, 3)  # at the start, the first in doubt, all others

    async def test_retry(self) -> None:
        """A call that fails is tried once more."""
        await self.connect("u", "w1.1.a")
        self.w1.failures = 1
        (found,) = await self.router.deliver([self.message(1)])
        self.assertEqual((found.connections, self.w1.tries, self.mailboxes.mail), (1, 2, []))
        self.assertEqual(self.counted, {"rpc_retry": 1})

    async def test_mailbox(self) -> None:
        """Then the worker's mailbox is told; a failure at one worker holds no other up."""
        await self.connect("u", "w1.1.a", "w2.1.a")
        self.w1.failures = 2
        (found,) = await self.router.deliver([self.message(1)])
        self.assertEqual((found.connections, found.error), (1, None))
        self.assertEqual(self.mailboxes.mail, [("w1.1", "u", found.cursor)])
        self.assertEqual(self.counted, {"rpc": 1, "mailbox": 1})
        self.assertEqual(self.w1.tries, 2)

    async def test_inbox(self) -> None:
        """And in any case it is in the inbox."""
        await self.connect("u", "w1.1.a")
        self.w1.failures, self.mailboxes.away = 2, True
        (found,) = await self.router.deliver([self.message(1)])
        self.assertEqual((found.connections, found.error), (0, None))
        self.assertEqual(self.counted, {"inbox": 1})
        self.assertEqual(len(await self.inboxes.read("u", "0-0", 9)), 1)

    async def test_told_later(self) -> None:
        """A live worker that could not be told is told as soon as its mailbox can be reached; a dead one is not."""
        await self.connect("u", "w1.1.a", "w2.1.a")
        self.w1.failures = self.w2.failures = 2
        self.mailboxes.away = True
        (found,) = await self.router.deliver([self.message(1)])
        self.mailboxes.away = False
        await self.leases.release(self.lease("w2"))
        await self.router.look()
        self.assertEqual(self.mailboxes.mail, [("w1.1", "u", found.cursor)])
        await self.router.look()
        self.assertEqual(len(self.mailboxes.mail), 1)

    async def test_lost_signal(self) -> None:
        """What is not stored is tried twice, and no mailbox is told."""
        await self.connect("u", "w1.1.a")
        self.w1.failures = 2
        (found,) = await self.router.deliver([self.message(1, op="typing")])
        self.assertEqual((found.connections, found.error, self.mailboxes.mail), (0, None, []))
        self.assertEqual(self.counted, {"lost_signal": 1})

    async def test_leases_away(self) -> None:
        """If nobody can tell which workers live, those that are known are called, and no record is removed."""
        await self.connect("u", "w1.1.a", "w9.1.a")
        self.leases.away = True
        (found,) = await self.router.deliver([self.message(1)])
        self.assertEqual((found.connections, found.error, len(self.w1.pushed)), (1, None, 1))
        self.assertEqual(len(await self.connections.of("u")), 2)

    async def test_not_stored(self) -> None:
        """What cannot be stored is said to be so, each by itself."""
        self.connections.away = True
        found = await self.router.deliver([self.message(1), self.message(2, op="typing")])
        self.assertEqual([(outcome.cursor, outcome.error) for outcome in found], [(None, "away"), (None, "away")])


class AskTests(Stage):
    """What goes to all workers, or to those of one uid."""

    async def test_locate(self) -> None:
        """Each uid's connections on live workers, with one look at the leases."""
        await self.connect("u", "w1.1.a", "w0.1.a")
        await self.connect("v", "w0.1.b")
        found = await self.router.locate(["u", "nobody", "v", "u"])
        self.assertEqual([[record.conn for record in records] for records in found], [["w1.1.a"], [], [], ["w1.1.a"]])
        self.assertEqual(self.leases.looks, 2)

    async def test_broadcast(self) -> None:
        """To every worker; one that fails twice is left out."""
        self.w1.failures, self.w2.failures = 1, 2
        self.assertEqual(await self.router.broadcast(self.message(1), "merchant", "web"), (1, 3))
        self.assertEqual(self.w1.told, [("merchant", "web", Head(f"{1:032x}", "demo"), b'"n":1}')])

    async def test_close(self) -> None:
        """Only workers that have such a connection are asked."""
        await self.connect("u", "w1.1.a", "w2.1.a")
        self.assertEqual(await self.router.close("u", None, ["demo"], 4409, "why"), 2)
        self.assertEqual(await self.router.close("u", "w2.1.a", ["demo"], 4409, "why"), 1)
        self.assertEqual(await self.router.close("nobody", None, ["demo"], 4409, "why"), 0)
        self.assertEqual((len(self.w1.told), len(self.w2.told)), (1, 2))
        self.assertEqual(self.w2.told[-1], ("u", "w2.1.a", ["demo"], 4409, "why"))

    async def test_sever(self) -> None:
        """Every worker is asked, the newest, too."""
        w3 = await self.start("w3")
        self.assertEqual(await self.router.sever("ip", "10.0.0.1", ["demo"], 4403, "for good"), 6)
        self.assertEqual(w3.told, [("ip", "10.0.0.1", ["demo"], 4403, "for good")])

    async def test_pick(self) -> None:
        """A new client goes to the less loaded of two, never to one that is draining."""
        await self.leases.renew(self.lease("w1", load=0.5))
        await self.leases.renew(self.lease("w2", load=0.1))
        await self.workers.refresh()
        self.assertEqual({found.id for found in (self.workers.pick() for _ in range(20)) if found}, {"w2"})
        await self.leases.renew(self.lease("w2", load=0.1, draining=True))
        await self.workers.refresh()
        picked = self.workers.pick()
        self.assertEqual(picked and picked.id, "w1")
        await self.leases.release(self.lease("w1"))
        await self.leases.release(self.lease("w2"))
        await self.workers.refresh()
        self.assertIsNone(self.workers.pick())

    async def test_failed_look(self) -> None:
        """Who shares a look that fails hears of it, and keeps what was known."""
        self.leases.gate = Deferred()
        first = Deferred.fromCoroutine(self.workers.refresh())
        second = Deferred.fromCoroutine(self.workers.refresh())
        gate, self.leases.gate, self.leases.away = self.leases.gate, None, True
        gate.callback(None)
        await first
        with self.assertRaises(Unavailable):
            await second
        self.assertEqual([lease.id for lease in self.workers.all()], ["w1", "w2"])
