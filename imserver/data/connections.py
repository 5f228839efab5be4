"""Where each uid is connected: one hash per uid, `im:{u:UID}:conns`, conn → record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.internet import defer

from imserver.data.interface import ConnectionRecord
from imserver.data.redis import Redis

RECORDS_TTL_S = 7 * 86400
"""Records of a uid outlive this only if its worker refreshes them, which it does once a day."""

_decoder = msgspec.json.Decoder(ConnectionRecord)


def connections_key(uid: str) -> str:
    """The key of a uid's connections; the inbox script reads it too."""
    return f"im:{{u:{uid}}}:conns"


def encode_record(record: ConnectionRecord) -> bytes:
    """A record as it is stored."""
    return msgspec.json.encode(record)


def decode_records(values: Sequence[bytes]) -> tuple[ConnectionRecord, ...]:
    """Stored records."""
    return tuple(_decoder.decode(value) for value in values)


class RedisConnections:
    """`interface.Connections` on Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def add(self, uid: str, record: ConnectionRecord) -> None:
        """Remember a connection; again is the same."""
        key = connections_key(uid)
        await self._redis.command("HSET", key, record.conn, encode_record(record))
        await self._redis.command("EXPIRE", key, RECORDS_TTL_S)

    async def remove(self, uid: str, conn: str) -> None:
        """Forget it; a conn id is unique, so nobody else's can be hit."""
        await self._redis.command("HDEL", connections_key(uid), conn)

    async def of(self, uid: str) -> tuple[ConnectionRecord, ...]:
        """All records, those of dead workers included."""
        return decode_records(await self._redis.command("HVALS", connections_key(uid)))

    async def of_many(self, uids: Sequence[str]) -> list[tuple[ConnectionRecord, ...]]:
        """The same for many, in order; sent together, so one round trip."""
        found: list[Any] = await defer.gatherResults(
            [defer.Deferred.fromCoroutine(self.of(uid)) for uid in uids], consumeErrors=True
        ).addErrback(_first_error)
        return found


def _first_error(failure: Any) -> Any:
    failure.trap(defer.FirstError)
    return failure.value.subFailure
