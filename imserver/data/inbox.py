"""The inbox of each uid: a bounded stream, `im:{u:UID}:inbox`, and what each device acknowledged.

A device has a cursor in each channel, `CHANNEL/DEVICE` in the hash `im:{u:UID}:cursors`: what it does with a token of
one channel must not hide messages of another from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from imserver import config
from imserver.data.connections import connections_key, decode_records
from imserver.data.interface import Acknowledged, Entry, Position, Stored
from imserver.data.redis import Redis
from imserver.protocol.deliveries import Delivery, encode_head

DEVICES_MAX = 100
"""Devices of one uid whose cursors are kept, in each channel; a device's name is the client's own choice."""


def inbox_key(uid: str) -> str:
    """The stream of a uid's messages."""
    return f"im:{{u:{uid}}}:inbox"


class RedisInboxes:
    """`interface.Inboxes` on Redis."""

    def __init__(self, redis: Redis, clock: IReactorTime, settings: config.Delivery) -> None:
        self._redis = redis
        self._clock = clock
        self._settings = settings

    async def append(self, delivery: Delivery) -> Stored:
        """Store once (per delivery.id if delivery.once) and look up the live connections, in one atomic step."""
        uid = delivery.to
        cursor, prev, duplicate, records = await self._redis.script(
            "inbox_append",
            [inbox_key(uid), connections_key(uid), f"im:{{u:{uid}}}:seen:{delivery.id}"],
            [
                encode_head(delivery.head),
                bytes(delivery.frame).lstrip()[1:],
                self._settings.inbox_length,
                self._settings.inbox_ttl_s,
                self._settings.cid_ttl_s if delivery.once else 0,
            ],
        )
        return Stored(cursor.decode(), prev.decode(), bool(duplicate), decode_records(records))

    async def read(self, uid: str, after: str, limit: int) -> list[Entry]:
        """At most `limit` entries after a cursor, in order."""
        rows = await self._redis.command("XRANGE", inbox_key(uid), f"({after}", "+", "COUNT", limit)
        return [_entry(cursor, fields) for cursor, fields in rows]

    async def resume(self, uid: str, device: str, since: str | None, channels: Sequence[str]) -> Position:
        """Where this device goes on: after `since`, after all (`$`), or after what it acknowledged (None)."""
        cursor, last, whole = await self._redis.script(
            "inbox_resume",
            [inbox_key(uid), _cursors_key(uid)],
            [
                *(since or "", int(self._clock.seconds() * 1000), self._settings.inbox_ttl_s * 1000),
                *(_field(channel, device) for channel in channels),
            ],
        )
        return Position(cursor.decode(), last.decode(), bool(whole))

    async def acknowledge(self, acks: Sequence[Acknowledged]) -> None:
        """Move each device's cursors forward, never back; one call per uid, all at once."""
        by_uid: dict[str, list[str]] = {}
        for ack in acks:
            for channel in ack.channels:
                by_uid.setdefault(ack.uid, []).extend((_field(channel, ack.device), ack.cursor))
        calls = [
            Deferred.fromCoroutine(
                self._redis.script(
                    "inbox_acknowledge", [_cursors_key(uid)], [self._settings.cursors_ttl_s, DEVICES_MAX, *pairs]
                )
            )
            for uid, pairs in by_uid.items()
        ]
        results: list[Any] = await defer.DeferredList(calls, consumeErrors=True)
        for succeeded, value in results:
            if not succeeded:
                value.raiseException()

    async def length(self, uid: str, channel: str | None = None) -> tuple[int, str | None]:
        """How many messages are kept (of one channel, if it is given), and the last cursor."""
        if channel is not None:
            count, last = await self._redis.script("inbox_length", [inbox_key(uid)], [channel])
            return count, last.decode() if last else None
        count = await self._redis.command("XLEN", inbox_key(uid))
        newest = await self._redis.command("XREVRANGE", inbox_key(uid), "+", "-", "COUNT", 1)
        return count, newest[0][0].decode() if newest else None


def _cursors_key(uid: str) -> str:
    return f"im:{{u:{uid}}}:cursors"


def _field(channel: str, device: str) -> str:
    return f"{channel}/{device}"


def _entry(cursor: bytes, fields: list[bytes]) -> Entry:
    by_name = dict(zip(fields[::2], fields[1::2], strict=True))
    return Entry(cursor.decode(), by_name[b"p"].decode(), by_name[b"h"], by_name[b"t"])
