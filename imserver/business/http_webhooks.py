"""The routes of a channel's webhook: how it fares, what died, and what is to be done with that."""

from __future__ import annotations

import secrets
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta
from twisted.internet.interfaces import IReactorTime

from imserver import config
from imserver.business.http import After
from imserver.config import WebhookEvent
from imserver.data.webhooks import MOVED_MAX, Dead, RedisWebhooks, State
from imserver.http.problems import conflict
from imserver.http.routes import Call, Route
from imserver.protocol.syntax import Cursor
from imserver.protocol.webhooks import Event

TAG = "webhooks"


class Webhook(State, frozen=True, kw_only=True):
    """A channel's webhook, and how it fares. Without `url` nobody is told of anything."""

    url: str | None
    events: list[WebhookEvent]


class DeadList(msgspec.Struct):
    """Events that were given up; `next` is the `after` of the following page."""

    dead: list[Dead]
    next: str


class Which(msgspec.Struct, forbid_unknown_fields=True):
    """Which dead events: those at these cursors, or without them the oldest, up to 1000 at a time."""

    cursors: Annotated[list[Cursor], Meta(min_length=1, max_length=MOVED_MAX)] | None = None


class Moved(msgspec.Struct):
    """How many there were."""

    moved: int


class Told(msgspec.Struct):
    """The id of the event."""

    id: str


def routes(settings: config.Config, webhooks: RedisWebhooks, clock: IReactorTime) -> list[Route]:
    """The routes; each for the channel of the API key."""

    async def show(call: Call) -> Webhook:
        (channel,) = call.identity.channels
        url = settings.channels[channel].webhook_url
        return Webhook(
            url=_without_secrets(url) if url else None,
            events=list(webhooks.wanted(channel)),
            **msgspec.structs.asdict(await webhooks.state(channel)),
        )

    async def dead(call: Call) -> DeadList:
        (channel,) = call.identity.channels
        query: After = call.query
        found = await webhooks.dead(channel, query.after, query.limit)
        return DeadList(found, found[-1].cursor if found else query.after)

    async def revive(call: Call) -> Moved:
        return Moved(await webhooks.revive(_told(call), call.body.cursors))

    async def forget(call: Call) -> Moved:
        (channel,) = call.identity.channels
        return Moved(await webhooks.forget(channel, call.body.cursors))

    async def ping(call: Call) -> Told:
        channel = _told(call)
        event = Event(id=secrets.token_hex(16), event="ping", channel=channel, ts=int(clock.seconds() * 1000))
        await webhooks.record(channel, [event])
        return Told(event.id)

    def _told(call: Call) -> str:
        channel: str = call.identity.channels[0]
        if not settings.channels[channel].webhook_url:
            raise conflict(f"Nobody would be told: [channels.{channel}] has no webhook_url.")
        return channel

    return [
        Route(
            method="GET",
            path="/v1/webhook",
            function=show,
            answer=Webhook,
            auth="key",
            tag=TAG,
            summary="How the channel's webhook fares",
            problems=(503,),
        ),
        Route(
            method="POST",
            path="/v1/webhook/ping",
            function=ping,
            answer=Told,
            status=202,
            auth="key",
            tag=TAG,
            summary="Tell the back office of nothing, to see whether it hears",
            problems=(409, 503),
        ),
        Route(
            method="GET",
            path="/v1/webhook/dead",
            function=dead,
            query=After,
            answer=DeadList,
            auth="key",
            tag=TAG,
            summary="Events that were given up, oldest first",
            problems=(503,),
        ),
        Route(
            method="POST",
            path="/v1/webhook/dead/retry",
            function=revive,
            body=Which,
            answer=Moved,
            auth="key",
            tag=TAG,
            summary="Tell events that were given up after all",
            problems=(409, 503),
        ),
        Route(
            method="POST",
            path="/v1/webhook/dead/drop",
            function=forget,
            body=Which,
            answer=Moved,
            auth="key",
            tag=TAG,
            summary="Forget events that were given up",
            problems=(503,),
        ),
    ]


def _without_secrets(url: str) -> str:
    """A URL without what may be a password or a key in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
