"""What follows when conversations change hands: everybody is told, the back office too, and what waited is sent."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from msgspec import Raw
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from imserver.business.assignment import Change
from imserver.business.conversations import Conversations, Place
from imserver.business.lists import Lists, state_frame
from imserver.business.outbox import Outbox
from imserver.business.shops import Desk, Shops
from imserver.data.interface import Unavailable
from imserver.protocol.deliveries import Delivery

log = Logger()


class Desks:
    """Carries changes out. What is left undone when this server dies, `sweep` of another does."""

    def __init__(
        self, clock: IReactorTime, conversations: Conversations, shops: Shops, lists: Lists, outbox: Outbox
    ) -> None:
        self._clock = clock
        self._conversations = conversations
        self._shops = shops
        self._lists = lists
        self._outbox = outbox
        self._running: set[Deferred[None]] = set()
        outbox.healed = self.heal

    def carry_out(self, desk: Desk, changes: Sequence[Change]) -> None:
        """Tell everybody about changes of a desk, and send agents what waited for them; in the background."""
        if not changes:
            return
        self.tell(desk, changes)
        self._begin(self._shops.pass_on(desk))
        moves = [change for change in changes if change.moves]
        if moves:
            self._begin(self._settle_all(desk, moves))

    def tell(self, desk: Desk, changes: Sequence[Change]) -> None:
        """The `state` frames of changes, to both sides (and to the agent who lost the conversation)."""
        ts = self._now()
        deliveries = []
        for change in changes:
            frame = state_frame(change.conversation, change.standing, ts)
            for uid in dict.fromkeys((change.customer, change.standing.agent, change.before)):
                if uid:
                    deliveries.append(passing(uid, desk.channel, "state", frame))
        self._outbox.announce(deliveries)

    async def serve_agent(self, uid: str) -> None:
        """An agent came online: serve who waits in its shops."""
        for desk in await self._shops.shops_of(uid):
            self.carry_out(desk, (await self._shops.serve(desk)).changes)

    async def sweep(self) -> None:
        """Look at every desk with somebody on it: serve, reassign, settle."""
        for desk in await self._shops.open_desks():
            for conversation in await self._shops.unsettled(desk):
                await self._settle(desk, conversation)
            await self._shops.pass_on(desk)
            self.carry_out(desk, (await self._shops.sweep(desk)).changes)

    async def heal(self, conversation: str, now: int) -> None:
        """A message that the sweeper sends: its sender may have died before the lists knew of it."""
        place = await self._conversations.find(conversation)
        if place is not None:
            agent = await self._conversations.agent_of(conversation)
            await self._lists.touch(place, (place.customer, agent), place.ts)

    async def stop(self) -> None:
        """Let what is under way end."""
        for running in list(self._running):
            await running

    async def _settle_all(self, desk: Desk, moves: Sequence[Change]) -> None:
        for change in moves:
            if change.before and change.before != change.standing.agent:
                place = Place(id=change.conversation, channel=desk.channel, shop=desk.shop, customer=change.customer)
                await self._lists.drop(place, change.before)
            await self._settle(desk, change.conversation)

    async def _settle(self, desk: Desk, conversation: str) -> None:
        standing = await self._shops.look(desk, conversation)
        if standing.state != "closed":
            ts = await self._conversations.hand_over(conversation, standing.agent, standing.epoch, self._now())
            if standing.agent:
                place = Place(id=conversation, channel=desk.channel, shop=desk.shop, customer="")
                await self._lists.touch(place, (standing.agent,), max(ts, 0))
                self._outbox.kick(conversation)
        await self._shops.settled(desk, conversation, standing.epoch)

    def _begin(self, work: Any) -> None:
        running = Deferred.fromCoroutine(work)
        self._running.add(running)

        def ended(failure: Any) -> None:
            self._running.discard(running)
            if failure is not None and failure.check(Unavailable):
                log.info("left to the sweeper: {reason}", reason=failure.getErrorMessage())
            elif failure is not None:
                log.failure("a change of hands failed", failure)

        running.addBoth(ended)

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)


def passing(uid: str, channel: str, op: Any, frame: Raw, origin: str = "") -> Delivery:
    """A delivery that is never stored: `state`, `read` or `typing`."""
    return Delivery(
        to=uid, channel=channel, op=op, id=secrets.token_hex(16), frame=frame, store=False, once=False, origin=origin
    )
