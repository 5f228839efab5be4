"""One dispatcher: its parts, how it starts and how it stops."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from imserver import __version__, config
from imserver.data.bans import RedisBans
from imserver.data.connections import RedisConnections
from imserver.data.events import RedisEvents
from imserver.data.inbox import RedisInboxes
from imserver.data.interface import Unavailable
from imserver.data.journal import RedisJournal
from imserver.data.leases import RedisLeases
from imserver.data.mailboxes import RedisMailboxes
from imserver.data.redis import Redis
from imserver.data.webhooks import RedisWebhooks
from imserver.dispatcher.http import DispatcherApi, Parts
from imserver.http.site import Site
from imserver.ops.background import Repeated
from imserver.ops.metrics import Metrics
from imserver.ops.startup import listen
from imserver.ops.trail import Trail
from imserver.routing.router import Router
from imserver.routing.workers import FRESH_S, Workers
from imserver.rpc.peers import PerspectivePeers

log = Logger()

FINISH_S = 3.0
"""How long a stopping dispatcher waits for what is under way."""

_WORKER_EVENTS = frozenset({"join", "leave", "resubscribed"})


class Dispatcher:
    """`start` and `stop` for `imserver.ops.startup.serve`. `port` is where it listens once it is started."""

    def __init__(self, reactor: Any, settings: config.Config) -> None:
        self._reactor = reactor
        self._settings = settings
        self._redis: Redis | None = None
        self._events: RedisEvents | None = None
        self._peers: PerspectivePeers | None = None
        self._api: DispatcherApi | None = None
        self._look: Repeated | None = None
        self.port: IListeningPort | None = None

    async def start(self) -> None:
        """Reach Redis, look who lives, listen; raises `imserver.ops.startup.StartupError`."""
        settings, reactor = self._settings, self._reactor
        metrics = Metrics("im-dispatcher", __version__)
        redis = self._redis = Redis(reactor, settings.redis)
        await redis.insist(redis.ping)
        self._peers = PerspectivePeers(reactor, settings.cluster)
        leases = RedisLeases(redis, settings.worker.lease_ttl_s)
        workers = Workers(leases, self._peers)
        self._events = RedisEvents(reactor, redis, settings.redis)
        await redis.insist(workers.refresh)
        inboxes = RedisInboxes(redis, reactor, settings.delivery)
        pushes = metrics.counter("pushes", "Frames by how they reached a worker, or did not.", ("strategy",))
        metrics.gauge_of("workers", "Live workers.", lambda: len(workers.all()))
        metrics.gauge_of("redis_in_flight", "Redis commands under way.", lambda: redis.in_flight)
        router = Router(
            inboxes,
            RedisConnections(redis),
            workers,
            self._peers,
            RedisMailboxes(redis),
            lambda strategy: pushes.labels(strategy).inc(),
            Trail(reactor),
            RedisWebhooks(redis, reactor, settings),
        )
        self._look = Repeated(reactor, "workers", FRESH_S, router.look, (Unavailable,))
        self._look.start()
        self._events.subscribe(self._heard)
        self._api = DispatcherApi(
            Parts(
                settings=settings,
                clock=reactor,
                router=router,
                inboxes=inboxes,
                bans=RedisBans(redis, settings.suspension),
                journal=RedisJournal(redis),
                metrics=metrics,
                checks={"redis": redis.ping},
            )
        )
        site = Site(self._api, reactor)
        self.port = await listen(reactor, settings.dispatcher.listen, site, setting="[dispatcher] listen")

    async def stop(self) -> None:
        """Take no more calls, finish those under way, close everything; also after a start that failed."""
        if self.port is not None:
            await defer.maybeDeferred(self.port.stopListening)
        if self._api is not None:
            try:
                await self._api.pushing.room.idle().addTimeout(FINISH_S, self._reactor)
            except defer.TimeoutError:
                log.warn("stopping with deliveries under way after {seconds} s", seconds=FINISH_S)
        if self._look is not None:
            self._look.stop()
        for part in (self._events, self._peers, self._redis):
            if part is not None:
                await part.stop()

    def _heard(self, event: dict[str, Any]) -> None:
        if event.get("event") in _WORKER_EVENTS and self._look is not None:
            self._look.run_now()
