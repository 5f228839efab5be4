"""Who is an agent: one small hash per uid, `im:{u:UID}:shop`, channel → shop, kept by the business server."""

from __future__ import annotations

from imserver.data.redis import Redis


def shops_key(uid: str) -> str:
    """The key of the shops that a uid is an agent of."""
    return f"im:{{u:{uid}}}:shop"


class RedisAgents:
    """Agents on Redis, as others than the business server see them."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def is_agent(self, channel: str, uid: str) -> bool:
        """Whether this uid is an agent in this channel."""
        return bool(await self._redis.command("HEXISTS", shops_key(uid), channel))
