"""Accepting a message: who may write it, where it goes, what the word filter says, and who gets it.

What the contract leaves open is decided so:

*  Who is neither the customer nor an agent of the shop learns nothing of a conversation: 404.
*  A conversation is written into by its customer, its agent and backends.  Another agent of the shop is refused (403);
   so is everyone but the customer and backends while it waits for an agent.
*  A later message of the customer or a backend opens a closed conversation as a new one is opened.  One of an agent of
   the shop opens it too, and it is that agent's then, if not full (409).  `system` and `recall` open nothing.
*  A `recall` may be written whoever has the conversation now.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType, field
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from imserver import config
from imserver.business.access import Caller
from imserver.business.assignment import Change, Outcome, Standing, State
from imserver.business.channels import Channels
from imserver.business.conversations import Accepted, Conversations, Draft, Lost, Place, Refused
from imserver.business.desk import Desks
from imserver.business.history import History, recalled_seq
from imserver.business.lists import Lists
from imserver.business.outbox import Outbox
from imserver.business.policy import Policy
from imserver.business.shops import Desk, Shops
from imserver.data.interface import Unavailable
from imserver.http.problems import (
    Problem,
    conflict,
    forbidden,
    invalid,
    not_found,
    rate_limited,
    unavailable,
)
from imserver.ops.background import together
from imserver.ops.metrics import Metrics
from imserver.protocol import ids
from imserver.protocol.syntax import ChannelName, Cid, ConversationId, MessageType, Shop, Skill, Uid, json_object

log = Logger()
CUSTOMER = "customer"
AGENT = "merchant"


class Send(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A message (contract: `POST /v1/messages`)."""

    cid: Cid
    type: MessageType
    body: Raw
    shop: Shop | None = None
    conversation: ConversationId | None = None
    to: Uid | None = None
    sender: Annotated[Uid | None, Meta(description="with an API key: who writes")] = field(default=None, name="from")
    channel: Annotated[ChannelName | None, Meta(description="if the token is for several")] = None
    skill: Annotated[Skill | None, Meta(description="what the agent should be good at, when one is looked for")] = None


class Sent(msgspec.Struct, kw_only=True):
    """A message that is stored; `agent` is null while the customer waits."""

    id: str
    ts: int
    conversation: str | UnsetType = UNSET
    seq: int | UnsetType = UNSET
    agent: str | None | UnsetType = UNSET
    state: State | UnsetType = UNSET
    duplicate: bool | UnsetType = UNSET


