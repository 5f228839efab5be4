"""A dispatcher to call over a real socket: on twins in memory, or whole, on Valkey and Perspective Broker.

The workers are small ones of the tests' own: they know connections and write down what they are told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ujson
from twisted.internet import defer, reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from imserver import config
from imserver.data.bans import MemoryBans, RedisBans
from imserver.data.connections import RedisConnections
from imserver.data.inbox import RedisInboxes
from imserver.data.interface import ConnectionRecord, Lease, Unavailable
from imserver.data.journal import MemoryJournal, RedisJournal
from imserver.data.leases import RedisLeases
from imserver.data.memory import MemoryConnections, MemoryInboxes, MemoryLeases
from imserver.data.redis import Redis
from imserver.dispatcher.http import DispatcherApi, Parts
from imserver.dispatcher.service import Dispatcher
from imserver.http.client import Answer, HttpClient
from imserver.http.site import Site
from imserver.ops.metrics import Metrics
from imserver.protocol.deliveries import decode_head
from imserver.protocol.tokens import Tokens
from imserver.routing.router import Router
from imserver.routing.workers import Workers
from imserver.rpc.interface import Pushed
from imserver.rpc.memory import MemoryPeers
from imserver.rpc.server import server_factory
from tests.servers import settings, shared_valkey

KEY = "demo-key-0123456789"
OTHER_KEY = "direct-key-0123456789"
JOURNAL_KEY = "journal-key-0123456789"


class FakeWorker:
    """A worker as others see it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.records: dict[tuple[str, str], ConnectionRecord] = {}
        self.pushed: list[Pushed] = []
        self.broadcasts: list[bytes] = []
        self.closed: list[tuple[str, int, str]] = []

    def frames(self, uid: str) -> list[dict[str, Any]]:
        """What a uid was sent."""
        return [ujson.loads(b"{" + item.tail) for item in self.pushed if item.uid == uid]

    def deliver(self, pushed: Sequence[Pushed]) -> list[int]:
        """Write down; the connections that have the channel."""
        self.pushed += pushed
        return [
            sum(
                uid == item.uid and decode_head(item.head).channel in r.channels for (uid, _), r in self.records.items()
            )
            for item in pushed
        ]

    def broadcast(self, role: str | None, platform: str | None, head: bytes, tail: bytes) -> int:
        """Write down; the connections that are meant."""
        self.broadcasts.append(b"{" + tail)
        channel = decode_head(head).channel
        return sum(
            channel in r.channels and role in (None, r.role) and platform in (None, r.platform)
            for r in self.records.values()
        )

    def close(self, uid: str, conn: str | None, channels: Sequence[str], code: int, reason: str) -> int:
        """Close connections of a uid."""
        return self._close(
            [key for key in self.records if key[0] == uid and conn in (None, key[1])], channels, code, reason
        )

    def sever(self, kind: str, value: str, channels: Sequence[str], code: int, reason: str) -> int:
        """Close connections of a uid or an address."""
        wanted = [key for key, r in self.records.items() if value == (key[0] if kind == "uid" else r.ip)]
        return self._close(wanted, channels, code, reason)

    def _close(self, keys: list[tuple[str, str]], channels: Sequence[str], code: int, reason: str) -> int:
        found = [key for key in keys if set(channels) & set(self.records[key].channels)]
        for key in found:
            del self.records[key]
            self.closed.append((key[1], code, reason))
        return len(found)


class Broken:
    """Stands for any part of the data layer while it is away."""

    def __getattr__(self, name: str) -> Any:
        async def away(*args: Any, **more: Any) -> Any:
            raise Unavailable("gone")

        return away


class Stage:
    """What both stages have."""

    address: str
    settings: config.Config
    connections: Any
    leases: Any
    journal: Any
    bans: Any
    inboxes: Any

    def __init__(self, sections: dict[str, Any]) -> None:
        self.settings = settings(**sections)
        self.client = HttpClient(reactor)
        self.leased: list[Lease] = []

    async def start(self) -> None:
        """Start it."""
        raise NotImplementedError

    async def worker_address(self, worker: FakeWorker) -> str:
        """Where the worker can be called."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Stop it."""
        await self.client.close()

    async def worker(self, name: str, **more: Any) -> FakeWorker:
        """A live worker."""
        worker = FakeWorker(name)
        rpc = await self.worker_address(worker)
        lease = Lease(
            id=name,
            incarnation=f"{name}.1",
            url=f"ws://{name}/ws",
            http=f"http://{name}",
            rpc=rpc,
            host="here",
            version="1",
            since_ts=1,
            **more,
        )
        await self.leases.renew(lease)
        self.leased.append(lease)
        return worker

    async def connect(self, worker: FakeWorker, uid: str, conn: str, **more: Any) -> ConnectionRecord:
        """A live connection of a uid on a worker."""
        facts: dict[str, Any] = {
            "role": "customer",
            "platform": "web",
            "channels": ("demo",),
            "device": "d",
            "ip": "10.0.0.1",
            "since_ts": 1,
        }
        record = ConnectionRecord(conn=conn, worker=worker.name, incarnation=f"{worker.name}.1", **{**facts, **more})
        worker.records[uid, conn] = record
        await self.connections.add(uid, record)
        return record


