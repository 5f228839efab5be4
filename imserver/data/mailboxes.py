"""A worker's mailbox: which uids have something new in their inbox, when the worker could not be called.

A bounded stream per incarnation.  Its entries are hints: the message itself is in the inbox.
"""

from __future__ import annotations

from imserver.data.redis import Redis

LENGTH = 10000
TTL_S = 120


def _key(incarnation: str) -> str:
    return f"im:mail:{incarnation}"


class RedisMailboxes:
    """Mailboxes on Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def put(self, incarnation: str, uid: str, cursor: str) -> None:
        """Tell a worker that this uid's inbox goes up to `cursor` now."""
        key = _key(incarnation)
        await self._redis.command("XADD", key, "MAXLEN", "~", LENGTH, "*", "uid", uid, "cursor", cursor)
        await self._redis.command("EXPIRE", key, TTL_S)

    async def take(self, incarnation: str, after: str, wait_s: float) -> list[tuple[str, str, str]]:
        """(position, uid, cursor) of what came after a position, waiting for the first at most `wait_s` seconds."""
        answer = await self._redis.blocking(
            *("XREAD", "COUNT", 1000, "BLOCK", int(wait_s * 1000), "STREAMS", _key(incarnation), after),
            timeout_s=wait_s + self._redis.settings.command_timeout_s,
        )
        if not answer:
            return []
        return [(position.decode(), fields[1].decode(), fields[3].decode()) for position, fields in answer[0][1]]
