"""The desks of all shops, in Redis: `im:{s:CHANNEL/SHOP}:...`, and which shop an agent belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import msgspec
from msgspec import UNSET
from twisted.internet.defer import DeferredLock
from twisted.internet.interfaces import IReactorTime

from imserver import config
from imserver.business.assignment import AgentSettings, Outcome, Standing, State, Status, outcome, standing
from imserver.business.presence import Presence
from imserver.data.agents import shops_key
from imserver.data.redis import Argument, Redis, pairs
from imserver.data.webhooks import RedisWebhooks
from imserver.protocol.webhooks import Event, event_id

OPEN = "im:shops:open"
"""Desks with somebody assigned or waiting, as `CHANNEL/SHOP`: those that the sweeper looks at."""


_EVENTS_AT_ONCE = 200


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """An agent as the API shows it (contract: `GET /v1/shops/{shop}/agents`)."""

    uid: str
    shop: str
    capacity: int
    skills: tuple[str, ...]
    status: Status
    load: int
    online: bool


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A customer in the queue."""

    uid: str
    conversation: str
    since_ts: int
    position: int


class Desk(msgspec.Struct, frozen=True):
    """One shop of one channel."""

    channel: str
    shop: str

    @property
    def name(self) -> str:
        """How `OPEN` lists it."""
        return f"{self.channel}/{self.shop}"

    @property
    def prefix(self) -> str:
        """What its keys begin with."""
        return f"im:{{s:{self.channel}/{self.shop}}}"


