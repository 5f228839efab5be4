"""The archive through the whole business server, on a real SQLite and a real PostgreSQL."""

from __future__ import annotations

import sqlite3
from typing import Any

import ujson
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from imserver.business.conversations import PARTITIONS, partition, prefix
from imserver.business.journals import REFUSED
from imserver.data.database import Database
from tests.business.shop import ShopCase
from tests.servers import shared_postgresql


class ArchiveCase(ShopCase):
    """A business server with a database that can be looked into."""

    database: str

    async def begin(self, **business: Any) -> Any:
        """A business server on the database of this test; what is read and not written is taken over soon."""
        return await self.start(
            database={"url": self.database, "timeout_s": 2.0}, business={"claim_after_s": 0.5, **business}
        )

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What the database answers."""
        found = Database(reactor, self.settings.database)
        try:
            return await found.run(lambda connection: [tuple(row) for row in connection.exec_driver_sql(query)])
        finally:
            await found.stop()

    async def metric(self, name: str) -> float:
        """A metric of the server."""
        response = await self.http.get(f"{self.url}/metrics")
        text = (await response.content()).decode()
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        return float(line.split()[1])

    async def history(self, conversation: str, credential: str, query: str = "") -> list[dict[str, Any]]:
        """The messages of a conversation."""
        page = await self.good("GET", f"/v1/conversations/{conversation}/messages{query}", credential)
        messages: list[dict[str, Any]] = page["messages"]
        return messages

    async def inject(self, conversation: str, **fields: Any) -> None:
        """An entry in the journal that no server of ours would write."""
        entry = [part for pair in fields.items() for part in pair]
        await self.redis.command("XADD", f"{prefix(partition(conversation))}:journal", "*", *entry)

    async def inject_message(self, conversation: str, **more: Any) -> None:
        """The same, for a message with number 1, of another id than the real one."""
        message = {"id": "f" * 32, "from": "bob", "to": "alice", "channel": "demo", "type": "text", "body": {"n": 1}}
        message |= {"ts": 1, "conversation": conversation, "seq": 1, **more}
        await self.inject(
            conversation, kind="message", q=conversation, seq=message["seq"], message=ujson.dumps(message)
        )


class _Archive:
    """What holds on both databases."""

    async def test_round_trip(self: Any) -> None:
        """What was archived is what was sent, and a Redis that lost everything gets the conversation back from it."""
        await self.begin()
        alice = await self.agent("alice")
        bob = self.token("bob")
        sent = [await self.say(bob, "one", shop="s1")]
        conversation = sent[0]["conversation"]
        strange = {"text": "\u0000 \U0001f600", "n": [1, {"deep": None}], "": 1e300}
        for number, body in enumerate([strange, {"oops": 1}]):
            draft = {"cid": f"c{number}", "type": "text", "body": body, "conversation": conversation}
            sent.append(await self.good("POST", "/v1/messages", alice, draft))
        recall = {"cid": "r", "type": "recall", "body": {"seq": 3}, "conversation": conversation}
        await self.good("POST", "/v1/messages", alice, recall)
        await self.good("POST", f"/v1/conversations/{conversation}/read", bob, {"seq": 1})
        from_journal = await self.history(conversation, bob)
        await self.archived()
        self.assertEqual(await self.history(conversation, bob), from_journal)
        self.assertEqual([m["seq"] for m in from_journal], [1, 2, 3, 4])
        self.assertEqual(from_journal[1]["body"], strange)
        self.assertEqual((from_journal[2]["type"], from_journal[2]["body"]), ("recalled", {}))
        self.assertEqual(await self.rows("SELECT body FROM messages WHERE seq = 3"), [("{}",)])
        await self.redis.command("FLUSHALL")
        await self.agent("alice")
        self.assertEqual(await self.history(conversation, bob, "?after=1&limit=2"), from_journal[1:3])
        self.assertEqual((await self.say(bob, "again", shop="s1"))["seq"], 5)
        (listed,) = (await self.good("GET", "/v1/conversations", bob))["conversations"]
        self.assertEqual((listed["unread"], listed["last"]["seq"]), (1, 5))
        await self.archived()
        self.assertEqual(
            await self.history(conversation, alice, "?limit=4"), (await self.history(conversation, bob))[1:]
        )

    async def test_half_a_character(self: Any) -> None:
        """A lone surrogate, which JSON can spell and UTF-8 cannot, is refused at the door: it never gets here."""
        await self.begin()
        await self.agent("alice")
        headers = {"Authorization": f"Bearer {self.token('bob')}", "Content-Type": "application/json"}
        body = b'{"cid":"s","type":"text","shop":"s1","body":{"t":"\\ud800"}}'
        response = await self.http.post(f"{self.url}/v1/messages", headers=headers, data=body)
        self.assertEqual((response.code, (await response.json())["code"]), (400, "invalid_json"))
        self.assertEqual(await self.rows("SELECT count(*) FROM messages"), [(0,)])

    async def test_shared(self: Any) -> None:
        """Two business servers share the journals, and every message is in the database, once."""
        servers = [await self.begin(archive_batch=20)]
        await self.agent("alice", capacity=100)
        urls = [self.url]
        servers.append(await self.begin())
        urls.append(self.url)
        sent = []
        for round in range(10):
            self.url = urls[round % 2]
            said = [Deferred.fromCoroutine(self.say(self.token(f"c{n}"), f"{round}", shop="s1")) for n in range(20)]
            sent += await gatherResults(said)
        await self.archived()
        stored = await self.rows("SELECT id, conversation, seq FROM messages")
        self.assertEqual(len(stored), 200)
        self.assertEqual({row[0] for row in stored}, {message["id"] for message in sent})
        self.assertEqual({row[1:] for row in stored}, {(m["conversation"], m["seq"]) for m in sent})
        self.assertEqual(await self.rows("SELECT count(*) FROM conversations"), [(20,)])

    async def test_dead_archiver(self: Any) -> None:
        """What an archiver had read when it died is taken over."""
        first = await self.begin()
        await self.agent("alice")
        conversation = (await self.say(self.token("bob"), shop="s1"))["conversation"]
        await self.archived()
        await first.stop()
        await self.inject(conversation, kind="read", q=conversation, uid="bob", seq=1)
        journal = f"{prefix(partition(conversation))}:journal"
        taken = await self.redis.command("XREADGROUP", "GROUP", "archive", "dead", "STREAMS", journal, ">")
        self.assertEqual(len(taken), 1)
        await self.begin()
        await self.archived()
        self.assertEqual(await self.rows("SELECT conversation, uid, seq FROM reads"), [(conversation, "bob", 1)])

    async def test_large_backlog(self: Any) -> None:
        """A journal much longer than a batch, of one conversation, is archived whole and in small batches."""
        first = await self.begin(archive_batch=16)
        await self.agent("alice")
        bob = self.token("bob")
        conversation = (await self.say(bob, shop="s1"))["conversation"]
        await first.stop()
        for number in range(2, 102):
            await self.inject_message(conversation, id=f"{number:032x}", seq=number)
        await self.begin()
        await self.archived()
        numbers = await self.rows("SELECT seq FROM messages ORDER BY seq")
        self.assertEqual(numbers, [(number,) for number in range(1, 102)])

    async def test_refused(self: Any) -> None:
        """What the database refuses for good is put aside, stops nothing behind it, and can still be read and seen."""
        first = await self.begin()
        await self.agent("alice")
        bob = self.token("bob")
        conversation = (await self.say(bob, shop="s1"))["conversation"]
        await self.archived()
        await first.stop()
        await self.inject_message(conversation)  # another message has this number
        await self.inject(conversation, kind="message", q=conversation, seq=9, message="not JSON")
        await self.inject(conversation, kind="riddle")
        await self.inject(conversation, kind="read", q=conversation, uid="bob", seq=1)
        await self.begin()
        sent = [await self.say(bob, f"{n}", shop="s1") for n in range(5)]
        await self.archived()
        self.assertEqual(await self.rows("SELECT count(*) FROM messages"), [(6,)])
        self.assertEqual(await self.rows("SELECT uid FROM reads"), [("bob",)])
        self.assertEqual([m["id"] for m in (await self.history(conversation, bob))[1:]], [m["id"] for m in sent])
        aside = await self.redis.command("XRANGE", REFUSED, "-", "+")
        fields = [dict(zip(entry[::2], entry[1::2], strict=True)) for _, entry in aside]
        self.assertEqual([f[b"kind"] for f in fields], [b"message", b"message", b"riddle"])
        self.assertTrue(all(f[b"reason"] and f[b"entry"] for f in fields))
        self.assertEqual(fields[0][b"journal"], f"{prefix(partition(conversation))}:journal".encode())
        await self.until(lambda: self.three_refused())
        self.assertEqual(len(self.flushLoggedErrors()), 0)

    async def three_refused(self: Any) -> bool:
        """Whether the metric says so."""
        refused: float = await self.metric("im_archive_refused")
        return refused == 3


class SqliteTests(_Archive, ArchiveCase):
    """On SQLite."""

    def setUp(self) -> None:
        """A file of its own."""
        self.database = f"sqlite:///{self.mktemp()}.sqlite"

    async def test_locked(self) -> None:
        """While another process has the file, messages go on and are in the history; it gets them afterwards."""
        await self.begin()
        await self.agent("alice")
        bob = self.token("bob")
        await self.say(bob, "before", shop="s1")
        await self.archived()
        lock = sqlite3.connect(self.settings.database.url.removeprefix("sqlite:///"), isolation_level=None)
        self.addCleanup(lock.close)
        lock.execute("BEGIN IMMEDIATE")
        conversation = (await self.say(bob, "during", shop="s1"))["conversation"]
        await self.until(lambda: self.away())
        await self.say(self.token("new"), "hello", shop="s1")
        self.assertEqual([m["body"]["text"] for m in await self.history(conversation, bob)], ["before", "during"])
        lock.execute("ROLLBACK")
        await self.archived()
        self.assertEqual(await self.rows("SELECT count(*) FROM messages"), [(3,)])

    async def away(self) -> bool:
        """Whether the server says that it cannot archive."""
        return await self.metric("im_archive_away") == 1


class PostgresqlTests(_Archive, ArchiveCase):
    """On PostgreSQL."""

    timeout = 60

    def setUp(self) -> None:
        """A database of its own."""
        self.postgresql = shared_postgresql()
        self.database = self.postgresql.database()

    async def stop_postgresql(self) -> None:
        """The real server ends at once, and is started again after the test at the latest."""
        self.addCleanup(shared_postgresql)
        await deferToThread(self.postgresql.kill)

    async def parts(self) -> tuple[int, dict[str, str]]:
        """What /readyz says."""
        status, answer = await self.call("GET", "/readyz")
        return status, answer["parts"]

    async def test_stopped(self) -> None:
        """PostgreSQL ends and comes back: meanwhile all goes on but the archive, which then gets everything, once."""
        await self.begin()
        await self.agent("alice", capacity=100)
        bob = self.token("bob")
        conversation = (await self.say(bob, "0", shop="s1"))["conversation"]
        await self.archived()
        await self.stop_postgresql()
        for number in range(1, 11):
            await self.say(bob, str(number), shop="s1")
        others = [await self.say(self.token(f"new{n}"), "hello", shop="s1") for n in range(20)]
        self.assertGreater(len({partition(sent["conversation"]) for sent in others}), 1)

        async def told() -> bool:
            return await self.metric("im_archive_away") == 1 and await self.metric("im_journal_entries") >= 50

        await self.until(told)  # 30 messages and 20 new conversations
        self.assertGreater(await self.metric("im_journal_age_seconds"), 0)
        self.assertEqual(await self.parts(), (503, {"redis": "ok", "database": "away"}))
        texts = [m["body"]["text"] for m in await self.history(conversation, bob, "?after=1")]
        self.assertEqual(texts, [str(number) for number in range(1, 11)])
        await self.refused(503, "unavailable", "GET", f"/v1/conversations/{conversation}/messages", bob)
        await self.until(lambda: len(self.inbox("alice")) == 31)
        await deferToThread(self.postgresql.start)
        await self.archived()
        stored = await self.rows("SELECT conversation, seq, id FROM messages ORDER BY seq")
        self.assertEqual([seq for found, seq, _ in stored if found == conversation], list(range(1, 12)))
        self.assertEqual(
            {id for _, seq, id in stored if seq == 1} & {m["id"] for m in others}, {m["id"] for m in others}
        )
        self.assertEqual(len(stored), 31)
        self.assertEqual(len(await self.history(conversation, bob)), 11)
        self.assertEqual(await self.parts(), (200, {"redis": "ok", "database": "ok"}))

        async def over() -> bool:
            return not any([await self.metric(f"im_{name}") for name in ("archive_away", "journal_entries")])

        await self.until(over)

    async def test_starts_without(self) -> None:
        """A server that starts while PostgreSQL is away serves, and archives when it is back."""
        first = await self.begin()
        await self.agent("alice", capacity=100)
        bob = self.token("bob")
        await self.say(bob, "0", shop="s1")
        await self.archived()
        await first.stop()
        await self.stop_postgresql()
        await self.begin()
        conversation = (await self.say(bob, "1", shop="s1"))["conversation"]
        for number in range(5):
            await self.say(self.token(f"new{number}"), "hello", shop="s1")
        self.assertEqual((await self.parts())[0], 503)
        self.assertEqual(await self.metric("im_archive_away"), 1)
        await self.until(lambda: len(self.inbox("alice")) == 7)
        await deferToThread(self.postgresql.start)
        await self.archived()
        self.assertEqual(await self.rows("SELECT count(*) FROM messages"), [(7,)])
        self.assertEqual([m["seq"] for m in await self.history(conversation, bob)], [1, 2])

    async def test_new_database_away(self) -> None:
        """Tables that could not be made at the start are made when the database is back."""
        await self.stop_postgresql()
        await self.begin()
        for number in range(PARTITIONS):  # as a Redis that knows everything has it
            await self.redis.command("SET", f"{prefix(number)}:whole", 1)
        await self.agent("alice")
        await self.say(self.token("bob"), shop="s1")
        await deferToThread(self.postgresql.start)
        await self.archived()
        self.assertEqual(await self.rows("SELECT count(*) FROM messages"), [(1,)])

    async def test_not_storable(self) -> None:
        """A character that PostgreSQL cannot store in a text is put aside with the message it is in."""
        await self.begin()
        await self.agent("alice")
        bob = self.token("bob")
        conversation = (await self.say(bob, shop="s1"))["conversation"]
        await self.archived()
        await self.redis.command("HSET", f"{prefix(partition(conversation))}:conv:{conversation}", "seq", 2)
        await self.inject_message(conversation, id="a" * 32, seq=2, type="a\0b")
        (entry,) = await self.redis.command("XRANGE", f"{prefix(partition(conversation))}:journal", "-", "+")
        tail = f"{prefix(partition(conversation))}:tail:{conversation}"
        await self.redis.command("ZADD", tail, 2, entry[0])
        await self.archived()
        await self.say(bob, "three", shop="s1")
        await self.archived()
        self.assertEqual([m["seq"] for m in await self.history(conversation, bob)], [1, 2, 3])
        self.assertEqual(await self.rows("SELECT seq FROM messages ORDER BY seq"), [(1,), (3,)])
        await self.redis.command("DEL", REFUSED)  # somebody looked at it and removed it
        self.assertEqual([m["seq"] for m in await self.history(conversation, bob)], [1, 3])
