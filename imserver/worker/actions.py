"""What the rules of a connection ask its shell to do."""

from __future__ import annotations

import msgspec

from imserver.protocol.frames import Incoming
from imserver.protocol.tokens import Claims


class Send(msgspec.Struct, frozen=True, gc=False):
    """Write one frame."""

    frame: bytes


class Ping(msgspec.Struct, frozen=True, gc=False):
    """Write a WebSocket ping."""


class Close(msgspec.Struct, frozen=True, gc=False):
    """Close the connection."""

    code: int
    reason: str


class Admit(msgspec.Struct, frozen=True):
    """A valid hello: check bans, register, find the position, then `Session.admitted`."""

    claims: Claims
    device: str
    platform: str
    since: str | None


class Register(msgspec.Struct, frozen=True):
    """What the connection's record says has changed: write it again."""


class Read(msgspec.Struct, frozen=True, gc=False):
    """Read the inbox after a cursor, then `Session.page`."""

    after: str
    limit: int


class Reread(msgspec.Struct, frozen=True, gc=False):
    """Read again what was not acknowledged, from after a cursor, then `Session.reread`."""

    after: str
    limit: int


class Acknowledge(msgspec.Struct, frozen=True, gc=False):
    """This device has everything up to the cursor."""

    cursor: str


class Request(msgspec.Struct, frozen=True):
    """A frame that somebody else answers; in order, one at a time."""

    frame: Incoming
    channel: str


Action = Send | Ping | Close | Admit | Register | Read | Reread | Acknowledge | Request
