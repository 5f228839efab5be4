"""The dispatcher when something is away, when it is asked too much, and how it starts and stops."""

from __future__ import annotations

from typing import Any

import ujson
from twisted.internet import defer, reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.trial.unittest import TestCase

from imserver.data.interface import Unavailable
from imserver.dispatcher.pushing import grouped
from imserver.dispatcher.service import Dispatcher
from imserver.http.client import HttpClient
from imserver.ops.startup import StartupError
from imserver.protocol.deliveries import Delivery
from tests.dispatcher.stages import KEY, MemoryStage, StagedCase, WholeStage
from tests.servers import Valkey, free_port, settings

TEXT = {"type": "text", "body": {"text": "hi"}}


class AwayTests(StagedCase):
    """What a caller is told when a part is away or too much is asked, on twins in memory."""

    kind = MemoryStage

    def lose(self, *uids: str) -> None:
        """From now on these inboxes cannot be written."""
        append = self.stage.inboxes.append

        async def some(delivery: Delivery) -> Any:
            if delivery.to in uids or not uids:
                raise Unavailable("gone")
            return await append(delivery)

        self.stage.inboxes.append = some

    async def test_push(self) -> None:
        """Not stored for one receiver is not accepted: 503 and when to try again, which with a cid harms nobody."""
        append = self.stage.inboxes.append
        self.lose("b")
        push = {"to": ["a", "b", "c"], "cid": "x", **TEXT}
        answer = await self.bad(503, "unavailable", "POST", "/v1/push", push)
        self.assertIn("1 of 3", ujson.loads(answer.body)["detail"])
        self.assertGreaterEqual(int(answer.headers["retry-after"]), 1)
        self.stage.inboxes.append = append
        results = (await self.good("POST", "/v1/push", push, 202))["results"]
        self.assertEqual([r["status"] for r in results], ["duplicate", "queued", "duplicate"])

    async def test_batch(self) -> None:
        """A message that could not be stored has its error, the others their answer; nothing at all is a 503."""
        self.lose("b")
        messages = [{"to": "a", **TEXT}, {"to": "b", **TEXT}, {"to": "a", **TEXT}]
        results = (await self.good("POST", "/v1/push/batch", {"messages": messages}, 202))["results"]
        self.assertEqual([r.get("error", {}).get("status") for r in results], [None, 503, None])
        self.lose()
        answer = await self.bad(503, "unavailable", "POST", "/v1/push/batch", {"messages": messages})
        self.assertIn("retry-after", answer.headers)

    async def test_deliveries(self) -> None:
        """Our own servers are told of each delivery that it failed."""
        self.lose("b")
        given = [{"to": uid, "channel": "demo", "id": "0" * 32, "frame": {}} for uid in "ab"]
        results = (await self.good("POST", "/v1/deliveries", {"deliveries": given}, 202, key=self.system_token()))[
            "results"
        ]
        self.assertEqual([r["status"] for r in results], ["queued", "failed"])
        self.assertEqual(results[1]["error"], "gone")

    async def test_readiness(self) -> None:
        """`/readyz` says which part is away; `/healthz` is fine."""
        self.stage.away = True
        answer = await self.bad(503, "unavailable", "GET", "/readyz", key=None)
        self.assertEqual(ujson.loads(answer.body)["parts"], {"redis": "away"})
        await self.good("GET", "/healthz", key=None)

    async def test_client_gone(self) -> None:
        """What a client no longer waits for is done all the same: stored means pushed, too."""
        worker = await self.stage.worker("w1")
        await self.stage.connect(worker, "a", "c1")
        append = self.stage.inboxes.append
        started: Deferred[None] = Deferred()
        go_on: Deferred[None] = Deferred()

        async def slow(delivery: Delivery) -> Any:
            stored = await append(delivery)
            started.callback(None)
            await go_on
            return stored

        self.stage.inboxes.append = slow
        calling = Deferred.fromCoroutine(self.call("POST", "/v1/push", {"to": "a", **TEXT}))
        calling.addErrback(lambda failure: None)
        await started
        calling.cancel()
        while b'status="499"' not in (await self.call("GET", "/metrics", key=None)).body:
            pass
        go_on.callback(None)
        self.assertEqual(len(worker.frames("a")), 1)


class RateTests(StagedCase):
    """`push_per_s`, `push_burst`, `deliveries_max` and `calls_waiting`."""

    kind = MemoryStage
    sections = {
        "channels": {
            "demo": {"api_keys": [KEY], "push_per_s": 1, "push_burst": 5},
            "demo-direct": {"api_keys": ["direct-key-0123456789"]},
        },
        "dispatcher": {"deliveries_max": 1, "calls_waiting": 1, "listen": "tcp:0:interface=127.0.0.1"},
    }

    async def test_rate(self) -> None:
        """Receivers are counted; over the burst is 429 and when to come again; other channels have their own."""
        await self.push(["a", "b", "c"])
        answer = await self.bad(429, "rate_limited", "POST", "/v1/push", {"to": ["a", "b", "c", "d"], **TEXT})
        self.assertEqual(int(answer.headers["retry-after"]), 2)
        messages = [{"to": "a", **TEXT}] * 4
        await self.bad(429, "rate_limited", "POST", "/v1/push/batch", {"messages": messages})
        self.assertEqual((await self.stage.inboxes.length("a"))[0], 1)
        await self.good("POST", "/v1/push/batch", {"messages": messages}, 202, key="direct-key-0123456789")

    async def test_room(self) -> None:
        """While so much is under way, so many wait, and the next is told at once to try again."""
        append = self.stage.inboxes.append
        go_on: Deferred[None] = Deferred()
        started: list[str] = []

        async def slow(delivery: Delivery) -> Any:
            started.append(delivery.to)
            if len(started) == 1:
                await go_on
            return await append(delivery)

        self.stage.inboxes.append = slow
        room = self.stage.api.pushing.room
        first = Deferred.fromCoroutine(self.push("a"))
        while not started:
            await self.call("GET", "/healthz")
        second = Deferred.fromCoroutine(self.push("b"))
        while not room._waiting:
            await self.call("GET", "/healthz")
        await self.bad(503, "unavailable", "POST", "/v1/push", {"to": "c", **TEXT})
        self.assertEqual(started, ["a"])
        go_on.callback(None)
        await first
        await second
        self.assertEqual(started, ["a", "b"])
        await room.idle()


