"""The journals by themselves, on a real Valkey: how much is read at a time, and by whom."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from imserver.business.conversations import PARTITIONS, prefix
from imserver.business.journals import REFUSED, REFUSED_MARK, Journals
from imserver.data.redis import Redis
from tests.servers import settings, shared_valkey

BATCH = 64


class JournalsTests(TestCase):
    """Members of the group."""

    timeout = 15

    async def begin(self) -> Journals:
        """The first member, on an empty Valkey."""
        business = {"archive_batch": BATCH, "archive_wait_s": 0.05, "claim_after_s": 0.001}
        self.settings = settings(redis={"url": shared_valkey().url}, business=business)
        self.redis = Redis(reactor, self.settings.redis)
        self.addCleanup(self.redis.stop)
        self.clock = Clock()
        first = self.member()
        await first.join()
        return first

    def member(self) -> Journals:
        """A member of the group."""
        return Journals(self.redis, self.clock, self.settings.business)

    async def put(self, partition: int, count: int) -> None:
        """So many entries into a journal."""
        for number in range(count):
            fields = ("kind", "message", "q", f"c{partition}", "seq", number + 1)
            await self.redis.command("XADD", f"{prefix(partition)}:journal", "*", *fields)

    async def test_batches(self) -> None:
        """However many journals are full, about a batch is read at a time, and everything is read once."""
        journals = await self.begin()
        for partition in range(10):
            await self.put(partition, 30)
        await self.put(11, 100)
        seen = []
        while entries := await journals.read():
            self.assertLess(len(entries), 2 * BATCH)
            seen += [(entry.partition, entry.id) for entry in entries]
        self.assertEqual((len(seen), len(set(seen)), await journals.length()), (400, 400, 400))

    async def test_one_busy_journal(self) -> None:
        """A journal that alone has something fills the batch."""
        journals = await self.begin()
        await self.put(5, 3 * BATCH)
        self.assertGreaterEqual(len(await journals.read()), BATCH)

    async def test_claimed(self) -> None:
        """What another has read and not dropped is taken over, a batch at a time; what was dropped is not."""
        dead = await self.begin()
        for partition in range(PARTITIONS):
            await self.put(partition, 3)
        read = []
        while entries := await dead.read():
            read += entries
        await dead.drop(read[:50])
        self.assertEqual(await dead.length(), 3 * PARTITIONS - 50)
        self.clock.advance(1)
        heir, taken = self.member(), set()
        while len(taken) < 3 * PARTITIONS - 50:
            entries = await heir.claim()
            self.assertLessEqual(len(entries), BATCH)
            taken |= {(entry.partition, entry.id) for entry in entries}
            await heir.drop(entries)
        self.assertEqual(taken, {(entry.partition, entry.id) for entry in read[50:]})
        self.assertEqual(await heir.length(), 0)

    async def test_refused(self) -> None:
        """An entry that is put aside leaves its journal, and its conversation's tail says where it is."""
        journals = await self.begin()
        await self.put(3, 1)
        (entry,) = await journals.read()
        tail = f"{prefix(3)}:tail:c3"
        await self.redis.command("ZADD", tail, 1, entry.id)
        await journals.refuse(entry, "no reason")
        self.assertEqual((await journals.length(), await journals.refused()), (0, 1))
        ((kept, fields),) = await self.redis.command("XRANGE", REFUSED, "-", "+")
        self.assertEqual(fields[:2] + fields[-2:], [b"reason", b"no reason", b"seq", b"1"])
        self.assertEqual(await self.redis.command("ZRANGE", tail, 0, -1), [REFUSED_MARK + kept])

    async def test_age(self) -> None:
        """How long the oldest entry has waited."""
        journals = await self.begin()
        self.assertEqual(await journals.age(), 0)
        await self.redis.command("XADD", f"{prefix(7)}:journal", "5000-0", "kind", "x")
        await self.redis.command("XADD", f"{prefix(8)}:journal", "9000-0", "kind", "x")
        self.clock.advance(12)
        self.assertEqual(await journals.age(), 7)
