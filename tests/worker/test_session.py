"""The rules of one connection, without I/O (contract: WebSocket; What holds for every connection; Close codes)."""

from __future__ import annotations

from typing import Any

import ujson
from twisted.trial.unittest import SynchronousTestCase

from imserver.data.interface import Position
from imserver.protocol import frames
from imserver.protocol.deliveries import Head
from imserver.worker.actions import Acknowledge, Admit, Close, Ping, Read, Register, Request, Send
from imserver.worker.session import EARLY_MAX
from tests.worker.rules import NOW, Talk, close_of, cursor, entry, frames_of, numbers


def error_of(actions: Any) -> tuple[Any, ...]:
    """Code, field and ref of the one error frame among actions."""
    (frame,) = frames_of(actions)
    assert frame["op"] == "error" and frame["reason"], frame
    return frame["code"], frame.get("field"), frame.get("ref")


class HelloTests(SynchronousTestCase):
    """The first frame, and what comes before `welcome`."""

    def test_welcome(self) -> None:
        """`hello` asks for admission; `welcome` says what the contract lists, then the backlog is read."""
        talk = Talk()
        self.assertFalse(talk.session.open)
        admit = talk.hello(platform="ios", since="3-0")
        self.assertEqual((admit.claims.uid, admit.device, admit.platform, admit.since), ("u", "d", "ios", "3-0"))
        self.assertTrue(talk.session.admissible)
        welcome, read = talk.session.admitted(Position("3-0", "5-0", False), talk.now)
        self.assertTrue(talk.session.open)
        assert isinstance(welcome, Send)
        self.assertEqual(
            ujson.loads(welcome.frame),
            {
                "op": "welcome",
                "conn": "w.1",
                "uid": "u",
                "device": "d",
                "ts": int(NOW * 1000),
                "heartbeat_s": 60.0,
                "ack_timeout_s": 18.0,
                "max_frame": 65536,
                "resumed": False,
            },
        )
        self.assertEqual(read, Read("3-0", 128))

    def test_platform(self) -> None:
        """The token's platform counts, else the frame's, else `other`."""
        self.assertEqual(Talk({"platform": "web"}).hello(platform="ios").platform, "web")
        self.assertEqual(Talk().hello(platform="ios").platform, "ios")
        self.assertEqual(Talk().hello().platform, "other")

    def test_token(self) -> None:
        """A token that is missing, invalid or expired ends the connection with 4401."""
        for more in ({}, {"token": ""}, {"token": "nonsense"}, {"token": '{"exp":5}'}):
            with self.subTest(more=more):
                self.assertEqual(close_of(Talk().say(op="hello", device="d", **more)), 4401)

    def test_bad_hello(self) -> None:
        """A `hello` that is not valid is a bad frame; a good one may follow."""
        talk = Talk()
        for more, field in (
            ({}, "device"),
            ({"device": "ä"}, "device"),
            ({"device": "d", "platform": "vax"}, "platform"),
            ({"device": "d", "since": "x"}, "since"),
            ({"device": "d", "since": "99999999999999999999-0"}, "since"),
        ):
            with self.subTest(field=field, more=more):
                found = talk.say(op="hello", token=talk.token, **more)
                self.assertEqual(error_of(found), ("invalid_frame", field, None))
        self.assertIsInstance(talk.hello(since="$"), Admit)

    def test_before_hello(self) -> None:
        """Any other frame before `hello` is a bad frame, and the tenth closes."""
        talk = Talk()
        for _ in range(9):
            self.assertEqual(error_of(talk.say(op="ping", ref="r")), ("not_allowed", None, "r"))
        self.assertEqual(close_of(talk.say(op="ping")), 4400)
        self.assertEqual(talk.say(op="hello", token=talk.token, device="d"), [])

    def test_hello_in_time(self) -> None:
        """Without a `hello` within 10 s: 4408, whatever else was said."""
        talk = Talk()
        talk.now += 5
        talk.say(op="ping")
        self.assertEqual(talk.session.deadline(), NOW + 10)
        self.assertEqual(talk.wait(4.9), [])
        self.assertEqual(close_of(talk.wait(0.1)), 4408)
        self.assertIsNone(talk.session.deadline())
        self.assertEqual(talk.wait(100), [])

    def test_second_hello(self) -> None:
        """`hello` is said once; a second one is refused and changes nothing."""
        talk = Talk()
        talk.enter()
        self.assertEqual(error_of(talk.say(op="hello", token=talk.token, device="e"))[0], "not_allowed")
        self.assertEqual(talk.session.device, "d")

    def test_early_frames(self) -> None:
        """Frames between `hello` and `welcome` wait, in order; so many of them at most."""
        talk = Talk()
        talk.hello()
        for number in range(EARLY_MAX):
            self.assertEqual(talk.say(op="ping", ref=number), [])
        self.assertEqual(error_of(talk.say(op="ping", ref="more")), ("rate_limited", None, "more"))
        found = frames_of(talk.session.admitted(Position("0-0", "0-0", True), talk.now))
        self.assertEqual([frame["op"] for frame in found], ["welcome", *["pong"] * EARLY_MAX])
        self.assertEqual([frame["ref"] for frame in found[1:]], list(range(EARLY_MAX)))

    def test_lost_meanwhile(self) -> None:
        """Who went away while being admitted is not welcomed."""
        talk = Talk()
        talk.hello()
        talk.session.lost()
        self.assertFalse(talk.session.admissible)
        self.assertEqual(talk.session.admitted(Position("0-0", "0-0", True), talk.now), [])
        self.assertFalse(talk.session.open)

    def test_pushed_meanwhile(self) -> None:
        """What is stored while it is being admitted is read from the inbox after `welcome`; signals are not kept."""
        talk = Talk()
        talk.hello()
        self.assertEqual(talk.push(entry(1), entry(2)), [])
        self.assertEqual(talk.session.signalled(Head("x", "demo"), b"{}", talk.now), [])
        found = talk.session.admitted(Position("0-0", "0-0", True), talk.now)
        self.assertEqual(found[1:], [Read("0-0", 128)])
        self.assertEqual(numbers(talk.page(entry(1), entry(2))), [1, 2])

    def test_hints_meanwhile(self) -> None:
        """So is what the mailbox, or a lease that was lost, says."""
        for tell in (lambda talk: talk.session.behind("7-0"), lambda talk: talk.session.check_inbox()):
            talk = Talk()
            talk.hello()
            self.assertEqual(tell(talk), [])
            self.assertEqual(talk.session.admitted(Position("5-0", "5-0", True), talk.now)[1:], [Read("5-0", 128)])

    def test_nothing_new(self) -> None:
        """A device that has everything reads nothing."""
        self.assertEqual(len(Talk().enter(start=5)), 1)


