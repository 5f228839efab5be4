"""What a back office is told of by webhook: the events, and how they are signed. No I/O.

Each event is one HTTP POST, signed as the Standard Webhooks specification has it: `webhook-id`, `webhook-timestamp` and
`webhook-signature`, an HMAC-SHA256 over all three of id, time and body.  Libraries in many languages check that.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Literal, get_args

import msgspec
from msgspec import UNSET, Raw, UnsetType
from standardwebhooks import Webhook

from imserver.config import WebhookEvent

EVENTS: tuple[WebhookEvent, ...] = get_args(WebhookEvent)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event, as it is posted.

    `message` and `offline` (nobody of its receiver `uid` is online) have the message, `offline` the uid; the others are
    about a conversation: who has it now (`agent`), who had it before (`previous`), its `position` while it waits.
    The same thing that happened has the same `id`, however often it is told.
    """

    id: str
    event: WebhookEvent | Literal["ping"]
    channel: str
    ts: int
    message: Raw | UnsetType = UNSET
    uid: str | UnsetType = UNSET
    conversation: str | UnsetType = UNSET
    shop: str | UnsetType = UNSET
    customer: str | UnsetType = UNSET
    agent: str | None | UnsetType = UNSET
    previous: str | None | UnsetType = UNSET
    position: int | UnsetType = UNSET


def event_id(channel: str, event: WebhookEvent, *what: object) -> str:
    """32 hex characters, the same for the same thing that happened."""
    text = "\0".join(map(str, (channel, event, *what))).encode()
    return blake2b(text, digest_size=16, person=b"im event").hexdigest()


def message_event(channel: str, id: str, ts: int, message: Raw) -> Event:
    """A client or a backend has sent a message."""
    return Event(id=event_id(channel, "message", id), event="message", channel=channel, ts=ts, message=message)


def offline_event(channel: str, id: str, ts: int, message: Raw, uid: str) -> Event:
    """A message waits in the inbox of a receiver with nobody online."""
    name = event_id(channel, "offline", id, uid)
    return Event(id=name, event="offline", channel=channel, ts=ts, message=message, uid=uid)


def signed(id: str, body: bytes, secrets: Sequence[str], now: float) -> dict[str, str]:
    """The headers of one attempt to tell an event, signed with each of `secrets` (several while they are rotated)."""
    at = datetime.fromtimestamp(int(now), UTC)
    return {
        "webhook-id": id,
        "webhook-timestamp": str(int(now)),
        "webhook-signature": " ".join(Webhook(secret).sign(id, at, body.decode()) for secret in secrets),
    }