class MemoryStage(Stage):
    """The dispatcher's calls on twins in memory."""

    async def start(self) -> None:
        """Serve."""
        clock: Any = reactor
        self.peers = MemoryPeers()
        self.connections = MemoryConnections()
        self.leases = MemoryLeases(clock, 60)
        self.inboxes = MemoryInboxes(clock, self.settings.delivery, self.connections)
        self.bans = MemoryBans(self.settings.suspension)
        self.journal = MemoryJournal(clock)
        self.router = Router(
            self.inboxes,
            self.connections,
            Workers(self.leases, self.peers),
            self.peers,
            Broken(),
        )
        self.checks: dict[str, Any] = {"redis": self.connections.of_many}
        self.checks["redis"] = self._check
        self.away = False
        self.parts = Parts(
            settings=self.settings,
            clock=clock,
            router=self.router,
            inboxes=self.inboxes,
            bans=self.bans,
            journal=self.journal,
            metrics=Metrics("im-dispatcher", "test"),
            checks=self.checks,
        )
        self.api = DispatcherApi(self.parts)
        self._port = clock.listenTCP(0, Site(self.api, clock), interface="127.0.0.1")
        self.address = f"http://127.0.0.1:{self._port.getHost().port}"

    async def _check(self) -> None:
        if self.away:
            raise Unavailable("gone")

    async def worker_address(self, worker: FakeWorker) -> str:
        """Straight."""
        self.peers.receivers[worker.name] = worker
        return worker.name

    async def worker(self, name: str, **more: Any) -> FakeWorker:
        """A live worker that the router knows of."""
        worker = await super().worker(name, **more)
        await self.router.workers.refresh()
        return worker

    async def stop(self) -> None:
        """Stop listening."""
        await super().stop()
        await self._port.stopListening()


class WholeStage(Stage):
    """The whole dispatcher, on Valkey, with workers that are called through Perspective Broker."""

    async def start(self) -> None:
        """Start it."""
        clock: Any = reactor
        self.redis = Redis(reactor, self.settings.redis)
        self.connections = RedisConnections(self.redis)
        self.leases = RedisLeases(self.redis, 60)
        self.inboxes = RedisInboxes(self.redis, clock, self.settings.delivery)
        self.bans = RedisBans(self.redis, self.settings.suspension)
        self.journal = RedisJournal(self.redis)
        self._ports: list[Any] = []
        self.dispatcher = Dispatcher(reactor, self.settings)
        await self.dispatcher.start()
        assert self.dispatcher.port is not None
        self.address = f"http://127.0.0.1:{self.dispatcher.port.getHost().port}"

    async def worker_address(self, worker: FakeWorker) -> str:
        """Over a socket."""
        factory = server_factory(worker, self.settings.cluster.secret)
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self._ports.append(port)
        return f"tcp:127.0.0.1:{port.getHost().port}"

    async def worker(self, name: str, **more: Any) -> FakeWorker:
        """A live worker, announced."""
        worker = await super().worker(name, **more)
        await self.redis.command("PUBLISH", "im:events", ujson.dumps({"event": "join", "worker": name}))
        return worker

    async def stop(self) -> None:
        """Stop everything."""
        await super().stop()
        await self.dispatcher.stop()
        for port in self._ports:
            await defer.maybeDeferred(port.stopListening)
        await self.redis.stop()


class StagedCase(TestCase):
    """A test with a dispatcher."""

    kind: type[Stage] = MemoryStage
    sections: dict[str, Any] = {}

    async def setUp(self) -> None:
        """Start it."""
        sections = {"dispatcher": {"listen": "tcp:0:interface=127.0.0.1"}, **self.sections}
        if self.kind is WholeStage:
            sections["redis"] = {"url": shared_valkey().url}
        self.stage: Any = self.kind(sections)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.stage.stop()))
        await self.stage.start()

    async def call(self, method: str, path: str, body: Any = None, key: str | None = KEY, **more: Any) -> Answer:
        """A call; `body` is encoded unless it is bytes."""
        raw = body if body is None or isinstance(body, bytes) else ujson.dumps(body).encode()
        answer: Answer = await self.stage.client.call(method, self.stage.address + path, body=raw, token=key, **more)
        return answer

    async def good(self, method: str, path: str, body: Any = None, status: int = 200, **more: Any) -> Any:
        """The answer of a call that has to succeed."""
        answer = await self.call(method, path, body, **more)
        self.assertEqual(answer.status, status, answer.body)
        return ujson.loads(answer.body)

    async def bad(
        self, status: int, code: str, method: str, path: str, body: Any = None, field: str | None = None, **more: Any
    ) -> Answer:
        """A call that has to be refused like this."""
        answer = await self.call(method, path, body, **more)
        document = ujson.loads(answer.body)
        self.assertEqual((answer.status, document["code"], document.get("field")), (status, code, field), document)
        self.assertEqual(answer.headers["content-type"], "application/problem+json")
        return answer

    async def push(self, to: Any, body: Any = None, **more: Any) -> Any:
        """A good push."""
        return await self.good(
            "POST", "/v1/push", {"to": to, "type": "text", "body": body or {"text": "hi"}, **more}, status=202
        )

    def system_token(self) -> str:
        """A token of the cluster."""
        return Tokens(self.stage.settings).act_for_system(reactor.seconds())  # type: ignore[attr-defined]

    def user_token(self) -> str:
        """A token of a user."""
        now = reactor.seconds()  # type: ignore[attr-defined]
        return Tokens(self.stage.settings).issue("u", "customer", ["demo"], 60, now)[0]
