"""Events that wait to be told to back offices, `im:{w:CHANNEL}:...`: a stream, and when each is due.

Whoever knows of an event records it before its own work counts as done; the business servers tell them
(`business.webhooks`).  So each is told at least once.  What cannot be told for long is kept in a list of the dead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from twisted.internet.interfaces import IReactorTime

from imserver import config
from imserver.config import WebhookEvent
from imserver.data.redis import Redis, pairs
from imserver.protocol.webhooks import EVENTS, Event

MOVED_MAX = 1000
"""Dead events that one call moves."""


class Queued(msgspec.Struct, frozen=True):
    """An event that is ours to be told for a while: its `attempt` (1 is the first), its body, since when (ms)."""

    entry: str
    attempt: int
    id: str
    event: str
    body: bytes
    ts: int


class Dead(msgspec.Struct, frozen=True):
    """An event that was given up: `cursor` is its place in the list, `error` the last failure, `ts` when it died."""

    cursor: str
    id: str
    event: str
    ts: int
    attempts: int
    error: str
    body: msgspec.Raw


class State(msgspec.Struct, frozen=True, kw_only=True):
    """How a channel's webhook fares: events waiting, those among them that failed before, and dead ones."""

    waiting: int
    retrying: int
    dead: int
    told_ts: int | None
    failed_ts: int | None
    error: str | None


class RedisWebhooks:
    """The events of all channels; every call may raise `interface.Unavailable`."""

    def __init__(self, redis: Redis, clock: IReactorTime, settings: config.Config) -> None:
        self.recorded: Callable[[str], None] = lambda channel: None
        """Called with the channel of what was just recorded here."""
        self._redis = redis
        self._clock = clock
        self._settings = settings.webhooks
        self._wanted: dict[str, frozenset[str]] = {
            name: frozenset(channel.webhook_events)
            for name, channel in settings.channels.items()
            if channel.webhook_url
        }

    def wants(self, channel: str, event: WebhookEvent) -> bool:
        """Whether anybody is to be told of such an event of this channel."""
        return event in self._wanted.get(channel, ())

    def wanted(self, channel: str) -> tuple[WebhookEvent, ...]:
        """All events that somebody is to be told of."""
        return tuple(event for event in EVENTS if self.wants(channel, event))

    async def record(self, channel: str, events: Sequence[Event]) -> None:
        """Keep events of a channel until they have been told."""
        if not events:
            return
        pieces = [piece for event in events for piece in (event.id, event.event, msgspec.json.encode(event))]
        limits = (self._settings.length, self._settings.dead_length)
        await self._redis.script("webhook_record", [_prefix(channel)], [self._now(), *limits, *pieces])
        self.recorded(channel)

    async def take(self, channel: str, limit: int, lease_s: float) -> list[Queued]:
        """At most `limit` events that are due; nobody else gets them for `lease_s`."""
        found = await self._redis.script("webhook_take", [_prefix(channel)], [self._now(), int(lease_s * 1000), limit])
        return [_queued(entry.decode(), attempt, pairs(fields)) for entry, attempt, fields in found]

    async def told(self, channel: str, entry: str) -> None:
        """The back office has it."""
        await self._settle(channel, entry, "told", "")

    async def failed(self, channel: str, entry: str, error: str, again_ts: int | None) -> None:
        """It does not; to be tried again at `again_ts` (ms), or not any more (None)."""
        await self._settle(channel, entry, "dead" if again_ts is None else str(again_ts), error)

    async def state(self, channel: str) -> State:
        """How it fares."""
        prefix = _prefix(channel)
        waiting = await self._redis.command("XLEN", f"{prefix}:events")
        retrying = await self._redis.command("HLEN", f"{prefix}:tries")
        dead = await self._redis.command("XLEN", f"{prefix}:dead")
        told, failed, error = await self._redis.command("HMGET", f"{prefix}:state", "told", "failed", "error")
        return State(
            waiting=waiting,
            retrying=retrying,
            dead=dead,
            told_ts=None if told is None else int(told),
            failed_ts=None if failed is None else int(failed),
            error=None if error is None else error.decode(),
        )

    async def dead(self, channel: str, after: str, limit: int) -> list[Dead]:
        """Events that were given up, in order, after a place in their list."""
        found = await self._redis.command("XRANGE", f"{_prefix(channel)}:dead", f"({after}", "+", "COUNT", limit)
        return [_dead(cursor.decode(), pairs(fields)) for cursor, fields in found]

    async def revive(self, channel: str, cursors: Sequence[str] | None) -> int:
        """Tell dead events after all: those at `cursors`, or (None) the MOVED_MAX oldest; how many there were."""
        return await self._move(channel, 1, cursors)

    async def forget(self, channel: str, cursors: Sequence[str] | None) -> int:
        """Drop dead events: those at `cursors`, or (None) the MOVED_MAX oldest; how many there were."""
        return await self._move(channel, 0, cursors)

    async def _move(self, channel: str, tell: int, cursors: Sequence[str] | None) -> int:
        if cursors is not None and not cursors:
            return 0
        moved: int = await self._redis.script(
            "webhook_revive", [_prefix(channel)], [self._now(), tell, MOVED_MAX, *(cursors or ())]
        )
        if tell and moved:
            self.recorded(channel)
        return moved

    async def _settle(self, channel: str, entry: str, outcome: str, error: str) -> None:
        await self._redis.script(
            "webhook_settle", [_prefix(channel)], [entry, self._now(), outcome, error, self._settings.dead_length]
        )

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)


def _prefix(channel: str) -> str:
    return f"im:{{w:{channel}}}"


def _queued(entry: str, attempt: int, fields: dict[bytes, bytes]) -> Queued:
    return Queued(
        entry, attempt, fields[b"id"].decode(), fields[b"event"].decode(), fields[b"body"], int(fields[b"ts"])
    )


def _dead(cursor: str, fields: dict[bytes, bytes]) -> Dead:
    return Dead(
        cursor,
        fields[b"id"].decode(),
        fields[b"event"].decode(),
        int(fields[b"died"]),
        int(fields[b"tries"]),
        fields[b"error"].decode(),
        msgspec.Raw(fields[b"body"]),
    )
