"""Leases, connections and inboxes: the same tests for Redis and for its twin in memory."""

from __future__ import annotations

from typing import Any

from msgspec import Raw
from twisted.internet import reactor, task
from twisted.trial.unittest import TestCase

from imserver.data.connections import RedisConnections
from imserver.data.inbox import DEVICES_MAX, RedisInboxes
from imserver.data.interface import Acknowledged, ConnectionRecord, Lease
from imserver.data.leases import LeaseTaken, RedisLeases
from imserver.data.memory import MemoryConnections, MemoryInboxes, MemoryLeases
from imserver.data.redis import Redis
from imserver.protocol.deliveries import Delivery, Head, decode_head
from tests.servers import settings, shared_valkey


def delivery(number: int, to: str = "u", **more: Any) -> Delivery:
    """A message whose id is its number."""
    return Delivery(to=to, channel="demo", id=f"{number:032x}", frame=Raw(b'{"n":%d}' % number), **more)


def record(conn: str) -> ConnectionRecord:
    """A connection record."""
    return ConnectionRecord(conn, "w1", "w1.x", "customer", "web", ("demo",), "d", "127.0.0.1", 1)


def lease(incarnation: str, since_ts: int, id: str = "w1") -> Lease:
    """A lease of worker w1."""
    return Lease(
        id=id,
        incarnation=incarnation,
        url="ws://h/ws",
        http="http://h",
        rpc="tcp:h:1",
        host="h",
        version="0",
        since_ts=since_ts,
    )


