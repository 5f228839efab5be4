"""What one server may ask of a worker, whatever is in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from imserver.ops.trail import Event


class RpcError(Exception):
    """The worker did not do it, or it is not known whether it did. Every call may be repeated without harm."""


class Pushed(msgspec.Struct, frozen=True, gc=False):
    """One frame for every connection of a uid that wants it.

    With a `cursor` it is an inbox entry, `prev` the one before it; without, it was never stored.  `head` and `tail` are
    as in the inbox; `op` is the frame's.
    """

    uid: str
    op: str
    cursor: str
    prev: str
    head: bytes
    tail: bytes


class Receiver(Protocol):
    """A worker, as others see it."""

    def deliver(self, pushed: Sequence[Pushed]) -> list[int]:
        """Take these in, in order; for each the number of connections that it reached."""

    def broadcast(self, role: str | None, platform: str | None, head: bytes, tail: bytes) -> int:
        """Send a frame that is not stored to every connection of this kind; their number."""

    def close(self, uid: str, conn: str | None, channels: Sequence[str], code: int, reason: str) -> int:
        """Close a uid's connections (or one) that have one of these channels; their number."""

    def sever(self, kind: str, value: str, channels: Sequence[str], code: int, reason: str) -> int:
        """Close every connection of this `uid` or `ip` that has one of these channels; their number."""

    def trail(self, id: str, channel: str) -> list[Event]:
        """What it did with a message lately."""

    def present(self, uids: Sequence[str], role: str, channel: str) -> list[str]:
        """Those of `uids` who are connected to it now, in this role and channel."""


class Peer(Protocol):
    """The way to one worker. Each call has a deadline and raises `RpcError`."""

    async def deliver(self, pushed: Pushed) -> int:
        """`Receiver.deliver` of one; what comes together is sent together, in order."""

    async def broadcast(self, role: str | None, platform: str | None, head: bytes, tail: bytes) -> int:
        """`Receiver.broadcast`."""

    async def close(self, uid: str, conn: str | None, channels: Sequence[str], code: int, reason: str) -> int:
        """`Receiver.close`."""

    async def sever(self, kind: str, value: str, channels: Sequence[str], code: int, reason: str) -> int:
        """`Receiver.sever`."""

    async def trail(self, id: str, channel: str) -> list[Event]:
        """`Receiver.trail`."""

    async def present(self, uids: Sequence[str], role: str, channel: str) -> list[str]:
        """`Receiver.present`."""


class Peers(Protocol):
    """The ways to all workers."""

    def peer(self, address: str) -> Peer:
        """The way to the worker at this client endpoint string."""

    def keep(self, addresses: set[str]) -> None:
        """Close the ways to all others."""
