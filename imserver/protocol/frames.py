"""The frames of the WebSocket, both ways (contract: WebSocket).

`decode` turns a client's text frame into one of the structs below or raises `FrameError`.  A body stays the bytes it
came as: it is checked here once and never decoded on its way.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, field

from imserver.protocol.codes import ErrorCode, FrameError
from imserver.protocol.syntax import (
    ChannelName,
    Cid,
    ConversationId,
    Cursor,
    Device,
    Limit,
    MessageType,
    Platform,
    ReadSeq,
    Ref,
    Seq,
    Shop,
    Since,
    Skill,
    Timestamp,
    Uid,
    json_object,
    plain,
    too_deep,
    valid,
)


class _In(msgspec.Struct, tag_field="op", frozen=True, gc=False):
    """A frame from a client; unknown fields are ignored."""


class Hello(_In, frozen=True, gc=False, tag="hello"):
    """The first frame of a connection."""

    device: Device
    token: str = ""
    platform: Platform | None = None
    since: Since | None = None


class Refresh(_In, frozen=True, gc=False, tag="refresh"):
    """A new token for the same uid."""

    token: str
    ref: Ref | None = None


class Send(_In, frozen=True, gc=False, tag="send"):
    """A message to a uid, a shop or a conversation."""

    ref: Ref
    cid: Cid
    type: MessageType
    body: Raw
    to: Uid | None = None
    conversation: ConversationId | None = None
    shop: Shop | None = None
    channel: ChannelName | None = None
    skill: Skill | None = None


class Ack(_In, frozen=True, gc=False, tag="ack"):
    """Everything up to and including `cursor` has arrived."""

    cursor: Cursor


class History(_In, frozen=True, gc=False, tag="history"):
    """Asks for a page of a conversation."""

    ref: Ref
    conversation: ConversationId
    before: Seq | None = None
    after: ReadSeq | None = None
    limit: Limit = 50


class Conversations(_In, frozen=True, gc=False, tag="conversations"):
    """Asks for one's own conversations."""

    ref: Ref
    limit: Limit = 50
    before: Timestamp | None = None


class Read(_In, frozen=True, gc=False, tag="read"):
    """Everything up to `seq` has been seen."""

    conversation: ConversationId
    seq: ReadSeq
    ref: Ref | None = None


class Typing(_In, frozen=True, gc=False, tag="typing"):
    """The user is writing."""

    conversation: ConversationId
    ref: Ref | None = None


class Ping(_In, frozen=True, gc=False, tag="ping"):
    """Asks for a pong."""

    ref: Ref | None = None


Incoming = Hello | Refresh | Send | Ack | History | Conversations | Read | Typing | Ping


class _Out(msgspec.Struct, tag_field="op", omit_defaults=True, frozen=True, gc=False):
    """A frame to a client; fields at their default are left out."""


class Welcome(_Out, frozen=True, gc=False, tag="welcome"):
    """The answer to `hello`."""

    conn: str
    uid: str
    device: str
    ts: int
    heartbeat_s: float
    ack_timeout_s: float
    max_frame: int
    resumed: bool


class Sent(_Out, frozen=True, gc=False, tag="sent"):
    """The message is stored: it will arrive."""

    ref: str | int
    id: str
    ts: int
    conversation: str | None = None
    seq: int | None = None
    cursor: str | None = None
    duplicate: bool = False


class Pong(_Out, frozen=True, gc=False, tag="pong"):
    """The answer to `ping`."""

    ts: int
    ref: str | int | None = None


class Refreshed(_Out, frozen=True, gc=False, tag="refreshed"):
    """The new token is in force."""

    ts: int
    ref: str | int | None = None


class Reconnect(_Out, frozen=True, gc=False, tag="reconnect"):
    """This worker is leaving: open a new connection after `after_ms`."""

    after_ms: int
    url: str | None = None


class Error(_Out, frozen=True, gc=False, tag="error"):
    """A frame that was refused."""

    code: ErrorCode
    reason: str
    ref: str | int | None = None
    field: str | None = None


