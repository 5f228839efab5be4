"""A worker's WebSocket, from the first byte to the close code (contract: WebSocket; Close codes)."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import ujson
from twisted.internet import defer, reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from websockets.exceptions import InvalidStatus

from imserver.data.bans import Ban, RedisBans
from imserver.data.redis import Redis
from imserver.protocol import codes
from imserver.protocol.deliveries import Head, encode_head
from imserver.rpc.interface import Pushed
from tests.servers import settings
from tests.worker.stage import Client, Stage, masked, read_close


class HandshakeTests(Stage):
    """Who is let in."""

    async def test_subprotocol(self) -> None:
        """`im.v1`, or none and served as `im.v1`; others alone are refused with 400, another path with 404."""
        for offered, chosen in ((["im.v1"], "im.v1"), (None, None), (["x", "im.v1"], "im.v1")):
            client = await self.connect(subprotocols=offered)
            self.assertEqual(client.socket.subprotocol, chosen)
            self.assertEqual((await client.hello(self.token("u")))["op"], "welcome")
        for more, status in (({"subprotocols": ["x"]}, 400), ({"path": "/"}, 404), ({"path": "/ws/x"}, 404)):
            with self.assertRaises(InvalidStatus) as caught:
                await self.connect(**more)
            self.assertEqual(caught.exception.response.status_code, status)

    async def test_query(self) -> None:
        """A query does not matter."""
        client = await self.connect(path="/ws?v=1")
        self.assertEqual((await client.hello(self.token("u")))["op"], "welcome")

    async def test_long_handshake(self) -> None:
        """A handshake has 16 KiB."""
        made = await self.raw(b"X-Padding: " + b"x" * 20_000 + b"\r\n")
        with contextlib.suppress(ConnectionError):  # dropped with bytes unread: the same
            self.assertEqual(await deferToThread(made.recv, 100), b"")
        self.assertEqual(len(self.worker._open), 0)

    async def test_welcome(self) -> None:
        """What `welcome` says; and each connection has an id of its own."""
        client = await self.connect()
        first = await client.hello(self.token("u"), "phone")
        self.assertEqual(
            {**first, "conn": "", "ts": 0},
            {
                "op": "welcome",
                "conn": "",
                "uid": "u",
                "device": "phone",
                "ts": 0,
                "heartbeat_s": 60.0,
                "ack_timeout_s": 18.0,
                "max_frame": 65536,
                "resumed": True,
            },
        )
        self.assertLess(abs(first["ts"] / 1000 - time.time()), 5)
        other = await self.connect()
        self.assertNotEqual((await other.hello(self.token("u"), "phone"))["conn"], first["conn"])


class CloseTests(Stage):
    """Each close code."""

    sections = {"connection": {"hello_timeout_s": 0.5, "frames_per_s": 1, "frames_burst": 30}}

    async def test_too_large(self) -> None:
        """A frame of `max_frame` bytes is read; one byte more: 1009."""
        client = await self.come("u")
        text = '{"op":"ping","x":"%s"}'
        self.assertEqual(await self.answer(client, text % ("x" * (65536 - len(text) + 2))), "pong")
        await client.write(text % ("x" * (65537 - len(text) + 2)))
        self.assertEqual((await client.closed())[0], 1009)

    async def answer(self, client: Client, text: str) -> str:
        """The op of what comes next."""
        await client.write(text)
        op: str = (await client.hear())["op"]
        return op

    async def test_binary(self) -> None:
        """Binary frames: 1003."""
        client = await self.come("u")
        await client.write(b'{"op":"ping"}')
        self.assertEqual((await client.closed())[0], 1003)

    async def test_invalid_utf8(self) -> None:
        """Invalid UTF-8: 1007."""
        made = await self.upgraded()
        made.sendall(masked(1, b'{"op":"ping","ref":"\xff"}'))
        self.assertEqual(await deferToThread(read_close, made), 1007)

    async def test_bad_frames(self) -> None:
        """Ten bad ones in a row: 4400, each answered; broken JSON of any kind breaks nothing."""
        client = await self.come("u")
        for text in ("{", '{"op":"dance",', "[" * 60_000, "[]", '{"op":"ack"}', '"', "1", '{"op":1}', "null"):
            self.assertEqual(await self.answer(client, text), "error")
        await client.write("")
        self.assertEqual((await client.closed())[0], 4400)

    async def test_tokens(self) -> None:
        """A token that is missing, wrong or expired: 4401; so is one that expires."""
        for token in ("", "nonsense", self.token("u", ttl_s=-1), self.token("u") + "x"):
            client = await self.connect()
            await client.say(op="hello", token=token, device="d")
            self.assertEqual((await client.closed())[0], 4401)
        client = await self.connect()
        self.assertEqual((await client.hello(self.token("u", ttl_s=2)))["op"], "welcome")
        self.assertEqual((await client.closed())[0], 4401)

    async def test_banned(self) -> None:
        """Who is blacklisted is accepted, then closed with 4403 and until when."""
        redis = Redis(reactor, settings(redis={"url": self.valkey.url}).redis)
        self.addCleanup(redis.stop)
        bans = RedisBans(redis, settings().suspension)
        now = int(time.time() * 1000)
        await bans.put(Ban("uid", "bad", "demo-direct"), now)
        await bans.put(Ban("uid", "late", "demo-direct", 4_102_444_800_000), now)
        await bans.put(Ban("uid", "other", "demo"), now)
        for uid, end in (("bad", "for good"), ("late", "until 2100-01-01T00:00:00Z")):
            client = await self.connect()
            await client.say(op="hello", token=self.token(uid), device="d")
            code, reason = await client.closed()
            self.assertEqual(code, 4403)
            self.assertTrue(reason.endswith(end), reason)
        await self.come("other")
        await bans.put(Ban("ip", "127.0.0.1", "demo-direct"), now)
        client = await self.connect()
        await client.say(op="hello", token=self.token("u"), device="d")
        self.assertEqual((await client.closed())[0], 4403)

    async def test_no_hello(self) -> None:
        """No `hello` in time: 4408."""
        client = await self.connect()
        self.assertEqual((await client.closed())[0], 4408)

    async def test_kicked(self) -> None:
        """Kicked by the backend: 4409, with its reason; the user's other channels stay."""
        client, other = await self.come("u"), await self.connect()
        await other.hello(self.token("u", "demo"))
        self.assertEqual(self.hub.close("u", None, ["demo-direct"], codes.KICKED, "bye"), 1)
        self.assertEqual(await client.closed(), (4409, "bye"))
        self.assertTrue(await other.silent())

    @property
    def hub(self) -> Any:
        """What other servers call."""
        assert self.worker._near is not None
        return self.worker._near.hub

    async def test_too_fast(self) -> None:
        """Too many frames per second: 4429."""
        client = await self.come("u")
        for _ in range(31):
            await client.say(op="ping")
        self.assertEqual((await client.closed())[0], 4429)

    async def test_gone(self) -> None:
        """A connection that ends is forgotten everywhere, however it ends."""
        client = await self.come("u")
        made = await self.upgraded()
        made.close()
        await client.leave()
        await self.until(lambda: not self.worker._open)
        self.assertEqual(self.hub.count, 0)


