"""The archiver: moves the journals of all partitions into the database (design: Archive).

Several servers share the work; each entry is written in a batch, once whoever writes it, and only then dropped.  A
database that is away makes the journals grow and nothing else.  An entry that it refuses for good is put aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from imserver import config
from imserver.business.conversations import StoredMessage
from imserver.business.history import recalled_seq
from imserver.business.journals import Entry, Journals
from imserver.data import database
from imserver.data.database import Database, Unstorable
from imserver.data.interface import Unavailable

log = Logger()
STOP_S = 2.0
"""How long an archiver that is stopped may still write, beyond the wait of its last look."""

GATHER_S = 0.1
"""How long more may gather after less than a batch: a batch of ten rows costs nearly as much as one of two hundred."""

_PAUSE_FIRST_S = 0.2
_PAUSE_MOST_S = 5.0


class Archiver:
    """One member of the consumer group; `start` and `stop`."""

    def __init__(self, reactor: Any, journals: Journals, archive: Database, settings: config.Business) -> None:
        self.archived = 0
        """Messages this archiver has written."""
        self.away = ""
        """Why it cannot write at the moment; empty when it can."""
        self._reactor = reactor
        self._journals = journals
        self._database = archive
        self._settings = settings
        self._held: list[Entry] = []
        self._stopping = False
        self._running: Deferred[None] | None = None

    def start(self) -> None:
        """Begin to archive."""
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(lambda failure: failure.trap(defer.CancelledError))
        self._running.addErrback(lambda failure: log.failure("the archiver ended", failure))

    async def stop(self) -> None:
        """Finish what is under way, within STOP_S; what is left unwritten another takes over."""
        self._stopping = True
        if self._running is not None:
            await self._running.addTimeout(self._settings.archive_wait_s + STOP_S, self._reactor)

    async def _run(self) -> None:
        pause = _PAUSE_FIRST_S
        prepared = False
        while not self._stopping:
            try:
                if not prepared:
                    await self._database.migrate()
                    await self._journals.join()
                    prepared = True
                count = await self._turn()
                if self.away:
                    log.info("the archiver works again")
                self.away, pause = "", _PAUSE_FIRST_S
                if 0 < count < self._settings.archive_batch and not self._stopping:
                    await deferLater(self._reactor, GATHER_S)
                continue
            except Unavailable as error:
                if not self.away:
                    log.warn("the archiver waits: {error}", error=error)
                self.away = str(error)
            except defer.CancelledError:
                raise
            except Exception as error:
                prepared = False
                self.away = str(error)
                if not str(error).startswith("NOGROUP"):  # a Redis that lost everything
                    log.failure("the archiver failed and goes on")
            await deferLater(self._reactor, pause)
            pause = min(pause * 2, _PAUSE_MOST_S)

    async def _turn(self) -> int:
        """Read, write, drop: once; how many entries."""
        if not self._held:
            self._held = await self._journals.claim() or await self._journals.read()
        await self._write(self._held)
        count, self._held = len(self._held), []
        return count

    async def _write(self, batch: Sequence[Entry]) -> None:
        """Write a batch; if the database refuses it, its halves, until the one that is refused stands alone."""
        if not batch:
            return
        try:
            rows = rows_of(batch)
            await self._database.run(lambda connection: write(self._database, connection, rows), writes=True)
        except Unstorable as error:
            if len(batch) == 1:
                await self._journals.refuse(batch[0], str(error))
                return
            middle = len(batch) // 2
            await self._write(batch[:middle])
            await self._write(batch[middle:])
            return
        self.archived += len(rows.messages)
        await self._journals.drop(batch)


class Rows(msgspec.Struct):
    """What a batch of entries is in the database."""

    conversations: list[dict[str, Any]]
    messages: list[dict[str, Any]]
    reads: dict[tuple[str, str], int]


def write(archive: Database, connection: sa.Connection, rows: Rows) -> None:
    """Write a batch; again is the same, in whatever order batches come."""
    if rows.conversations:
        connection.execute(archive.insert(database.conversations).on_conflict_do_nothing(), rows.conversations)
    if rows.messages:
        # of the id alone: another message with the same number must not vanish silently
        insert = archive.insert(database.messages).on_conflict_do_nothing(index_elements=["id"])
        connection.execute(insert, rows.messages)
        _take_back(archive, connection, rows.messages)
    if rows.reads:
        upsert = archive.insert(database.reads)
        upsert = upsert.on_conflict_do_update(
            index_elements=["conversation", "uid"],
            set_={"seq": upsert.excluded.seq},
            where=database.reads.c.seq < upsert.excluded.seq,
        )
        values = [{"conversation": id, "uid": uid, "seq": seq} for (id, uid), seq in sorted(rows.reads.items())]
        connection.execute(upsert, values)


def _take_back(archive: Database, connection: sa.Connection, messages: Sequence[dict[str, Any]]) -> None:
    """Empty what the recalls of this batch take back, and what of this batch was taken back in an earlier one."""
    table: Any = database.messages
    written = {(message["conversation"], message["seq"]) for message in messages if message["conversation"]}
    gone = {(message["conversation"], message["target"]) for message in messages if message["target"] is not None}
    if written:
        # starts from the recalls, which are few: their index has nothing else in it
        recalls = sa.select(table.c.conversation, table.c.target).where(
            table.c.target.is_not(None), archive.among(table.c.conversation, sorted({id for id, _ in written}))
        )
        gone |= written.intersection(tuple(row) for row in connection.execute(recalls))
    for conversation, seq in sorted(gone):
        connection.execute(
            sa.update(table)
            .where(table.c.conversation == conversation, table.c.seq == seq)
            .where(table.c.type.not_in(("system", "recall", "recalled")))
            .values(type="recalled", body="{}")
        )


def rows_of(batch: Sequence[Entry]) -> Rows:
    """What a batch is in the database; `Unstorable` if an entry makes no sense."""
    rows = Rows([], [], {})
    for entry in batch:
        fields = entry.fields
        try:
            kind = fields[b"kind"]
            if kind == b"message":
                rows.messages.append(_row(fields))
            elif kind == b"new":
                id, channel, shop, customer, ts = (
                    fields[name].decode() for name in (b"q", b"channel", b"shop", b"customer", b"ts")
                )
                rows.conversations.append(
                    {"id": id, "channel": channel, "shop": shop, "customer": customer, "created": int(ts)}
                )
            elif kind == b"read":
                key = fields[b"q"].decode(), fields[b"uid"].decode()
                rows.reads[key] = max(rows.reads.get(key, 0), int(fields[b"seq"]))
            else:
                raise ValueError(f"an entry of an unknown kind, {kind!r}")
        except (KeyError, ValueError, msgspec.DecodeError) as error:
            raise Unstorable(f"{type(error).__name__}: {error}") from error
    return rows


def _row(fields: dict[bytes, bytes]) -> dict[str, Any]:
    message = msgspec.json.decode(fields[b"message"], type=StoredMessage)
    body = bytes(message.body)
    return {
        "id": message.id,
        "channel": message.channel,
        "conversation": message.conversation,
        "seq": message.seq or None,
        "sender": message.sender,
        "receiver": message.to,
        "type": message.type,
        "body": body.decode(),
        "ts": message.ts,
        "target": recalled_seq(body) if message.type == "recall" and message.conversation else None,
    }
