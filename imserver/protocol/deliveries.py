"""A message on its way to one inbox, and what a worker has to know of it without decoding its frame."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Raw

from imserver.protocol.syntax import ChannelName, Conn, Device, Platform, Role, Timestamp, Uid


class Only(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which of a user's connections get it; what is absent excludes nothing."""

    platform: Platform | None = None
    role: Role | None = None
    device: Device | None = None

    def admits(self, role: str, platform: str, device: str) -> bool:
        """Whether a connection like this is meant."""
        return self.role in (None, role) and self.platform in (None, platform) and self.device in (None, device)


class Head(msgspec.Struct, array_like=True, frozen=True, gc=False, omit_defaults=True):
    """What decides which connections get an entry: stored beside its frame, as a JSON array."""

    id: str
    channel: str
    origin: str = ""
    expires: int = 0
    only: Only | None = None


class Delivery(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One frame for one uid.

    op `message` goes through the inbox unless `store` is false; `state`, `read` and `typing` are never stored.
    `frame` is the frame without `op` and `cursor`.  `origin` is the connection that sent it and gets nothing of it.
    `once` remembers `id`, so that the same one is never stored twice.
    """

    to: Uid
    channel: ChannelName
    id: str
    frame: Raw
    op: Literal["message", "state", "read", "typing"] = "message"
    store: bool = True
    origin: Conn | Literal[""] = ""
    once: bool = True
    expires: Timestamp = 0
    only: Only | None = None

    @property
    def head(self) -> Head:
        """What is stored beside the frame."""
        return Head(self.id, self.channel, self.origin, self.expires, self.only)


_heads = msgspec.json.Decoder(Head)


def encode_head(head: Head) -> bytes:
    """A head as stored and as sent between servers."""
    return msgspec.json.encode(head)


def decode_head(data: bytes) -> Head:
    """The reverse; `msgspec.DecodeError` if it is none."""
    return _heads.decode(data)