class SilentTests(Stage):
    """Clients that say nothing."""

    sections = {"connection": {"heartbeat_s": 0.5}, "delivery": {"ack_timeout_s": 0.2}}

    async def test_heartbeat(self) -> None:
        """A client that answers pings stays; one that answers nothing is closed."""
        alive = await self.come("u")
        made = await self.upgraded()
        hello = {"op": "hello", "token": self.token("v"), "device": "d"}
        made.sendall(masked(1, ujson.dumps(hello).encode()))
        self.assertEqual(await deferToThread(read_close, made), 4408)
        self.assertTrue(await alive.silent())

    async def test_never_acknowledged(self) -> None:
        """Sent again three times, then 4408; on its next `hello` the device gets it again."""
        client, sender = await self.come("u"), await self.come("v")
        sent = await sender.ask(op="send", ref=1, cid="c", to="u", type="text", body={})
        found = await client.messages(4)
        self.assertEqual({frame["id"] for frame in found}, {sent["id"]})
        self.assertEqual([frame.get("attempt") for frame in found], [None, 2, 3, 4])
        self.assertEqual((await client.closed())[0], 4408)
        client = await self.come("u")
        (again,) = await client.messages(1)
        self.assertEqual((again["id"], "attempt" in again), (sent["id"], False))


