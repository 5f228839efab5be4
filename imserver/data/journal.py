"""The journal of a channel whose uplink is `journal`: a bounded stream, `im:{j:CHANNEL}`, for a back office to read."""

from __future__ import annotations

from typing import Protocol

import msgspec
from msgspec import Raw, field
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from imserver.data.redis import Redis
from imserver.protocol.syntax import position

READ_BYTES_MAX = 8 << 20
"""A read ends once it has so many bytes of bodies, however many entries were asked for."""

_PAGE = 100
_BODY = 9  # where the body is among an entry's fields and values


class JournalEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a client; `cursor` is its place, empty until it has one."""

    cursor: str = ""
    id: str
    from_: str = field(name="from")
    device: str
    type: str
    body: Raw
    ts: int


class Journal(Protocol):
    """Every call may raise `Unavailable`."""

    async def append(self, channel: str, entry: JournalEntry, *, length: int, remember_s: int) -> tuple[str, bool]:
        """Append once; its cursor and whether it was there already.

        The channel keeps its `length` newest entries.  `remember_s` is how long the id of a
        message with a `cid` is remembered, 0 for one without.
        """

    async def read(self, channel: str, after: str, limit: int, wait_s: float = 0.0) -> list[JournalEntry]:
        """At most `limit` entries after a cursor, in order; if there are none waits for the first, `wait_s` at most."""


class RedisJournal:
    """`Journal` on Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def append(self, channel: str, entry: JournalEntry, *, length: int, remember_s: int) -> tuple[str, bool]:
        """Append once."""
        cursor, duplicate = await self._redis.script(
            "journal_append",
            [_key(channel), f"{_key(channel)}:seen:{entry.id}"],
            [
                *(length, remember_s, "id", entry.id, "from", entry.from_, "device", entry.device),
                *("type", entry.type, "body", bytes(entry.body), "ts", entry.ts),  # see _BODY
            ],
        )
        return cursor.decode(), bool(duplicate)

    async def read(self, channel: str, after: str, limit: int, wait_s: float = 0.0) -> list[JournalEntry]:
        """Entries after a cursor; a connection of its own is taken only if it has to be waited for them."""
        found = await self._stored(channel, after, limit)
        if not found and wait_s > 0:
            await self._redis.blocking(
                *("XREAD", "COUNT", 1, "BLOCK", max(1, int(wait_s * 1000)), "STREAMS", _key(channel), after),
                timeout_s=wait_s + self._redis.settings.command_timeout_s,
            )
            found = await self._stored(channel, after, limit)
        return found

    async def _stored(self, channel: str, after: str, limit: int) -> list[JournalEntry]:
        found: list[JournalEntry] = []
        size = 0
        while len(found) < limit and size < READ_BYTES_MAX:
            start = f"({found[-1].cursor if found else after}"
            wanted = min(_PAGE, limit - len(found))
            rows = await self._redis.command("XRANGE", _key(channel), start, "+", "COUNT", wanted)
            found += (_entry(cursor, fields) for cursor, fields in rows)
            size += sum(len(fields[_BODY]) for _, fields in rows)
            if len(rows) < wanted:
                break
        return found


class MemoryJournal:
    """`Journal` in lists, the twin that passes the same tests."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._entries: dict[str, list[JournalEntry]] = {}
        self._newest: dict[str, str] = {}
        self._seen: dict[tuple[str, str], tuple[float, str]] = {}
        self._waiting: list[Deferred[None]] = []

    async def append(self, channel: str, entry: JournalEntry, *, length: int, remember_s: int) -> tuple[str, bool]:
        """Append once."""
        now = self._clock.seconds()
        until, cursor = self._seen.get((channel, entry.id), (0.0, ""))
        if remember_s and until > now:
            return cursor, True
        ms, seq = position(self._newest.get(channel, "0-0"))
        cursor = f"{int(now * 1000)}-0" if now * 1000 >= ms + 1 else f"{ms}-{seq + 1}"
        self._newest[channel] = cursor
        stream = self._entries.setdefault(channel, [])
        stream.append(msgspec.structs.replace(entry, cursor=cursor))
        del stream[:-length]
        if remember_s:
            self._seen[channel, entry.id] = (now + remember_s, cursor)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)
        return cursor, False

    async def read(self, channel: str, after: str, limit: int, wait_s: float = 0.0) -> list[JournalEntry]:
        """Entries after a cursor."""
        deadline = self._clock.seconds() + wait_s
        while True:
            found = [e for e in self._entries.get(channel, []) if position(e.cursor) > position(after)]
            left = deadline - self._clock.seconds()
            if found or left <= 0:
                return found[:limit]
            waiter: Deferred[None] = Deferred()
            self._waiting.append(waiter)
            try:
                await waiter.addTimeout(left, self._clock)
            except defer.TimeoutError:
                return []
            finally:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)


def _key(channel: str) -> str:
    return f"im:{{j:{channel}}}"


def _entry(cursor: bytes, fields: list[bytes]) -> JournalEntry:
    by_name = dict(zip(fields[::2], fields[1::2], strict=True))
    return JournalEntry(
        cursor=cursor.decode(),
        id=by_name[b"id"].decode(),
        from_=by_name[b"from"].decode(),
        device=by_name[b"device"].decode(),
        type=by_name[b"type"].decode(),
        body=Raw(by_name[b"body"]),
        ts=int(by_name[b"ts"]),
    )
