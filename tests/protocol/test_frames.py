"""Frames, both ways (contract: WebSocket)."""

from __future__ import annotations

import json
import string

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from imserver.protocol import frames
from imserver.protocol.codes import FrameError, banned_until
from imserver.protocol.ids import conversation_id, message_id
from imserver.protocol.syntax import Uid, just_before, plain, position, valid

SEND = {"op": "send", "ref": "1", "cid": "c", "type": "text", "to": "u", "body": {"a": 1}}


def refused(text: bytes | str) -> FrameError:
    """What a frame is refused with."""
    try:
        frames.decode(text.encode() if isinstance(text, str) else text)
    except FrameError as error:
        return error
    raise AssertionError(f"accepted: {text!r}")


class DecodeTests(SynchronousTestCase):
    """What a client may say."""

    def test_body_is_kept_as_it_came(self) -> None:
        """The bytes of a body are not touched, whatever their spacing and numbers."""
        body = b'{"a" : 1.50, "b":"\\u00e9", "c":1e400 }'
        frame = frames.decode(b'{"op":"send","ref":1,"cid":"c","type":"t","to":"u","body":' + body + b"}")
        assert isinstance(frame, frames.Send)
        self.assertEqual(bytes(frame.body), body)

    def test_depth(self) -> None:
        """Nested at most 100 deep, the frame included; brackets in strings do not count."""

        def frame(body: str) -> bytes:
            return ('{"op":"send","ref":1,"cid":"c","type":"t","to":"u","body":' + body + "}").encode()

        for body in ('{"a":' * 98 + "[]" + "}" * 98, json.dumps({"a": '[{"' * 200}), json.dumps({"a": [{}] * 200})):
            self.assertIsInstance(frames.decode(frame(body)), frames.Send)
        error = self.assertRaises(FrameError, frames.decode, frame('{"a":' * 99 + "[]" + "}" * 99))
        self.assertEqual((error.code, error.ref), ("invalid_json", 1))

    def test_unknown_fields_are_ignored(self) -> None:
        """A newer client may say more."""
        self.assertIsInstance(frames.decode(b'{"op":"ping","ref":"x","new":{"a":[1]}}'), frames.Ping)

    def test_refusals(self) -> None:
        """Each mistake has its code, its field and its ref."""
        for change, field in (
            ({"to": "not valid"}, "to"),
            ({"to": "u\n"}, "to"),
            ({"cid": ""}, "cid"),
            ({"type": "Text"}, "type"),
            ({"type": "x" * 33}, "type"),
            ({"body": []}, "body"),
            ({"body": "text"}, "body"),
            ({"shop": "s"}, "to"),
        ):
            error = refused(json.dumps(SEND | change))
            self.assertEqual((error.code, error.field, error.ref), ("invalid_frame", field, "1"), change)
        without = {name: value for name, value in SEND.items() if name != "body"}
        self.assertEqual(refused(json.dumps(without)).field, "body")
        self.assertEqual(refused('{"op":"nonsense","ref":7}').code, "unknown_op")
        self.assertEqual(refused('{"op":"nonsense","ref":7}').ref, 7)
        for text in ("{", "nonsense", "", '{"op":"ping"} x', '{"op":"send","body":{"a":NaN}}', "[" * 100_000):
            self.assertEqual(refused(text).code, "invalid_json", text[:40])
        for text in ("[]", "1", '"ping"', "null", "{}", '{"op":1}'):
            self.assertEqual(refused(text).code, "invalid_frame", text)

    @given(st.binary(max_size=200))
    def test_any_bytes(self, text: bytes) -> None:
        """Nothing that a client can send raises anything else."""
        try:
            frames.decode(text)
        except FrameError as error:
            self.assertIn(error.code, ("invalid_json", "invalid_frame", "unknown_op"))

    @given(st.text(string.printable, max_size=140))
    def test_uids(self, uid: str) -> None:
        """A uid is what the contract says, and nothing else."""
        allowed = set(string.ascii_letters + string.digits + "_.:@-")
        self.assertEqual(valid(Uid, uid), 1 <= len(uid) <= 128 and set(uid) <= allowed)

    def test_reasons_are_for_people(self) -> None:
        """No regular expression is told."""
        self.assertEqual(refused(json.dumps(SEND | {"to": "?"})).reason, "Expected 1-128 characters of A-Za-z0-9_.:@-")
        self.assertEqual(plain("Expected `int`, got `str`"), "Expected `int`, got `str`")


class EncodeTests(SynchronousTestCase):
    """What the server says."""

    def test_message(self) -> None:
        """`cursor` and `attempt` are put in front of what is stored."""
        message = frames.Message(
            id="0" * 32, from_="a", to="b", channel="demo", type="t", body=msgspec.Raw(b"{}"), ts=5, seq=1
        )
        tail = frames.message_tail(message)
        first = json.loads(frames.message_frame(tail, "1-0"))
        self.assertEqual((first["op"], first["cursor"], first["from"], first["seq"]), ("message", "1-0", "a", 1))
        self.assertNotIn("attempt", first)
        self.assertNotIn("conversation", first)
        self.assertEqual(json.loads(frames.message_frame(tail, "1-0", 3))["attempt"], 3)
        self.assertNotIn("cursor", json.loads(frames.message_frame(tail, None)))

    def test_answer(self) -> None:
        """An HTTP answer becomes the frame that answers a ref."""
        self.assertEqual(json.loads(frames.answer_frame("history", 'a"b', b'{"more":false}'))["ref"], 'a"b')
        self.assertEqual(json.loads(frames.answer_frame("history", 3, b" {} ")), {"op": "history", "ref": 3})

    def test_banned_until(self) -> None:
        """A time is never earlier than the ban ends."""
        self.assertEqual(banned_until(1_700_000_000_001), "until 2023-11-14T22:13:21Z")
        self.assertEqual(banned_until(None), "for good")


class IdTests(SynchronousTestCase):
    """Identifiers."""

    def test_message_id(self) -> None:
        """The same for the same (channel, sender, cid) and secret only; random without a cid."""
        first = message_id("s", "demo", "a", "1")
        self.assertRegex(first, "^[0-9a-f]{32}$")
        self.assertEqual(first, message_id("s", "demo", "a", "1"))
        others = {
            message_id(*args) for args in (("t", "demo", "a", "1"), ("s", "dem", "oa", "1"), ("s", "demo", "a1", ""))
        }
        self.assertEqual(
            len(others | {first, message_id("s", "demo", "a", None), message_id("s", "demo", "a", None)}), 6
        )
        self.assertNotEqual(conversation_id("a", "b", "c"), conversation_id("a", "c", "b"))

    @given(st.integers(1, 2**64 - 1), st.integers(0, 2**64 - 1))
    def test_just_before(self, ms: int, seq: int) -> None:
        """The next cursor after it is the one itself."""
        self.assertLess(position(just_before(f"{ms}-{seq}")), (ms, seq))
        self.assertRaises(ValueError, position, f"{2**64}-0")