class Shops:
    """Operations on desks: each looks up who is online and then runs one script."""

    def __init__(
        self,
        redis: Redis,
        presence: Presence,
        webhooks: RedisWebhooks,
        settings: config.Assignment,
        clock: IReactorTime,
    ) -> None:
        self._redis = redis
        self._presence = presence
        self._webhooks = webhooks
        self._settings = settings
        self._clock = clock
        self._passing = DeferredLock()

    async def shop_of(self, channel: str, uid: str) -> str | None:
        """The shop of an agent, None if it is none."""
        found = await self._redis.command("HGET", shops_key(uid), channel)
        return None if found is None else found.decode()

    async def shops_of(self, uid: str) -> list[Desk]:
        """The desks of an agent in all channels."""
        found = await self._redis.command("HGETALL", shops_key(uid))
        return [Desk(channel.decode(), shop.decode()) for channel, shop in zip(found[::2], found[1::2], strict=True)]

    async def exists(self, desk: Desk) -> bool:
        """Whether any agent was ever named for it."""
        return bool(await self._redis.command("EXISTS", f"{desk.prefix}:agents"))

    async def look(self, desk: Desk, conversation: str, side: str = "") -> Standing:
        """Where a conversation stands; `side` is who writes now (for the time to answer)."""
        return standing(await self._script("look", desk, conversation, "", side))

    async def start(
        self, desk: Desk, conversation: str, customer: str, *, skill: str = "", agent: str = "", side: str = ""
    ) -> Outcome:
        """Open a conversation that is not open: for `agent`, or for whoever is free, or to wait.

        Results: `ok`, `no_agent`, `full` (that agent), `crowded` (the queue).
        """
        online = "" if agent else await self._online(desk)
        await self._redis.command("SADD", OPEN, desk.name)  # before: if we die in between, the sweeper looks at it
        given = await self._operate(
            "start", desk, conversation, online, customer, skill, self._settings.queue_max, agent, side
        )
        found = given.standing_of(conversation)
        if found is not None and found.state == "waiting":
            # an agent who came online between the look-up and the queueing would not have been seen by either
            again = await self.serve(desk)
            return Outcome(given.result, given.agent, given.changes + again.changes)
        return given

    async def close(self, desk: Desk, conversation: str, agent: str | None) -> Outcome:
        """Close it, if `agent` has it (`''`: it waits; None: whoever has it). Results: `ok`, `other`."""
        return await self._operate(
            "close", desk, conversation, await self._online(desk), "-" if agent is None else agent
        )

    async def transfer(self, desk: Desk, conversation: str, holder: str | None, agent: str) -> Outcome:
        """Give it to `agent`. Results: `ok`, `same`, `closed`, `other`, `stranger`, `offline`, `full`."""
        return await self._operate(
            "transfer", desk, conversation, await self._online(desk), "-" if holder is None else holder, agent
        )

    async def serve(self, desk: Desk) -> Outcome:
        """Give waiting customers to whoever is free."""
        return await self._operate("serve", desk, "", await self._online(desk))

    async def sweep(self, desk: Desk) -> Outcome:
        """`serve`, after taking customers from agents who are gone or do not answer."""
        given = await self._operate(
            *("sweep", desk, "", await self._online(desk)),
            *(int(self._settings.offline_grace_s * 1000), self._settings.answer_timeout_s * 1000),
        )
        if given.agent == "0":
            await self._redis.command("SREM", OPEN, desk.name)
            if await self._redis.command("HLEN", f"{desk.prefix}:since"):  # one started meanwhile
                await self._redis.command("SADD", OPEN, desk.name)
        return given

    async def settled(self, desk: Desk, conversation: str, epoch: int) -> None:
        """What follows from a change of agent has been done."""
        await self._script("settled", desk, conversation, "", epoch)

    async def unsettled(self, desk: Desk) -> list[str]:
        """Conversations for which it has not."""
        return [name.decode() for name in await self._redis.command("HKEYS", f"{desk.prefix}:unsettled")]

    async def open_desks(self) -> list[Desk]:
        """Desks with somebody assigned or waiting."""
        names = await self._redis.command("SMEMBERS", OPEN)
        return [Desk(*name.decode().split("/", 1)) for name in names]

    async def settings_of(self, desk: Desk, uid: str) -> AgentSettings | None:
        """What is set about an agent of this desk."""
        found = await self._redis.command("HGET", f"{desk.prefix}:agents", uid)
        return None if found is None else msgspec.json.decode(found, type=AgentSettings)

    async def put(self, desk: Desk, uid: str, settings: AgentSettings) -> Outcome:
        """Add or change an agent of this desk."""
        await self._redis.command("HSET", shops_key(uid), desk.channel, desk.shop)
        known = {name.decode() for name in await self._redis.command("HKEYS", f"{desk.prefix}:agents")}
        online = " ".join(await self._presence.agents_online(desk.channel, sorted(known | {uid})))
        return await self._operate("put", desk, uid, online, msgspec.json.encode(settings))

    async def remove(self, desk: Desk, uid: str) -> Outcome:
        """Take an agent from this desk. Results: `ok`, `busy` (it has customers)."""
        return await self._operate("remove", desk, uid, "")

    async def agents(self, desk: Desk) -> list[Agent]:
        """All agents of a desk, by uid."""
        found = await self._redis.command("HGETALL", f"{desk.prefix}:agents")
        loads = await self._redis.command("HGETALL", f"{desk.prefix}:load")
        load = {uid: int(count) for uid, count in zip(loads[::2], loads[1::2], strict=True)}
        known = {
            uid.decode(): (msgspec.json.decode(text, type=AgentSettings), load.get(uid, 0))
            for uid, text in zip(found[::2], found[1::2], strict=True)
        }
        online = await self._presence.agents_online(desk.channel, sorted(known))
        return [
            Agent(
                uid=uid,
                shop=desk.shop,
                capacity=settings.capacity,
                skills=settings.skills,
                status=settings.status,
                load=count,
                online=uid in online,
            )
            for uid, (settings, count) in sorted(known.items())
        ]

    async def queue(self, desk: Desk) -> list[Waiting]:
        """Who waits, in the order in which they are served."""
        names = await self._redis.command("ZRANGE", f"{desk.prefix}:queue", 0, -1)
        if not names:
            return []
        customers = await self._redis.command("HMGET", f"{desk.prefix}:customer", *names)
        since = await self._redis.command("HMGET", f"{desk.prefix}:since", *names)
        return [
            Waiting(uid=uid.decode(), conversation=name.decode(), since_ts=int(ts), position=position)
            for position, (name, uid, ts) in enumerate(zip(names, customers, since, strict=True), 1)
            if uid is not None and ts is not None  # else it was served between these looks
        ]

    async def pass_on(self, desk: Desk) -> None:
        """Give the webhooks what the back office is to be told of this desk; twice if we die in between."""
        if not self._wanted(desk):
            return
        key = f"{desk.prefix}:events"
        async with self._passing:  # one at a time here: the sweeper and a change would both pass the same on
            while found := await self._redis.command("XRANGE", key, "-", "+", "COUNT", _EVENTS_AT_ONCE):
                await self._webhooks.record(desk.channel, [_event(desk, pairs(fields)) for _, fields in found])
                await self._redis.command("XDEL", key, *[entry for entry, _ in found])

    def _wanted(self, desk: Desk) -> list[State]:
        """The changes that its back office wants to hear of."""
        return [state for state in get_args(State) if self._webhooks.wants(desk.channel, state)]

    async def _online(self, desk: Desk) -> str:
        uids = [uid.decode() for uid in await self._redis.command("HKEYS", f"{desk.prefix}:agents")]
        return " ".join(sorted(await self._presence.agents_online(desk.channel, uids)))

    async def _operate(self, operation: str, desk: Desk, subject: str, online: str, *more: Argument) -> Outcome:
        return outcome(await self._script(operation, desk, subject, online, *more))

    async def _script(self, operation: str, desk: Desk, subject: str, online: str, *more: Argument) -> Sequence[object]:
        now = int(self._clock.seconds() * 1000)
        answer: Sequence[object] = await self._redis.script(
            "shop_desk",
            [desk.prefix],
            [
                *(operation, subject, online, self._settings.strategy, int(self._settings.sticky), now),
                *(" ".join(self._wanted(desk)), *more),
            ],
        )
        return answer


def _event(desk: Desk, fields: dict[bytes, bytes]) -> Event:
    text = {name.decode(): value.decode() for name, value in fields.items()}
    state: Any = text["event"]
    return Event(
        id=event_id(desk.channel, state, text["conversation"], text["epoch"]),
        event=state,
        channel=desk.channel,
        ts=int(text["ts"]),
        conversation=text["conversation"],
        shop=desk.shop,
        customer=text["customer"],
        agent=text["agent"] or None,
        previous=text["previous"] or None,
        position=int(text["position"]) or UNSET,
    )
