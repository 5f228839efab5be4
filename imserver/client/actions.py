"""What a client's session decides, as values: limits, actions, errors; and the few words about tokens and ids."""

from __future__ import annotations

import base64
import binascii
import secrets
from typing import Any

import msgspec

Frame = dict[str, Any]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Every bound and wait of a client."""

    delay_min_s: float = 0.5
    """The shortest time between two attempts to connect ..."""
    delay_max_s: float = 30.0
    """... and the longest."""
    stable_s: float = 10.0
    """A connection that lived this long starts the backoff anew."""
    open_timeout_s: float = 10.0
    """From the start of an attempt to `welcome`."""
    answer_timeout_s: float = 10.0
    """A call without an answer is sent again after this time, with the same ref and cid."""
    ack_delay_s: float = 0.2
    """An `ack` leaves so long after the first message that it is for ..."""
    ack_count: int = 20
    """... or at so many messages."""
    queue: int = 200
    """Calls that wait for an answer at a time; more are refused with `queue_full`."""
    tries: int = 20
    """How often one call is sent before it fails with `unavailable`."""
    remembered: int = 5000
    """Message ids kept, so that each message is told once."""
    typing_every_s: float = 3.0
    """`typing` leaves at most so often."""
    token_refusals: int = 5
    """4401 so often in a row: stop."""


class IMError(Exception):
    """Why a call failed: `code` is one of the contract's, or `queue_full` or `stopped` from this side."""

    def __init__(self, code: str, reason: str = "", field: str | None = None) -> None:
        super().__init__(reason or code)
        self.code = code
        self.field = field


class Open(msgspec.Struct, frozen=True):
    """Connect: to `url` where a worker named one. `fresh` asks for a new token."""

    url: str = ""
    fresh: bool = False


class Write(msgspec.Struct, frozen=True):
    """Send this text frame."""

    text: bytes


class Drop(msgspec.Struct, frozen=True):
    """Let go of the connection, or of the attempt to open one."""


class Renew(msgspec.Struct, frozen=True):
    """Get a new token and give it to `Session.renewed`."""


class Told(msgspec.Struct, frozen=True):
    """Something for the application: `kind` is `status`, `welcome` or a frame's op."""

    kind: str
    frame: Frame


class Settled(msgspec.Struct, frozen=True):
    """The call with this ref has its answer, or has failed."""

    ref: str
    answer: Frame | IMError


Action = Open | Write | Drop | Renew | Told | Settled


def new_id() -> str:
    """32 random hexadecimal digits: a `cid`, a `ref`, a device's name."""
    return secrets.token_hex(16)


def token_end(token: str) -> float | None:
    """When a token ends, in seconds since the epoch, as it says itself; None if it does not say."""
    try:
        middle = token.split(".")[1]
        payload = msgspec.json.decode(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        return float(payload["exp"])
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error, msgspec.DecodeError):
        return None
