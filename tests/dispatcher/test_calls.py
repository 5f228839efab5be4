"""The dispatcher's calls (contract: Dispatcher), the same tests on twins in memory and on the whole server."""

from __future__ import annotations

from typing import Any

import ujson
from msgspec import Raw
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from imserver.data.journal import JournalEntry
from imserver.protocol.tokens import Tokens
from tests.dispatcher.stages import JOURNAL_KEY, OTHER_KEY, MemoryStage, StagedCase, WholeStage

MANY = [f"u{n}" for n in range(1000)]
TEXT = {"type": "text", "body": {"text": "hi"}}


class CallTests:
    """What every dispatcher does."""

    async def test_push(self: Any) -> None:
        """It is stored, pushed to whoever is online with this channel, and each receiver has its result."""
        w1, w2 = await self.stage.worker("w1"), await self.stage.worker("w2")
        await self.stage.connect(w1, "a", "c1")
        await self.stage.connect(w2, "a", "c2", channels=("demo", "demo-direct"))
        await self.stage.connect(w2, "a", "c3", channels=("demo-direct",))
        answer = await self.push(["a", "b", "a"], {"x": [1]}, **{"from": "shop-1", "conversation": "ab12", "seq": 7})
        first, second = answer["results"]
        self.assertEqual((first["to"], first["status"], first["connections"]), ("a", "pushed", 2))
        self.assertEqual((second["to"], second["status"], second["connections"]), ("b", "queued", 0))
        (entry,) = await self.stage.inboxes.read("a", "0-0", 10)
        self.assertEqual(entry.cursor, first["cursor"])
        self.assertRegex(answer["id"], "^[0-9a-f]{32}$")
        frame = {
            "id": answer["id"],
            "from": "shop-1",
            "to": "a",
            "channel": "demo",
            "type": "text",
            "body": {"x": [1]},
            "ts": answer["ts"],
            "conversation": "ab12",
            "seq": 7,
        }
        self.assertEqual(w1.frames("a"), [frame])
        self.assertEqual(w2.frames("a"), [frame])
        self.assertEqual(w1.pushed[0].cursor, first["cursor"])

    async def test_push_defaults(self: Any) -> None:
        """Without `from` the channel is the sender; `cid` is told to the sender's own devices only."""
        worker = await self.stage.worker("w1")
        await self.stage.connect(worker, "a", "c1")
        await self.push("a", cid="one")
        await self.push("a", cid="two", **{"from": "a"})
        first, second = worker.frames("a")
        self.assertEqual((first["from"], first.get("cid"), second.get("cid")), ("demo", None, "two"))

    async def test_push_again(self: Any) -> None:
        """The same cid of the same sender is stored once, and has the same id and cursor."""
        first = await self.push(["a", "b"], cid="one")
        again = await self.push(["a", "c"], {"other": 1}, cid="one")
        self.assertEqual(again["id"], first["id"])
        self.assertEqual([r["status"] for r in again["results"]], ["duplicate", "queued"])
        self.assertEqual(again["results"][0]["cursor"], first["results"][0]["cursor"])
        self.assertNotEqual((await self.push("a", cid="one", **{"from": "x"}))["id"], first["id"])
        named = await self.push("a", cid="one", **{"from": "demo"})
        self.assertEqual((named["id"], named["results"][0]["status"]), (first["id"], "duplicate"))
        other = await self.good("POST", "/v1/push", {"to": "a", "cid": "one", **TEXT}, 202, key=OTHER_KEY)
        self.assertEqual((other["id"] != first["id"], other["results"][0]["status"]), (True, "queued"))
        self.assertEqual((await self.stage.inboxes.length("a"))[0], 3)

    async def test_push_not_stored(self: Any) -> None:
        """`store: false` reaches who is online now and leaves nothing behind; it is never `queued`."""
        worker = await self.stage.worker("w1")
        await self.stage.connect(worker, "a", "c1")
        results = (await self.push(["a", "b"], store=False))["results"]
        self.assertEqual(
            results,
            [
                {"to": "a", "status": "pushed", "connections": 1},
                {"to": "b", "status": "pushed", "connections": 0},
            ],
        )
        self.assertEqual(worker.pushed[0].cursor, "")
        self.assertEqual(await self.stage.inboxes.length("a"), (0, None))

    async def test_push_only_and_ttl(self: Any) -> None:
        """`only` and `ttl_s` travel beside the frame."""
        answer = await self.push("a", only={"platform": "ios", "role": "customer"}, ttl_s=1.5)
        (entry,) = await self.stage.inboxes.read("a", "0-0", 10)
        head = ujson.loads(entry.head)
        self.assertEqual(head[:4], [answer["id"], "demo", "", answer["ts"] + 1500])
        self.assertEqual(head[4], {"platform": "ios", "role": "customer"})

    async def test_push_to_a_thousand(self: Any) -> None:
        """A thousand receivers go at once, one more is refused, nobody is fine."""
        answer = await self.push(MANY)
        self.assertEqual([r["to"] for r in answer["results"]], MANY)
        self.assertEqual({r["status"] for r in answer["results"]}, {"queued"})
        await self.bad(422, "invalid_frame", "POST", "/v1/push", {"to": [*MANY, "x"], **TEXT}, "to")
        self.assertEqual((await self.push([]))["results"], [])

    async def test_push_invalid(self: Any) -> None:
        """What is not valid fails the whole call, and nothing is sent."""
        for field, wrong in (
            ("to[1]", {"to": ["a", "not valid", "b"]}),
            ("to", {"to": "a b"}),
            ("to", {"to": 5}),
            ("to", {"to": None}),
            ("type", {"type": "UPPER"}),
            ("type", {"type": ""}),
            ("body", {"body": [1]}),
            ("body", {"body": "text"}),
            ("body", {"body": None}),
            ("body", {"body": {"x": "y" * 70000}}),
            ("from", {"from": "a b"}),
            ("cid", {"cid": "x" * 65}),
            ("conversation", {"conversation": "A b"}),
            ("seq", {"seq": 0}),
            ("only.platform", {"only": {"platform": "amiga"}}),
            ("only.conn", {"only": {"conn": "c"}}),
            ("ttl_s", {"ttl_s": 0}),
            ("store", {"store": "no"}),
            ("extra", {"extra": 1}),
        ):
            await self.bad(422, "invalid_frame", "POST", "/v1/push", {"to": "a", **TEXT, **wrong}, field)
        for field in ("to", "type", "body"):
            body = {name: value for name, value in {"to": "a", **TEXT}.items() if name != field}
            await self.bad(422, "invalid_frame", "POST", "/v1/push", body, field)
        for uid in ("a", "b", "a b"):
            self.assertEqual(await self.stage.inboxes.length(uid), (0, None))

    async def test_body_passes_as_it_is(self: Any) -> None:
        """What a body says is not re-written on the way."""
        body = b'{"n": 1.10, "big": 12345678901234567890, "t": "\\u00e9 \xc3\xa9"}'
        answer = await self.call("POST", "/v1/push", b'{"to":"a","type":"text","body":' + body + b"}")
        self.assertEqual(answer.status, 202, answer.body)
        (entry,) = await self.stage.inboxes.read("a", "0-0", 10)
        self.assertIn(body, entry.tail)

    async def test_batch(self: Any) -> None:
        """Each message has its result in its place; a bad one stops no other; the order of one uid holds."""
        messages: list[Any] = [
            {"to": "a", "type": "text", "body": {"n": 0}},
            {"to": "a b", **TEXT},
            {"to": ["a", "b"], "type": "text", "body": {"n": 2}},
            {"to": ["c", "d e"], **TEXT},
            {"to": "a", "type": "text", "body": {"n": 4}, "cid": "x"},
            {"to": "a", "type": "text", "body": {"n": 5}, "cid": "x"},
            {"to": "a", "type": "text", "body": []},
            5,
        ]
        lines = b"\n".join(ujson.dumps(message).encode() for message in messages) + b"\n"
        for given, more in (
            ({"messages": messages}, {}),
            (lines, {"headers": {"Content-Type": "application/x-ndjson"}}),
        ):
            results = (await self.good("POST", "/v1/push/batch", given, 202, **more))["results"]
            self.assertEqual(len(results), 8)
            self.assertEqual([r["to"] for r in results[2]["results"]], ["a", "b"])
            self.assertEqual(results[5]["results"][0]["status"], "duplicate")
            self.assertEqual(results[5]["id"], results[4]["id"])
            errors = {index: r["error"] for index, r in enumerate(results) if "error" in r}
            self.assertEqual(
                {index: (e["status"], e["code"], e.get("field")) for index, e in errors.items()},
                {
                    1: (422, "invalid_frame", "messages[1].to"),
                    3: (422, "invalid_frame", "messages[3].to[1]"),
                    6: (422, "invalid_frame", "messages[6].body"),
                    7: (422, "invalid_frame", "messages[7]"),
                },
            )
        entries = await self.stage.inboxes.read("a", "0-0", 10)
        self.assertEqual([ujson.loads(b"{" + e.tail)["body"]["n"] for e in entries], [0, 2, 4, 0, 2])
        self.assertEqual(await self.stage.inboxes.length("c"), (0, None))

    async def test_batch_bounds(self: Any) -> None:
        """A thousand messages at the most; a line that is not JSON is that line's error alone."""
        message = {"to": "a", "type": "t", "body": {}}
        good = await self.good("POST", "/v1/push/batch", {"messages": [message] * 1000}, 202)
        self.assertEqual(len(good["results"]), 1000)
        await self.bad(422, "invalid_frame", "POST", "/v1/push/batch", {"messages": [message] * 1001}, "messages")
        ndjson = {"headers": {"Content-Type": "application/x-ndjson"}}
        lines = b"\n".join([ujson.dumps(message).encode()] * 1001)
        await self.bad(422, "invalid_frame", "POST", "/v1/push/batch", lines, "messages", **ndjson)
        results = (await self.good("POST", "/v1/push/batch", b'{"to":\n' + lines[:40].split(b"\n")[0], 202, **ndjson))[
            "results"
        ]
        self.assertEqual((results[0]["error"]["status"], results[0]["error"]["code"]), (400, "invalid_json"))
        self.assertIn("id", results[1])
        self.assertEqual((await self.good("POST", "/v1/push/batch", {"messages": []}, 202))["results"], [])
        await self.bad(422, "invalid_frame", "POST", "/v1/push/batch", {}, "messages")

    async def test_broadcast(self: Any) -> None:
        """Everyone of the channel that is meant gets it, nobody has it stored."""
        w1, w2 = await self.stage.worker("w1"), await self.stage.worker("w2")
        await self.stage.connect(w1, "a", "c1", role="merchant")
        await self.stage.connect(w2, "b", "c2", platform="ios")
        await self.stage.connect(w2, "c", "c3", channels=("demo-direct",))
        await self.eventually(lambda: self.workers_are(["w1", "w2"]))
        answer = await self.good("POST", "/v1/broadcast", TEXT, 202)
        self.assertEqual((answer["workers"], answer["connections"]), (2, 2))
        frame = ujson.loads(w1.broadcasts[0])
        self.assertEqual((frame["id"], frame["from"], frame["channel"]), (answer["id"], "demo", "demo"))
        merchants = await self.good("POST", "/v1/broadcast", {**TEXT, "role": "merchant"}, 202)
        phones = await self.good("POST", "/v1/broadcast", {**TEXT, "platform": "ios"}, 202)
        self.assertEqual((merchants["connections"], phones["connections"]), (1, 1))
        self.assertEqual(await self.stage.inboxes.length("a"), (0, None))
        await self.bad(422, "invalid_frame", "POST", "/v1/broadcast", {**TEXT, "role": "boss"}, "role")
        await self.bad(422, "invalid_frame", "POST", "/v1/broadcast", {"type": "text", "body": 1}, "body")

    async def test_user(self: Any) -> None:
        """Where a user is, as far as it is this channel's business."""
        nobody = {"uid": "a", "online": False, "connections": [], "inbox": {"length": 0, "last": None}}
        self.assertEqual(await self.good("GET", "/v1/users/a"), nobody)
        worker = await self.stage.worker("w1")
        await self.stage.connect(worker, "a", "c1", platform="ios", since_ts=5)
        await self.stage.connect(worker, "a", "c2", channels=("demo", "demo-direct"), since_ts=6)
        await self.stage.connect(worker, "a", "c3", channels=("demo-direct",))
        await self.push("a")
        cursor = (await self.push("a"))["results"][0]["cursor"]
        user = await self.good("GET", "/v1/users/a")
        self.assertEqual((user["online"], user["inbox"]), (True, {"length": 2, "last": cursor}))
        self.assertEqual([c["channel"] for c in user["connections"]], ["demo", ["demo", "demo-direct"]])
        self.assertEqual(
            user["connections"][0],
            {
                "conn": "c1",
                "worker": "w1",
                "role": "customer",
                "platform": "ios",
                "channel": "demo",
                "device": "d",
                "ip": "10.0.0.1",
                "since_ts": 5,
            },
        )
        other = await self.good("GET", "/v1/users/a", key=OTHER_KEY)
        self.assertEqual({c["conn"] for c in other["connections"]}, {"c2", "c3"})
        self.assertEqual(other["inbox"], {"length": 0, "last": None})
        self.assertEqual(await self.good("GET", "/v1/users/a", key=JOURNAL_KEY), nobody)
        await self.bad(422, "invalid_frame", "GET", "/v1/users/a%20b", field="uid")

    async def test_inbox_of_a_channel(self: Any) -> None:
        """The messages of a channel are counted over the whole inbox."""
        messages = [{"to": "a", "type": "t", "body": {}}] * 150
        ours = await self.good("POST", "/v1/push/batch", {"messages": messages}, 202)
        await self.good("POST", "/v1/push/batch", {"messages": messages[:60]}, 202, key=OTHER_KEY)
        last = ours["results"][-1]["results"][0]["cursor"]
        self.assertEqual((await self.good("GET", "/v1/users/a"))["inbox"], {"length": 150, "last": last})

    async def test_presence(self: Any) -> None:
        """Who is online on what, in this channel, on workers that live."""
        worker = await self.stage.worker("w1")
        for conn, platform in (("c1", "web"), ("c2", "ios"), ("c3", "web")):
            await self.stage.connect(worker, "a", conn, platform=platform)
        await self.stage.connect(worker, "b", "c4", channels=("demo-direct",))
        worker.name = "gone"
        await self.stage.connect(worker, "c", "c5")
        self.assertEqual(
            await self.good("POST", "/v1/presence", {"uids": ["a", "b", "c", "d", "a"]}),
            {
                "a": {"online": True, "platforms": ["ios", "web"]},
                **{uid: {"online": False, "platforms": []} for uid in "bcd"},
            },
        )
        self.assertEqual(len(await self.good("POST", "/v1/presence", {"uids": MANY})), 1000)
        self.assertEqual(await self.good("POST", "/v1/presence", {"uids": []}), {})
        await self.bad(422, "invalid_frame", "POST", "/v1/presence", {"uids": [*MANY, "x"]}, "uids")
        await self.bad(422, "invalid_frame", "POST", "/v1/presence", {"uids": ["a", ""]}, "uids[1]")

    async def test_kick(self: Any) -> None:
        """One connection or all of this channel are closed with 4409 and the reason; else nothing is."""
        worker = await self.stage.worker("w1")
        for conn, channel in (("c1", "demo"), ("c2", "demo"), ("c3", "demo"), ("c4", "demo-direct")):
            await self.stage.connect(worker, "a", conn, channels=(channel,))
        path = "/v1/users/a/connections"
        self.assertEqual(await self.good("DELETE", f"{path}/c1?reason=moved"), {"closed": 1})
        self.assertEqual(await self.good("DELETE", f"{path}/c4"), {"closed": 0})
        self.assertEqual(await self.good("DELETE", f"{path}/unknown"), {"closed": 0})
        self.assertEqual(await self.good("DELETE", path, {"reason": "\u00e9" * 100}), {"closed": 2})
        self.assertEqual(await self.good("DELETE", path), {"closed": 0})
        self.assertEqual(worker.closed[0], ("c1", 4409, "moved"))
        self.assertEqual({code for _, code, _ in worker.closed}, {4409})
        self.assertEqual(worker.closed[1][2], "\u00e9" * 61)
        self.assertEqual(list(worker.records), [("a", "c4")])
        await self.bad(422, "invalid_frame", "DELETE", path, {"why": "x"}, "why")

    async def test_endpoint_and_workers(self: Any) -> None:
        """Clients are sent to a worker that is not draining; all of them are listed."""
        unavailable = await self.bad(503, "unavailable", "GET", "/v1/endpoint?uid=a")
        self.assertIn("retry-after", unavailable.headers)
        self.assertEqual(await self.good("GET", "/v1/workers"), {"workers": []})
        await self.stage.worker("w1", draining=True)
        await self.stage.worker("w2", load=0.25, connections=4)
        await self.stage.worker("w3", load=0.75, connections=9)
        await self.eventually(lambda: self.workers_are(["w1", "w2", "w3"]))
        for _ in range(10):
            found = await self.good("GET", "/v1/endpoint?uid=a")
            self.assertEqual(found, {"url": "ws://w2/ws", "worker": "w2"})
        first, second, _ = (await self.good("GET", "/v1/workers"))["workers"]
        self.assertTrue(first["draining"])
        self.assertEqual(
            second,
            {
                "id": "w2",
                "url": "ws://w2/ws",
                "http": "http://w2",
                "host": "here",
                "connections": 4,
                "load": 0.25,
                "version": "1",
                "since_ts": 1,
                "draining": False,
            },
        )
        await self.bad(400, "invalid_frame", "GET", "/v1/endpoint", field="uid")
        await self.bad(400, "invalid_frame", "GET", "/v1/endpoint?uid=a+b", field="uid")

    async def test_journal(self: Any) -> None:
        """A journal is read in pages; `next` is where to go on, also when there is nothing."""
        await self.bad(404, "not_found", "GET", "/v1/journal")
        empty = await self.good("GET", "/v1/journal", key=JOURNAL_KEY)
        self.assertEqual(empty, {"entries": [], "next": "0-0"})
        for n in range(5):
            await self.journal_entry(n)
        page = await self.good("GET", "/v1/journal?limit=3", key=JOURNAL_KEY)
        self.assertEqual([e["ts"] for e in page["entries"]], [0, 1, 2])
        first = page["entries"][0]
        self.assertEqual(
            {name: value for name, value in first.items() if name != "cursor"},
            {"id": "0" * 32, "from": "u", "device": "d", "type": "text", "body": {"n": 0}, "ts": 0},
        )
        self.assertEqual(page["next"], page["entries"][-1]["cursor"])
        rest = await self.good("GET", f"/v1/journal?after={page['next']}", key=JOURNAL_KEY)
        self.assertEqual([e["ts"] for e in rest["entries"]], [3, 4])
        path = f"/v1/journal?after={rest['next']}"
        self.assertEqual(
            await self.good("GET", f"{path}&wait_s=0.05", key=JOURNAL_KEY), {"entries": [], "next": rest["next"]}
        )
        waiting = Deferred.fromCoroutine(self.good("GET", f"{path}&wait_s=30", key=JOURNAL_KEY, timeout=40.0))
        await self.journal_entry(5)
        self.assertEqual([e["ts"] for e in (await waiting)["entries"]], [5])
        for query in (
            "limit=0",
            "limit=1001",
            "wait_s=31",
            "wait_s=-1",
            "wait_s=nan",
            "after=x",
            "after=99999999999999999999-1",
            "limit=x",
        ):
            await self.bad(
                400, "invalid_frame", "GET", f"/v1/journal?{query}", field=query.split("=")[0], key=JOURNAL_KEY
            )

    async def test_journal_waits_are_bounded(self: Any) -> None:
        """Beyond the limit a call that would wait is refused; one that gives up makes room."""
        path = "/v1/journal?wait_s=30"
        waiting = [Deferred.fromCoroutine(self.call("GET", path, key=JOURNAL_KEY, timeout=40.0)) for _ in range(2)]
        for one in waiting:
            one.addErrback(lambda failure: None)
        await self.eventually(lambda: self.waits_are(2))
        refused = await self.bad(429, "rate_limited", "GET", path, key=JOURNAL_KEY)
        self.assertIn("retry-after", refused.headers)
        self.assertEqual((await self.good("GET", "/v1/journal", key=JOURNAL_KEY))["entries"], [])
        for one in waiting:
            one.cancel()
        await self.eventually(lambda: self.waits_are(0))

    async def test_blacklist(self: Any) -> None:
        """An entry is set, found and lifted; who is connected is closed; other channels do not feel it."""
        worker = await self.stage.worker("w1")
        await self.stage.connect(worker, "bad", "c1")
        await self.stage.connect(worker, "bad", "c2", channels=("demo-direct",))
        await self.stage.connect(worker, "bad", "c3", channels=("demo", "demo-direct"))
        path = "/v1/blacklist/uid/bad"
        await self.bad(404, "not_found", "GET", path)
        await self.bad(404, "not_found", "DELETE", path)
        entry = await self.good("PUT", path, {"reason": "spam"})
        self.assertEqual(entry, {"kind": "uid", "value": "bad", "until_ts": None, "reason": "spam"})
        self.assertEqual(
            sorted(worker.closed),
            [(conn, 4403, "spam: blacklisted for good") for conn in ("c1", "c3")],
        )
        self.assertEqual(await self.good("GET", path), entry)
        await self.bad(404, "not_found", "GET", path, key=OTHER_KEY)
        await self.bad(404, "not_found", "DELETE", path, key=OTHER_KEY)
        for_a_while = await self.good("PUT", path, {"ttl_s": 3600})
        self.assertEqual(for_a_while["reason"], "")
        self.assertApproximates(for_a_while["until_ts"] / 1000, reactor.seconds() + 3600, 5)  # type: ignore[attr-defined]
        self.assertIsNotNone(await self.stage.bans.check("bad", "", ["demo"], 0))
        self.assertEqual(await self.good("DELETE", path), for_a_while)
        self.assertIsNone(await self.stage.bans.check("bad", "", ["demo"], 0))
        self.assertEqual((await self.good("PUT", path))["until_ts"], None)

    async def test_blacklist_of_an_address(self: Any) -> None:
        """An address is taken in any of its forms, and kept in one."""
        worker = await self.stage.worker("w1")
        await self.stage.connect(worker, "a", "c1", ip="2001:db8::1")
        await self.stage.connect(worker, "b", "c2", ip="10.0.0.1")
        entry = await self.good("PUT", "/v1/blacklist/ip/2001:DB8:0::1", {"ttl_s": 60, "reason": "\u00e9" * 200})
        self.assertEqual((entry["kind"], entry["value"]), ("ip", "2001:db8::1"))
        ((conn, code, reason),) = worker.closed
        self.assertEqual((conn, code), ("c1", 4403))
        self.assertRegex(reason, "^\u00e9+ until [0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")
        self.assertLessEqual(len(reason.encode()), 123)
        self.assertEqual(await self.good("GET", "/v1/blacklist/ip/2001%3adb8%3A%3A1"), entry)

    async def test_blacklist_invalid(self: Any) -> None:
        """What is no uid or address, no such kind, or out of range is refused."""
        for path, field in (
            ("ip/10.0.0", "value"),
            ("ip/10.0.0.0%2F8", "value"),
            ("uid/a%20b", "value"),
            ("device/d", "kind"),
        ):
            await self.bad(422, "invalid_frame", "PUT", f"/v1/blacklist/{path}", {}, field)
        for field, body in (("ttl_s", {"ttl_s": 0}), ("reason", {"reason": "x" * 201}), ("until", {"until": 1})):
            await self.bad(422, "invalid_frame", "PUT", "/v1/blacklist/uid/a", body, field)

    async def test_tokens(self: Any) -> None:
        """A token for this channel, good for what was asked for and no longer."""
        now = reactor.seconds()  # type: ignore[attr-defined]
        made = await self.good(
            "POST", "/v1/tokens", {"uid": "a", "role": "merchant", "ttl_s": 60, "info": {"name": "A"}}
        )
        claims = Tokens(self.stage.settings).verify(made["token"], now)
        self.assertEqual((claims.uid, claims.role, claims.channels), ("a", "merchant", ("demo",)))
        self.assertEqual((claims.info, claims.exp), ({"name": "A"}, made["exp"]))
        self.assertApproximates(made["exp"], now + 60, 5)
        plain = await self.good("POST", "/v1/tokens", {"uid": "a"}, key=OTHER_KEY)
        claims = Tokens(self.stage.settings).verify(plain["token"], now)
        self.assertEqual((claims.role, claims.channels), ("customer", ("demo-direct",)))
        for field, body in (
            ("uid", {}),
            ("uid", {"uid": "a b"}),
            ("role", {"uid": "a", "role": "boss"}),
            ("ttl_s", {"uid": "a", "ttl_s": 0}),
            ("ttl_s", {"uid": "a", "ttl_s": 10**10}),
            ("info", {"uid": "a", "info": {"x": "y" * 1024}}),
            ("info", {"uid": "a", "info": "x"}),
            ("channel", {"uid": "a", "channel": "demo"}),
        ):
            await self.bad(422, "invalid_frame", "POST", "/v1/tokens", body, field)

    async def test_deliveries(self: Any) -> None:
        """Our own servers deliver frames of any kind; only they may."""
        worker = await self.stage.worker("w1")
        await self.stage.connect(worker, "a", "c1")
        given = [
            {"to": "a", "channel": "demo", "id": "0" * 32, "frame": {"n": 1}, "origin": "w1.1.7"},
            {"to": "a", "channel": "demo", "id": "0" * 32, "frame": {"n": 1}},
            {"to": "b", "channel": "demo", "id": "1" * 32, "frame": {"n": 2}},
            {"to": "a", "channel": "demo", "id": "", "frame": {"n": 3}, "op": "typing", "once": False},
        ]
        token = self.system_token()
        results = (await self.good("POST", "/v1/deliveries", {"deliveries": given}, 202, key=token))["results"]
        self.assertEqual([r["status"] for r in results], ["pushed", "duplicate", "queued", "pushed"])
        self.assertEqual(results[0]["cursor"], results[1]["cursor"])
        self.assertNotIn("cursor", results[3])
        self.assertEqual(worker.frames("a")[-1], {"n": 3})
        self.assertEqual(worker.pushed[-1].op, "typing")
        wrong = {**given[0], "frame": []}
        await self.bad(
            422, "invalid_frame", "POST", "/v1/deliveries", {"deliveries": [wrong]}, "deliveries[0].frame", key=token
        )
        wrong = {**given[0], "to": ""}
        await self.bad(
            422, "invalid_frame", "POST", "/v1/deliveries", {"deliveries": [wrong]}, "deliveries[0].to", key=token
        )
        for key in ("demo-key-0123456789", self.user_token()):
            await self.bad(403, "not_allowed", "POST", "/v1/deliveries", {"deliveries": []}, key=key)
        await self.bad(401, "not_allowed", "POST", "/v1/deliveries", {"deliveries": []}, key="x.y.z")

    async def test_access(self: Any) -> None:
        """No or a wrong key is 401 and says how; a token that is good elsewhere is 403."""
        for key in (None, "wrong", "", "demo-key-012345678", "\u00e9"):
            headers = {"Authorization": f"Bearer {key}".encode().decode("latin-1")} if key == "\u00e9" else {}
            refused = await self.bad(
                401, "not_allowed", "GET", "/v1/workers", key=None if headers else key, headers=headers
            )
            self.assertEqual(refused.headers["www-authenticate"], "Bearer")
        for header in ("Basic ZGVtbzpkZW1v", "Bearer", "demo-key-0123456789"):
            await self.bad(401, "not_allowed", "GET", "/v1/workers", key=None, headers={"Authorization": header})
        for key in (self.user_token(), self.system_token()):
            await self.bad(403, "not_allowed", "GET", "/v1/workers", key=key)
        await self.good("GET", "/v1/workers", key=None, headers={"Authorization": "bearer  demo-key-0123456789"})

    async def test_http(self: Any) -> None:
        """What every server answers: no JSON, another content type, methods, unknown paths, documents, health."""
        await self.bad(400, "invalid_json", "POST", "/v1/push", b"{")
        await self.bad(400, "invalid_json", "POST", "/v1/push", b'{"to":"a","type":"t","body":{"x":NaN}}')
        await self.bad(400, "invalid_json", "POST", "/v1/push", b'{"to":"a","type":"t","body":{"x":"\xff"}}')
        plain = {"headers": {"Content-Type": "text/plain"}}
        await self.bad(415, "invalid_frame", "POST", "/v1/push", b"{}", **plain)
        ndjson = {"headers": {"Content-Type": "application/x-ndjson"}}
        await self.bad(415, "invalid_frame", "POST", "/v1/push", b"{}", **ndjson)
        await self.bad(413, "too_large", "POST", "/v1/push", b" " * (1024 * 1024 + 1))
        refused = await self.bad(405, "not_allowed", "GET", "/v1/push")
        self.assertIn("POST", refused.headers["allow"])
        await self.bad(404, "not_found", "GET", "/v1/nothing")
        await self.good("GET", "/healthz", key=None)
        await self.good("GET", "/readyz", key=None)
        document = await self.good("GET", "/openapi.json", key=None)
        paths = set(document["paths"])
        self.assertTrue(
            paths
            >= {
                "/v1/push",
                "/v1/push/batch",
                "/v1/broadcast",
                "/v1/users/{uid}",
                "/v1/presence",
                "/v1/users/{uid}/connections",
                "/v1/users/{uid}/connections/{conn}",
                "/v1/endpoint",
                "/v1/workers",
                "/v1/journal",
                "/v1/blacklist/{kind}/{value}",
                "/v1/tokens",
            }
        )
        self.assertEqual((await self.call("GET", "/docs", key=None)).status, 200)
        await self.push(["a", "b"])
        metrics = (await self.call("GET", "/metrics", key=None)).body.decode()
        self.assertIn('im_deliveries_total{channel="demo",status="queued"} 2.0', metrics)
        self.assertIn('route="/v1/push",status="202"', metrics)

    async def journal_entry(self: Any, n: int) -> None:
        """Append to the journal, as a worker does."""
        entry = JournalEntry(id=f"{n:032x}", from_="u", device="d", type="text", body=Raw(b'{"n":%d}' % n), ts=n)
        await self.stage.journal.append("demo-journal", entry, length=100, remember_s=0)

    async def workers_are(self: Any, names: list[str]) -> bool:
        """Whether the dispatcher knows these workers."""
        return [w["id"] for w in (await self.good("GET", "/v1/workers"))["workers"]] == names

    async def waits_are(self: Any, number: int) -> bool:
        """Whether so many calls wait for the journal."""
        return f"im_journal_waits {float(number)}" in (await self.call("GET", "/metrics", key=None)).body.decode()

    async def eventually(self: Any, condition: Any) -> None:
        """Ask until it is so; the test's own deadline ends it."""
        while not await condition():
            pass


class MemoryCallTests(CallTests, StagedCase):
    """On twins in memory."""

    kind = MemoryStage
    sections = {"dispatcher": {"journal_waits": 2, "listen": "tcp:0:interface=127.0.0.1"}}


class WholeCallTests(CallTests, StagedCase):
    """On Valkey, with workers behind Perspective Broker."""

    kind = WholeStage
    sections = {"dispatcher": {"journal_waits": 2, "listen": "tcp:0:interface=127.0.0.1"}}
