"""The data layer in memory: the honest twin of the Redis one, which passes the same tests.

For tests of the rules and shells above it, and for whoever wants to read what the Lua scripts do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IReactorTime

from imserver import config
from imserver.data.inbox import DEVICES_MAX
from imserver.data.interface import Acknowledged, ConnectionRecord, Entry, Lease, Position, Stored
from imserver.data.leases import LeaseTaken
from imserver.protocol.deliveries import Delivery, decode_head, encode_head
from imserver.protocol.syntax import START, position


class MemoryConnections:
    """`interface.Connections` in a dictionary."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, ConnectionRecord]] = {}

    async def add(self, uid: str, record: ConnectionRecord) -> None:
        """Remember a connection."""
        self.records.setdefault(uid, {})[record.conn] = record

    async def remove(self, uid: str, conn: str) -> None:
        """Forget it."""
        self.records.get(uid, {}).pop(conn, None)

    async def of(self, uid: str) -> tuple[ConnectionRecord, ...]:
        """All records of a uid."""
        return tuple(self.records.get(uid, {}).values())

    async def of_many(self, uids: Sequence[str]) -> list[tuple[ConnectionRecord, ...]]:
        """The same for many."""
        return [await self.of(uid) for uid in uids]


class MemoryLeases:
    """`interface.Leases` with a clock for the TTL."""

    def __init__(self, clock: IReactorTime, ttl_s: float) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._leases: dict[str, tuple[float, Lease]] = {}

    def _live(self, worker: str) -> Lease | None:
        until, lease = self._leases.get(worker, (0.0, None))
        return lease if until > self._clock.seconds() else None

    async def renew(self, lease: Lease) -> bool:
        """Say that this worker lives."""
        known = self._live(lease.id)
        if known is not None and known.incarnation != lease.incarnation and known.since_ts > lease.since_ts:
            raise LeaseTaken(f"another worker named {lease.id} was started later")
        self._leases[lease.id] = (self._clock.seconds() + self._ttl_s, lease)
        return known is not None and known.incarnation == lease.incarnation

    async def release(self, lease: Lease) -> None:
        """Take the lease down if it is this incarnation's."""
        known = self._live(lease.id)
        if known is not None and known.incarnation == lease.incarnation:
            del self._leases[lease.id]

    async def all(self) -> list[Lease]:
        """Every live worker."""
        return [lease for name in sorted(self._leases) if (lease := self._live(name)) is not None]


class MemoryInboxes:
    """`interface.Inboxes` in lists; what expires does so when it is next looked at."""

    def __init__(self, clock: IReactorTime, settings: config.Delivery, connections: MemoryConnections) -> None:
        self._clock = clock
        self._settings = settings
        self._connections = connections
        self._entries: dict[str, list[Entry]] = {}
        self._until: dict[str, float] = {}
        self._newest: dict[str, str] = {}
        self._seen: dict[tuple[str, str], tuple[float, str, str]] = {}
        self._cursors: dict[tuple[str, str], dict[str, str]] = {}

    def _stream(self, uid: str) -> list[Entry]:
        if self._until.get(uid, 0.0) <= self._clock.seconds():
            self._entries[uid] = []
        return self._entries[uid]

    async def append(self, delivery: Delivery) -> Stored:
        """Store once and look up the connections."""
        uid, now = delivery.to, self._clock.seconds()
        records = await self._connections.of(uid)
        until, cursor, prev = self._seen.get((uid, delivery.id), (0.0, "", ""))
        if delivery.once and until > now:
            return Stored(cursor, prev, True, records)
        stream = self._stream(uid)
        prev = stream[-1].cursor if stream else START
        cursor = self._next_cursor(uid, int(now * 1000))
        stream.append(Entry(cursor, prev, encode_head(delivery.head), bytes(delivery.frame).lstrip()[1:]))
        del stream[: -self._settings.inbox_length]
        self._until[uid] = now + self._settings.inbox_ttl_s
        if delivery.once:
            self._seen[uid, delivery.id] = (now + self._settings.cid_ttl_s, cursor, prev)
        return Stored(cursor, prev, False, records)

    def _next_cursor(self, uid: str, ms: int) -> str:
        last_ms, last_seq = position(self._newest.get(uid, START))
        cursor = f"{ms}-0" if ms > last_ms else f"{last_ms}-{last_seq + 1}"
        self._newest[uid] = cursor
        return cursor

    async def read(self, uid: str, after: str, limit: int) -> list[Entry]:
        """At most `limit` entries after a cursor."""
        return [entry for entry in self._stream(uid) if position(entry.cursor) > position(after)][:limit]

    async def resume(self, uid: str, device: str, since: str | None, channels: Sequence[str]) -> Position:
        """Where this device goes on."""
        stream = self._stream(uid)
        last = stream[-1].cursor if stream else START
        if since == "$":
            return Position(last, last, True)
        known = [self._cursors.get((uid, channel), {}).get(device, START) for channel in channels]
        cursor = since or min(known, key=position)
        if position(cursor) > position(last):
            return Position(last, last, False)
        following = next((entry for entry in stream if position(entry.cursor) > position(cursor)), None)
        if following is None:
            return Position(cursor, last, True)
        whole = position(following.prev) <= position(cursor)
        if whole and following.prev == START and cursor != START:
            whole = self._clock.seconds() * 1000 - position(cursor)[0] < self._settings.inbox_ttl_s * 1000
        return Position(cursor, last, whole)

    async def acknowledge(self, acks: Sequence[Acknowledged]) -> None:
        """Move each device's cursors forward, never back."""
        for ack in acks:
            for channel in ack.channels:
                known = self._cursors.setdefault((ack.uid, channel), {})
                if position(ack.cursor) > position(known.get(ack.device, START)):
                    known[ack.device] = ack.cursor
                while len(known) > DEVICES_MAX:
                    del known[min(known, key=lambda name: position(known[name]))]

    async def length(self, uid: str, channel: str | None = None) -> tuple[int, str | None]:
        """How many messages are kept (of one channel, if it is given), and the last cursor."""
        stream = [e for e in self._stream(uid) if channel is None or decode_head(e.head).channel == channel]
        return len(stream), stream[-1].cursor if stream else None


class MemoryEvents:
    """`interface.Events` by direct calls."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[dict[str, Any]], None]] = []

    async def announce(self, event: dict[str, Any]) -> None:
        """Tell every listener."""
        for hear in self._listeners:
            hear(event)

    def subscribe(self, hear: Callable[[dict[str, Any]], None]) -> None:
        """Call `hear` with every event from now on."""
        self._listeners.append(hear)