class Message(msgspec.Struct, omit_defaults=True, frozen=True, gc=False, kw_only=True):
    """A message as it travels: all of op `message` but `op`, `cursor` and `attempt`, which the worker puts in front."""

    id: str
    from_: str = field(name="from")
    to: str
    channel: str
    type: str
    body: Raw
    ts: int
    conversation: str | None = None
    seq: int | None = None
    cid: str | None = None


_decoder = msgspec.json.Decoder(Incoming)
_encoder = msgspec.json.Encoder()
OPS = frozenset(kind.__struct_config__.tag for kind in Incoming.__args__)


class _Envelope(msgspec.Struct):
    op: Any = None
    ref: Any = None


def decode(text: bytes) -> Incoming:
    """A client's frame; `FrameError` says what is wrong with it and carries its `ref` if it had one."""
    try:
        frame: Incoming = _decoder.decode(text)
    except msgspec.ValidationError as error:
        raise _refused(text, error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError("invalid_json", f"not JSON: {error}") from None
    if too_deep(text):
        raise FrameError("invalid_json", "nested too deeply", ref=getattr(frame, "ref", None))
    problem = _semantic_problem(frame)
    if problem is not None:
        raise FrameError("invalid_frame", problem[1], field=problem[0], ref=getattr(frame, "ref", None))
    return frame


def _semantic_problem(frame: Incoming) -> tuple[str, str] | None:
    if isinstance(frame, Send):
        if not json_object(frame.body):
            return "body", "has to be a JSON object"
        if (frame.to is not None) + (frame.conversation is not None) + (frame.shop is not None) > 1:
            return "to", "give only one of to, conversation and shop"
    elif isinstance(frame, History) and frame.before is not None and frame.after is not None:
        return "before", "give only one of before and after"
    return None


def _refused(text: bytes, error: msgspec.ValidationError) -> FrameError:
    try:
        whole = msgspec.json.decode(text)  # what was wrong may have been seen before the text was read to its end
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as broken:
        return FrameError("invalid_json", f"not JSON: {broken}")
    if not isinstance(whole, dict):
        return FrameError("invalid_frame", "a frame is a JSON object")
    envelope = msgspec.convert(whole, _Envelope)
    ref = envelope.ref if valid(Ref, envelope.ref) else None
    if not isinstance(envelope.op, str):
        return FrameError("invalid_frame", "op is missing or not a string", field="op", ref=ref)
    if envelope.op not in OPS:
        return FrameError("unknown_op", f"there is no op {envelope.op[:32]!r}", field="op", ref=ref)
    reason, _, path = str(error).partition(" - at `$")
    name = path.rstrip("`").lstrip(".")
    if not name and "`" in reason:
        name = reason.split("`")[1]
    return FrameError("invalid_frame", plain(reason), field=name or None, ref=ref)


def encode(frame: _Out) -> bytes:
    """A server's frame as text."""
    return _encoder.encode(frame)


def message_tail(message: Message) -> bytes:
    """A message without its opening brace, so that `op`, `cursor` and `attempt` can be put in front of it."""
    return _encoder.encode(message)[1:]


def message_frame(tail: bytes, cursor: str | None, attempt: int = 1) -> bytes:
    """The `message` frame for one stored tail; `cursor` is None for what was never stored."""
    head = b'{"op":"message",'
    if cursor is not None:
        head += b'"cursor":"%s",' % cursor.encode()
    if attempt > 1:
        head += b'"attempt":%d,' % attempt
    return head + tail


def answer_frame(op: str, ref: str | int, answer: bytes) -> bytes:
    """An HTTP answer (a JSON object) as the frame that answers `ref`."""
    inner = answer.strip()[1:]
    head = b'{"op":"%s","ref":%s' % (op.encode(), _encoder.encode(ref))
    return head + (b"," if inner.strip() != b"}" else b"") + inner
