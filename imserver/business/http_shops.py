"""The routes of agents, queues and words (contract: Business server)."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from imserver import config
from imserver.business.access import Caller
from imserver.business.assignment import AgentSettings, Capacity, Status
from imserver.business.desk import Desks
from imserver.business.http import After, Kept
from imserver.business.messages import AGENT
from imserver.business.moderation import Action
from imserver.business.shops import Agent, Desk, Shops, Waiting
from imserver.business.words import Entry, Flagged, WordError, Words
from imserver.http.problems import conflict, forbidden, invalid, not_found
from imserver.http.routes import Call, Route, Scheme
from imserver.protocol.syntax import Shop, Skill, Uid


class AgentBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What to set; what is left out stays as it is. A new agent needs a shop."""

    shop: Shop | None = None
    capacity: Capacity | None = None
    skills: Annotated[list[Skill], Meta(max_length=100)] | None = None
    status: Status | None = None


class AgentList(msgspec.Struct):
    """The agents of a shop."""

    agents: list[Agent]


class Queue(msgspec.Struct):
    """Who waits in a shop, in the order in which they are served."""

    queue: list[Waiting]


class WordBody(msgspec.Struct, forbid_unknown_fields=True):
    """What is done with messages that have this word."""

    action: Action


class WordList(msgspec.Struct):
    """The words of the channel's policy."""

    words: list[Entry]


class FlaggedList(msgspec.Struct):
    """Flagged messages; `next` is the `after` of the following page."""

    flagged: list[Flagged]
    next: str


def routes(settings: config.Config, shops: Shops, desks: Desks, words: Words, kept: Kept) -> list[Route]:
    """The routes of shops and words."""

    async def put_agent(call: Call) -> Agent:
        caller: Caller = call.identity
        uid, body = call.path["uid"], call.body
        if caller.backend:
            return await _put(shops, desks, settings.assignment.capacity, caller.channels[0], uid, body)
        if caller.role != AGENT or uid != caller.uid:
            raise forbidden("An agent sets his own status only.")
        if body.shop is not None or body.capacity is not None or body.skills is not None:
            raise forbidden("An agent sets his status only.")
        found = [
            Desk(channel, shop)
            for channel in caller.channels
            if (shop := await shops.shop_of(channel, uid)) is not None
        ]
        if not found:
            raise not_found(f"{uid} is no agent of any shop.")
        agents = [await _put(shops, desks, settings.assignment.capacity, desk.channel, uid, body) for desk in found]
        return agents[0]

    async def entered(call: Call) -> Desk:
        caller: Caller = call.identity
        shop = call.path["shop"]
        known = [desk for channel in caller.channels if await shops.exists(desk := Desk(channel, shop))]
        for desk in known:
            if caller.backend or (caller.role == AGENT and await shops.shop_of(desk.channel, caller.uid) == shop):
                return desk
        if known:
            raise forbidden("Only the shop's agents see this.")
        raise not_found("There is no such shop.")

    async def agents(call: Call) -> AgentList:
        return AgentList(await shops.agents(await entered(call)))

    async def queue(call: Call) -> Queue:
        return Queue(await shops.queue(await entered(call)))

    def policy(call: Call) -> str:
        channel = call.identity.channels[0]
        return settings.channels[channel].words or channel

    async def list_words(call: Call) -> WordList:
        return WordList(list(await words.list(policy(call))))

    async def get_word(call: Call) -> Entry:
        return _found(await words.get(policy(call), call.path["word"]))

    async def put_word(call: Call) -> Entry:
        try:
            return await words.put(policy(call), call.path["word"], call.body.action)
        except WordError as error:
            raise invalid(str(error), "word") from None

    async def delete_word(call: Call) -> Entry:
        return _found(await words.delete(policy(call), call.path["word"]))

    async def flagged(call: Call) -> FlaggedList:
        query: After = call.query
        found = await words.list_flagged(call.identity.channels[0], query.after, query.limit)
        return FlaggedList(list(found), found[-1].cursor if found else query.after)

    both: Scheme = "key or token"
    word = {
        "path": "/v1/words/{word}",
        "answer": Entry,
        "auth": "key",
        "tag": "words",
    }
    return [
        Route(
            method="PUT",
            path="/v1/agents/{uid}",
            function=kept(put_agent),
            parameters={"uid": Uid},
            body=AgentBody,
            answer=Agent,
            auth=both,
            tag="shops",
            summary="Add or change an agent",
            description="With an API key. An agent itself may set its `status`. Customers go to agents that are"
            " `online` and connected.",
            problems=(404, 409, 503),
        ),
        Route(
            method="GET",
            path="/v1/shops/{shop}/agents",
            function=kept(agents),
            parameters={"shop": Shop},
            answer=AgentList,
            auth=both,
            tag="shops",
            summary="The agents of a shop",
            problems=(404, 503),
        ),
        Route(
            method="GET",
            path="/v1/shops/{shop}/queue",
            function=kept(queue),
            parameters={"shop": Shop},
            answer=Queue,
            auth=both,
            tag="shops",
            summary="Who waits in a shop",
            problems=(404, 503),
        ),
        Route(
            method="GET",
            path="/v1/words",
            function=kept(list_words),
            answer=WordList,
            auth="key",
            tag="words",
            summary="All words",
            problems=(503,),
        ),
        Route(method="GET", function=kept(get_word), summary="One word", problems=(404, 503), **word),  # type: ignore[arg-type]
        Route(
            method="PUT",
            function=kept(put_word),
            body=WordBody,
            summary="Add or change a word",
            description="In force on every server within 2 s.",
            problems=(503,),
            **word,  # type: ignore[arg-type]
        ),
        Route(method="DELETE", function=kept(delete_word), summary="Remove a word", problems=(404, 503), **word),  # type: ignore[arg-type]
        Route(
            method="GET",
            path="/v1/flagged",
            function=kept(flagged),
            query=After,
            answer=FlaggedList,
            auth="key",
            tag="words",
            summary="Messages that were flagged, oldest first",
            problems=(503,),
        ),
    ]


def _found(entry: Entry | None) -> Entry:
    if entry is None:
        raise not_found("There is no such word.")
    return entry


async def _put(shops: Shops, desks: Desks, capacity: int, channel: str, uid: str, body: AgentBody) -> Agent:
    """Add, change or move an agent. One uid is an agent of one shop in a channel."""
    current = await shops.shop_of(channel, uid)
    shop = body.shop or current
    if shop is None:
        raise invalid("A new agent needs a shop.", "shop")
    desk = Desk(channel, shop)
    known = await shops.settings_of(Desk(channel, current), uid) if current is not None else None
    moves = current is not None and current != shop
    if moves and (await shops.remove(Desk(channel, current or ""), uid)).result == "busy":
        raise conflict(f"{uid} still has customers in {current}.")
    before = known or AgentSettings(capacity=capacity)
    given = await shops.put(
        desk,
        uid,
        AgentSettings(
            capacity=before.capacity if body.capacity is None else body.capacity,
            skills=before.skills if body.skills is None else tuple(dict.fromkeys(body.skills)),
            status=before.status if body.status is None else body.status,
        ),
    )
    desks.carry_out(desk, given.changes)
    return next(agent for agent in await shops.agents(desk) if agent.uid == uid)
