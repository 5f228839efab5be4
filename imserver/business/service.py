"""The business server: makes the parts, connects them, starts and stops them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import sqlalchemy as sa
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.logger import Logger

import imserver
from imserver import config
from imserver.business import http, http_shops, http_webhooks
from imserver.business.access import Access
from imserver.business.archive import Archiver
from imserver.business.conversations import Conversations
from imserver.business.desk import Desks
from imserver.business.history import History
from imserver.business.hook import ModerationHook
from imserver.business.journals import Journals
from imserver.business.lists import Lists
from imserver.business.lookup import Lookup
from imserver.business.messages import Messages
from imserver.business.outbox import Outbox
from imserver.business.policy import Policy
from imserver.business.presence import ANSWER_S, MERCHANT, Presence
from imserver.business.shops import Shops
from imserver.business.threads import Threads
from imserver.business.webhooks import WebhookSender
from imserver.business.words import Words
from imserver.data.bans import RedisBans
from imserver.data.connections import RedisConnections
from imserver.data.database import Database
from imserver.data.events import RESUBSCRIBED, RedisEvents
from imserver.data.interface import Unavailable
from imserver.data.leases import RedisLeases
from imserver.data.redis import Redis
from imserver.data.webhooks import RedisWebhooks
from imserver.http.client import HttpClient
from imserver.http.problems import Problem, unavailable
from imserver.http.resource import Api
from imserver.http.site import Site
from imserver.http.standard import with_standard
from imserver.ops.metrics import Metrics
from imserver.ops.startup import StartupError, listen
from imserver.protocol.tokens import Tokens
from imserver.routing.workers import FRESH_S, Workers
from imserver.rpc.peers import PerspectivePeers

log = Logger()
WORDS_EVERY_S = 1.0
"""How often the word lists are looked at: changes have to be in force within 2 s (contract: words)."""

ANSWER_MAX = 1 << 20
"""Bytes of an answer of a word service or a back office."""

TITLE = "imserver business server"


class BusinessServer:
    """One business server; everything it knows is in Redis and the database, so any number may run."""

    def __init__(self, reactor: Any, settings: config.Config) -> None:
        self.port: IListeningPort | None = None
        self.settings = settings
        self._reactor = reactor
        self._loops: list[Deferred[None]] = []
        self._stops: list[Callable[[], Any]] = []
        self._sleeping: set[Deferred[None]] = set()
        self._stopping = False
        self._journal = 0
        self._journal_age = 0.0
        self._refused = 0

    async def start(self) -> None:
        """Connect, bring the database up to date, and listen; `StartupError` if that cannot be."""
        settings, reactor = self.settings, self._reactor
        redis = Redis(reactor, settings.redis)
        self._stops.append(redis.stop)
        await redis.insist(redis.ping)
        try:
            archive = Database(reactor, settings.database)
        except (sa.exc.ArgumentError, ImportError, OSError) as error:
            raise StartupError(f"[database] url cannot be used: {error}") from error
        self._stops.append(archive.stop)
        clock = reactor
        metrics = Metrics("im-business", imserver.__version__)
        tokens = Tokens(settings)
        client = HttpClient(
            reactor,
            max_persistent=settings.cluster.http_connections,
            max_concurrent=settings.cluster.http_connections,
            max_waiting=settings.cluster.http_queue,
        )
        self._stops.append(client.close)
        conversations = Conversations(
            redis, archive, cid_ttl_s=settings.delivery.cid_ttl_s, lease_s=settings.business.dispatch_lease_s
        )
        answers_soon = min(ANSWER_S, settings.cluster.rpc_timeout_s)
        peers = PerspectivePeers(reactor, msgspec.structs.replace(settings.cluster, rpc_timeout_s=answers_soon))
        self._stops.append(peers.stop)
        workers = Workers(RedisLeases(redis, settings.worker.lease_ttl_s), peers)
        presence = Presence(RedisConnections(redis), workers, peers)
        webhooks = RedisWebhooks(redis, clock, settings)
        shops = Shops(redis, presence, webhooks, settings.assignment, clock)
        lists = Lists(redis, conversations, shops)
        history = History(redis, archive)
        outbox = Outbox(reactor, settings, conversations, client, tokens, webhooks)
        desks = Desks(clock, conversations, shops, lists, outbox)
        words = Words(redis, clock)
        policy = Policy(settings, words, ModerationHook(self._outside_client(), settings.moderation))
        posts = metrics.counter(
            "webhook_posts", "POSTs to back offices, by what became of them.", ("channel", "outcome")
        )
        sender = WebhookSender(
            reactor,
            settings,
            webhooks,
            self._outside_client(),
            lambda channel, outcome: posts.labels(channel, outcome).inc(),
        )
        messages = Messages(clock, settings, conversations, shops, desks, lists, history, outbox, policy, metrics)
        threads = Threads(clock, conversations, shops, desks, lists, history, outbox, messages)
        journals = Journals(redis, clock, settings.business)
        archiver = Archiver(reactor, journals, archive, settings.business)
        self._watch(metrics, archiver, outbox)
        kept = http.Kept(threads.introduce)
        await self._migrate(archive)
        archiver.start()
        await redis.insist(words.refresh)
        events = RedisEvents(reactor, redis, settings.redis)
        events.subscribe(lambda event: self._hear(event, desks))
        self._stops += [archiver.stop, events.stop, sender.stop, desks.stop, outbox.stop, kept.finish]
        self._every("workers", FRESH_S, workers.refresh)
        self._every("words", WORDS_EVERY_S, words.refresh)
        self._every("webhooks", settings.webhooks.poll_s, sender.sweep)
        waiting = metrics.gauge("webhook_waiting", "Events that a back office is to be told.", ("channel",))
        dead = metrics.gauge("webhook_dead", "Events that were given up.", ("channel",))
        self._every("webhook gauges", settings.business.sweep_s, lambda: sender.measure(waiting, dead))
        self._every("outbox", settings.business.sweep_s, outbox.sweep)
        self._every("desks", settings.business.sweep_s, desks.sweep)

        async def count() -> None:
            self._journal = await journals.length()
            self._journal_age = await journals.age()
            self._refused = await journals.refused()

        self._every("counting journals", settings.business.sweep_s, count)
        api = Api(
            with_standard(
                [
                    *http.routes(messages, threads, kept),
                    *http_shops.routes(settings, shops, desks, words, kept),
                    *http_webhooks.routes(settings, webhooks, clock),
                    *Lookup(archive, conversations).routes(),
                ],
                title=TITLE,
                version=imserver.__version__,
                description="Conversations between customers and the agents of shops.",
                checks={"redis": redis.ping, "database": archive.ping},
                registry=metrics.registry,
                clock=clock,
            ),
            Access(settings, tokens, clock, RedisBans(redis, settings.suspension)),
            clock=clock,
            allowed_origins=settings.business.allowed_origins,
            errors={Unavailable: _unavailable},
            observe=metrics.observe_http,
        )
        self.port = await listen(reactor, settings.business.listen, Site(api, reactor), setting="[business] listen")
        self._stops.append(self.port.stopListening)

    async def stop(self) -> None:
        """Stop taking calls, let those under way end, and close everything in the reverse order of its start."""
        stops, self._stops = self._stops, []
        listening = [stop for stop in stops if self.port is not None and stop == self.port.stopListening]
        for stop in listening:
            await _awaited(stop())
        self._stopping = True
        for sleeping in list(self._sleeping):
            sleeping.cancel()
        for loop in self._loops:  # not cancelled: a Redis command that is cancelled takes its connection with it
            await loop
        for stop in reversed([stop for stop in stops if stop not in listening]):
            await _awaited(stop())

    async def _migrate(self, archive: Database) -> None:
        """Bring the database up to date; one that is away has it done by the archiver when it is back."""
        try:
            await archive.migrate()
        except Unavailable as error:
            if archive.sqlite:
                raise StartupError(f"[database] url cannot be used: {error}") from error
            log.warn("the database is away, its tables are looked at later: {error}", error=error)

    def _every(self, name: str, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            while await self._sleep(seconds):
                try:
                    await work()
                except Unavailable as error:
                    log.info("{name} waits: {error}", name=name, error=error)
                except Exception:
                    log.failure("{name} failed and goes on", name=name)

        self._loops.append(Deferred.fromCoroutine(run()))

    async def _sleep(self, seconds: float) -> bool:
        """Wait; false if the server is stopped meanwhile."""
        sleeping: Deferred[None] = deferLater(self._reactor, seconds)
        self._sleeping.add(sleeping)
        try:
            await sleeping
        except CancelledError:
            return False
        finally:
            self._sleeping.discard(sleeping)
        return not self._stopping

    def _hear(self, event: dict[str, Any], desks: Desks) -> None:
        if event == RESUBSCRIBED:
            work: Any = desks.sweep()
        elif event.get("event") == "online" and event.get("role") == MERCHANT and isinstance(event.get("uid"), str):
            work = desks.serve_agent(event["uid"])
        else:
            return
        Deferred.fromCoroutine(work).addErrback(
            lambda failure: (
                log.info("left to the sweeper: {why}", why=failure.getErrorMessage())
                if failure.check(Unavailable)
                else log.failure("serving after an announcement failed", failure)
            )
        )

    def _outside_client(self) -> HttpClient:
        """For calls to what is not ours: however slow it is, calls to our own servers do not wait behind them."""
        client = HttpClient(self._reactor, max_answer=ANSWER_MAX)
        self._stops.append(client.close)
        return client

    def _watch(self, metrics: Metrics, archiver: Archiver, outbox: Outbox) -> None:
        metrics.gauge_of("journal_entries", "Journal entries not archived yet.", lambda: self._journal)
        metrics.gauge_of("journal_age_seconds", "How long the oldest of them has waited.", lambda: self._journal_age)
        metrics.gauge_of("archive_refused", "Entries put aside: the database refuses them.", lambda: self._refused)
        metrics.gauge_of("archived_messages", "Messages this server has archived.", lambda: archiver.archived)
        metrics.gauge_of("archive_away", "1 while the archiver cannot write.", lambda: bool(archiver.away))
        metrics.gauge_of("outbox_in_flight", "Outboxes being dispatched.", lambda: outbox.in_flight)
        metrics.gauge_of("dispatched_messages", "Messages given to a dispatcher.", lambda: outbox.dispatched)
        metrics.gauge_of("dispatcher_away", "1 while no dispatcher takes messages.", lambda: bool(outbox.away))


def _unavailable(error: Unavailable) -> Problem:
    log.warn("refused: {error}", error=error)
    return unavailable()


async def _awaited(result: Any) -> None:
    if result is not None:
        await result
