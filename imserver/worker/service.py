"""One worker: its parts, its start and its drain."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

import imserver
from imserver import config
from imserver.data.agents import RedisAgents
from imserver.data.bans import RedisBans, normal_address
from imserver.data.connections import RedisConnections
from imserver.data.events import RedisEvents
from imserver.data.inbox import RedisInboxes
from imserver.data.interface import Lease, Unavailable
from imserver.data.journal import RedisJournal
from imserver.data.leases import RedisLeases
from imserver.data.mailboxes import RedisMailboxes
from imserver.data.redis import Redis
from imserver.data.webhooks import RedisWebhooks
from imserver.http import problems
from imserver.http.client import HttpClient
from imserver.http.resource import Api
from imserver.http.site import Site
from imserver.http.standard import with_standard
from imserver.ops.background import Repeated
from imserver.ops.metrics import Metrics
from imserver.ops.startup import listen
from imserver.ops.trail import Trail
from imserver.protocol import codes
from imserver.protocol.ids import incarnation
from imserver.protocol.tokens import Tokens
from imserver.routing.router import Router
from imserver.routing.workers import FRESH_S, Workers
from imserver.rpc.peers import PerspectivePeers
from imserver.rpc.server import server_factory as rpc_factory
from imserver.worker import websocket
from imserver.worker.acknowledgements import Acknowledgements
from imserver.worker.admission import Admission
from imserver.worker.connection import Connection, Face, Surroundings
from imserver.worker.http import Calls
from imserver.worker.hub import Hub
from imserver.worker.registration import Registered, Registration
from imserver.worker.session import Rules
from imserver.worker.uplink import Uplink
from imserver.worker.wheel import Wheel

log = Logger()
MAIL_WAIT_S = 10.0
GOODBYE_S = 1.0
"""After 1001 was said, clients have so long to close."""


class Worker:
    """Holds connections until it is told to stop."""

    def __init__(self, reactor: Any, settings: config.Config, name: str | None = None) -> None:
        self.settings = settings
        self._reactor = reactor
        self._name = name
        self._open: set[Connection] = set()
        self._numbers = 0
        self._accepting = False  # not before others can know of it: a record without a lease is taken for a dead one's
        self._draining = False
        self._stopping: list[Any] = []
        self._ports: list[Any] = []
        self._since_ts = int(reactor.seconds() * 1000)
        self._addresses = ("", "", "")
        self._mail: Deferred[None] | None = None
        self._near: Surroundings | None = None
        self.metrics = Metrics("im-worker", imserver.__version__)
        self._closes = self.metrics.counter("closed", "Connections closed by this worker, by close code.", ("code",))
        self.metrics.gauge_of("connections", "Open connections.", lambda: len(self._open))

    # -- websocket.Hosts ---------------------------------------------------------------------------------------

    def accept(self, face: Face, ip: str) -> Connection | None:
        """A new connection; None if there is no room for it."""
        if self._near is None or not self._accepting or len(self._open) >= self.settings.worker.connections_max:
            return None
        with suppress(ValueError):  # a UNIX socket has none
            ip = normal_address(ip)
        self._numbers += 1
        connection = Connection(self._near, face, f"{self._incarnation}.{self._numbers:x}", ip)
        self._open.add(connection)
        return connection

    # -- start -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Reach Redis, listen, announce."""
        settings, reactor = self.settings, self._reactor
        self._redis = redis = Redis(reactor, settings.redis)
        self._stopping.append(redis.stop)
        await redis.insist(redis.ping)
        self._trail = Trail(reactor)
        hub = Hub(reactor, self._trail)
        ws = await self._listen("listen", websocket.server_factory(self))
        self._name = self._name or f"{socket.gethostname()}-{ws.port}"
        self._incarnation = incarnation(self._name)
        rpc = await self._listen("rpc_listen", rpc_factory(hub, settings.cluster.secret))
        self._build(hub, rpc)
        http = await self._serve_http()
        self._addresses = _addresses(settings.worker, ws, http, rpc)
        self._peers.local[self._addresses[2]] = hub
        await self._redis.insist(self._registration.start)
        self._accepting = True
        self._workers_loop.start(now=True)
        self._mail = Deferred.fromCoroutine(self._read_mail())
        self._mail.addErrback(lambda failure: failure.trap(CancelledError) and None)
        log.info("{worker} serves {url}", worker=self._name, url=self._addresses[0])

    async def _listen(self, name: str, factory: Any) -> Any:
        description = getattr(self.settings.worker, name)
        port = await listen(self._reactor, description, factory, setting=f"[worker] {name}")
        self._ports.append(port)
        return port.getHost()

    def _build(self, hub: Hub, rpc: Any) -> None:
        settings, reactor, redis = self.settings, self._reactor, self._redis
        connections = RedisConnections(redis)
        leases = RedisLeases(redis, settings.worker.lease_ttl_s)
        self._events = RedisEvents(reactor, redis, settings.redis)
        inboxes = RedisInboxes(redis, reactor, settings.delivery)
        self._mailboxes = RedisMailboxes(redis)
        self._peers = PerspectivePeers(reactor, settings.cluster)
        self._workers = Workers(leases, self._peers)
        webhooks = RedisWebhooks(redis, reactor, settings)
        routed = self.metrics.counter("routed", "Frames to workers, by the way they took.", ("strategy",))
        router = Router(
            inboxes,
            connections,
            self._workers,
            self._peers,
            self._mailboxes,
            lambda strategy: routed.labels(strategy).inc(),
            self._trail,
            webhooks,
        )
        self._workers_loop = Repeated(reactor, "workers", FRESH_S, router.look, (Unavailable,))
        self._tokens = Tokens(settings)
        self._registration = Registration(
            reactor,
            settings.worker.lease_renew_s,
            leases,
            connections,
            self._events,
            self._lease,
            self._registered,
            self._evicted,
        )
        self._acknowledgements = Acknowledgements(reactor, inboxes, settings.delivery.ack_flush_s)
        self._wheel = Wheel(reactor)
        self._http = HttpClient(
            reactor,
            max_persistent=settings.cluster.http_connections,
            max_concurrent=settings.cluster.http_connections,
            max_waiting=settings.cluster.http_queue,
        )
        self._near = Surroundings(
            clock=reactor,
            rules=Rules(settings.connection, settings.delivery, settings.channels, self._tokens.verify, random.random),
            opened=self._open,
            hub=hub,
            wheel=self._wheel,
            inboxes=inboxes,
            admission=Admission(reactor, RedisBans(redis, settings.suspension)),
            registration=self._registration,
            acknowledgements=self._acknowledgements,
            uplink=Uplink(
                *(reactor, settings, self._tokens, self._http, router),
                *(RedisJournal(redis), RedisAgents(redis), webhooks),
            ),
            trail=self._trail,
            closing=lambda code: self._closes.labels(str(code)).inc(),
        )
        self._events.subscribe(self._heard)
        self._wheel.start()
        self._acknowledgements.start()
        self._stopping += [self._events.stop, self._peers.stop, self._wheel.stop, self._workers_loop.stop]

    async def _serve_http(self) -> Any:
        assert self._near is not None
        near = self._near
        calls = Calls(self._reactor, self._tokens, near.admission, near.inboxes, near.acknowledgements, self)
        routes = with_standard(
            calls.routes(),
            title="imserver worker",
            version=imserver.__version__,
            description="WebSocket at /ws (see the protocol); receiving over HTTP here.",
            checks={"redis": self._redis.ping},
            registry=self.metrics.registry,
            clock=self._reactor,
        )
        api = Api(
            routes,
            calls.authenticate,
            clock=self._reactor,
            allowed_origins=self.settings.worker.allowed_origins,
            errors={Unavailable: lambda error: problems.unavailable("the data layer is away, try again")},
            observe=self.metrics.observe_http,
        )
        return await self._listen("http_listen", Site(api, self._reactor))

    def _lease(self) -> Lease:
        url, http, rpc = self._addresses
        count = len(self._open)
        return Lease(
            id=self._name or "",
            incarnation=self._incarnation,
            url=url,
            http=http,
            rpc=rpc,
            host=socket.gethostname(),
            version=imserver.__version__,
            since_ts=self._since_ts,
            connections=count,
            load=round(min(1.0, count / self.settings.worker.connections_max), 4),
            draining=self._draining,
        )

    def _registered(self) -> Iterable[tuple[str, Registered]]:
        return [(one.session.claims.uid, one) for one in self._open if one.session.claims is not None]

    def _evicted(self) -> None:
        """A later worker has our name: whoever is connected here could not be found any more."""
        self._reactor.stop()

    def _heard(self, event: dict[str, Any]) -> None:
        match event:
            case {"event": "join" | "leave"}:
                self._workers_loop.run_now()
            case {"event": "drain", "worker": worker} if worker == self._name:
                log.info("told to drain")
                self._reactor.stop()

    async def _read_mail(self) -> None:
        """Hints of dispatchers that could not call us: look into these inboxes."""
        after = "0-0"
        while True:
            try:
                mail = await self._mailboxes.take(self._incarnation, after, MAIL_WAIT_S)
            except Unavailable as error:
                log.warn("the mailbox cannot be read: {why}", why=str(error))
                await deferLater(self._reactor, FRESH_S)
                continue
            except CancelledError:
                raise
            except Exception:  # hints must not end for good
                log.failure("reading the mailbox failed")
                await deferLater(self._reactor, FRESH_S)
                continue
            for after, uid, cursor in mail:  # noqa: B007 (the last one is where the next look begins)
                for connected in self._near.hub.of(uid) if self._near is not None else ():
                    connected.behind(cursor)

    # -- stop --------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Drain: no new connections, clients are sent away over `drain_s`, nothing is lost, nothing is left."""
        self._accepting, self._draining = False, True
        for port in self._ports[:1]:
            await maybeDeferred(port.stopListening)
        if self._near is not None and self._addresses[0]:
            await self._registration.renew_now()
            await self._send_away()
            await self._acknowledgements.stop()
            await self._registration.stop()
        if self._mail is not None:
            self._mail.cancel()
        for port in self._ports[1:]:
            await maybeDeferred(port.stopListening)
        for stop in reversed(self._stopping):
            await maybeDeferred(stop)
        if self._near is not None:
            await self._http.close()

    async def _send_away(self) -> None:
        spread_ms = int(self.settings.worker.drain_s * 1000)
        for connection in list(self._open):
            connection.reconnect(random.randint(0, spread_ms))
        deadline = self._reactor.seconds() + self.settings.worker.drain_s
        while self._open and self._reactor.seconds() < deadline:
            await deferLater(self._reactor, 0.05)
        for connection in list(self._open):
            connection.end(codes.GOING_AWAY, "this worker leaves")
        deadline = self._reactor.seconds() + GOODBYE_S
        while self._open and self._reactor.seconds() < deadline:
            await deferLater(self._reactor, 0.05)


def _addresses(settings: config.Worker, ws: Any, http: Any, rpc: Any) -> tuple[str, str, str]:
    """What to tell others: configured, or made from where we listen."""
    return (
        settings.url or f"ws://{_host(ws)}/ws",
        settings.http_url or f"http://{_host(http)}",
        settings.rpc_address or "tcp:" + _host(rpc).replace("[", "").replace("]", ""),
    )


def _host(address: Any) -> str:
    host, port = getattr(address, "host", "127.0.0.1"), getattr(address, "port", 0)
    if host in ("0.0.0.0", "::"):
        host = socket.getfqdn()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
