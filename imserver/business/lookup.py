"""One message by its id, for a backend that asks what became of it (`imctl trace`)."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from imserver.business.conversations import Conversations
from imserver.data import database
from imserver.data.database import Database
from imserver.http.problems import not_found
from imserver.http.routes import Call, Route
from imserver.protocol.syntax import MessageId


class Found(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What was accepted, and whether the archive has it already; `from` and `to` only then."""

    id: str
    ts: int
    archived: bool
    conversation: str | None = None
    seq: int | None = None
    sender: str | None = msgspec.field(name="from", default=None)
    to: str | None = None


class Lookup:
    """Finds messages in the archive and, those with a `cid`, in the journal before that."""

    def __init__(self, archive: Database, conversations: Conversations) -> None:
        self._archive = archive
        self._conversations = conversations

    async def find(self, call: Call) -> Found:
        """`GET /v1/messages/{id}`: of the key's own channel."""
        id, (channel,) = call.path["id"], call.identity.channels
        found = await self._archive.run(lambda connection: _archived(connection, id, channel))
        if found is None:
            found = await self._accepted(id, channel)
        if found is None:
            raise not_found()
        return found

    async def _accepted(self, id: str, channel: str) -> Found | None:
        queue = await self._conversations.claimed(id)
        accepted = await self._conversations.repeat(queue, id) if queue else None
        if not queue or accepted is None:
            return None
        place = await self._conversations.find(queue) if accepted.seq else None
        if place is None or place.channel != channel:
            return None
        return Found(id=id, ts=accepted.ts, archived=False, conversation=queue, seq=accepted.seq)

    def routes(self) -> list[Route]:
        """The one call."""
        return [
            Route(
                method="GET",
                path="/v1/messages/{id}",
                function=self.find,
                parameters={"id": MessageId},
                answer=Found,
                auth="key",
                tag="messages",
                summary="What became of a message here",
                problems=(404, 503),
            )
        ]


def _archived(connection: sa.Connection, id: str, channel: str) -> Found | None:
    table = database.messages
    row = connection.execute(sa.select(table).where(table.c.id == id, table.c.channel == channel)).first()
    if row is None:
        return None
    return Found(
        id=id, ts=row.ts, archived=True, conversation=row.conversation, seq=row.seq, sender=row.sender, to=row.receiver
    )
