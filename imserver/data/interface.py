"""What the servers need of the data layer.

Each interface has two implementations that pass the same tests: one on Redis and one in memory (`data.memory`).
Every call may raise `Unavailable`; every write may be repeated without harm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from imserver.config import WebhookEvent
from imserver.protocol.deliveries import Delivery
from imserver.protocol.webhooks import Event


class Unavailable(Exception):
    """The data layer did not answer in time, or refused: try again. A write may or may not have happened."""


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """One live worker, as it announces itself; gone when it stops renewing."""

    id: str
    incarnation: str
    url: str
    http: str
    rpc: str
    """Client endpoint string of its Perspective Broker."""
    host: str
    version: str
    since_ts: int
    connections: int = 0
    load: float = 0.0
    draining: bool = False


class ConnectionRecord(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One live connection of a uid."""

    conn: str
    worker: str
    incarnation: str
    role: str
    platform: str
    channels: tuple[str, ...]
    device: str
    ip: str
    since_ts: int


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One message in an inbox.

    `prev` is the cursor of the one stored before it, which is how a reader sees a gap.  `head` and `tail` are the
    encoded `deliveries.Head` and the encoded frame without its opening brace.
    """

    cursor: str
    prev: str
    head: bytes
    tail: bytes


class Stored(msgspec.Struct, frozen=True):
    """What became of one append to an inbox."""

    cursor: str
    prev: str
    duplicate: bool
    connections: tuple[ConnectionRecord, ...]


class Position(msgspec.Struct, frozen=True):
    """Where a device goes on reading: everything after `cursor`.

    `resumed` is false when something after it has left the inbox already.
    """

    cursor: str
    last: str
    resumed: bool


class Acknowledged(msgspec.Struct, frozen=True):
    """A device has everything of these channels up to `cursor`."""

    uid: str
    device: str
    channels: tuple[str, ...]
    cursor: str


class Inboxes(Protocol):
    """The ordered, bounded, durable messages of each uid."""

    async def append(self, delivery: Delivery) -> Stored:
        """Store once (per delivery.id if delivery.once) and look up the live connections, in one atomic step."""

    async def read(self, uid: str, after: str, limit: int) -> list[Entry]:
        """At most `limit` entries after a cursor, in order."""

    async def resume(self, uid: str, device: str, since: str | None, channels: Sequence[str]) -> Position:
        """Where this device goes on: after `since`, after all (`$`), or after what it acknowledged (None).

        It has a cursor in each channel; the earliest of them counts.
        """

    async def acknowledge(self, acks: Sequence[Acknowledged]) -> None:
        """Move each device's cursors forward, never back."""

    async def length(self, uid: str, channel: str | None = None) -> tuple[int, str | None]:
        """How many messages are kept (of one channel, if it is given), and the last cursor."""


class Connections(Protocol):
    """Where each uid is connected."""

    async def add(self, uid: str, record: ConnectionRecord) -> None:
        """Remember a connection; again is the same."""

    async def remove(self, uid: str, conn: str) -> None:
        """Forget it; a conn id is unique, so nobody else's can be hit."""

    async def of(self, uid: str) -> tuple[ConnectionRecord, ...]:
        """All records, those of dead workers included."""

    async def of_many(self, uids: Sequence[str]) -> list[tuple[ConnectionRecord, ...]]:
        """The same for many, in order."""


class Leases(Protocol):
    """Which workers live."""

    async def renew(self, lease: Lease) -> bool:
        """Say that this worker lives; false if the lease had been lost (or is new): others may think it dead."""

    async def release(self, lease: Lease) -> None:
        """Take the lease down, if it still is this incarnation's."""

    async def all(self) -> list[Lease]:
        """Every live worker."""


class Webhooks(Protocol):
    """What back offices are to be told of; what is recorded is told at least once."""

    def wants(self, channel: str, event: WebhookEvent) -> bool:
        """Whether anybody is to be told of such an event of this channel."""

    async def record(self, channel: str, events: Sequence[Event]) -> None:
        """Keep events of a channel until they have been told."""


class Events(Protocol):
    """Announcements between servers: best effort, so whoever hears them also looks for itself now and then."""

    async def announce(self, event: dict[str, Any]) -> None:
        """Tell every server; at most once."""

    def subscribe(self, hear: Callable[[dict[str, Any]], None]) -> None:
        """Call `hear` with every event from now on."""
