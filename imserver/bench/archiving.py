"""A process of the archive's load test: it puts messages into the journals, or moves them into the database.

Both are done with what a business server does it with, `Conversations.accept` and an `Archiver`.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from functools import partial
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from imserver import config
from imserver.bench.crowd import body
from imserver.bench.load import paced
from imserver.bench.orders import serve
from imserver.business.archive import Archiver
from imserver.business.conversations import Conversations, Draft
from imserver.business.journals import Journals
from imserver.data.database import Database
from imserver.data.database import messages as messages_table
from imserver.data.interface import Unavailable
from imserver.data.redis import Redis

WIDTH = 64
"""Messages being accepted at a time when as many as possible are to be."""
ANSWER_S = 30.0
_LOOK_S = 0.01


class Archiving:
    """The orders that it takes; `open` is the first."""

    def __init__(self) -> None:
        from twisted.internet import reactor

        self._reactor: Any = reactor
        self._accepted = 0
        self._refused: Counter[str] = Counter()

    async def do_open(self, settings: dict[str, Any], redis: str) -> None:
        """Connect to the database of `settings`, and to `redis`."""
        made = msgspec.convert(settings, config.Config)
        self._settings = made.business
        self._redis = Redis(self._reactor, msgspec.structs.replace(made.redis, url=redis))
        self._database = Database(self._reactor, made.database)
        self._conversations = Conversations(self._redis, self._database, cid_ttl_s=60, lease_s=60)
        await self._redis.insist(self._redis.ping)

    async def do_create(self, run: str, conversations: int) -> None:
        """Make so many conversations."""
        self._ids = [f"{run}-{number}" for number in range(conversations)]
        for id in self._ids:
            await self._conversations.create(id, "demo", "bench", f"c-{id}", _now())

    async def _accept(self, number: int, size: int) -> None:
        id = self._ids[number % len(self._ids)]
        draft = Draft(
            id=secrets.token_hex(16),
            channel="demo",
            sender=f"c-{id}",
            type="text",
            body=body(size),
            cid=str(number),
            side="customer",
        )
        try:
            await self._conversations.accept(id, draft, now=_now(), token="bench")
        except Unavailable as error:
            self._refused[str(error)] += 1
        else:
            self._accepted += 1

    def _result(self, **more: Any) -> dict[str, Any]:
        found = {"accepted": self._accepted, "refused": dict(self._refused), **more}
        self._accepted, self._refused = 0, Counter()
        return found

    async def do_fill(self, messages: int, size: int) -> dict[str, Any]:
        """Accept so many, as fast as it goes, in all conversations in turn."""
        numbers = iter(range(messages))

        async def some() -> None:
            for number in numbers:
                await self._accept(number, size)

        await gatherResults([Deferred.fromCoroutine(some()) for _ in range(WIDTH)])
        return self._result()

    async def do_feed(self, rate: float, seconds: float, size: int) -> dict[str, Any]:
        """Accept `rate` messages a second."""
        accepting: list[Deferred[None]] = []
        started = self._reactor.seconds()
        late = await paced(
            self._reactor, rate, seconds, lambda i: accepting.append(Deferred.fromCoroutine(self._accept(i, size)))
        )
        await gatherResults(accepting).addTimeout(ANSWER_S, self._reactor)
        return self._result(late_s=late, seconds=self._reactor.seconds() - started)

    async def do_plain(self, run: str, messages: int, size: int) -> float:
        """Insert so many rows from memory, in batches as large, as the driver does it; how many seconds that took."""
        await self._database.migrate()
        batch = self._settings.archive_batch
        mark = "?" if self._database.sqlite else "%s"
        statement = f"INSERT INTO messages VALUES ({', '.join([mark] * len(messages_table.columns))})"
        seconds = 0.0
        for first in range(0, messages, batch):
            rows = [_row(run, number, size) for number in range(first, min(first + batch, messages))]
            insert = partial(_insert, statement, rows)
            started = self._reactor.seconds()
            await self._database.run(insert, writes=True)
            seconds += self._reactor.seconds() - started
        return seconds

    async def do_drain(self, messages: int) -> float:
        """Archive so many messages from the journals; how many seconds that took."""
        await self._database.migrate()
        journals = Journals(self._redis, self._reactor, self._settings)
        archiver = Archiver(self._reactor, journals, self._database, self._settings)
        started = self._reactor.seconds()
        archiver.start()
        while archiver.archived < messages or await journals.length():
            await deferLater(self._reactor, _LOOK_S)
        seconds: float = self._reactor.seconds() - started
        await archiver.stop()
        return seconds


def _insert(statement: str, rows: list[tuple[Any, ...]], connection: Any) -> None:
    connection.exec_driver_sql(statement, rows)


def _row(run: str, number: int, size: int) -> tuple[Any, ...]:
    """A message, in the order of the table's columns."""
    conversation = f"{run}-{number % 200}"
    written = body(size).decode()
    start = (secrets.token_hex(16), "demo", conversation, number // 200 + 1, f"c-{conversation}", "bench", "text")
    return (*start, written, _now(), None)


def _now() -> int:
    return int(time.time() * 1000)


if __name__ == "__main__":
    serve(Archiving())