class SlowTests(Stage):
    """Clients that read slowly."""

    sections = {"connection": {"write_budget": 262144}}

    async def test_slow_reader(self) -> None:
        """One that does not read costs no more than its budget, and is closed with 4413."""
        made = await self.upgraded(receive_buffer=4096)
        hello = {"op": "hello", "token": self.token("slow"), "device": "d"}
        made.sendall(masked(1, ujson.dumps(hello).encode()))
        await self.until(lambda: any(one.session.open for one in self.worker._open))
        (connection,) = self.worker._open
        face: Any = connection._face
        sender = await self.come("v")
        most = 0
        for number in range(80):
            await sender.ask(op="send", ref=1, cid=f"c{number}", to="slow", type="text", body={"x": "x" * 60_000})
            buffered = len(face.transport.dataBuffer) + face.transport._tempDataLen
            most = max(most, buffered)
        self.assertFalse(connection.session.open)
        self.assertLess(most, 262144 + 65536)
        self.assertEqual(await deferToThread(read_close, made), 4413)

    async def test_slow_reader_of_signals(self) -> None:
        """What is not stored counts as well: it is written at once, but not without end."""
        made = await self.upgraded(receive_buffer=4096)
        hello = {"op": "hello", "token": self.token("slow"), "device": "d"}
        made.sendall(masked(1, ujson.dumps(hello).encode()))
        await self.until(lambda: any(one.session.open for one in self.worker._open))
        (connection,) = self.worker._open
        face: Any = connection._face
        assert self.worker._near is not None
        signal = Pushed(
            "slow", "message", "", "", encode_head(Head("x", "demo-direct")), b'"x":"%s"}' % (b"x" * 60_000)
        )
        for _ in range(100):
            self.worker._near.hub.deliver([signal])
            self.assertLess(len(face.transport.dataBuffer) + face.transport._tempDataLen, 262144 + 3 * 65536)
        self.assertFalse(connection.session.open)
        self.assertEqual(await deferToThread(read_close, made), 4413)

    async def test_large_backlog(self) -> None:
        """One that reads gets a backlog of many times the budget, whole and in order."""
        sender = await self.come("v")
        sent = [
            await sender.ask(op="send", ref=1, cid=f"c{number}", to="u", type="text", body={"x": "x" * 60_000})
            for number in range(40)
        ]
        client = await self.come("u")
        self.assertEqual([frame["id"] for frame in await client.messages(40)], [frame["id"] for frame in sent])