class GroupTests(TestCase):
    """`pushing.grouped`."""

    def test_grouped(self) -> None:
        """Groups are bounded in number and bytes, and made as they are asked for."""
        made: list[int] = []

        def deliveries(count: int, size: int) -> Any:
            for n in range(count):
                made.append(n)
                yield Delivery(to="u", channel="demo", id="", frame=b'"' + b"x" * size + b'"')  # type: ignore[arg-type]

        groups = grouped(deliveries(2500, 10))
        self.assertEqual((len(next(groups)[0]), len(made)), (1000, 1000))
        self.assertEqual([len(group) for group, _ in groups], [1000, 500])
        self.assertEqual([len(group) for group, _ in grouped(deliveries(100, 65536))], [59, 41])
        self.assertEqual(list(grouped(deliveries(0, 1))), [])


class ServerTests(TestCase):
    """The whole server on a Valkey of its own."""

    def config(self, valkey: str, listen: str = "tcp:0:interface=127.0.0.1", **redis: Any) -> Any:
        """A configuration."""
        return settings(redis={"url": valkey, "command_timeout_s": 0.5, **redis}, dispatcher={"listen": listen})

    async def test_redis_goes_and_comes(self) -> None:
        """Without Redis pushes are 503 and nothing crashes; when it is back, what was accepted is still there."""
        valkey = Valkey()
        self.addCleanup(valkey.stop)
        dispatcher = Dispatcher(reactor, self.config(valkey.url))
        self.addCleanup(lambda: Deferred.fromCoroutine(dispatcher.stop()))
        await dispatcher.start()
        assert dispatcher.port is not None
        address = f"http://127.0.0.1:{dispatcher.port.getHost().port}"
        client = HttpClient(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(client.close()))
        body = ujson.dumps({"to": ["a", "b"], "cid": "x", **TEXT}).encode()

        async def push() -> Any:
            return await client.call("POST", f"{address}/v1/push", body=body, token=KEY)

        first = await push()
        self.assertEqual(first.status, 202, first.body)
        valkey.kill()
        for method, path in (("POST", "/v1/push"), ("GET", "/v1/users/a"), ("GET", "/v1/workers"), ("GET", "/readyz")):
            answer = await client.call(method, address + path, body=body if method == "POST" else None, token=KEY)
            self.assertEqual((answer.status, ujson.loads(answer.body)["code"]), (503, "unavailable"), path)
            self.assertIn("retry-after", answer.headers)
        valkey.start()
        again = await push()
        while again.status == 503:
            again = await push()
        results = ujson.loads(again.body)["results"]
        self.assertEqual([r["status"] for r in results], ["duplicate", "duplicate"])
        self.assertEqual(results[0]["cursor"], ujson.loads(first.body)["results"][0]["cursor"])

    async def test_no_redis_at_start(self) -> None:
        """Says where it looked; what was begun is closed again."""
        dispatcher = Dispatcher(reactor, self.config(f"redis://127.0.0.1:{free_port()}/0", startup_wait_s=0.1))
        with self.assertRaises(StartupError) as caught:
            await dispatcher.start()
        self.assertIn("[redis] url", str(caught.exception))
        await dispatcher.stop()

    async def test_busy_port(self) -> None:
        """Says which address is taken and which setting to change."""
        valkey = Valkey()
        self.addCleanup(valkey.stop)
        taken = reactor.listenTCP(0, Factory(), interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(taken.stopListening)
        port = taken.getHost().port
        dispatcher = Dispatcher(reactor, self.config(valkey.url, f"tcp:{port}:interface=127.0.0.1"))
        with self.assertRaises(StartupError) as caught:
            await dispatcher.start()
        self.assertIn("[dispatcher] listen", str(caught.exception))
        await dispatcher.stop()


class StopTests(StagedCase):
    """How a dispatcher stops."""

    kind = WholeStage

    async def test_finishes(self) -> None:
        """What is under way when it is told to stop is finished and answered."""
        calls = [Deferred.fromCoroutine(self.push([f"u{n}" for n in range(500)])) for _ in range(4)]
        pushing = self.stage.dispatcher._api.pushing
        while not pushing.room.used:
            await self.call("GET", "/healthz", key=None)
        await self.stage.dispatcher.stop()
        for answer in await defer.gatherResults(calls, consumeErrors=True):
            self.assertEqual(len(answer["results"]), 500)
