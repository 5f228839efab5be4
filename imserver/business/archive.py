"""The archiver: moves the journals of all partitions into the database (design: Archive).

Several servers share the work as one consumer group; each entry is written in a batch, once whoever writes it, and only
then acknowledged and dropped.  A database that is away makes the journals grow and nothing else.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from imserver import config
from imserver.business.conversations import PARTITIONS, StoredMessage, prefix
from imserver.business.history import recalled_seq
from imserver.data import database
from imserver.data.database import Database
from imserver.data.interface import Unavailable
from imserver.data.redis import Redis

log = Logger()
GROUP = "archive"
STOP_S = 2.0
"""How long an archiver that is stopped may still write, beyond the wait of its last look."""

_PAUSE_FIRST_S = 0.2
_PAUSE_MOST_S = 5.0

Entry = tuple[int, str, dict[bytes, bytes]]
"""Partition, id in its journal, fields."""


class Archiver:
    """One member of the consumer group; `start` and `stop`."""

    def __init__(self, reactor: Any, redis: Redis, archive: Database, settings: config.Business) -> None:
        self.name = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(3)}"
        self.archived = 0
        """Messages this archiver has written."""
        self.away = ""
        """Why it cannot write at the moment; empty when it can."""
        self._reactor = reactor
        self._redis = redis
        self._database = archive
        self._settings = settings
        self._held: list[Entry] = []
        self._claimed = 0.0
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

    async def length(self) -> int:
        """Entries in all journals, not archived yet."""
        lengths = await defer.gatherResults(
            [
                Deferred.fromCoroutine(self._redis.command("XLEN", f"{prefix(number)}:journal"))
                for number in range(PARTITIONS)
            ],
            consumeErrors=True,
        ).addErrback(_first_error)
        return sum(lengths)

    async def _run(self) -> None:
        pause = _PAUSE_FIRST_S
        grouped = False
        while not self._stopping:
            try:
                if not grouped:
                    await self._groups()
                    grouped = True
                await self._turn()
                if self.away:
                    log.info("the archiver works again")
                self.away, pause = "", _PAUSE_FIRST_S
                continue
            except Unavailable as error:
                if not self.away:
                    log.warn("the archiver waits: {error}", error=error)
                self.away = str(error)
            except defer.CancelledError:
                raise
            except Exception as error:
                grouped = False
                self.away = str(error)
                if not str(error).startswith("NOGROUP"):  # a Redis that lost everything
                    log.failure("the archiver failed and goes on")
            await deferLater(self._reactor, pause)
            pause = min(pause * 2, _PAUSE_MOST_S)

    async def _groups(self) -> None:
        for number in range(PARTITIONS):
            await self._redis.script("journal_group", [f"{prefix(number)}:journal"], [GROUP])

    async def _turn(self) -> None:
        """Read, write, drop: once."""
        if not self._held:
            self._held = await self._claim() or await self._read()
        size = self._settings.archive_batch
        while self._held:
            batch = self._held[:size]
            await self._write(batch)
            self._held = self._held[size:]

    async def _read(self) -> list[Entry]:
        wait_ms = int(self._settings.archive_wait_s * 1000)
        keys = [f"{prefix(number)}:journal" for number in range(PARTITIONS)]
        count = max(1, self._settings.archive_batch // 8)
        arguments: list[str | int] = ["XREADGROUP", "GROUP", GROUP, self.name, "COUNT", count, "BLOCK", wait_ms]
        arguments += ["STREAMS", *keys, *[">"] * PARTITIONS]
        patience = self._settings.archive_wait_s + self._redis.settings.command_timeout_s
        answer = await self._redis.blocking(*arguments, timeout_s=patience)
        numbers = {key.encode(): number for number, key in enumerate(keys)}
        return [entry for key, entries in answer or [] for entry in _entries(numbers[key], entries)]

    async def _claim(self) -> list[Entry]:
        """Every now and then: what an archiver read that has been silent since, ourselves included."""
        now = self._reactor.seconds()
        if now - self._claimed < self._settings.claim_after_s:
            return []
        self._claimed = now
        idle_ms = int(self._settings.claim_after_s * 1000)
        found: list[Entry] = []
        for number in range(PARTITIONS):
            answer = await self._redis.command(
                *("XAUTOCLAIM", f"{prefix(number)}:journal", GROUP, self.name, idle_ms, "0-0"),
                *("COUNT", self._settings.archive_batch),
            )
            found += _entries(number, answer[1])
        if found:
            log.info("{count} journal entries are taken over", count=len(found))
        return found

    async def _write(self, batch: Sequence[Entry]) -> None:
        rows = _rows(batch)
        await self._database.run(lambda connection: write(self._database, connection, rows), writes=True)
        self.archived += len(rows.messages)
        done: dict[int, list[str]] = {}
        for number, entry, fields in batch:
            done.setdefault(number, []).extend((entry, fields.get(b"q", b"").decode()))
        for number, pairs in done.items():
            await self._redis.script("conversation_archived", [prefix(number)], [GROUP, *pairs])


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
        connection.execute(archive.insert(database.messages).on_conflict_do_nothing(), rows.messages)
        _take_back(connection, rows.messages)
    if rows.reads:
        upsert = archive.insert(database.reads)
        upsert = upsert.on_conflict_do_update(
            index_elements=["conversation", "uid"],
            set_={"seq": upsert.excluded.seq},
            where=database.reads.c.seq < upsert.excluded.seq,
        )
        values = [{"conversation": id, "uid": uid, "seq": seq} for (id, uid), seq in sorted(rows.reads.items())]
        connection.execute(upsert, values)


def _take_back(connection: sa.Connection, messages: Sequence[dict[str, Any]]) -> None:
    """Empty what the recalls of this batch take back, and what of this batch was taken back in an earlier one."""
    table: Any = database.messages
    gone = {"type": "recalled", "body": "{}"}
    for message in messages:
        if message["target"] is not None:
            connection.execute(
                sa.update(table)
                .where(table.c.conversation == message["conversation"], table.c.seq == message["target"])
                .where(table.c.type.not_in(("system", "recall")))
                .values(gone)
            )
    recall = table.alias()
    connection.execute(
        sa.update(table)
        .where(table.c.id.in_([message["id"] for message in messages if message["target"] is None]))
        .where(sa.exists().where(recall.c.conversation == table.c.conversation, recall.c.target == table.c.seq))
        .values(gone)
    )


def _rows(batch: Sequence[Entry]) -> Rows:
    rows = Rows([], [], {})
    for _, entry, fields in batch:
        kind = fields.get(b"kind")
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
            log.error("journal entry {entry} is of an unknown kind {kind!r}", entry=entry, kind=kind)
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


def _entries(number: int, entries: Sequence[Any]) -> list[Entry]:
    return [
        (number, entry.decode(), dict(zip(fields[::2], fields[1::2], strict=True)))
        for entry, fields in entries
        if fields  # an entry that was deleted meanwhile has none
    ]


def _first_error(failure: Any) -> Any:
    failure.trap(defer.FirstError)
    return failure.value.subFailure
