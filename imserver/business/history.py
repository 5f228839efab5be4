"""The history of a conversation: the archive, and the journal's tail that is not archived yet.

Numbers have no gaps, so a page is known before anything is read: an interval of `seq`.  The tail is read first, then
the database: what an archiver moves in between is then in both, never in neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import Raw

from imserver.business.conversations import Place, StoredMessage, partition, prefix, stored_message
from imserver.business.journals import REFUSED, REFUSED_MARK
from imserver.data import database
from imserver.data.database import Database
from imserver.data.interface import Unavailable
from imserver.data.redis import Redis, pairs

PAGE_BYTES = 512 << 10
"""A page has at most so many bytes of bodies, but at least one of them: it may travel as one frame, and a frame over
the `write_budget` of its connection would end that."""

_NOTHING = Raw(b"{}")
_Messages = dict[int, StoredMessage | None]


class Page(msgspec.Struct, frozen=True):
    """Messages in seq order, and whether there are more in the direction that was asked for."""

    messages: list[StoredMessage]
    more: bool


class _Target(msgspec.Struct):
    seq: int


def interval(last: int, before: int | None, after: int | None, limit: int) -> tuple[int, int, bool]:
    """The first and last seq of a page of a conversation whose last seq is `last`, and whether there are more.

    The newest page without `before` and `after`; an empty one has its last below its first.
    """
    if after is not None:
        high = min(last, after + limit)
        return after + 1, high, high < last
    high = last if before is None else min(last, before - 1)
    low = max(1, high - limit + 1)
    return low, high, low > 1 and high >= low


def fitting(bodies: Sequence[Raw]) -> int:
    """How many of these go together into one page: all until they have `PAGE_BYTES`, at least one."""
    size = 0
    for count, body in enumerate(bodies):
        size += len(bytes(body))
        if count and size > PAGE_BYTES:
            return count
    return len(bodies)


def recalled_seq(body: bytes) -> int | None:
    """The seq that a recall's body takes back; None if it names none."""
    try:
        seq = msgspec.json.decode(body, type=_Target).seq
    except msgspec.DecodeError:
        return None
    return seq if 0 < seq <= 2**53 else None


class History:
    """Reads pages of conversations."""

    def __init__(self, redis: Redis, archive: Database) -> None:
        self._redis = redis
        self._database = archive

    async def page(self, place: Place, before: int | None, after: int | None, limit: int) -> Page:
        """At most `limit` messages before or after a seq; `Unavailable` if some of them cannot be reached now."""
        low, high, more = interval(place.seq, before, after, limit)
        messages = await self.messages(place.id, low, high)
        if after is not None:
            count = fitting([message.body for message in messages])
            return Page(messages[:count], more or count < len(messages))
        count = fitting([message.body for message in reversed(messages)])
        return Page(messages[len(messages) - count :], more or count < len(messages))

    async def messages(self, id: str, low: int, high: int) -> list[StoredMessage]:
        """All messages from seq `low` to `high`, both included."""
        if high < low:
            return []
        found, refused = await self._tail(id, low, high)
        if len(found) <= high - low:
            stored = await self._database.run(lambda connection: _interval(connection, id, low, high))
            found = refused | {message.seq: message for message in stored} | found
        if len(found) <= high - low:
            raise Unavailable(f"{high - low + 1 - len(found)} messages are neither in the journal nor in the archive")
        taken_back = await self._taken_back(id, low, high)
        messages = [found[seq] for seq in sorted(found)]
        for message in messages:
            if message is not None and message.type not in ("system", "recall") and message.seq in taken_back:
                message.type, message.body = "recalled", _NOTHING
        return [message for message in messages if message is not None]

    async def _tail(self, id: str, low: int, high: int) -> tuple[_Messages, _Messages]:
        """What the journal has; and what the database has refused, with None for one that somebody has removed."""
        start = prefix(partition(id))
        tail = await self._redis.command("ZRANGEBYSCORE", f"{start}:tail:{id}", low, high, "WITHSCORES")
        found: _Messages = {}
        refused: _Messages = {}
        for entry, score in zip(tail[::2], tail[1::2], strict=True):
            seq = int(score)
            if not entry.startswith(REFUSED_MARK):
                if message := await self._entry(f"{start}:journal", entry):
                    found[seq] = message
            else:
                refused[seq] = await self._entry(REFUSED, entry.removeprefix(REFUSED_MARK))
        return found, refused

    async def _entry(self, stream: str, entry: bytes) -> StoredMessage | None:
        for _, fields in await self._redis.command("XRANGE", stream, entry, entry):
            return msgspec.json.decode(pairs(fields)[b"message"], type=StoredMessage)
        return None

    async def _taken_back(self, id: str, low: int, high: int) -> set[int]:
        """Numbers whose byte says that they do not count: recalled, if they are not of a type that never does."""
        start = f"{prefix(partition(id))}:senders:{id}"
        senders: bytes = await self._redis.command("GETRANGE", start, low - 1, high - 1)
        return {low + index for index, sender in enumerate(senders) if sender == 0}


def _interval(connection: sa.Connection, id: str, low: int, high: int) -> list[StoredMessage]:
    table: Any = database.messages
    rows = connection.execute(
        sa.select(table).where(table.c.conversation == id, table.c.seq.between(low, high)).order_by(table.c.seq)
    )
    messages = [stored_message(row) for row in rows]
    targets = {
        target
        for (target,) in connection.execute(
            sa.select(table.c.target).where(table.c.conversation == id, table.c.target.between(low, high))
        )
    }
    for message in messages:
        if message.seq in targets:
            message.type, message.body = "recalled", _NOTHING
    return messages
