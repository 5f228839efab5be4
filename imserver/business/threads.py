"""What one does with a conversation besides writing: read it, look it up, hand it over, close it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Raw
from twisted.internet.interfaces import IReactorTime

from imserver.business.access import Caller
from imserver.business.assignment import State
from imserver.business.conversations import Conversations, Place
from imserver.business.desk import Desks, passing
from imserver.business.history import History, Page
from imserver.business.lists import Listed, Lists
from imserver.business.messages import AGENT, CUSTOMER, Messages
from imserver.business.outbox import Outbox
from imserver.business.shops import Desk, Shops
from imserver.http.problems import bad_query, conflict, forbidden, invalid, not_found


class Threads:
    """Operations on conversations, for whoever may."""

    def __init__(
        self,
        clock: IReactorTime,
        conversations: Conversations,
        shops: Shops,
        desks: Desks,
        lists: Lists,
        history: History,
        outbox: Outbox,
        messages: Messages,
    ) -> None:
        self._clock = clock
        self._conversations = conversations
        self._shops = shops
        self._desks = desks
        self._lists = lists
        self._history = history
        self._outbox = outbox
        self._messages = messages

    async def history(self, caller: Caller, id: str, before: int | None, after: int | None, limit: int) -> Page:
        """A page of its messages."""
        if before is not None and after is not None:
            raise bad_query("Give only one of before and after.", "before")
        place, _ = await self._entered(caller, id)
        return await self._history.page(place, before, after, limit)

    async def read(self, caller: Caller, id: str, seq: int) -> int:
        """The caller has read up to `seq`; how far it has read now. Its other devices and the other side are told."""
        place, side = await self._entered(caller, id)
        moved, now_read, agent = await self._conversations.read(id, caller.uid, seq)
        if moved:
            self._pass_on("read", place, side, agent, caller, {"seq": now_read}, own=True)
        return now_read

    async def typing(self, caller: Caller, id: str) -> None:
        """The caller is writing: the other side is told, and nothing is stored."""
        place, side = await self._entered(caller, id)
        agent = await self._conversations.agent_of(id)
        self._pass_on("typing", place, side, agent, caller, {}, own=False)

    async def transfer(self, caller: Caller, id: str, agent: str) -> None:
        """Give it to another agent of the shop; both sides are told by a `system` message."""
        place, side = await self._entered(caller, id)
        if side == CUSTOMER and not caller.backend:
            raise forbidden("A customer cannot choose the agent.")
        desk = Desk(place.channel, place.shop)
        standing = await self._shops.look(desk, id)
        if standing.state == "closed":
            raise conflict("The conversation is closed.")
        if not caller.backend and standing.state == "assigned" and standing.agent != caller.uid:
            raise forbidden("Another agent has this conversation.")
        given = await self._shops.transfer(desk, id, None if caller.backend else standing.agent, agent)
        if given.result == "same":
            return
        if given.result == "stranger":
            raise invalid(f"{agent} is no agent of this shop.", "agent")
        if given.result != "ok":
            raise conflict(
                {
                    "full": f"{agent} has as many customers as it can take.",
                    "offline": f"{agent} is not online.",
                    "closed": "The conversation is closed.",
                }.get(given.result, "The conversation has changed hands meanwhile.")
            )
        now = given.standing_of(id)
        assert now is not None
        body = {"event": "transfer", "from": given.agent or None, "to": agent}
        await self._messages.system(place, body, now, tuple(uid for uid in (given.agent,) if uid))
        self._desks.carry_out(desk, given.changes)

    async def close(self, caller: Caller, id: str) -> None:
        """Close it; closing twice changes nothing. While it waits any agent of the shop may."""
        place, side = await self._entered(caller, id)
        desk = Desk(place.channel, place.shop)
        holder: str | None = None
        if side == "shop" and not caller.backend:
            standing = await self._shops.look(desk, id)
            if standing.state == "closed":
                return
            if standing.state == "assigned" and standing.agent != caller.uid:
                raise forbidden("Another agent has this conversation.")
            holder = standing.agent
        given = await self._shops.close(desk, id, holder)
        if given.result == "other":
            raise forbidden("The conversation has changed hands meanwhile.")
        self._desks.carry_out(desk, given.changes)

    async def listed(
        self,
        caller: Caller,
        uid: str | None,
        shop: str | None,
        before: int | None,
        limit: int,
        state: State | None,
    ) -> tuple[list[Listed], bool]:
        """Conversations, newest first: a user's own, or those of a shop for its agents and backends."""
        if caller.backend:
            channel = caller.channels[0]
            if uid is not None:
                return await self._lists.of_user(uid, [channel], before, limit, state, shop)
            if shop is None:
                raise bad_query("With an API key give uid or shop.", "uid")
            return await self._lists.of_shop([Desk(channel, shop)], "", before, limit, state)
        if uid not in (None, caller.uid):
            raise forbidden("A user sees his own conversations only.")
        if shop is not None and caller.role == AGENT:
            desks = [
                Desk(channel, shop)
                for channel in caller.channels
                if await self._shops.shop_of(channel, caller.uid) == shop
            ]
            if not desks:
                raise forbidden("Only a shop's agents see all of its conversations.")
            return await self._lists.of_shop(desks, caller.uid, before, limit, state)
        return await self._lists.of_user(caller.uid, caller.channels, before, limit, state, shop)

    async def introduce(self, caller: Caller) -> None:
        """Remember what the caller's token says about it, for those it talks with."""
        if caller.info:
            for channel in caller.channels:
                await self._lists.remember(caller.uid, channel, caller.info)

    async def _entered(self, caller: Caller, id: str) -> tuple[Place, str]:
        place = await self._conversations.find(id)
        if place is None:
            raise not_found("There is no such conversation.")
        return place, await self._messages.side_of(caller, place, caller.uid)

    def _pass_on(
        self, op: str, place: Place, side: str, agent: str, caller: Caller, more: dict[str, int], *, own: bool
    ) -> None:
        frame = Raw(msgspec.json.encode({"conversation": place.id, "from": caller.uid, **more}))
        others: Sequence[str] = (agent,) if side == CUSTOMER else (place.customer,)
        deliveries = [passing(uid, place.channel, op, frame) for uid in others if uid and uid != caller.uid]
        if own:
            deliveries.append(passing(caller.uid, place.channel, op, frame, caller.conn))
        if deliveries:
            self._outbox.announce(deliveries)
