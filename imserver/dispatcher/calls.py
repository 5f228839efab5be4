"""What the dispatcher's calls take and give (contract: Dispatcher); the OpenAPI document is made from these."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType, field

from imserver.data.bans import Kind
from imserver.data.journal import JournalEntry
from imserver.http.problems import ProblemDocument
from imserver.ops.trail import Event
from imserver.protocol.deliveries import Delivery, Only
from imserver.protocol.syntax import (
    Cid,
    ConversationId,
    Cursor,
    MessageType,
    Platform,
    Role,
    Seq,
    Uid,
)

RECEIVERS_MAX = 1000
MESSAGES_MAX = 1000
UIDS_MAX = 1000
ENTRIES_MAX = 1000
WAIT_MAX_S = 30

Lifetime = Annotated[float, Meta(gt=0, le=2**31, description="seconds")]
Reason = Annotated[str, Meta(max_length=200, description="told to whom it concerns")]
Body = Annotated[Raw, Meta(description="any JSON object; passed on as it is")]


class _In(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A body; unknown fields are refused (contract: HTTP)."""


class Push(_In):
    """A message to one uid or many."""

    to: Uid | Annotated[list[Uid], Meta(max_length=RECEIVERS_MAX)]
    type: MessageType
    body: Body
    from_: Uid | None = field(default=None, name="from")
    cid: Cid | None = None
    conversation: ConversationId | None = None
    seq: Seq | None = None
    only: Only | None = None
    ttl_s: Lifetime | None = None
    store: bool = True


class Batch(_In):
    """Many messages; each is looked at on its own."""

    messages: Annotated[list[Raw], Meta(max_length=MESSAGES_MAX)]


class BatchShown(_In):
    """Many messages, as JSON or as NDJSON, one a line."""

    messages: Annotated[list[Push], Meta(max_length=MESSAGES_MAX)]


class Broadcast(_In):
    """A message to everyone of the channel who is online now."""

    type: MessageType
    body: Body
    role: Role | None = None
    platform: Platform | None = None


class Deliveries(_In):
    """Frames for inboxes and connections, from another server of the cluster."""

    deliveries: Annotated[list[Delivery], Meta(max_length=RECEIVERS_MAX)]


class PresenceQuestion(_In):
    """Whose presence is asked for."""

    uids: Annotated[list[Uid], Meta(max_length=UIDS_MAX)]


class Kick(_In):
    """Why connections are closed."""

    reason: Reason | None = None


class KickQuery(msgspec.Struct):
    """Why connections are closed."""

    reason: Reason | None = None


class EndpointQuery(msgspec.Struct):
    """Who wants to connect."""

    uid: Uid


class JournalQuery(msgspec.Struct):
    """Which part of the journal."""

    after: Cursor | None = None
    limit: Annotated[int, Meta(ge=1, le=ENTRIES_MAX)] = 100
    wait_s: Annotated[float, Meta(ge=0, le=WAIT_MAX_S, description="how long to wait if there is nothing yet")] = 0


class BanBody(_In):
    """How long, and why."""

    ttl_s: Lifetime | None = None
    reason: Reason = ""


class TokenQuestion(_In):
    """Whom a token is for."""

    uid: Uid
    role: Role = "customer"
    ttl_s: Annotated[int, Meta(ge=1, description="seconds; a day if absent")] | None = None
    info: Annotated[dict[str, Any], Meta(description="at most 1 KiB, shown to the other side")] | None = None


class _Out(msgspec.Struct, kw_only=True):
    """An answer."""


class PushResult(_Out, kw_only=True):
    """What became of a message for one receiver; `cursor` only if it is stored."""

    to: str
    status: Literal["pushed", "queued", "duplicate"]
    cursor: str | UnsetType = UNSET
    connections: int


class PushAnswer(_Out):
    """What became of a message."""

    id: str
    ts: int
    results: list[PushResult]


class BatchResult(_Out):
    """What became of one message of a batch: the answer to that push, or the `error` for which it was not sent."""

    id: str | UnsetType = UNSET
    ts: int | UnsetType = UNSET
    results: list[PushResult] | UnsetType = UNSET
    error: ProblemDocument | UnsetType = UNSET


class BatchAnswer(_Out):
    """One result for each message, in order."""

    results: list[BatchResult]


class BroadcastAnswer(_Out):
    """How far a broadcast went."""

    id: str
    workers: int
    connections: int


class DeliveryResult(_Out, kw_only=True):
    """What became of one delivery; with `failed` it was not stored and has to be tried again."""

    to: str
    status: Literal["pushed", "queued", "duplicate", "failed"]
    cursor: str | UnsetType = UNSET
    connections: int
    error: str | UnsetType = UNSET


class DeliveriesAnswer(_Out):
    """One result for each delivery, in order."""

    results: list[DeliveryResult]


class ConnectionShown(_Out):
    """One live connection."""

    conn: str
    worker: str
    role: str
    platform: str
    channel: str | list[str]
    device: str
    ip: str
    since_ts: int


class InboxShown(_Out):
    """How many messages of this channel an inbox keeps, and the cursor of the last."""

    length: int
    last: str | None


class UserAnswer(_Out):
    """Where a user is."""

    uid: str
    online: bool
    connections: list[ConnectionShown]
    inbox: InboxShown


class Presence(_Out):
    """Whether a user is online, and on what."""

    online: bool
    platforms: list[str]


class Closed(_Out):
    """How many connections were closed."""

    closed: int


class EndpointAnswer(_Out):
    """Where to connect."""

    url: str
    worker: str


class WorkerShown(_Out):
    """One live worker."""

    id: str
    url: str
    http: str
    host: str
    connections: int
    load: float
    version: str
    since_ts: int
    draining: bool


class WorkersAnswer(_Out):
    """All live workers, draining ones included."""

    workers: list[WorkerShown]


class JournalAnswer(_Out):
    """A page of the journal; `next` is the `after` of the next one."""

    entries: list[JournalEntry]
    next: str


class BanShown(_Out):
    """An entry of the blacklist; without `until_ts` it is for good."""

    kind: Kind
    value: str
    until_ts: int | None
    reason: str


class TokenAnswer(_Out):
    """A user token and when it expires, in seconds since the epoch as in the token itself."""

    token: str
    exp: int


class Step(msgspec.Struct):
    """What one server did with a message."""

    server: str
    event: Event


class TrailAnswer(msgspec.Struct):
    """Oldest first."""

    trail: list[Step]
