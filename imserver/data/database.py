"""The database: what the archive holds, run in threads with a deadline. Only the business server uses it.

SQLite (write-ahead log) by default, PostgreSQL through psycopg 3 in production; the same statements on both.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.pool import QueuePool
from twisted.internet import defer, threads
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from imserver import config
from imserver.data.interface import Unavailable

log = Logger()
Result = TypeVar("Result")

WAITING_PER_THREAD = 50
"""Work that may wait for a thread, for each thread; more is refused at once."""


class Unstorable(Exception):
    """What was to be written is refused for good: it would be again, by whomever and whenever it is tried."""


_MIGRATIONS_LOCK = 0x696D7365  # any number, the same on every server

metadata = sa.MetaData()
_recalls = sa.text("target IS NOT NULL")

conversations = sa.Table(
    "conversations",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("channel", sa.String(32), nullable=False),
    sa.Column("shop", sa.String(64), nullable=False),
    sa.Column("customer", sa.String(128), nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
)

messages = sa.Table(
    "messages",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("channel", sa.String(32), nullable=False),
    sa.Column("conversation", sa.String(64)),
    sa.Column("seq", sa.BigInteger),
    sa.Column("sender", sa.String(128), nullable=False),
    sa.Column("receiver", sa.String(128), nullable=False),
    sa.Column("type", sa.String(32), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("ts", sa.BigInteger, nullable=False),
    sa.Column("target", sa.BigInteger),  # of a recall: the seq it takes back
    sa.Index("messages_by_seq", "conversation", "seq", unique=True),
    sa.Index("messages_by_target", "conversation", "target", sqlite_where=_recalls, postgresql_where=_recalls),
)

reads = sa.Table(
    "reads",
    metadata,
    sa.Column("conversation", sa.String(64), primary_key=True),
    sa.Column("uid", sa.String(128), primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
)


class Database:
    """Runs functions of an SQLAlchemy connection in threads, each in one transaction."""

    def __init__(self, reactor: Any, settings: config.Database) -> None:
        self.url = sa.make_url(settings.url)
        self._reactor = reactor
        self._settings = settings
        self._engine = _engine(self.url, settings)
        self._pool = ThreadPool(0, settings.threads, "database")
        self._waiting = 0
        self._waiting_max = settings.threads * WAITING_PER_THREAD
        self._pool.start()

    @property
    def sqlite(self) -> bool:
        """Whether this is SQLite."""
        return self.url.get_backend_name() == "sqlite"

    async def run(self, work: Callable[[sa.Connection], Result], *, writes: bool = False) -> Result:
        """The result of `work`, run in a thread and in a transaction of its own.

        `Unavailable` if that cannot be now, `Unstorable` if the data itself is the reason.

        `writes`: it changes something, so that SQLite queues it behind other writers from its beginning.  A deadline
        that passes leaves the thread to end by the database's own timeouts.
        """
        if self._waiting >= self._waiting_max:
            raise Unavailable(f"{self._waiting} calls wait for the database already")
        self._waiting += 1
        running = threads.deferToThreadPool(self._reactor, self._pool, self._in_transaction, work, writes)
        running.addBoth(self._finished)
        answer: defer.Deferred[Result] = defer.Deferred()
        running.chainDeferred(answer)  # so that a deadline does not pretend to end what the thread still does
        try:
            return await answer.addTimeout(self._settings.timeout_s, self._reactor)
        except defer.TimeoutError:
            raise Unavailable(f"the database did not answer within {self._settings.timeout_s} s") from None
        except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError, sa.exc.InternalError) as error:
            raise Unavailable(f"database: {_reason(error)}") from error
        except (sa.exc.DataError, sa.exc.IntegrityError, UnicodeError, OverflowError) as error:
            raise Unstorable(_reason(error)) from error

    async def migrate(self) -> None:
        """Bring the tables up to date; of several servers at once one does it and the others wait."""
        await self.run(_upgrade, writes=True)

    async def ping(self) -> None:
        """Raises `Unavailable` unless the database answers."""
        await self.run(lambda connection: connection.execute(sa.select(1)).scalar())

    async def stop(self) -> None:
        """Wait for what runs, and close every connection."""
        await threads.deferToThread(self._pool.stop)
        self._engine.dispose()

    def insert(self, table: sa.Table) -> Any:
        """An INSERT that can say ON CONFLICT, in this database's dialect."""
        return sqlite.insert(table) if self.sqlite else postgresql.insert(table)

    def among(self, column: Any, values: Sequence[str]) -> Any:
        """The condition that a text is one of many; PostgreSQL takes them as one value, not each as one of its own."""
        if self.sqlite:
            return column.in_(values)
        return column == sa.any_(sa.literal(list(values), postgresql.ARRAY(sa.Text)))

    def _in_transaction(self, work: Callable[[sa.Connection], Result], writes: bool) -> Result:
        with self._engine.execution_options(writes=writes).begin() as connection:
            return work(connection)

    def _finished(self, result: Any) -> Any:
        self._waiting -= 1
        return result


def _engine(url: sa.URL, settings: config.Database) -> sa.Engine:
    backend = url.get_backend_name()
    if backend == "sqlite":
        if url.database and url.database != ":memory:":
            Path(url.database).expanduser().parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(
            url,
            poolclass=QueuePool,
            pool_size=settings.threads,
            max_overflow=0,
            connect_args={"check_same_thread": False, "timeout": settings.timeout_s / 2},
        )
        sa.event.listen(engine, "connect", _pragmas)
        sa.event.listen(engine, "begin", _begin_immediate)
        return engine
    timeout_ms = int(settings.timeout_s * 1000)
    arguments: dict[str, Any] = {}
    if backend == "postgresql":
        arguments = {
            "connect_timeout": max(2, int(settings.timeout_s / 2)),
            "options": f"-c statement_timeout={timeout_ms} -c lock_timeout={timeout_ms}",
        }
    return sa.create_engine(
        url,
        pool_size=settings.threads,
        max_overflow=0,
        pool_timeout=settings.timeout_s,
        pool_pre_ping=True,
        connect_args=arguments,
    )


def _pragmas(connection: Any, record: object) -> None:
    connection.isolation_level = None  # transactions are begun by us, in _begin_immediate
    cursor = connection.cursor()
    with suppress(sqlite3.OperationalError):  # locked: somebody else is changing it, and it is the file's own
        cursor.execute("PRAGMA journal_mode=WAL")
    # FULL: an entry leaves the journal once it is committed here, so that has to survive a loss of power; with NORMAL
    # the newest commits may not
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _begin_immediate(connection: sa.Connection) -> None:
    # a transaction that reads first and writes later would fail at once where it could have waited
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


def _upgrade(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATIONS_LOCK)))
    alembic = AlembicConfig()
    with resources.as_file(resources.files("imserver.data") / "migrations") as directory:
        alembic.set_main_option("script_location", str(directory).replace("%", "%%"))
        alembic.attributes["connection"] = connection
        command.upgrade(alembic, "head")


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]
