"""Lists of conversations, newest first, and what users show each other about themselves.

Each user has, per channel, a sorted set of conversations by the time of their last message, each shop too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import ujson
from msgspec import Raw

from imserver.business.assignment import Standing, State
from imserver.business.conversations import Conversations, Place, Summary
from imserver.business.history import fitting
from imserver.business.shops import Desk, Shops
from imserver.data.redis import Redis
from imserver.ops.background import together

INFO_TTL_S = 180 * 86400
_KNOWN_MAX = 10000
Result = TypeVar("Result")


class Other(msgspec.Struct, frozen=True):
    """The other side of a conversation; `info` is what its token says about it, empty if it said nothing yet."""

    uid: str
    info: dict[str, Any]


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation in a list (contract: op `conversations`)."""

    conversation: str
    channel: str
    shop: str
    customer: str
    agent: str | None
    other: Other = msgspec.field(name="with")
    state: State
    last: Raw | None
    unread: int
    ts: int
    position: int | msgspec.UnsetType = msgspec.UNSET


class Lists:
    """Who has which conversations."""

    def __init__(self, redis: Redis, conversations: Conversations, shops: Shops) -> None:
        self._redis = redis
        self._conversations = conversations
        self._shops = shops
        self._known: dict[tuple[str, str], str] = {}

    async def touch(self, place: Place, uids: Sequence[str], ts: int) -> None:
        """The conversation has a message of `ts`: up it goes in these users' lists and the shop's."""
        keys = [_key(uid, place.channel) for uid in uids if uid]
        keys.append(_shop_key(Desk(place.channel, place.shop)))
        await together([self._redis.command("ZADD", key, "GT", ts, place.id) for key in keys])

    async def drop(self, place: Place, uid: str) -> None:
        """Take the conversation from the list of an agent who lost it."""
        await self._redis.command("ZREM", _key(uid, place.channel), place.id)

    async def of_user(
        self, uid: str, channels: Sequence[str], before: int | None, limit: int, state: State | None, shop: str | None
    ) -> tuple[list[Listed], bool]:
        """A page of a user's conversations, and whether there are more."""
        return await self._page([_key(uid, channel) for channel in channels], uid, before, limit, state, shop)

    async def of_shop(
        self, desks: Sequence[Desk], viewer: str, before: int | None, limit: int, state: State | None
    ) -> tuple[list[Listed], bool]:
        """A page of a shop's conversations, in one channel or several, as `viewer` sees them (empty: as the agent of
        each)."""
        return await self._page([_shop_key(desk) for desk in desks], viewer, before, limit, state, None)

    async def remember(self, uid: str, channel: str, info: dict[str, Any]) -> None:
        """What a user's token says about it, to be shown to the other side."""
        text = ujson.dumps(info)
        if self._known.get((uid, channel)) == text:
            return
        await self._redis.command("HSET", _info_key(uid), channel, text)
        await self._redis.command("EXPIRE", _info_key(uid), INFO_TTL_S)
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        self._known[uid, channel] = text

    async def _page(
        self, keys: Sequence[str], viewer: str, before: int | None, limit: int, state: State | None, shop: str | None
    ) -> tuple[list[Listed], bool]:
        found: list[Listed] = []
        offset, size = 0, limit + 1
        while True:
            window = await self._window(keys, before, offset + size)
            rows = window[offset:]
            listed = await together([self._listed(id, viewer, ts) for id, ts in rows])
            found += [
                item
                for item in listed
                if item is not None and state in (None, item.state) and shop in (None, item.shop)
            ]
            if len(rows) < size or (len(found) > limit and found[0].ts != found[-1].ts):
                break
            offset, size = offset + size, 200
        return cut(found, min(limit, fitting([item.last or Raw(b"") for item in found[: limit + 1]])))

    async def _window(self, keys: Sequence[str], before: int | None, size: int) -> list[tuple[str, int]]:
        top = "+inf" if before is None else f"({before}"
        pages = await together(
            [self._redis.command("ZREVRANGEBYSCORE", key, top, "-inf", "WITHSCORES", "LIMIT", 0, size) for key in keys]
        )
        rows = [
            (id.decode(), int(float(score))) for page in pages for id, score in zip(page[::2], page[1::2], strict=True)
        ]
        # as Redis orders those of one time, or the next window would not begin where this one ended
        return sorted(rows, key=lambda row: (row[1], row[0]), reverse=True)[:size]

    async def _listed(self, id: str, viewer: str, ts: int) -> Listed | None:
        place = await self._conversations.find(id)
        if place is None:
            return None
        standing = await self._shops.look(Desk(place.channel, place.shop), id)
        uid = viewer or standing.agent or place.shop
        summary: Summary | None = await self._conversations.summary(id, uid)
        if summary is None:
            return None
        other = place.customer if uid != place.customer else standing.agent or place.shop
        return Listed(
            conversation=id,
            channel=place.channel,
            shop=place.shop,
            customer=place.customer,
            agent=standing.agent or None,
            other=Other(other, await self._info(other, place.channel)),
            state=standing.state,
            last=summary.last,
            unread=summary.unread,
            ts=ts,
            position=standing.position or msgspec.UNSET,
        )

    async def _info(self, uid: str, channel: str) -> dict[str, Any]:
        text = await self._redis.command("HGET", _info_key(uid), channel)
        return ujson.loads(text) if text else {}


def cut(found: list[Listed], limit: int) -> tuple[list[Listed], bool]:
    """The first `limit`, and whether there are more.

    Who goes on asks for what is before the last `ts`: so those of one `ts` are not parted, and if they alone are more
    than `limit`, they are a page all the same.
    """
    if len(found) <= limit:
        return found, False
    edge = found[limit].ts
    page = [item for item in found[:limit] if item.ts != edge] or [item for item in found if item.ts == edge]
    return page, len(page) < len(found)


def state_frame(conversation: str, standing: Standing, ts: int) -> Raw:
    """The `state` frame without its op."""
    frame: dict[str, Any] = {
        "conversation": conversation,
        "state": standing.state,
        "agent": standing.agent or None,
        "ts": ts,
    }
    if standing.state == "waiting":
        frame["position"] = standing.position
    return Raw(msgspec.json.encode(frame))


def _key(uid: str, channel: str) -> str:
    return f"im:{{u:{uid}}}:convs:{channel}"


def _shop_key(desk: Desk) -> str:
    return f"{desk.prefix}:convs"


def _info_key(uid: str) -> str:
    return f"im:{{u:{uid}}}:info"
