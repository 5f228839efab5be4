"""Tells back offices of what happened: each event is posted, signed, until its receiver says 2xx (at least once).

What fails is tried again after a while that doubles; what fails for `give_up_s` dies, see `imctl webhooks`.  A receiver
that is down is left alone for a while that doubles, too: one event at a time finds out whether it is back.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from prometheus_client import Gauge
from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from imserver import config
from imserver.data.interface import Unavailable
from imserver.data.webhooks import Queued, RedisWebhooks
from imserver.http.client import HttpClient, Unreachable, backoff
from imserver.protocol.webhooks import signed

log = Logger()
STOP_S = 2.0
"""How long a server that stops waits for answers; events without one are told again by another."""

PAUSE_MAX_S = 30.0
"""A receiver that is down is left alone for so long at the most."""

_DOWN = frozenset({429, 502, 503, 504})

LEASE_EXTRA_S = 5.0
"""An event is nobody else's for the deadline of its POST and this."""


class _Line:
    """The webhook of one channel."""

    def __init__(self, channel: str, url: str, secrets: list[str]) -> None:
        self.channel = channel
        self.url = url
        self.secrets = secrets
        self.running: set[Deferred[None]] = set()
        self.looking = False
        self.failures = 0
        self.not_before = 0.0


class WebhookSender:
    """Posts what `data.webhooks` keeps; any number of servers share the work.

    `observe(channel, outcome)` is called for each POST: `told`, `failed` or `dead`.
    """

    def __init__(
        self,
        reactor: Any,
        settings: config.Config,
        store: RedisWebhooks,
        client: HttpClient,
        observe: Callable[[str, str], None],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._reactor = reactor
        self._settings = settings.webhooks
        self._store = store
        self._client = client
        self._observe = observe
        self._jitter = jitter
        self._stopped = False
        self._lines = {
            name: _Line(name, channel.webhook_url, channel.webhook_secrets)
            for name, channel in settings.channels.items()
            if channel.webhook_url
        }
        store.recorded = self.kick

    def kick(self, channel: str) -> None:
        """Something may be due in this channel: look, in the background."""
        line = self._lines.get(channel)
        if line is not None:
            Deferred.fromCoroutine(self._look(line)).addErrback(self._failed)

    async def measure(self, waiting: Gauge, dead: Gauge) -> None:
        """Set how many events wait and are dead, by channel."""
        for name in self._lines:
            state = await self._store.state(name)
            waiting.labels(name).set(state.waiting)
            dead.labels(name).set(state.dead)

    async def sweep(self) -> None:
        """Look in every channel; `Unavailable` if Redis is."""
        for line in self._lines.values():
            await self._look(line)

    async def stop(self) -> None:
        """Wait for the answers under way, STOP_S at the most."""
        self._stopped = True
        running = [one for line in self._lines.values() for one in line.running]
        with suppress(defer.TimeoutError):  # by then all of them are cancelled
            await defer.DeferredList(running).addTimeout(STOP_S, self._reactor)

    async def _look(self, line: _Line) -> None:
        room = (1 if line.failures else self._settings.in_flight) - len(line.running)
        if self._stopped or line.looking or room <= 0 or self._reactor.seconds() < line.not_before:
            return
        line.looking = True
        try:
            taken = await self._store.take(line.channel, room, self._settings.timeout_s + LEASE_EXTRA_S)
        finally:
            line.looking = False
        for queued in taken:
            running = Deferred.fromCoroutine(self._post(line, queued))
            line.running.add(running)
            running.addErrback(self._failed).addBoth(self._ended, line, running)

    def _ended(self, result: object, line: _Line, running: Deferred[None]) -> None:
        line.running.discard(running)
        self.kick(line.channel)

    def _failed(self, failure: Any) -> None:
        if failure.check(Unavailable):
            log.info("webhooks wait: {why}", why=failure.getErrorMessage())
        elif not failure.check(CancelledError):
            log.failure("a webhook failed and is tried again", failure)

    async def _post(self, line: _Line, queued: Queued) -> None:
        now = self._reactor.seconds()
        wait_s, down = 0.0, False
        try:
            answer = await self._client.call(
                "POST",
                line.url,
                body=queued.body,
                headers=signed(queued.id, queued.body, line.secrets, now),
                timeout=self._settings.timeout_s,
            )
        except Unreachable as unreachable:
            error, down = str(unreachable), True
        else:
            error = "" if 200 <= answer.status < 300 else f"it answered {answer.status}"
            down = answer.status in _DOWN
            asked = answer.headers.get("retry-after", "")
            wait_s = min(float(asked), self._settings.retry_max_s) if asked.isascii() and asked.isdigit() else 0.0
        if not down:
            line.failures = 0
        if not error:
            self._observe(line.channel, "told")
            await self._store.told(line.channel, queued.entry)
            return
        now = self._reactor.seconds()
        first_s, most_s = self._settings.retry_first_s, self._settings.retry_max_s
        if down:
            line.failures += 1
            line.not_before = now + max(wait_s, backoff(line.failures - 1, self._jitter(), first_s, PAUSE_MAX_S))
        again_s = max(wait_s, backoff(queued.attempt - 1, self._jitter(), first_s, most_s))
        dead = now - queued.ts / 1000 >= self._settings.give_up_s
        self._observe(line.channel, "dead" if dead else "failed")
        log.warn(
            "webhook of {channel}, event {event} {id}, attempt {attempt}: {error}; {next}",
            channel=line.channel,
            event=queued.event,
            id=queued.id,
            attempt=queued.attempt,
            error=error,
            next="given up, see imctl webhooks" if dead else f"again in {again_s:.1f} s",
        )
        again_ts = None if dead else int((now + again_s) * 1000)
        await self._store.failed(line.channel, queued.entry, error, again_ts)