class FrameTests(SynchronousTestCase):
    """What becomes of a client's frames."""

    def setUp(self) -> None:
        """An open connection with all channels."""
        self.talk = Talk({"channels": ["demo", "demo-direct", "demo-journal"]})
        self.talk.enter()

    def send(self, **fields: Any) -> Any:
        """A `send`, valid but for what is given."""
        return self.talk.say(**{"op": "send", "ref": "r", "cid": "c", "type": "text", "body": {}, **fields})

    def test_ping(self) -> None:
        """`pong` with the time, and the `ref` if there was one."""
        self.assertEqual(frames_of(self.talk.say(op="ping")), [{"op": "pong", "ts": int(NOW * 1000)}])
        self.assertEqual(frames_of(self.talk.say(op="ping", ref=7)), [{"op": "pong", "ts": int(NOW * 1000), "ref": 7}])

    def test_requests(self) -> None:
        """What somebody else answers is handed on, as it came."""
        for fields in (
            {"op": "history", "ref": "r", "conversation": "c", "before": 5, "limit": 200},
            {"op": "conversations", "ref": "r"},
            {"op": "read", "conversation": "c", "seq": 3},
            {"op": "typing", "conversation": "c", "unknown": 1},
        ):
            with self.subTest(op=fields["op"]):
                (request,) = self.talk.say(**fields)
                assert isinstance(request, Request)
                self.assertEqual(request.frame, frames.decode(ujson.dumps(fields).encode()))

    def test_send(self) -> None:
        """A `send` goes to its channel's uplink if it fits."""
        for channel, fields in (
            ("demo", {"to": "v"}),
            ("demo", {"shop": "s"}),
            ("demo", {"conversation": "c"}),
            ("demo-direct", {"to": "v"}),
            ("demo-journal", {}),
        ):
            with self.subTest(channel=channel, fields=fields):
                (request,) = self.send(channel=channel, **fields)
                assert isinstance(request, Request)
                self.assertEqual(request.channel, channel)

    def test_send_refused(self) -> None:
        """What does not fit the uplink is `not_allowed`; so is another channel, and type `system`."""
        for fields, expected in (
            ({"to": "v"}, ("invalid_frame", "channel")),
            ({"to": "v", "channel": "other"}, ("not_allowed", "channel")),
            ({"to": "v", "channel": "demo", "type": "system"}, ("not_allowed", "type")),
            ({"channel": "demo"}, ("invalid_frame", "to")),
            ({"to": "v", "shop": "s", "channel": "demo"}, ("invalid_frame", "to")),
            ({"channel": "demo-direct"}, ("not_allowed", "to")),
            ({"shop": "s", "channel": "demo-direct"}, ("not_allowed", "shop")),
            ({"conversation": "c", "channel": "demo-direct"}, ("not_allowed", "conversation")),
            ({"to": "v", "channel": "demo-journal"}, ("not_allowed", "to")),
            ({"shop": "s", "channel": "demo-journal"}, ("not_allowed", "shop")),
        ):
            with self.subTest(fields=fields):
                self.assertEqual(error_of(self.send(**fields)), (*expected, "r"))

    def test_one_channel(self) -> None:
        """A token with one channel needs no `channel`."""
        talk = Talk({"channels": ["demo-journal"]})
        talk.enter()
        (request,) = talk.say(op="send", ref=1, cid="c", type="text", body={})
        assert isinstance(request, Request)
        self.assertEqual(request.channel, "demo-journal")

    def test_shop_is_for_customers(self) -> None:
        """An agent writes to conversations, not to shops."""
        talk = Talk({"role": "merchant"})
        talk.enter()
        found = talk.say(op="send", ref="r", cid="c", type="text", body={}, shop="s")
        self.assertEqual(error_of(found), ("not_allowed", "shop", "r"))

    def test_errors(self) -> None:
        """Each mistake has its code, the field it is in, and the frame's `ref`."""
        for text, expected in (
            (b"", ("invalid_json", None, None)),
            (b"{", ("invalid_json", None, None)),
            (b'{"op":"ping"}x', ("invalid_json", None, None)),
            (b'{"op":"ping","a":NaN}', ("invalid_json", None, None)),
            (b"[" * 60_000, ("invalid_json", None, None)),
            (b'{"op":"dance",', ("invalid_json", None, None)),
            (b'{"op":1,"a":' + b"[" * 60_000, ("invalid_json", None, None)),
            (b'{"op":"ack","cursor":"x"', ("invalid_json", None, None)),
            (b'{"op":"ping","ref":"\\ud800"}', ("invalid_json", None, None)),
            (b'{"op":"ping","ref":"\xff"}', ("invalid_json", None, None)),
            (b'{"op":"dance","ref":1%s}' % (b"0" * 30), ("unknown_op", "op", None)),
            (b'{"op":"dance","ref":true}', ("unknown_op", "op", None)),
            (b"[]", ("invalid_frame", None, None)),
            (b"1", ("invalid_frame", None, None)),
            (b"{}", ("invalid_frame", "op", None)),
            (b'{"op":1,"ref":"r"}', ("invalid_frame", "op", "r")),
            (b'{"op":"dance","ref":"r"}', ("unknown_op", "op", "r")),
            (b'{"op":"welcome"}', ("unknown_op", "op", None)),
            (b'{"op":"ack"}', ("invalid_frame", "cursor", None)),
            (b'{"op":"ack","cursor":"x"}', ("invalid_frame", "cursor", None)),
            (b'{"op":"ack","cursor":"1-0\\n"}', ("invalid_frame", "cursor", None)),
            (b'{"op":"history","ref":"r"}', ("invalid_frame", "conversation", "r")),
            (b'{"op":"history","ref":"r","conversation":"c","limit":0}', ("invalid_frame", "limit", "r")),
            (b'{"op":"history","ref":"r","conversation":"c","limit":201}', ("invalid_frame", "limit", "r")),
            (b'{"op":"history","ref":"r","conversation":"c","before":2,"after":1}', ("invalid_frame", "before", "r")),
            (b'{"op":"read","conversation":"c","seq":-1}', ("invalid_frame", "seq", None)),
            (b'{"op":"send","ref":"r","cid":"c","type":"T","body":{}}', ("invalid_frame", "type", "r")),
            (b'{"op":"send","ref":"r","cid":"","type":"t","body":{}}', ("invalid_frame", "cid", "r")),
            (b'{"op":"send","ref":"r","cid":"c","type":"t","body":[]}', ("invalid_frame", "body", "r")),
            (b'{"op":"send","ref":"r","cid":"c","type":"t"}', ("invalid_frame", "body", "r")),
            (b'{"op":"send","cid":"c","type":"t","body":{}}', ("invalid_frame", "ref", None)),
        ):
            with self.subTest(text=text[:70]):
                self.assertEqual(error_of(self.talk.raw(text)), expected)
                self.talk.say(op="ping")

    def test_tenth_bad_frame(self) -> None:
        """The tenth in a row closes with 4400, after its own `error`."""
        for _ in range(9):
            self.assertIsNone(close_of(self.talk.raw(b"?")))
        error, close = self.talk.raw(b"?")
        self.assertEqual(error_of([error])[0], "invalid_json")
        self.assertIsInstance(close, Close)
        self.assertEqual(close_of([close]), 4400)
        self.assertEqual(self.talk.say(op="ping"), [])

    def test_valid_frame_between(self) -> None:
        """A valid frame begins a new row, also one that is refused for another reason."""
        for between in ({"op": "ping"}, {"op": "hello", "token": "", "device": "d"}):
            for _ in range(3):
                for _ in range(9):
                    self.assertIsNone(close_of(self.talk.raw(b"?")))
                self.assertIsNone(close_of(self.talk.say(**between)))

    def test_refused_does_not_count(self) -> None:
        """Valid frames that are refused close nothing, however many."""
        for _ in range(30):
            self.assertEqual(error_of(self.send(to="v", channel="other"))[0], "not_allowed")
        self.assertTrue(self.talk.session.open)

    def test_invalid_for_its_uplink_counts(self) -> None:
        """A `send` that lacks its receiver is no valid frame."""
        found = [self.send(channel="demo") for _ in range(10)]
        self.assertEqual(close_of(found[-1]), 4400)

    def test_rate(self) -> None:
        """100 a second, 500 at once; one more is 4429."""
        talk = Talk()
        talk.enter()
        for _ in range(499):
            self.assertTrue(frames_of(talk.say(op="ping")))
        talk.now += 1
        for _ in range(100):
            self.assertTrue(frames_of(talk.say(op="ping")))
        self.assertEqual(close_of(talk.say(op="ping")), 4429)

    def test_refresh(self) -> None:
        """A new token of the same uid prolongs; a new role or channel is registered and decides from then on."""
        found = self.talk.say(op="refresh", ref="r", token=ujson.dumps({"exp": int(NOW) + 7200}))
        self.assertEqual(found, [Send(frames.encode(frames.Refreshed(ts=int(NOW * 1000), ref="r"))), Register()])
        self.assertEqual(self.talk.session.claims and self.talk.session.claims.exp, int(NOW) + 7200)
        self.assertEqual(len(self.talk.say(op="refresh", token=ujson.dumps({"exp": int(NOW) + 7200}))), 1)
        self.assertEqual(numbers(self.talk.push(entry(1, channel="demo-direct"), entry(2))), [2])
        self.assertEqual(error_of(self.send(to="v", channel="demo-direct"))[0], "not_allowed")

    def test_refresh_and_acknowledge(self) -> None:
        """An `ack` counts in the channels that the token has had all the time: of others something may be unsent."""
        for channels, expected in (
            (["demo", "demo-direct"], ("demo", "demo-direct")),
            (["demo-direct"], ("demo-direct",)),
            (["demo", "demo-direct", "demo-journal"], ("demo-direct",)),
            (["demo"], ()),
        ):
            self.talk.say(op="refresh", token=ujson.dumps({"exp": int(NOW) + 7200, "channels": channels}))
            self.assertEqual(self.talk.session.acknowledging, expected)

    def test_refresh_refused(self) -> None:
        """Another uid's token, or a bad one, is refused and changes nothing."""
        for token in ('{"uid":"v"}', "nonsense", '{"exp":1}', ""):
            self.assertEqual(error_of(self.talk.say(op="refresh", ref=1, token=token)), ("not_allowed", "token", 1))
        self.assertEqual(self.talk.session.claims and self.talk.session.claims.exp, int(NOW) + 3600)

    def test_acknowledge(self) -> None:
        """An `ack` is answered with nothing, and kept as far as it was sent."""
        self.talk.push(entry(1), entry(2))
        self.assertEqual(self.talk.say(op="ack", cursor="1-0"), [Acknowledge("1-0")])
        self.assertEqual(self.talk.say(op="ack", cursor="9-0"), [Acknowledge("2-0")])

    def test_nothing_to_acknowledge(self) -> None:
        """Who was sent nothing acknowledges nothing."""
        talk = Talk()
        talk.enter(start=4, since="$")
        self.assertEqual(talk.say(op="ack", cursor="4-0"), [])