class Messages:
    """Accepts messages."""

    def __init__(
        self,
        clock: IReactorTime,
        settings: config.Config,
        conversations: Conversations,
        shops: Shops,
        desks: Desks,
        lists: Lists,
        history: History,
        outbox: Outbox,
        policy: Policy,
        metrics: Metrics,
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._conversations = conversations
        self._shops = shops
        self._desks = desks
        self._lists = lists
        self._history = history
        self._outbox = outbox
        self._policy = policy
        self._hours = {
            name: config.OpeningHours(channel.opening_hours, channel.time_zone)
            for name, channel in settings.channels.items()
        }
        self._channels = Channels(settings.channels, clock, metrics)

    async def send(self, caller: Caller, message: Send) -> Sent:
        """Accept a message, or raise the Problem that says why not."""
        self._check(caller, message)
        if message.conversation is not None:
            known = await self._conversation(caller, message, message.conversation)
            self._channels.admit(known.channel)
            return await self._continue(caller, message, known)
        channel = caller.channel(message.channel)
        if not caller.backend:
            self._channels.fits(channel, to_shop=message.shop is not None)
        self._channels.admit(channel)
        if message.to is not None:
            return await self._direct(caller, message, channel, message.to)
        assert message.shop is not None
        id = ids.conversation_id(channel, message.sender or caller.uid, message.shop)
        place = await self._conversations.find(id)
        if place is None:
            return await self._first(caller, message, channel, message.shop)
        return await self._continue(caller, message, place)

    async def side_of(self, caller: Caller, place: Place, sender: str) -> str:
        """Which side of a conversation somebody is on: `customer`, `shop` or `backend`; 404 for a stranger."""
        if place.channel not in caller.channels:
            raise not_found()
        if sender == place.customer:
            return CUSTOMER
        may_be_agent = sender and (caller.backend or caller.role == AGENT)
        if may_be_agent and await self._shops.shop_of(place.channel, sender) == place.shop:
            return "shop"
        if caller.backend:
            return "backend"
        raise not_found()

    async def system(self, place: Place, body: dict[str, Any], standing: Standing, also_to: tuple[str, ...]) -> None:
        """Write a `system` message of the shop into a conversation."""
        draft = Draft(
            id=ids.message_id("", place.channel, place.shop, None),
            channel=place.channel,
            sender=place.shop,
            type="system",
            body=msgspec.json.encode(body),
            also_to=also_to,
            own_devices=False,
        )
        await self._accept(place, draft, standing)

    # -- What is refused at once -----------------------------------------------------------------------------

    def _check(self, caller: Caller, message: Send) -> None:
        named = [name for name in ("shop", "conversation", "to") if getattr(message, name) is not None]
        if len(named) != 1:
            raise invalid("Give one of shop, conversation and to.", named[1] if named else "to")
        if not json_object(message.body):
            raise invalid("Expected a JSON object.", "body")
        if len(bytes(message.body)) > self._settings.messages.body_max:
            raise invalid(f"Expected at most {self._settings.messages.body_max} bytes.", "body")
        if caller.backend and message.sender is None:
            raise invalid("With an API key a message needs `from`.", "from")
        if not caller.backend and message.sender not in (None, caller.uid):
            raise forbidden("A user writes in his own name only.")
        if message.type == "system" and not caller.backend:
            raise forbidden("Messages of type system are for backends.")
        if message.type == "recall":
            if message.to is not None:
                raise invalid("Only a message of a conversation can be taken back.", "type")
            if recalled_seq(bytes(message.body)) is None:
                raise invalid("A recall needs the seq of the message to take back.", "body.seq")
        if message.shop is not None and not caller.backend and caller.role != CUSTOMER:
            raise forbidden("Only customers write to a shop; an agent writes to a conversation.")

    # -- Outside of any conversation -------------------------------------------------------------------------

    async def _direct(self, caller: Caller, message: Send, channel: str, to: str) -> Sent:
        sender = message.sender or caller.uid
        policy = self._settings.channels[channel].send_to
        free = caller.backend or to == sender or policy == "any"
        if not free and (policy == "none" or await self._shops.shop_of(channel, to) is None):
            raise forbidden(f"In this channel one may not write to {to}.")
        queue = f"to.{to}"
        draft = self._draft(caller, message, channel, sender)
        repeated = await self._repeated(queue, draft)
        if repeated is not None:
            return repeated
        draft, flagged = await self._policy.moderate(draft)
        token = self._outbox.lease()
        accepted = await self._conversations.accept(queue, draft, now=self._now(), token=token, to=to)
        self._sent(queue, token, accepted)
        await self._policy.flag(draft, None, flagged)
        return Sent(id=draft.id, ts=accepted.ts, duplicate=accepted.duplicate or UNSET)

    # -- In a conversation -----------------------------------------------------------------------------------

    async def _conversation(self, caller: Caller, message: Send, id: str) -> Place:
        place = await self._conversations.find(id)
        if place is None or place.channel not in caller.channels or message.channel not in (None, place.channel):
            raise not_found("There is no such conversation.")
        return place

    async def _first(self, caller: Caller, message: Send, channel: str, shop: str) -> Sent:
        """A customer writes to a shop for the first time."""
        customer = message.sender or caller.uid
        if message.type == "recall":
            raise not_found("There is nothing to take back.")
        if not await self._shops.exists(Desk(channel, shop)):
            raise conflict("This shop has no agents.", "no_agent")
        id = ids.conversation_id(channel, customer, shop)
        draft = self._draft(caller, message, channel, customer)
        repeated = await self._repeated(id, draft)
        if repeated is not None:
            return repeated
        draft, flagged = await self._policy.moderate(draft)
        place = await self._conversations.create(id, channel, shop, customer, self._now())
        return await self._open_and_accept(place, draft, message, flagged, Standing())

    async def _continue(self, caller: Caller, message: Send, place: Place) -> Sent:
        sender = message.sender or caller.uid
        side = await self.side_of(caller, place, sender)
        draft = msgspec.structs.replace(self._draft(caller, message, place.channel, sender), side=side)
        desk = Desk(place.channel, place.shop)
        repeated, standing = await together([self._repeated(place.id, draft), self._shops.look(desk, place.id)])
        if isinstance(repeated, Sent):
            return repeated
        assert isinstance(standing, Standing)
        if draft.recalls:
            await self._recallable(place, draft)
        elif side == "shop" and standing.state != "closed" and standing.agent != sender:
            raise forbidden(
                "The customer waits for an agent."
                if standing.state == "waiting"
                else "Another agent has this conversation."
            )
        draft, flagged = await self._policy.moderate(draft)
        return await self._open_and_accept(place, draft, message, flagged, standing)

    async def _open_and_accept(
        self, place: Place, draft: Draft, message: Send, flagged: tuple[str, ...], standing: Standing
    ) -> Sent:
        desk, away = Desk(place.channel, place.shop), False
        changes: tuple[Change, ...] = ()
        if standing.state == "closed" and draft.type not in ("system", "recall"):
            given = await self._start(desk, place, draft, message)
            if given.result != "ok":
                raise _not_opened(given.result)
            changes, before = given.changes, standing.agent
            standing = given.standing_of(place.id) or await self._shops.look(desk, place.id)
            away = standing.state == "waiting"
            if before not in ("", standing.agent):  # it is no longer his: it would only count as unread
                await self._lists.drop(place, before)
        accepted = await self._accept(place, draft, standing)
        self._desks.carry_out(desk, changes)
        if not changes and not accepted.duplicate:
            standing = await self._written(place, draft, message, standing)
        await self._policy.flag(draft, place.id, flagged)
        if away:
            await self._say_away(place, standing)
        return self._answer(draft.id, place, accepted, standing)

    async def _written(self, place: Place, draft: Draft, message: Send, standing: Standing) -> Standing:
        """Tell the desk of an accepted message: time to answer begins or ends; what was closed meanwhile is opened."""
        side = self._writes(draft)
        if not side or standing.state == "closed":
            return standing
        desk = Desk(place.channel, place.shop)
        try:
            now = await self._shops.look(desk, place.id, side)
            if now.state != "closed":
                return standing
            given = await self._start(desk, place, draft, message)
        except Unavailable as error:  # it is accepted; the next message opens the conversation
            log.warn("the desk of {conversation} is not told: {error}", conversation=place.id, error=error)
            return standing
        self._desks.carry_out(desk, given.changes)
        return given.standing_of(place.id) or now

    async def _start(self, desk: Desk, place: Place, draft: Draft, message: Send) -> Outcome:
        opener = draft.sender if draft.side == "shop" else ""
        return await self._shops.start(
            desk, place.id, place.customer, skill=message.skill or "", agent=opener, side=self._writes(draft)
        )

    async def _accept(self, place: Place, draft: Draft, standing: Standing) -> Accepted:
        """Store, list, and send on."""
        token = self._outbox.lease()
        open_now = standing.state != "closed"
        try:
            accepted = await self._conversations.accept(
                place.id,
                draft,
                now=self._now(),
                token=token,
                agent=standing.agent if open_now else "",
                epoch=standing.epoch if open_now else 0,
            )
        except Lost:
            raise unavailable("The conversation is being brought back; try again.") from None
        except Refused as error:
            raise forbidden(str(error)) from None
        try:
            await self._lists.touch(place, (place.customer, standing.agent), accepted.ts)
        except Unavailable as error:  # it is accepted: the sweeper lists it
            log.warn("{conversation} is not listed yet: {error}", conversation=place.id, error=error)
        finally:
            self._sent(place.id, token, accepted)
        return accepted

    async def _recallable(self, place: Place, draft: Draft) -> None:
        if draft.recalls > place.seq:
            raise not_found("There is no such message.")
        (target,) = await self._history.messages(place.id, draft.recalls, draft.recalls)
        if target.sender != draft.sender or target.type in ("system", "recall", "recalled"):
            raise forbidden("Only a message of one's own can be taken back, once.")
        if self._now() - target.ts > self._settings.messages.recall_s * 1000:
            raise forbidden(f"A message can be taken back for {self._settings.messages.recall_s} s.")

    async def _say_away(self, place: Place, standing: Standing) -> None:
        """Tell a customer who has just begun to wait that this may take long."""
        text = self._settings.channels[place.channel].away_message
        if not text:
            return
        if self._hours[place.channel].open_at(self._now()):
            agents = await self._shops.agents(Desk(place.channel, place.shop))
            if any(agent.online and agent.status == "online" for agent in agents):
                return
        draft = Draft(
            id=ids.message_id("", place.channel, place.shop, None),
            channel=place.channel,
            sender=place.shop,
            type="text",
            body=msgspec.json.encode({"text": text, "auto": True}),
            own_devices=False,
        )
        await self._accept(place, draft, standing)

    # -- Parts -----------------------------------------------------------------------------------------------

    def _draft(self, caller: Caller, message: Send, channel: str, sender: str) -> Draft:
        return Draft(
            id=ids.message_id(self._settings.cluster.secret, channel, sender, message.cid),
            channel=channel,
            sender=sender,
            type=message.type,
            body=bytes(message.body),
            cid=message.cid,
            origin=caller.conn,
            side=CUSTOMER,
            recalls=(recalled_seq(bytes(message.body)) or 0) if message.type == "recall" else 0,
        )

    async def _repeated(self, queue: str, draft: Draft) -> Sent | None:
        """The answer to a message whose cid was used before, wherever that one went."""
        earlier = await self._conversations.claim(draft.id, queue)
        accepted = await self._conversations.repeat(earlier, draft.id)
        if accepted is None:
            if earlier != queue:
                await self._conversations.reclaim(draft.id, queue)
            return None
        if earlier.startswith("to."):
            return Sent(id=draft.id, ts=accepted.ts, duplicate=True)
        place = await self._conversations.find(earlier)
        if place is None:
            return None
        standing = await self._shops.look(Desk(place.channel, place.shop), earlier)
        return self._answer(draft.id, place, accepted, standing)

    def _sent(self, queue: str, token: str, accepted: Accepted) -> None:
        if accepted.head:
            self._outbox.send(queue, token, accepted.head)

    def _answer(self, id: str, place: Place, accepted: Accepted, standing: Standing) -> Sent:
        return Sent(
            id=id,
            ts=accepted.ts,
            conversation=place.id,
            seq=accepted.seq,
            agent=standing.agent or None,
            state=standing.state,
            duplicate=accepted.duplicate or UNSET,
        )

    def _writes(self, draft: Draft) -> str:
        """Whether this counts as a question of the customer or an answer of the agent."""
        return draft.side if draft.type not in ("system", "recall") else ""

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)


def _not_opened(result: str) -> Problem:
    if result == "no_agent":
        return conflict("This shop has no agents.", "no_agent")
    if result == "full":
        return conflict("You have as many customers as you can take.")
    return rate_limited(30, "Too many customers are waiting in this shop.")