class DirectTests(Stage):
    """The `direct` uplink: past business server and dispatcher."""

    async def send(self, client: Client, cid: str, to: str = "u", **more: Any) -> dict[str, Any]:
        """Send one message; the answer."""
        return await client.ask(**{"op": "send", "ref": cid, "cid": cid, "to": to, "type": "text", "body": {}, **more})

    async def test_every_device(self) -> None:
        """Each connection of the receiver and of the sender gets it; the one that sent it gets `sent` alone."""
        phone, desk = await self.come("u", "phone"), await self.come("u", "desk")
        sender, other = await self.come("v", "phone"), await self.come("v", "desk")
        sent = await self.send(sender, "c1", body={"text": "hé", "n": [1, 2.50]})
        self.assertEqual((sent["op"], sent["ref"], "duplicate" in sent), ("sent", "c1", False))
        for client in (phone, desk):
            (frame,) = await client.messages(1)
            expected = {
                "op": "message",
                "cursor": frame["cursor"],
                "id": sent["id"],
                "from": "v",
                "to": "u",
                "channel": "demo-direct",
                "type": "text",
                "body": {"text": "hé", "n": [1, 2.50]},
                "ts": sent["ts"],
            }
            self.assertEqual(frame, expected)
        (frame,) = await other.messages(1)
        self.assertEqual((frame["id"], frame["cid"], frame["cursor"]), (sent["id"], "c1", sent["cursor"]))
        self.assertTrue(await sender.silent())

    async def test_repeated(self) -> None:
        """The same `cid` gives the same message, once, however often and however soon it is sent again."""
        sender, receiver = await self.come("v"), await self.come("u")
        first = await self.send(sender, "c")
        again = await self.send(sender, "c")
        self.assertEqual((again["id"], again["duplicate"]), (first["id"], True))
        several = [await self.come("v", f"d{number}", since="$") for number in range(4)]
        answers = await defer.gatherResults([Deferred.fromCoroutine(self.send(one, "x")) for one in several])
        sent = [frame for frame in answers if frame["op"] == "sent"]
        self.assertEqual({frame["op"] for frame in answers} - {"sent", "message"}, set())
        self.assertEqual(len({frame["id"] for frame in answers}), 1)
        self.assertLessEqual(sum("duplicate" not in frame for frame in sent), 1)
        found = await receiver.messages(2)
        self.assertEqual([frame["id"] for frame in found], [first["id"], answers[0]["id"]])
        self.assertTrue(await receiver.silent())

    async def test_many(self) -> None:
        """What several send at once arrives in cursor order, each sender's own in its order."""
        receiver = await self.come("u")
        senders = [await self.come(f"v{number}") for number in range(4)]

        async def talk(client: Client, name: int) -> None:
            for number in range(25):
                await client.say(
                    op="send", ref=number, cid=f"{number}", to="u", type="t", body={"n": number, "v": name}
                )
            self.assertEqual([(await client.hear())["ref"] for _ in range(25)], list(range(25)))

        await defer.gatherResults([Deferred.fromCoroutine(talk(client, name)) for name, client in enumerate(senders)])
        found = await receiver.messages(100)
        cursors = [tuple(map(int, frame["cursor"].split("-"))) for frame in found]
        self.assertEqual(cursors, sorted(cursors))
        for name in range(4):
            own = [frame["body"]["n"] for frame in found if frame["body"]["v"] == name]
            self.assertEqual(own, list(range(25)))

    async def test_to_oneself(self) -> None:
        """To one's own uid: the other devices get it, once."""
        sender, other = await self.come("u", "a"), await self.come("u", "b")
        sent = await self.send(sender, "c")
        self.assertEqual([frame["id"] for frame in await other.messages(1)], [sent["id"]])
        self.assertTrue(await other.silent())
        self.assertTrue(await sender.silent())

    async def test_refused(self) -> None:
        """What does not fit the uplink is refused; the connection lives on."""
        client = await self.come("v")
        for more in ({"to": None, "shop": "s"}, {"to": None}, {"type": "system"}, {"channel": "demo"}):
            found = await self.send(client, "c", **more)
            self.assertEqual((found["op"], found["code"], found["ref"]), ("error", "not_allowed", "c"), more)
        self.assertTrue(await client.silent())

    async def test_sent_and_gone(self) -> None:
        """A message whose sender goes away at once is stored whole or not at all, and pushed if it is stored."""
        receiver = await self.come("u")
        for number in range(10):
            sender = await self.come("v")
            await sender.say(op="send", ref=1, cid=f"c{number}", to="u", type="text", body={"n": number})
            sender.socket.socket.close()
        last = await self.come("w")
        await self.send(last, "last")
        found: list[dict[str, Any]] = []
        while not found or found[-1]["from"] != "w":
            found += await receiver.messages(1)
        cursors = [frame["cursor"] for frame in found]
        self.assertEqual(len(set(cursors)), len(cursors))

    async def test_resume(self) -> None:
        """A device goes on where it acknowledged, or after `since`, or with what is new; a new one gets all."""
        sender, phone = await self.come("v"), await self.come("u", "phone")
        ids = [(await self.send(sender, f"c{number}"))["id"] for number in range(5)]
        found = await phone.messages(5)
        await phone.say(op="ack", cursor=found[2]["cursor"])
        await phone.say(op="ack", cursor=found[0]["cursor"])
        self.assertTrue(await phone.silent())
        for device, more, expected in (
            ("phone", {}, ids[3:]),
            ("phone", {"since": found[0]["cursor"]}, ids[1:]),
            ("phone", {"since": "$"}, []),
            ("new", {}, ids),
        ):
            client = await self.come("u", device, **more)
            self.assertEqual([frame["id"] for frame in await client.messages(len(expected))], expected)
            self.assertTrue(await client.silent())
            await client.leave()

    async def test_acknowledged_too_much(self) -> None:
        """An `ack` from the future hides nothing of what is to come."""
        sender, phone = await self.come("v"), await self.come("u", "phone")
        await self.send(sender, "c1")
        await phone.messages(1)
        await phone.say(op="ack", cursor="99999999999999-0")
        self.assertTrue(await phone.silent())
        await phone.leave()
        sent = await self.send(sender, "c2")
        phone = await self.come("u", "phone")
        self.assertEqual([frame["id"] for frame in await phone.messages(1)], [sent["id"]])

    async def test_trimmed(self) -> None:
        """`resumed` is false if some of what follows has left the inbox."""
        worker = await self.work("w2", delivery={"inbox_length": 3})
        sender = await self.come("v", worker=worker)
        for number in range(5):
            await self.send(sender, f"c{number}")
        client = await self.connect(worker)
        self.assertFalse((await client.hello(self.token("u")))["resumed"])
        self.assertEqual(len(await client.messages(3)), 3)