class TimeTests(SynchronousTestCase):
    """Heartbeat and expiry."""

    def test_heartbeat(self) -> None:
        """A ping when nothing was read for 60 s, one; a close when nothing is for as long again."""
        talk = Talk()
        talk.enter()
        self.assertEqual(talk.session.deadline(), NOW + 60)
        self.assertEqual(talk.wait(59.9), [])
        self.assertEqual(talk.wait(0.1), [Ping()])
        self.assertEqual(talk.session.deadline(), NOW + 120)
        self.assertEqual(talk.wait(30), [])
        self.assertEqual(close_of(talk.wait(30)), 4408)

    def test_no_ping_while_talking(self) -> None:
        """Whatever is read counts, and the answer to a ping begins anew."""
        talk = Talk()
        talk.enter()
        for _ in range(10):
            self.assertEqual(talk.wait(50), [])
            talk.session.heard(talk.now)
        self.assertEqual(talk.wait(60), [Ping()])
        talk.session.heard(talk.now)
        self.assertEqual(talk.wait(59), [])
        self.assertEqual(talk.wait(1), [Ping()])

    def test_pushes_do_not_count(self) -> None:
        """What is written says nothing about who is there."""
        talk = Talk(delivery={"ack_timeout_s": 1000.0})
        talk.enter()
        talk.now += 59
        talk.push(entry(1))
        self.assertEqual(talk.wait(1), [Ping()])

    def test_expiry(self) -> None:
        """An expired token ends the connection with 4401, unless it was refreshed."""
        talk = Talk({"exp": int(NOW) + 30})
        talk.enter()
        self.assertEqual(talk.session.deadline(), NOW + 30)
        talk.say(op="refresh", token=ujson.dumps({"exp": int(NOW) + 50}))
        self.assertEqual(talk.wait(30), [])
        self.assertEqual(close_of(talk.wait(20)), 4401)

    def test_refused(self) -> None:
        """The shell may end it; only once, and nothing is sent after."""
        talk = Talk()
        talk.enter()
        self.assertEqual(talk.session.refuse(4409, "why"), [Close(4409, "why")])
        self.assertEqual(talk.session.refuse(4403, "too"), [])
        self.assertEqual(talk.push(entry(1)), [])
        self.assertEqual(talk.session.signalled(Head("x", "demo"), b"{}", talk.now), [])
        self.assertEqual(talk.session.check_inbox(), [])
        self.assertEqual(talk.session.behind("9-0"), [])
        self.assertEqual(talk.session.resumed(), [])
        self.assertFalse(talk.session.live)

    def test_signals(self) -> None:
        """What is not stored goes to whom it is for, at once, whatever waits."""
        talk = Talk(conn="w.7")
        talk.enter(last=3)
        send = [Send(b"{}")]
        self.assertEqual(talk.session.signalled(Head("x", "demo"), b"{}", talk.now), send)
        self.assertEqual(talk.session.signalled(Head("x", "other"), b"{}", talk.now), [])
        self.assertEqual(talk.session.signalled(Head("x", "demo", origin="w.7"), b"{}", talk.now), [])
        self.assertEqual(talk.session.signalled(Head("x", "demo", expires=1), b"{}", talk.now), [])


class StreamTests(SynchronousTestCase):
    """A receiving HTTP stream: no hello, no acknowledgements, no retransmission."""

    def test_stream(self) -> None:
        """It is sent everything, and never again."""
        talk = Talk()
        claims = talk.session._rules.verify("{}", NOW)
        talk.session.admit_stream(claims, "d", "web")
        found = talk.session.admitted(Position("0-0", "0-0", True), NOW, retransmits=False)
        self.assertEqual(frames_of(found)[0]["op"], "welcome")
        self.assertEqual(len(numbers(talk.push(*(entry(n) for n in range(1, 1500))))), 1499)
        self.assertEqual(talk.session.deadline(), NOW + 60)
        self.assertEqual(cursor(1499), talk.session.delivery and talk.session.delivery.position)
