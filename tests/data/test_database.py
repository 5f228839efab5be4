"""The archive on a real SQLite and a real PostgreSQL: migrations, repeated batches, recalls in any order."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from twisted.internet import defer, reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from imserver.business.archive import Rows, write
from imserver.business.history import _interval
from imserver.data import database
from imserver.data.database import Database
from imserver.data.interface import Unavailable
from tests.servers import settings, shared_postgresql


def message(seq: int, **more: Any) -> dict[str, Any]:
    """A row."""
    row = {"id": f"{seq:032x}", "channel": "demo", "conversation": "c", "seq": seq, "sender": "a", "receiver": "b"}
    return {**row, "type": "text", "body": '{"t":"\\u0000"}', "ts": seq, "target": None, **more}


class _Archive:
    """What both databases have to do."""

    url: str

    def make(self: Any, **more: Any) -> Database:
        """A database that is closed after the test."""
        made = Database(reactor, settings(database={"url": self.url, **more}).database)
        self.addCleanup(lambda: Deferred.fromCoroutine(made.stop()))
        return made

    async def test_migrations_at_once(self: Any) -> None:
        """Several servers that start together make the tables once; and they are what the code thinks they are."""
        made = [self.make() for _ in range(3)]
        await defer.gatherResults([Deferred.fromCoroutine(one.migrate()) for one in made])
        found = await made[0].run(
            lambda connection: {
                table: {column["name"] for column in sa.inspect(connection).get_columns(table)}
                for table in database.metadata.tables
            }
        )
        self.assertEqual(found, {name: {c.name for c in t.columns} for name, t in database.metadata.tables.items()})

    async def test_batches(self: Any) -> None:
        """A batch may come twice and recalls before what they take back."""
        made = self.make()
        await made.migrate()
        recall = message(3, type="recall", body='{"seq":2}', target=2)
        conversation = {"id": "c", "channel": "demo", "shop": "s", "customer": "a", "created": 1}
        batches = [
            Rows([], [recall], {("c", "a"): 2}),
            Rows([conversation], [message(1), message(2)], {("c", "a"): 1, ("c", "b"): 3}),
            Rows([conversation], [message(1), message(2)], {}),
        ]
        for rows in batches:
            await made.run(lambda connection, rows=rows: write(made, connection, rows), writes=True)
        messages = await made.run(lambda connection: _interval(connection, "c", 1, 10))
        self.assertEqual([m.type for m in messages], ["text", "recalled", "recall"])
        self.assertEqual([bytes(m.body) for m in messages], [b'{"t":"\\u0000"}', b"{}", b'{"seq":2}'])
        reads = await made.run(lambda connection: connection.execute(sa.select(database.reads)).fetchall())
        self.assertEqual({row.uid: row.seq for row in reads}, {"a": 2, "b": 3})
        body = await made.run(
            lambda connection: connection.scalar(
                sa.select(database.messages.c.body).where(database.messages.c.seq == 2)
            )
        )
        self.assertEqual(body, "{}")


class SqliteTests(_Archive, TestCase):
    """On SQLite."""

    timeout = 30

    def setUp(self) -> None:
        """A file of its own."""
        self.url = f"sqlite:///{self.mktemp()}.sqlite"

    async def test_nowhere(self) -> None:
        """A file that cannot be is unavailable, and says so."""
        made = Database(reactor, settings(database={"url": "sqlite:////proc/none.sqlite"}).database)
        self.addCleanup(lambda: Deferred.fromCoroutine(made.stop()))
        with self.assertRaises(Unavailable):
            await made.migrate()


class PostgresqlTests(_Archive, TestCase):
    """On PostgreSQL."""

    timeout = 60

    def setUp(self) -> None:
        """A database of its own."""
        self.url = shared_postgresql().database()
