"""Who may not connect: bans set by backends, and suspensions of those who try too often (design: Other parts).

A ban belongs to the channel whose key set it, `im:{b:KIND:VALUE}`, a hash of channel → entry: it refuses connections
whose token covers that channel and no others, since nothing of one channel may be felt in another.  A suspension
protects the servers themselves, so it belongs to no channel: `im:{b:KIND:VALUE}:attempts` and `...:suspension`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

import msgspec
from twisted.internet import defer
from twisted.internet.defer import Deferred

from imserver import config
from imserver.data.redis import Redis

Kind = Literal["uid", "ip"]


class Ban(msgspec.Struct, frozen=True):
    """Why a uid or an address may not connect in a channel; `until_ts` None is for good."""

    kind: Kind
    value: str
    channel: str
    until_ts: int | None = None
    reason: str = ""

    def holds(self, now_ms: int) -> bool:
        """Whether it is still in force."""
        return self.until_ts is None or self.until_ts > now_ms


class Bans(Protocol):
    """What the servers need; times are milliseconds since the epoch. Every call may raise `Unavailable`."""

    async def put(self, ban: Ban, now_ms: int) -> None:
        """Set it, in place of what the same channel said of the same value before."""

    async def get(self, channel: str, kind: Kind, value: str, now_ms: int) -> Ban | None:
        """The ban in force, None if there is none."""

    async def take(self, channel: str, kind: Kind, value: str, now_ms: int) -> Ban | None:
        """Lift it; what it was, None if there was none."""

    async def check(self, uid: str, ip: str, channels: Sequence[str], now_ms: int) -> Ban | None:
        """The ban that keeps this uid or address out of one of these channels, the longest if there are several."""

    async def attempt(self, uid: str, ip: str, now_ms: int) -> int | None:
        """Count an attempt to connect; until when (ms) it is suspended, None if it may go on."""


def normal_address(text: str) -> str:
    """An IP address in its one normal form (IPv4 mapped into IPv6 is IPv4); `ValueError` if it is none."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise ValueError("an address with a scope means something on one machine only")
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
    return str(address)


def _subjects(uid: str, ip: str) -> list[tuple[Kind, str]]:
    try:
        return [("uid", uid), ("ip", normal_address(ip))]
    except ValueError:  # a UNIX socket, or a link-local address
        return [("uid", uid)]


def _longest(bans: Iterable[Ban], now_ms: int) -> Ban | None:
    return max(
        (ban for ban in bans if ban.holds(now_ms)),
        key=lambda ban: (ban.until_ts is None, ban.until_ts or 0),
        default=None,
    )


def _key(kind: str, value: str) -> str:
    return f"im:{{b:{kind}:{value}}}"


_decoder = msgspec.json.Decoder(Ban)


class RedisBans:
    """`Bans` on Redis."""

    def __init__(self, redis: Redis, settings: config.Suspension) -> None:
        self._redis = redis
        self._settings = settings

    async def put(self, ban: Ban, now_ms: int) -> None:
        """Set it; the key goes when nothing in it holds any more."""
        await self._redis.script(
            "ban_put", [_key(ban.kind, ban.value)], [ban.channel, msgspec.json.encode(ban), now_ms]
        )

    async def get(self, channel: str, kind: Kind, value: str, now_ms: int) -> Ban | None:
        """The ban in force."""
        return _in_force(await self._redis.command("HGET", _key(kind, value), channel), now_ms)

    async def take(self, channel: str, kind: Kind, value: str, now_ms: int) -> Ban | None:
        """Lift it."""
        return _in_force(await self._redis.script("ban_take", [_key(kind, value)], [channel]), now_ms)

    async def check(self, uid: str, ip: str, channels: Sequence[str], now_ms: int) -> Ban | None:
        """The longest ban in one of these channels; both look-ups go out together, so one round trip."""
        subjects = _subjects(uid, ip)
        found = await _together([self._redis.command("HMGET", _key(*subject), *channels) for subject in subjects])
        return _longest((_decoder.decode(value) for values in found for value in values if value is not None), now_ms)

    async def attempt(self, uid: str, ip: str, now_ms: int) -> int | None:
        """Count an attempt, of the uid and of the address, each with its own limit."""
        limits = _limits(self._settings)
        window, suspend, most = _spans_ms(self._settings)
        ends = await _together(
            [
                self._redis.script(
                    "ban_attempt",
                    [f"{_key(kind, value)}:attempts", f"{_key(kind, value)}:suspension"],
                    [now_ms, limits[kind], window, suspend, most],
                )
                for kind, value in _subjects(uid, ip)
                if limits[kind]
            ]
        )
        return max(ends, default=0) or None


class MemoryBans:
    """`Bans` in dictionaries, the twin that passes the same tests."""

    def __init__(self, settings: config.Suspension) -> None:
        self._settings = settings
        self._bans: dict[tuple[str, str, str], Ban] = {}
        self._attempts: dict[tuple[str, str], tuple[int, int]] = {}
        self._suspended: dict[tuple[str, str], tuple[int, int]] = {}

    async def put(self, ban: Ban, now_ms: int) -> None:
        """Set it."""
        self._bans[ban.channel, ban.kind, ban.value] = ban

    async def get(self, channel: str, kind: Kind, value: str, now_ms: int) -> Ban | None:
        """The ban in force."""
        ban = self._bans.get((channel, kind, value))
        return ban if ban is not None and ban.holds(now_ms) else None

    async def take(self, channel: str, kind: Kind, value: str, now_ms: int) -> Ban | None:
        """Lift it."""
        ban = self._bans.pop((channel, kind, value), None)
        return ban if ban is not None and ban.holds(now_ms) else None

    async def check(self, uid: str, ip: str, channels: Sequence[str], now_ms: int) -> Ban | None:
        """The longest ban in one of these channels."""
        wanted = [(channel, *subject) for channel in channels for subject in _subjects(uid, ip)]
        return _longest((self._bans[key] for key in wanted if key in self._bans), now_ms)

    async def attempt(self, uid: str, ip: str, now_ms: int) -> int | None:
        """Count an attempt."""
        limits = _limits(self._settings)
        ends = [
            self._count(subject, limits[subject[0]], now_ms) for subject in _subjects(uid, ip) if limits[subject[0]]
        ]
        return max(ends, default=0) or None

    def _count(self, subject: tuple[str, str], limit: int, now: int) -> int:
        window, suspend, most = _spans_ms(self._settings)
        since, ends = self._suspended.get(subject, (now, now))
        if ends <= now:
            count, over = self._attempts.get(subject, (0, 0))
            count, over = (count + 1, over) if over > now else (1, now + window)
            self._attempts[subject] = (count, over)
            if count <= limit:
                return 0
            del self._attempts[subject]
            since = ends = now
        self._suspended[subject] = (since, min(ends + suspend, since + most))
        return self._suspended[subject][1]


def _in_force(value: bytes | None, now_ms: int) -> Ban | None:
    return _longest([_decoder.decode(value)] if value is not None else [], now_ms)


def _limits(settings: config.Suspension) -> dict[Kind, int]:
    return {"uid": settings.attempts, "ip": settings.ip_attempts}


def _spans_ms(settings: config.Suspension) -> tuple[int, int, int]:
    return settings.window_s * 1000, settings.suspend_s * 1000, settings.suspend_max_s * 1000


async def _together(calls: list[Any]) -> list[Any]:
    results = await defer.DeferredList([Deferred.fromCoroutine(call) for call in calls], consumeErrors=True)
    for succeeded, value in results:
        if not succeeded:
            value.raiseException()
    return [value for _, value in results]
