"""The shared word lists, on a real Valkey: what one server changes, the others take in."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet import defer, reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from imserver.business.words import Entry, Flagged, TooManyWords, WordError, Words
from imserver.data.interface import Unavailable
from imserver.data.redis import Redis
from tests.servers import settings, shared_valkey


class WordsTestCase(TestCase):
    """Two servers, which share one Valkey."""

    def setUp(self) -> None:
        """An empty Valkey, and a clock that says 1000 s."""
        self.settings = settings(redis={"url": shared_valkey().url}).redis
        self.clock = Clock()
        self.clock.advance(1000)
        self.redis = self.make()
        self.here = Words(self.redis, self.clock)
        self.there = Words(self.make(), self.clock)

    def make(self) -> Redis:
        """A Redis that is closed after the test."""
        redis = Redis(reactor, self.settings)
        self.addCleanup(redis.stop)
        return redis

    def hits(self, words: Words, text: str, policy: str = "demo") -> list[tuple[str, str]]:
        """What the filter of a server finds."""
        return [(hit.word, hit.action) for hit in words.filter_for(policy).check(text)]


class ListTests(WordsTestCase):
    """Entries and their limits."""

    async def test_entries(self) -> None:
        """Put, get, list and delete; a repeated put replaces."""
        self.assertEqual(await self.here.put("demo", "bad", "mask"), Entry("bad", "mask", 1_000_000))
        self.assertEqual(await self.here.put("demo", "傻逼", "block"), Entry("傻逼", "block", 1_000_000))
        self.clock.advance(1)
        self.assertEqual(await self.here.put("demo", "bad", "flag"), Entry("bad", "flag", 1_001_000))
        self.assertEqual(await self.there.get("demo", "bad"), Entry("bad", "flag", 1_001_000))
        self.assertEqual([entry.word for entry in await self.there.list("demo")], ["bad", "傻逼"])
        self.assertEqual(await self.there.delete("demo", "bad"), Entry("bad", "flag", 1_001_000))
        self.assertIsNone(await self.here.delete("demo", "bad"))
        self.assertIsNone(await self.here.get("demo", "bad"))
        self.assertEqual(await self.here.list("other"), ())

    async def test_spellings_share_an_entry(self) -> None:
        """Words that normalise to the same are one entry, shown as it was last put."""
        await self.here.put("demo", "Bad Word", "mask")
        await self.here.put("demo", "ＢＡＤ-word", "block")
        self.assertEqual([entry.word for entry in await self.here.list("demo")], ["ＢＡＤ-word"])
        self.assertEqual((await self.here.get("demo", "badword") or self.fail()).action, "block")
        self.assertEqual(self.hits(self.here, "a bad word"), [("ＢＡＤ-word", "block")])
        await self.here.delete("demo", "bádwórd")
        self.assertEqual(await self.here.list("demo"), ())

    async def test_mistakes(self) -> None:
        """What cannot be taken is said clearly, and changes nothing."""
        for word, action, says in (
            ("x" * 65, "mask", "at most 64 characters, this one has 65"),
            ("**", "mask", "no letters or digits"),
            ("x", "shout", "block, mask, flag"),
        ):
            with self.assertRaisesRegex(WordError, says):
                await self.here.put("demo", word, action)  # type: ignore[arg-type]
        self.assertTrue(issubclass(WordError, ValueError))
        self.assertEqual(await self.here.list("demo"), ())
        self.assertIsNone(await self.here.get("demo", "**"))
        self.assertIsNone(await self.here.delete("demo", "**"))

    async def test_full(self) -> None:
        """A full list takes no new word, but another action for one it has, and one for one removed."""
        words = Words(self.redis, self.clock, words_max=2)
        await words.put("demo", "one", "mask")
        await words.put("demo", "two", "mask")
        with self.assertRaisesRegex(TooManyWords, "2 words already"):
            await words.put("demo", "three", "mask")
        await words.put("other", "three", "mask")
        await words.put("demo", "two", "flag")
        self.assertEqual(self.hits(words, "one two three"), [("one", "mask"), ("two", "flag")])
        await words.delete("demo", "one")
        await words.put("demo", "three", "mask")


class FilterTests(WordsTestCase):
    """What is in force where."""

    async def test_at_once_here_after_a_refresh_there(self) -> None:
        """The server that took the call filters at once, another one with its next refresh."""
        await self.here.put("demo", "bad", "mask")
        self.assertEqual(self.hits(self.here, "bad"), [("bad", "mask")])
        self.assertEqual(self.hits(self.there, "bad"), [])
        await self.there.refresh()
        self.assertEqual(self.hits(self.there, "bad"), [("bad", "mask")])
        self.assertEqual(self.hits(self.there, "bad", "other"), [])
        await self.there.put("demo", "bad", "block")
        await self.there.put("demo", "worse", "flag")
        await self.here.refresh()
        self.assertEqual(self.hits(self.here, "bad worse"), [("bad", "block"), ("worse", "flag")])
        await self.here.delete("demo", "bad")
        self.assertEqual(self.hits(self.here, "bad worse"), [("worse", "flag")])
        await self.there.refresh()
        self.assertEqual(self.hits(self.there, "bad worse"), [("worse", "flag")])

    async def test_a_change_here_takes_in_those_before_it(self) -> None:
        """Who changes a list that another server changed meanwhile takes in both."""
        await self.here.put("demo", "one", "mask")
        await self.there.put("demo", "two", "mask")
        await self.here.put("demo", "three", "mask")
        await self.there.delete("demo", "one")
        for words in (self.here, self.there):
            await words.refresh()
            self.assertEqual(self.hits(words, "one two three"), [("two", "mask"), ("three", "mask")])

    async def test_the_filter_is_kept(self) -> None:
        """Without a change a refresh reads no list and makes no new filter."""
        await self.here.put("demo", "bad", "mask")
        before = self.here.filter_for("demo")
        await self.there.put("other", "worse", "mask")
        await self.here.refresh()
        self.assertIs(self.here.filter_for("demo"), before)

    async def test_an_emptied_redis(self) -> None:
        """When Redis lost everything the words are gone, and come back when they are put again."""
        await self.here.put("demo", "bad", "mask")
        await self.there.refresh()
        await self.redis.command("FLUSHALL")
        await self.there.refresh()
        self.assertEqual(self.hits(self.there, "bad"), [])
        await self.here.put("demo", "worse", "mask")
        await self.there.refresh()
        for words in (self.here, self.there):
            self.assertEqual(self.hits(words, "bad worse"), [("worse", "mask")])

    async def test_many_at_once(self) -> None:
        """Changes and refreshes that overlap leave every server with the list as it is in Redis."""
        calls: list[Deferred[Any]] = []
        for number in range(60):
            words = (self.here, self.there)[number % 2]
            calls.append(Deferred.fromCoroutine(words.put("demo", f"word{number % 20}", "mask")))
            calls.append(Deferred.fromCoroutine(words.refresh()))
            if number % 3 == 0:
                calls.append(Deferred.fromCoroutine(words.delete("demo", f"word{number // 3}")))
        await defer.gatherResults(calls)
        stored = {entry.word for entry in await self.here.list("demo")}
        for words in (self.here, self.there):
            await words.refresh()
            self.assertEqual({word for word, _ in self.hits(words, " ".join(f"word{n}" for n in range(20)))}, stored)

    async def test_redis_away(self) -> None:
        """The list as it is known goes on working, the calls say what is wrong, and nothing stays locked."""
        await self.here.put("demo", "bad", "mask")
        await self.redis.stop()
        for _ in range(2):
            with self.assertRaises(Unavailable):
                await self.here.refresh()
            with self.assertRaises(Unavailable):
                await self.here.put("demo", "worse", "mask")
        self.assertEqual(self.hits(self.here, "bad worse"), [("bad", "mask")])


class FlaggedTests(WordsTestCase):
    """Messages that were flagged."""

    async def test_pages(self) -> None:
        """They are listed by channel, oldest first, in pages."""
        for number in range(3):
            await self.here.record_flag(
                "demo",
                id=f"{number:032x}",
                sender="u1",
                conversation="c1" if number else None,
                words=("odd", "奇"),
            )
        first = await self.there.list_flagged("demo", limit=2)
        self.assertEqual(
            [msgspec.structs.replace(flagged, cursor="") for flagged in first],
            [
                Flagged(id="0" * 32, sender="u1", conversation=None, words=("odd", "奇"), ts=1_000_000),
                Flagged(id="0" * 31 + "1", sender="u1", conversation="c1", words=("odd", "奇"), ts=1_000_000),
            ],
        )
        rest = await self.there.list_flagged("demo", after=first[-1].cursor)
        self.assertEqual([flagged.id for flagged in rest], ["0" * 31 + "2"])
        self.assertEqual(await self.there.list_flagged("demo", after=rest[-1].cursor), ())
        self.assertEqual(await self.there.list_flagged("other"), ())

    async def test_no_cursor(self) -> None:
        """A cursor that is none is a mistake of the caller."""
        for after in ("x", "1", "1-x", "-"):
            with self.assertRaises(ValueError):
                await self.here.list_flagged("demo", after=after)

    async def test_bounded(self) -> None:
        """The oldest go when there are too many."""
        words = Words(self.redis, self.clock, flagged_max=100)
        for number in range(400):
            await words.record_flag("demo", id=str(number), sender="u", conversation=None, words=())
        kept = await words.list_flagged("demo", limit=1000)
        self.assertLess(len(kept), 300)
        self.assertEqual(kept[-1].id, "399")
