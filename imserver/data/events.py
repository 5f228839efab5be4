"""Announcements between servers, over Redis pub/sub: best effort (contract of `interface.Events`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ujson
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from imserver import config
from imserver.data.redis import Redis, Subscription

log = Logger()
CHANNEL = "im:events"
RESUBSCRIBED = {"event": "resubscribed"}
"""Heard after each (re)connection: something may have been missed, so look at the state itself."""


class RedisEvents:
    """`interface.Events` on Redis."""

    def __init__(self, reactor: Any, redis: Redis, settings: config.Redis) -> None:
        self._redis = redis
        self._listeners: list[Callable[[dict[str, Any]], None]] = []
        self._subscription = Subscription(reactor, settings, CHANNEL, self._heard)

    async def announce(self, event: dict[str, Any]) -> None:
        """Tell every server; at most once."""
        await self._redis.command("PUBLISH", CHANNEL, ujson.dumps(event))

    def subscribe(self, hear: Callable[[dict[str, Any]], None]) -> None:
        """Call `hear` with every event from now on, and with `RESUBSCRIBED` after each reconnection."""
        self._listeners.append(hear)

    def stop(self) -> Deferred[Any]:
        """Close the subscription."""
        return self._subscription.stop()

    def _heard(self, payload: bytes | None) -> None:
        try:
            event = RESUBSCRIBED if payload is None else ujson.loads(payload)
        except ValueError:
            log.warn("an announcement is not JSON: {payload!r}", payload=(payload or b"")[:200])
            return
        for hear in self._listeners:
            hear(event)
