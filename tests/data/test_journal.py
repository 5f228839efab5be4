"""The journal of a channel: the same tests for Redis and for the twin in memory."""

from __future__ import annotations

from typing import Any

from msgspec import Raw
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from imserver.data.journal import JournalEntry, MemoryJournal, RedisJournal
from imserver.data.redis import Redis
from imserver.protocol.syntax import position
from tests.servers import settings, shared_valkey


def entry(number: int) -> JournalEntry:
    """An entry whose id is its number."""
    return JournalEntry(
        id=f"{number:032x}", from_="u", device="d", type="text", body=Raw(b'{"n":%d}' % number), ts=number
    )


class JournalTests:
    """What both implementations do."""

    journal: Any

    async def put(self, *numbers: int, channel: str = "demo-journal", remember_s: int = 60) -> list[str]:
        """Append; the cursors."""
        made = [await self.journal.append(channel, entry(n), length=250, remember_s=remember_s) for n in numbers]
        return [cursor for cursor, _ in made]

    async def read(self, after: str = "0-0", limit: int = 1000, wait_s: float = 0.0) -> list[int]:
        """The numbers of what is read."""
        return [found.ts for found in await self.journal.read("demo-journal", after, limit, wait_s)]

    async def test_in_order(self: Any) -> None:
        """Entries are read as they were appended, page after page, each channel for itself."""
        cursors = await self.put(1, 2, 3)
        await self.put(4, channel="other")
        found = await self.journal.read("demo-journal", "0-0", 10)
        self.assertEqual([e.cursor for e in found], cursors)
        self.assertEqual(sorted(cursors, key=position), cursors)
        self.assertEqual((found[1].id, found[1].from_, found[1].device, found[1].type), (entry(2).id, "u", "d", "text"))
        self.assertEqual(bytes(found[1].body), b'{"n":2}')
        self.assertEqual(await self.read(limit=2), [1, 2])
        self.assertEqual(await self.read(after=cursors[1]), [3])
        self.assertEqual(await self.read(after=cursors[2]), [])

    async def test_once(self: Any) -> None:
        """The same id is appended once and gives the first cursor; with nothing remembered, again."""
        (first,) = await self.put(1)
        self.assertEqual(await self.journal.append("demo-journal", entry(1), length=250, remember_s=60), (first, True))
        await self.put(2, 2, remember_s=0)
        self.assertEqual(await self.read(), [1, 2, 2])

    async def test_bounded(self: Any) -> None:
        """The newest are kept, and all of them can be read at once."""
        await self.put(*range(300))
        self.assertEqual(await self.read(), list(range(50, 300)))

    async def test_wait(self: Any) -> None:
        """A reader with nothing to read gets the first entry as it comes, or none in time."""
        (last,) = await self.put(1)
        self.assertEqual(await self.read(last, wait_s=0.02), [])
        waiting = Deferred.fromCoroutine(self.read(last, wait_s=20.0))
        await self.put(2, channel="other")
        self.assertNoResult(waiting)
        await self.put(3)
        self.assertEqual(await waiting, [3])

    async def test_cancel(self: Any) -> None:
        """A reader that is gone is waited for no more."""
        waiting = Deferred.fromCoroutine(self.read(wait_s=20.0))
        waiting.addErrback(lambda failure: "gone")
        waiting.cancel()
        self.assertEqual(await waiting, "gone")
        await self.put(1)
        self.assertEqual(await self.read(), [1])


class RedisJournalTests(JournalTests, TestCase):
    """On Valkey."""

    def setUp(self) -> None:
        """A Redis that is closed after the test."""
        redis = Redis(reactor, settings(redis={"url": shared_valkey().url}).redis)
        self.addCleanup(redis.stop)
        self.journal = RedisJournal(redis)


class MemoryJournalTests(JournalTests, TestCase):
    """In memory."""

    def setUp(self) -> None:
        """An empty one."""
        self.journal = MemoryJournal(reactor)  # type: ignore[arg-type]
