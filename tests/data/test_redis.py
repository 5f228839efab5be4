"""Commands, scripts, blocking reads and announcements on a real Valkey, and what happens when it goes away."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer, reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from imserver.data.events import RESUBSCRIBED, RedisEvents
from imserver.data.interface import Unavailable
from imserver.data.redis import Address, Redis
from tests.servers import Valkey, free_port, settings, shared_valkey


class RedisTests(TestCase):
    """What `data.redis` promises."""

    def make(self, url: str, **more: Any) -> Redis:
        """A Redis that is closed after the test."""
        redis = Redis(reactor, settings(redis={"url": url, **more}).redis)
        self.addCleanup(redis.stop)
        return redis

    async def test_bytes_in_bytes_out(self) -> None:
        """Values come back as the bytes they were, never as numbers or text."""
        redis = self.make(shared_valkey().url)
        await redis.command("SET", "k", b"007\xff")
        self.assertEqual(await redis.command("GET", "k"), b"007\xff")
        await redis.command("SET", "n", "007")
        self.assertEqual(await redis.command("GET", "n"), b"007")
        self.assertEqual(await redis.command("INCR", "i"), 1)
        self.assertIsNone(await redis.command("GET", "none"))

    async def test_script_is_loaded_when_unknown(self) -> None:
        """A script runs whether the server knows it already or not."""
        valkey = shared_valkey()
        redis = self.make(valkey.url)
        for _ in range(2):
            self.assertEqual(await redis.script("lease_release", ["k"], ["x"]), 0)
        valkey.flush()
        self.assertEqual(await redis.script("lease_release", ["k"], ["x"]), 0)

    async def test_nobody_there(self) -> None:
        """Without a server a command fails within its deadline and says where it looked."""
        redis = self.make(f"redis://127.0.0.1:{free_port()}/0", command_timeout_s=0.2)
        with self.assertRaises(Unavailable) as caught:
            await redis.command("PING")
        self.assertIn("redis://127.0.0.1:", str(caught.exception))

    async def test_in_flight_is_bounded(self) -> None:
        """Commands beyond the limit are refused at once."""
        redis = self.make(f"redis://127.0.0.1:{free_port()}/0", command_timeout_s=0.2, in_flight_max=1)
        first = Deferred.fromCoroutine(redis.command("PING"))
        with self.assertRaises(Unavailable) as caught:
            await redis.command("PING")
        self.assertIn("waiting already", str(caught.exception))
        await self.assertFailure(first, Unavailable)

    async def test_cancelling_disturbs_nobody(self) -> None:
        """Who stops waiting leaves the connection to the others, and their answers stay theirs."""
        redis = self.make(shared_valkey().url, connections=1)
        await redis.command("MSET", "a", "1", "b", "2")
        given_up = Deferred.fromCoroutine(redis.command("GET", "a"))
        other = Deferred.fromCoroutine(redis.command("GET", "b"))
        given_up.cancel()
        await self.assertFailure(given_up, defer.CancelledError)
        self.assertEqual(await other, b"2")
        self.assertEqual(redis.in_flight, 0)

    async def test_restart(self) -> None:
        """A Valkey that was killed is found again when it is back, with what it had."""
        valkey = Valkey()
        self.addCleanup(valkey.stop)
        redis = self.make(valkey.url, command_timeout_s=5.0)
        await redis.command("SET", "k", "v")
        valkey.kill()
        pending = Deferred.fromCoroutine(redis.command("GET", "k"))
        valkey.start()
        try:
            value = await pending
        except Unavailable:  # it was written to the connection that broke
            value = await redis.command("GET", "k")
        self.assertEqual(value, b"v")

    async def test_blocking_reads_block_nobody(self) -> None:
        """A read that waits at the server leaves other commands alone, and can be cancelled."""
        redis = self.make(shared_valkey().url, connections=1)
        waiting = Deferred.fromCoroutine(redis.blocking("XREAD", "BLOCK", 10000, "STREAMS", "s", "$", timeout_s=12.0))
        while b"blocked_clients:1" not in await redis.command("INFO", "clients"):
            pass
        await redis.command("XADD", "s", "1-1", "f", "v")
        self.assertEqual(await waiting, [[b"s", [[b"1-1", [b"f", b"v"]]]]])
        cancelled = Deferred.fromCoroutine(redis.blocking("XREAD", "BLOCK", 10000, "STREAMS", "s", "$", timeout_s=12.0))
        while b"blocked_clients:1" not in await redis.command("INFO", "clients"):
            pass
        cancelled.cancel()
        await self.assertFailure(cancelled, defer.CancelledError)

    async def test_events(self) -> None:
        """Announcements reach every subscriber; after a reconnection it is told that it may have missed some."""
        redis = self.make(shared_valkey().url)
        events = RedisEvents(reactor, redis, redis.settings)
        self.addCleanup(events.stop)
        heard: defer.DeferredQueue[dict[str, Any]] = defer.DeferredQueue()
        events.subscribe(heard.put)
        self.assertEqual(await heard.get(), RESUBSCRIBED)
        while (await redis.command("PUBSUB", "NUMSUB", "im:events"))[1] == 0:
            pass
        await events.announce({"event": "online", "uid": "a"})
        self.assertEqual(await heard.get(), {"event": "online", "uid": "a"})
        await redis.command("CLIENT", "KILL", "TYPE", "pubsub")
        self.assertEqual(await heard.get(), RESUBSCRIBED)


class AddressTests(TestCase):
    """What a [redis] url means."""

    def test_url(self) -> None:
        """Host, port, database and password, or a socket."""
        address = Address("redis://:p%40ss@h:1/2")
        self.assertEqual((address.host, address.port, address.db, address.password), ("h", 1, 2, "p@ss"))
        self.assertNotIn("p@ss", address.text)
        self.assertEqual(Address("unix:///tmp/s?db=3").path, "/tmp/s")
