"""A business server for tests: a real one on a port, real Valkey, real database, and a dispatcher that writes down."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import treq
import ujson
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from twisted.web import resource, server
from twisted.web.client import Agent, HTTPConnectionPool

from imserver import config
from imserver.business.service import BusinessServer
from imserver.data.connections import RedisConnections
from imserver.data.interface import ConnectionRecord, Lease
from imserver.data.leases import RedisLeases
from imserver.data.redis import Redis
from imserver.protocol.deliveries import Delivery
from imserver.protocol.tokens import Claims, Tokens
from imserver.rpc.server import server_factory
from tests.servers import settings, shared_valkey

KEY = "demo-key-0123456789"


class AgentsWorker:
    """A worker as a business server sees it: it says who is connected, over real Perspective Broker."""

    def __init__(self) -> None:
        self.connected: set[tuple[str, str]] = set()
        self.asked = 0

    def present(self, uids: Sequence[str], role: str, channel: str) -> list[str]:
        """Those of `uids` who are here."""
        self.asked += 1
        return [uid for uid in uids if (uid, channel) in self.connected]


class _Deliveries(msgspec.Struct):
    deliveries: list[Delivery]


class Dispatcher(resource.Resource):
    """`POST /v1/deliveries` over real HTTP: each message is stored once per inbox, in order of arrival."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.inboxes: dict[str, list[dict[str, Any]]] = {}
        self.passed: list[tuple[str, str, dict[str, Any], str]] = []
        self.origins: dict[tuple[str, str], str] = {}
        self.away = False

    def render_POST(self, request: Any) -> bytes:
        """Take deliveries."""
        if self.away:
            request.setResponseCode(503)
            return b"{}"
        body = msgspec.json.decode(request.content.read(), type=_Deliveries)
        for delivery in body.deliveries:
            frame = ujson.loads(bytes(delivery.frame))
            if not delivery.store:
                self.passed.append((delivery.to, delivery.op, frame, delivery.origin))
                continue
            inbox = self.inboxes.setdefault(delivery.to, [])
            if all(known["id"] != delivery.id for known in inbox):
                inbox.append(frame)
            self.origins[delivery.to, delivery.id] = delivery.origin
        request.setResponseCode(202)
        return ujson.dumps({"results": [{"to": delivery.to} for delivery in body.deliveries]}).encode()

    def states(self, uid: str) -> list[tuple[str, str | None, int | None]]:
        """The `state` frames somebody got: state, agent, position."""
        return [
            (frame["state"], frame["agent"], frame.get("position"))
            for to, op, frame, _ in self.passed
            if to == uid and op == "state"
        ]