class TwinTests:
    """What both implementations do."""

    inboxes: Any
    connections: Any
    leases: Any

    async def test_append_and_read(self: Any) -> None:
        """Entries are read in order, each naming the one before it."""
        stored = [await self.inboxes.append(delivery(n)) for n in range(5)]
        entries = await self.inboxes.read("u", "0-0", 10)
        self.assertEqual([e.cursor for e in entries], [s.cursor for s in stored])
        self.assertEqual([e.prev for e in entries], ["0-0", *(s.cursor for s in stored[:-1])])
        self.assertEqual(entries[2].tail, b'"n":2}')
        self.assertEqual(decode_head(entries[2].head), Head(f"{2:032x}", "demo"))
        after = await self.inboxes.read("u", stored[1].cursor, 2)
        self.assertEqual([e.cursor for e in after], [s.cursor for s in stored[2:4]])

    async def test_once(self: Any) -> None:
        """The same id is stored once and gives the first cursor; without `once` nothing is remembered."""
        first = await self.inboxes.append(delivery(1))
        await self.inboxes.append(delivery(2))
        again = await self.inboxes.append(delivery(1))
        self.assertTrue(again.duplicate)
        self.assertFalse(first.duplicate)
        self.assertEqual((again.cursor, again.prev), (first.cursor, first.prev))
        await self.inboxes.append(delivery(3, once=False))
        self.assertFalse((await self.inboxes.append(delivery(3, once=False))).duplicate)
        self.assertEqual((await self.inboxes.length("u"))[0], 4)

    async def test_append_gives_connections(self: Any) -> None:
        """The connections known at the moment of storing come with the answer."""
        await self.connections.add("u", record("c1"))
        await self.connections.add("u", record("c1"))
        await self.connections.add("u", record("c2"))
        self.assertEqual({r.conn for r in (await self.inboxes.append(delivery(1))).connections}, {"c1", "c2"})
        await self.connections.remove("u", "c1")
        self.assertEqual((await self.inboxes.append(delivery(2))).connections, (record("c2"),))
        self.assertEqual(await self.connections.of_many(["u", "nobody"]), [(record("c2"),), ()])

    async def test_length(self: Any) -> None:
        """An inbox keeps its newest messages only; one never seen is empty."""
        self.assertEqual(await self.inboxes.length("nobody"), (0, None))
        stored = [await self.inboxes.append(delivery(n)) for n in range(25)]
        self.assertEqual(await self.inboxes.length("u"), (20, stored[-1].cursor))

    async def test_resume(self: Any) -> None:
        """A device goes on after what it names, or acknowledged, or at the end; what is gone is said to be gone."""
        self.assertEqual((await self.inboxes.resume("u", "d", None, ["demo"])).resumed, True)
        stored = [await self.inboxes.append(delivery(n)) for n in range(20)]
        fresh = await self.inboxes.resume("u", "d", None, ["demo"])
        self.assertEqual((fresh.cursor, fresh.last, fresh.resumed), ("0-0", stored[-1].cursor, True))
        self.assertEqual((await self.inboxes.resume("u", "d", "$", ["demo"])).cursor, stored[-1].cursor)
        await self.inboxes.acknowledge([Acknowledged("u", "d", ("demo",), stored[5].cursor)])
        await self.inboxes.acknowledge(
            [
                Acknowledged("u", "d", ("demo",), stored[3].cursor),
                Acknowledged("u", "e", ("demo",), stored[7].cursor),
            ]
        )
        self.assertEqual((await self.inboxes.resume("u", "d", None, ["demo"])).cursor, stored[5].cursor)
        self.assertEqual((await self.inboxes.resume("u", "e", None, ["demo"])).cursor, stored[7].cursor)
        stored += [await self.inboxes.append(delivery(n)) for n in range(20, 27)]
        self.assertTrue((await self.inboxes.resume("u", "d", stored[6].cursor, ["demo"])).resumed)
        self.assertFalse((await self.inboxes.resume("u", "d", stored[5].cursor, ["demo"])).resumed)
        self.assertFalse((await self.inboxes.resume("u", "new", None, ["demo"])).resumed)
        beyond = await self.inboxes.resume("u", "d", "99999999999999-0", ["demo"])
        self.assertEqual((beyond.cursor, beyond.resumed), (stored[-1].cursor, False))

    async def test_channels(self: Any) -> None:
        """A device has a cursor in each channel; with several it goes on at the earliest."""
        stored = [await self.inboxes.append(delivery(n)) for n in range(9)]
        await self.inboxes.acknowledge([Acknowledged("u", "d", ("a", "b"), stored[3].cursor)])
        await self.inboxes.acknowledge([Acknowledged("u", "d", ("b",), stored[7].cursor)])
        for channels, expected in ((["a"], 3), (["b"], 7), (["b", "a"], 3), (["c"], None), (["a", "c"], None)):
            found = (await self.inboxes.resume("u", "d", None, channels)).cursor
            self.assertEqual(found, "0-0" if expected is None else stored[expected].cursor, channels)

    async def test_devices_are_bounded(self: Any) -> None:
        """Beyond the limit the device that is furthest behind is forgotten."""
        await self.inboxes.acknowledge([Acknowledged("u", "d0", ("other",), "1-0")])
        await self.inboxes.acknowledge(
            [Acknowledged("u", f"d{n}", ("demo",), f"{n + 1}-0") for n in range(DEVICES_MAX + 1)]
        )
        stored = await self.inboxes.append(delivery(1))
        self.assertEqual((await self.inboxes.resume("u", "d0", None, ["demo"])).cursor, "0-0")
        self.assertEqual((await self.inboxes.resume("u", "d1", None, ["demo"])).cursor, "2-0")
        self.assertEqual((await self.inboxes.resume("u", "d0", None, ["other"])).cursor, "1-0")
        self.assertEqual(stored.prev, "0-0")

    async def test_leases(self: Any) -> None:
        """A lease is new, then renewed; a later incarnation takes it over; the earlier one cannot release it."""
        self.assertFalse(await self.leases.renew(lease("w1.a", 1)))
        self.assertTrue(await self.leases.renew(lease("w1.a", 1)))
        self.assertFalse(await self.leases.renew(lease("w1.b", 2)))
        with self.assertRaises(LeaseTaken):
            await self.leases.renew(lease("w1.a", 1))
        await self.leases.release(lease("w1.a", 1))
        self.assertEqual(await self.leases.all(), [lease("w1.b", 2)])
        await self.leases.renew(lease("w2.a", 3, id="w2"))
        await self.leases.release(lease("w1.b", 2))
        self.assertEqual([found.id for found in await self.leases.all()], ["w2"])


class MemoryTests(TwinTests, TestCase):
    """The twin in memory."""

    def setUp(self) -> None:
        """Empty dictionaries."""
        clock = task.Clock()
        clock.advance(1_700_000_000)
        self.connections = MemoryConnections()
        self.inboxes = MemoryInboxes(clock, settings(delivery={"inbox_length": 20}).delivery, self.connections)
        self.leases = MemoryLeases(clock, 10.0)


class RedisTests(TwinTests, TestCase):
    """The real one."""

    def setUp(self) -> None:
        """An empty Valkey."""
        configured = settings(delivery={"inbox_length": 20}, redis={"url": shared_valkey().url})
        self.redis = Redis(reactor, configured.redis)
        self.addCleanup(self.redis.stop)
        self.connections = RedisConnections(self.redis)
        self.inboxes = RedisInboxes(self.redis, reactor, configured.delivery)  # type: ignore[arg-type]
        self.leases = RedisLeases(self.redis, 10.0)
