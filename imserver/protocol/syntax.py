"""The names of the contract as types: what a uid, a device, a cursor may look like (contract: Words)."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

_END = r"$(?!\n)"  # a bare $ would let a trailing newline pass

Uid = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:@-]{1,128}" + _END, description="who")]
Device = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,64}" + _END, description="a client's name for its installation")
]
ChannelName = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,32}" + _END, description="a business line")]
Shop = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,64}" + _END, description="a seller")]
Cid = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,64}" + _END, description="the sender's own id of a message")]
ConversationId = Annotated[str, Meta(pattern=r"^[a-z0-9]{1,64}" + _END, description="a conversation")]
MessageId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}" + _END, description="a message")]
MessageType = Annotated[str, Meta(pattern=r"^[a-z0-9_-]{1,32}" + _END, description="what the body is")]
Conn = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,160}" + _END, description="a connection")]
Cursor = Annotated[str, Meta(pattern=r"^[0-9]{1,19}-[0-9]{1,19}" + _END, description="a position in an inbox")]
Since = Annotated[str, Meta(pattern=r"^(\$|[0-9]{1,19}-[0-9]{1,19})" + _END)]
Skill = Annotated[
    str, Meta(pattern=r"^[^\s\x00-\x1f](.{0,62}[^\s])?" + _END, max_length=64, description="what an agent is good at")
]
Seq = Annotated[int, Meta(ge=1, le=2**53, description="a message's number in its conversation")]
ReadSeq = Annotated[int, Meta(ge=0, le=2**53)]
Ref = Annotated[str, Meta(max_length=128)] | Annotated[int, Meta(ge=-(2**53), le=2**53)]
Limit = Annotated[int, Meta(ge=1, le=200)]
Timestamp = Annotated[int, Meta(ge=0, le=2**53, description="milliseconds since the epoch, UTC")]
Role = Literal["customer", "merchant", "system"]
Platform = Literal["web", "h5", "ios", "android", "windows", "mac", "other"]

_PLAIN = {
    r"^[A-Za-z0-9_.:@-]{1,128}": "1-128 characters of A-Za-z0-9_.:@-",
    r"^[A-Za-z0-9_.:-]{1,64}": "1-64 characters of A-Za-z0-9_.:-",
    r"^[a-z0-9-]{1,32}": "1-32 characters of a-z0-9-",
    r"^[a-z0-9]{1,64}": "the id of a conversation",
    r"^[0-9a-f]{32}": "32 characters of 0-9a-f",
    r"^[a-z0-9_-]{1,32}": "1-32 characters of a-z0-9_-",
    r"^[A-Za-z0-9_.:-]{1,160}": "the id of a connection",
    r"^[0-9]{1,19}-[0-9]{1,19}": "a cursor that this server gave",
    r"^[^\s\x00-\x1f](.{0,62}[^\s])?": "1-64 characters, without space around them",
    r"^(\$|[0-9]{1,19}-[0-9]{1,19})": "a cursor that this server gave, or $",
}


def plain(reason: str) -> str:
    """What a validation says, without the regular expression in it."""
    head, found, pattern = reason.partition("Expected `str` matching regex '")
    words = _PLAIN.get(pattern.removesuffix("'").replace("\\\\", "\\").removesuffix(_END)) if found else None
    return f"{head}Expected {words}" if words is not None else reason


START = "0-0"
"""The cursor before every message."""

_LARGEST = 2**64 - 1


def position(cursor: str) -> tuple[int, int]:
    """A cursor as something that can be compared; `ValueError` if it is none."""
    head, _, tail = cursor.partition("-")
    found = int(head), int(tail)
    if max(found) > _LARGEST:
        raise ValueError("this cursor was not given by this server")
    return found


def just_before(cursor: str) -> str:
    """The largest possible cursor before this one, so that reading after it begins with this one."""
    ms, seq = position(cursor)
    return f"{ms}-{seq - 1}" if seq else f"{ms - 1}-{_LARGEST}"


def json_object(raw: msgspec.Raw | bytes) -> bool:
    """Whether raw JSON, already known to be valid, is an object."""
    return bytes(raw).lstrip()[:1] == b"{"


DEPTH_MAX = 100
"""How deep objects and lists may be nested. What is accepted is read again on its way, within other objects: without a
bound of its own it would be Python's, which depends on where it is read."""

_MARKS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


def too_deep(raw: bytes) -> bool:
    """Whether JSON, already known to be valid, is nested deeper than `DEPTH_MAX`."""
    if raw.count(b"[") + raw.count(b"{") <= DEPTH_MAX:  # nearly always
        return False
    depth = 0
    for mark in _MARKS.finditer(raw):
        if mark[0] in (b"[", b"{"):
            depth += 1
            if depth > DEPTH_MAX:
                return True
        elif mark[0] in (b"]", b"}"):
            depth -= 1
    return False


def valid(kind: object, value: object) -> bool:
    """Whether `value` fits one of the types above."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True
