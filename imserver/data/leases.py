"""Which workers live: a key with a TTL for each, `im:worker:ID`, and a set of their names."""

from __future__ import annotations

import msgspec

from imserver.data.interface import Lease
from imserver.data.redis import Redis

WORKERS = "im:workers"
_decoder = msgspec.json.Decoder(Lease)


class LeaseTaken(Exception):
    """A later started worker has the same id: this one has to leave."""


def _key(worker: str) -> str:
    return f"im:worker:{worker}"


class RedisLeases:
    """`interface.Leases` on Redis."""

    def __init__(self, redis: Redis, ttl_s: float) -> None:
        self._redis = redis
        self._ttl_ms = int(ttl_s * 1000)

    async def renew(self, lease: Lease) -> bool:
        """Say that this worker lives; false if its lease was lost (or is new). `LeaseTaken` if a later one has it."""
        answer = await self._redis.script(
            "lease_renew",
            [_key(lease.id)],
            [msgspec.json.encode(lease), self._ttl_ms, lease.incarnation, lease.since_ts],
        )
        if answer == -1:
            raise LeaseTaken(f"another worker named {lease.id} was started later")
        await self._redis.command("SADD", WORKERS, lease.id)
        return bool(answer)

    async def release(self, lease: Lease) -> None:
        """Take the lease down, if it still is this incarnation's."""
        await self._redis.script("lease_release", [_key(lease.id)], [lease.incarnation])

    async def all(self) -> list[Lease]:
        """Every live worker; names without a lease are dropped on the way (a renewal adds its name again)."""
        names = sorted(name.decode() for name in await self._redis.command("SMEMBERS", WORKERS))
        found: list[Lease] = []
        for name in names:
            value = await self._redis.command("GET", _key(name))
            if value is None:
                await self._redis.command("SREM", WORKERS, name)
            else:
                found.append(_decoder.decode(value))
        return found