class MuteTests(Stage):
    """A direct channel whose clients may write to nobody."""

    sections = {"channels": {"mute": {"api_keys": ["mute-key-0123456789"], "uplink": "direct", "send_to": "none"}}}

    async def test_refused_at_once(self) -> None:
        """What is refused without anybody being asked holds up nothing that follows; oneself may be written to."""
        client = await self.connect()
        await client.hello(self.token("u", "mute"))
        message = {"op": "send", "cid": "c", "type": "t", "body": {}}
        for ref in range(3):
            found = await client.ask(**message, ref=ref, to="v")
            self.assertEqual((found["op"], found["code"], found["ref"]), ("error", "not_allowed", ref))
        self.assertEqual((await client.ask(**message, ref=3, to="u"))["op"], "sent")


class JournalTests(Stage):
    """The `journal` uplink."""

    async def test_journal(self) -> None:
        """Without a receiver it is appended; `sent` names the position, and a repeat is a duplicate."""
        client = await self.connect()
        await client.hello(self.token("u", "demo-journal"))
        frame = {"op": "send", "ref": 1, "cid": "c", "type": "click", "body": {"x": 1}}
        first, again = await client.ask(**frame), await client.ask(**frame)
        self.assertEqual((first["op"], again["duplicate"]), ("sent", True))
        self.assertEqual((first["id"], first["cursor"]), (again["id"], again["cursor"]))
        self.assertEqual((await client.ask(**frame, to="v"))["code"], "not_allowed")
        next_one = await client.ask(**{**frame, "cid": "d"})
        self.assertGreater(next_one["cursor"], first["cursor"])


class DrainTests(Stage):
    """A worker that leaves, and two that work together."""

    async def test_drain(self) -> None:
        """`reconnect` with a time, then 1001; acknowledgements are kept, and nobody new is let in."""
        worker = await self.work("w2")
        client, sender = await self.come("u", worker=worker), await self.come("v")
        sent = await sender.ask(op="send", ref=1, cid="c", to="u", type="text", body={})
        (frame,) = await client.messages(1)
        self.assertEqual(frame["id"], sent["id"])
        await client.say(op="ack", cursor=frame["cursor"])
        self.assertTrue(await client.silent())
        stopping = Deferred.fromCoroutine(self.stop(worker))
        found = await client.hear()
        self.assertEqual(found["op"], "reconnect")
        self.assertTrue(0 <= found["after_ms"] <= 200)
        self.assertEqual((await client.closed())[0], 1001)
        with self.assertRaises(OSError):
            await self.connect(worker)
        await stopping
        client = await self.come("u")
        self.assertTrue(await client.silent())

    async def test_two_workers(self) -> None:
        """What is sent at one worker reaches the connections at both, over Perspective Broker."""
        second = await self.work("w2")
        await self.worker._workers.refresh()
        here, there = await self.come("u", "here"), await self.come("u", "there", worker=second)
        sender = await self.come("v")
        sent = []
        for number in range(10):
            await sender.say(op="send", ref=number, cid=f"c{number}", to="u", type="text", body={})
        for _ in range(10):
            sent.append((await sender.hear())["id"])
        for client in (here, there):
            self.assertEqual([frame["id"] for frame in await client.messages(10)], sent)

    async def test_deaf_worker(self) -> None:
        """A worker that cannot be called finds a hint in its mailbox."""
        second = await self.work("w2")
        await self.worker._workers.refresh()
        receiver, sender = await self.come("u", worker=second), await self.come("v")
        await second._ports[1].stopListening()
        sent = await sender.ask(op="send", ref=1, cid="c", to="u", type="text", body={})
        self.assertEqual(sent["op"], "sent")
        self.assertEqual([frame["id"] for frame in await receiver.messages(1)], [sent["id"]])

    async def test_unavailable(self) -> None:
        """Without Redis live connections stay, sending is `unavailable`, new connections get 1013."""
        client = await self.come("u")
        self.valkey.kill()
        found = await client.ask(op="send", ref=1, cid="c", to="v", type="text", body={})
        self.assertEqual((found["op"], found["code"]), ("error", "unavailable"))
        late = await self.connect()
        await late.say(op="hello", token=self.token("u"), device="d")
        self.assertEqual((await late.closed())[0], 1013)
        self.valkey.start()
        self.assertTrue(await client.silent())
