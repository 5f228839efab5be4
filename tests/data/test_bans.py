"""Bans and suspensions: the same tests for Redis and for the twin in memory."""

from __future__ import annotations

import time
from typing import Any

from twisted.internet import defer, reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from imserver import config
from imserver.data.bans import Ban, MemoryBans, RedisBans, normal_address
from imserver.data.redis import Redis
from tests.servers import settings, shared_valkey

LIMITS = config.Suspension(attempts=3, ip_attempts=5, window_s=60, suspend_s=60, suspend_max_s=150)


class BanTests:
    """What both implementations do."""

    bans: Any
    now: int

    async def test_put_get_take(self: Any) -> None:
        """A ban is found until it is lifted, which gives it once more; what is not there is None."""
        ban = Ban("uid", "u", "demo", None, "spam")
        self.assertIsNone(await self.bans.get("demo", "uid", "u", self.now))
        await self.bans.put(ban, self.now)
        self.assertEqual(await self.bans.get("demo", "uid", "u", self.now), ban)
        self.assertIsNone(await self.bans.get("demo", "ip", "u", self.now))
        self.assertEqual(await self.bans.take("demo", "uid", "u", self.now), ban)
        self.assertIsNone(await self.bans.take("demo", "uid", "u", self.now))
        self.assertIsNone(await self.bans.get("demo", "uid", "u", self.now))

    async def test_channels_are_apart(self: Any) -> None:
        """A ban of one channel is neither seen nor lifted nor felt in another."""
        await self.bans.put(Ban("uid", "u", "demo"), self.now)
        self.assertIsNone(await self.bans.get("other", "uid", "u", self.now))
        self.assertIsNone(await self.bans.take("other", "uid", "u", self.now))
        self.assertIsNone(await self.bans.check("u", "10.0.0.1", ["other"], self.now))
        self.assertIsNotNone(await self.bans.check("u", "10.0.0.1", ["other", "demo"], self.now))

    async def test_ends(self: Any) -> None:
        """A ban with an end is over at that moment; a new one takes the place of the old."""
        await self.bans.put(Ban("uid", "u", "demo", self.now + 60_000), self.now)
        self.assertIsNotNone(await self.bans.check("u", "", ["demo"], self.now + 59_999))
        self.assertIsNone(await self.bans.check("u", "", ["demo"], self.now + 60_000))
        self.assertIsNone(await self.bans.get("demo", "uid", "u", self.now + 60_000))
        await self.bans.put(Ban("uid", "u", "demo"), self.now)
        self.assertIsNotNone(await self.bans.check("u", "", ["demo"], self.now + 60_000))

    async def test_check_gives_the_longest(self: Any) -> None:
        """Of the bans of uid and address the one that lasts longest is told."""
        await self.bans.put(Ban("uid", "u", "demo", self.now + 1_000), self.now)
        await self.bans.put(Ban("ip", "10.0.0.1", "demo", self.now + 9_000), self.now)
        found = await self.bans.check("u", "::ffff:10.0.0.1", ["demo"], self.now)
        self.assertEqual((found.kind, found.until_ts), ("ip", self.now + 9_000))
        await self.bans.put(Ban("uid", "u", "demo"), self.now)
        self.assertEqual((await self.bans.check("u", "10.0.0.1", ["demo"], self.now)).kind, "uid")

    async def test_suspension(self: Any) -> None:
        """The attempt over the threshold suspends; each more prolongs that, up to the cap."""
        self.assertEqual([await self.bans.attempt("u", "", self.now) for _ in range(3)], [None] * 3)
        self.assertEqual(await self.bans.attempt("u", "", self.now), self.now + 60_000)
        self.assertEqual(await self.bans.attempt("u", "", self.now + 30_000), self.now + 120_000)
        self.assertEqual(await self.bans.attempt("u", "", self.now + 30_000), self.now + 150_000)
        self.assertEqual(await self.bans.attempt("u", "", self.now + 30_000), self.now + 150_000)
        self.assertIsNone(await self.bans.attempt("v", "", self.now))
        self.assertIsNone(await self.bans.attempt("u", "", self.now + 150_000))

    async def test_suspension_of_an_address(self: Any) -> None:
        """An address is counted over all uids; `None` only if neither is suspended."""
        for number in range(5):
            self.assertIsNone(await self.bans.attempt(f"u{number}", "10.0.0.1", self.now))
        self.assertEqual(await self.bans.attempt("u9", "10.0.0.1", self.now), self.now + 60_000)
        self.assertIsNone(await self.bans.attempt("u9", "10.0.0.2", self.now))

    async def test_together(self: Any) -> None:
        """However many attempts race, exactly those over the threshold are suspended."""
        answers = await defer.gatherResults(
            [Deferred.fromCoroutine(self.bans.attempt("u", "", self.now)) for _ in range(10)]
        )
        self.assertEqual(answers.count(None), 3)


class RedisBanTests(BanTests, TestCase):
    """On Valkey."""

    def setUp(self) -> None:
        """A Redis that is closed after the test."""
        self.now = int(time.time() * 1000)
        self.redis = Redis(reactor, settings(redis={"url": shared_valkey().url}).redis)
        self.addCleanup(self.redis.stop)
        self.bans = RedisBans(self.redis, LIMITS)

    async def test_keys_go(self) -> None:
        """A key lives as long as the longest ban in it, for good if one of them is; counters have an end."""
        key = "im:{b:uid:u}"
        await self.bans.put(Ban("uid", "u", "a", self.now + 60_000), self.now)
        await self.bans.put(Ban("uid", "u", "b", self.now + 30_000), self.now)
        self.assertEqual(await self.redis.command("PEXPIRETIME", key), self.now + 60_000)
        await self.bans.put(Ban("uid", "u", "b"), self.now)
        self.assertEqual(await self.redis.command("PTTL", key), -1)
        await self.bans.put(Ban("uid", "u", "b", self.now + 90_000), self.now + 61_000)
        self.assertEqual(await self.redis.command("HKEYS", key), [b"b"])
        self.assertEqual(await self.redis.command("PEXPIRETIME", key), self.now + 90_000)
        for _ in range(4):
            await self.bans.attempt("u", "10.0.0.1", self.now)
        for name in await self.redis.command("KEYS", "*"):
            self.assertGreater(await self.redis.command("PTTL", name), 0, name)


class MemoryBanTests(BanTests, TestCase):
    """In memory."""

    def setUp(self) -> None:
        """An empty one."""
        self.now = int(time.time() * 1000)
        self.bans = MemoryBans(LIMITS)


class AddressTests(TestCase):
    """The normal form of addresses."""

    def test_normal(self) -> None:
        """One form for each address; what is none is refused."""
        self.assertEqual(normal_address("2001:DB8:0::1"), "2001:db8::1")
        self.assertEqual(normal_address("::ffff:192.0.2.1"), "192.0.2.1")
        for wrong in ("", "10.0.0", "010.0.0.1", "10.0.0.0/8", "fe80::1%eth0", "host"):
            self.assertRaises(ValueError, normal_address, wrong)