class ShopCase(TestCase):
    """Has `start`, a client, and agents who come and go."""

    timeout = 15

    async def start(self, **sections: dict[str, Any]) -> BusinessServer:
        """A business server beside those that run; the first one empties Valkey and makes a database."""
        if not hasattr(self, "dispatcher"):
            await self._surroundings(sections)
        running = BusinessServer(reactor, self.settings)
        self.addCleanup(lambda: Deferred.fromCoroutine(running.stop()))
        await running.start()
        assert running.port is not None
        self.url = f"http://127.0.0.1:{running.port.getHost().port}"
        return running

    async def _surroundings(self, sections: dict[str, Any]) -> None:
        self.dispatcher = Dispatcher()
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(server.Site(self.dispatcher))
        self.addCleanup(port.stopListening)
        self.settings: config.Config = settings(
            **{
                **sections,
                "redis": {"url": shared_valkey().url},
                "database": {"url": f"sqlite:///{self.mktemp()}.sqlite"} | sections.get("database", {}),
                "dispatcher": {"url": f"http://127.0.0.1:{port.getHost().port}"},
                "business": {
                    "listen": "tcp:0:interface=127.0.0.1",
                    "sweep_s": 0.1,
                    "sweep_after_s": 0.3,
                    "archive_wait_s": 0.05,
                }
                | sections.get("business", {}),
            }
        )
        self.redis = Redis(reactor, self.settings.redis)
        self.addCleanup(self.redis.stop)
        self.tokens = Tokens(self.settings)
        pool = HTTPConnectionPool(reactor)
        self.addCleanup(pool.closeCachedConnections)
        self.http = treq.client.HTTPClient(Agent(reactor, pool=pool))
        self.worker = AgentsWorker()
        factory = server_factory(self.worker, self.settings.cluster.secret)
        self.brokers: list[Any] = []
        factory.protocol = self._broker(factory.protocol)
        self.rpc = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        self.addCleanup(self.rpc.stopListening)
        rpc = f"tcp:127.0.0.1:{self.rpc.getHost().port}"
        self.lease = Lease(id="w", incarnation="w.1", url="", http="", rpc=rpc, host="", version="", since_ts=1)
        await RedisLeases(self.redis, 60).renew(self.lease)
        self.connections = RedisConnections(self.redis)

    def _broker(self, kind: Any) -> Any:
        """Brokers of this kind that are kept in `brokers`."""

        def made(*args: Any, **more: Any) -> Any:
            self.brokers.append(kind(*args, **more))
            return self.brokers[-1]

        return made

    def token(self, uid: str, role: str = "customer", channel: str = "demo", **more: Any) -> str:
        """A user's token; with `conn` that of a worker on its behalf."""
        claims = Claims(uid=uid, role=role, channels=(channel,), exp=0, info=more.get("info"))
        if "conn" in more:
            return self.tokens.act_for(claims, more["conn"], time.time())
        return self.tokens.issue(uid, role, [channel], 600, time.time(), more.get("info"))[0]

    async def call(self, method: str, path: str, credential: str = KEY, body: Any = None) -> tuple[int, Any]:
        """Status and answer of one call."""
        headers = {"Authorization": f"Bearer {credential}"}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = ujson.dumps(body).encode()
        response = await self.http.request(method, self.url + path, headers=headers, data=data)
        content = await response.content()
        return response.code, ujson.loads(content) if content else None

    async def good(self, method: str, path: str, credential: str = KEY, body: Any = None) -> Any:
        """The answer of a call that has to succeed."""
        status, answer = await self.call(method, path, credential, body)
        self.assertIn(status, (200, 202, 204), answer)
        return answer

    async def refused(
        self, status: int, code: str, method: str, path: str, credential: str = KEY, body: Any = None
    ) -> Any:
        """A call that has to be refused so."""
        got, answer = await self.call(method, path, credential, body)
        self.assertEqual((got, (answer or {}).get("code")), (status, code), answer)
        return answer

    async def say(self, credential: str, text: str = "hi", cid: str | None = None, **more: Any) -> Any:
        """A text message."""
        body = {"cid": cid or secrets.token_hex(8), "type": "text", "body": {"text": text}, **more}
        return await self.good("POST", "/v1/messages", credential, body)

    async def agent(self, uid: str, shop: str = "s1", *, connected: bool = True, **more: Any) -> str:
        """An agent of a shop, and its token."""
        await self.good("PUT", f"/v1/agents/{uid}", body={"shop": shop, "status": "online", **more})
        if connected:
            await self.connect(uid)
        return self.token(uid, "merchant")

    async def connect(self, uid: str, channel: str = "demo") -> None:
        """The agent's client connects to a worker, which announces it."""
        record = ConnectionRecord(
            conn=f"{uid}-1",
            worker="w",
            incarnation="w.1",
            role="merchant",
            platform="web",
            channels=(channel,),
            device="d",
            ip="",
            since_ts=1,
        )
        self.worker.connected.add((uid, channel))
        await self.connections.add(uid, record)
        event = ujson.dumps({"event": "online", "uid": uid, "role": "merchant"})
        await self.redis.command("PUBLISH", "im:events", event)

    async def disconnect(self, uid: str) -> None:
        """The agent's client is gone."""
        self.worker.connected = {(who, channel) for who, channel in self.worker.connected if who != uid}
        await self.connections.remove(uid, f"{uid}-1")

    async def until(self, condition: Any) -> Any:
        """Wait until `condition()` is true (a value, or a coroutine of one)."""
        while True:
            value = condition()
            if hasattr(value, "__await__"):
                value = await value
            if value:
                return value
            await deferLater(reactor, 0.01)

    def inbox(self, uid: str) -> list[dict[str, Any]]:
        """What somebody got."""
        return self.dispatcher.inboxes.get(uid, [])

    async def archived(self) -> None:
        """Wait until the journals are empty."""

        async def empty() -> bool:
            for number in range(64):
                if await self.redis.command("XLEN", f"im:{{c:{number}}}:journal"):
                    return False
            return True

        await self.until(empty)
