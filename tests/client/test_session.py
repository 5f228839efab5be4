"""The client's rules, without I/O."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.trial.unittest import TestCase

from imserver.client.actions import (
    Drop,
    IMError,
    Limits,
    Open,
    Renew,
    Settled,
    Told,
    Write,
    token_end,
)
from imserver.client.session import Session


def bytes_of(frame: dict[str, Any]) -> bytes:
    """A frame as it comes."""
    return msgspec.json.encode(frame)


def written(session: Session) -> list[dict[str, Any]]:
    """The frames that the session wants to write now."""
    return [msgspec.json.decode(action.text) for action in session.take() if isinstance(action, Write)]


def online(**more: Any) -> Session:
    """A session that has been welcomed at time 0."""
    session = Session("device", random=lambda: 1.0, **more)
    session.connect(0.0)
    welcome(session, 0.0)
    session.take()
    return session


def welcome(session: Session, now: float) -> None:
    """Open the connection and greet."""
    session.opened("token", now)
    frame = {"op": "welcome", "conn": "c", "uid": "me", "device": "device", "ts": 0, "heartbeat_s": 60}
    session.received(bytes_of({**frame, "max_frame": 65536, "resumed": True}), now)


def message(number: int, **more: Any) -> bytes:
    """The message with this number."""
    return bytes_of({"op": "message", "id": f"m{number}", "cursor": f"{number}-0", "from": "you", "to": "me", **more})


class Connecting(TestCase):
    """Attempts, losses, close codes."""

    def test_hello(self) -> None:
        """The first frame is hello, with the cursor reached so far once there is one."""
        session = Session("device")
        session.connect(0.0)
        self.assertIn(Open("", True), session.take())
        session.opened("token", 0.0)
        self.assertEqual(written(session), [{"op": "hello", "token": "token", "device": "device", "platform": "other"}])
        welcome(session, 0.0)
        session.received(message(7), 0.0)
        session.lost(1006, "", 1.0)
        session.tick(100.0)
        session.take()
        session.opened("token", 100.0)
        self.assertEqual(written(session)[0]["since"], "7-0")

    def test_backoff(self) -> None:
        """The delay grows to its bound with full jitter and starts anew after a stable connection."""
        session = Session("device", random=lambda: 1.0)
        session.connect(0.0)
        now, delays = 0.0, []
        for _ in range(9):
            session.lost(1006, "", now)
            assert session.deadline is not None
            delays.append(session.deadline - now)
            now = session.deadline
            session.tick(now)
        self.assertEqual(delays, [1, 2, 4, 8, 16, 30, 30, 30, 30])
        welcome(session, now)
        session.lost(1006, "", now + 11)
        self.assertEqual(session.deadline, now + 12)
        lowest = Session("device", random=lambda: 0.0)
        lowest.connect(0.0)
        lowest.lost(1006, "", 0.0)
        self.assertEqual(lowest.deadline, 0.5)

    def test_final_codes(self) -> None:
        """4400, 4403 and 4409 end the session, and the calls that wait."""
        for code in (4400, 4403, 4409):
            session = online()
            ref = session.send({"cid": "a", "type": "text", "body": {}, "to": "you"}, 0.0)
            session.take()
            session.lost(code, "no", 1.0)
            self.assertEqual(session.status, "stopped")
            self.assertIsNone(session.deadline)
            settled = [action for action in session.take() if isinstance(action, Settled)]
            self.assertEqual([(each.ref, each.answer.code) for each in settled], [(ref, "stopped")])  # type: ignore[union-attr]

    def test_other_codes(self) -> None:
        """All others reconnect."""
        for code in (1001, 1006, 1013, 4408, 4413, 4429):
            session = online()
            session.lost(code, "", 1.0)
            self.assertEqual(session.status, "waiting")

    def test_token_refused(self) -> None:
        """4401 asks for a new token, and stops when that does not help."""
        session = online()
        for _ in range(5):
            session.lost(4401, "", 0.0)
            session.tick(1000.0)
            self.assertIn(Open("", True), session.take())
        session.lost(4401, "", 0.0)
        self.assertEqual(session.status, "stopped")

    def test_reconnect(self) -> None:
        """`reconnect` moves to the worker it names, at its time, having acknowledged what came."""
        session = online()
        session.received(bytes_of({"op": "reconnect", "after_ms": 3000, "url": "ws://other/ws"}), 1.0)
        session.received(message(1), 3.9)
        session.take()
        session.tick(4.0)
        actions = session.take()
        self.assertIn(Drop(), actions)
        self.assertIn(Write(bytes_of({"op": "ack", "cursor": "1-0"})), actions)
        session.tick(4.0)
        self.assertIn(Open("ws://other/ws", False), session.take())

    def test_lost_before_reconnect(self) -> None:
        """A worker that goes before the time it gave is not replaced before that time."""
        session = online()
        session.received(bytes_of({"op": "reconnect", "after_ms": 3000}), 1.0)
        session.lost(1001, "", 2.0)
        self.assertEqual(session.deadline, 4.0)

    def test_open_timeout(self) -> None:
        """An attempt without an answer is given up."""
        session = Session("device")
        session.connect(0.0)
        session.tick(10.0)
        self.assertEqual(session.status, "waiting")
        self.assertIn(Drop(), session.take())

    def test_silence(self) -> None:
        """Nothing heard for the heartbeat: ping; still nothing: the connection is dead."""
        session = online()
        session.tick(60.0)
        self.assertEqual(written(session), [{"op": "ping"}])
        session.received(bytes_of({"op": "pong", "ts": 1}), 61.0)
        session.tick(70.0)
        self.assertEqual(session.status, "online")
        session.tick(121.0)
        self.assertEqual(written(session), [{"op": "ping"}])
        session.tick(131.0)
        self.assertEqual(session.status, "waiting")

    def test_renewal(self) -> None:
        """A token is renewed well before it ends, by what it says itself."""
        token = "e30." + "eyJleHAiOjEwMH0" + ".x"
        self.assertEqual(token_end(token), 100.0)
        self.assertIsNone(token_end("nonsense"))
        session = Session("device")
        session.connect(0.0)
        session.opened(token, 0.0)
        welcome_frame = {"op": "welcome", "conn": "c", "uid": "me", "device": "device", "ts": 0}
        session.received(bytes_of(welcome_frame), 0.0)
        session.take()
        session.tick(80.0)
        self.assertIn(Renew(), session.take())
        session.renewed(token, 80.0, 80.0)
        self.assertEqual(written(session), [{"op": "refresh", "token": token}])


class Receiving(TestCase):
    """Messages in, acknowledgements out."""

    def test_acknowledge_in_time(self) -> None:
        """One ack for all that came within the delay."""
        session = online()
        session.received(message(1), 1.0)
        session.received(message(2), 1.1)
        self.assertEqual(written(session), [])
        session.tick(1.2)
        self.assertEqual(written(session), [{"op": "ack", "cursor": "2-0"}])
        session.tick(2.0)
        self.assertEqual(written(session), [])

    def test_acknowledge_by_count(self) -> None:
        """So many messages are acknowledged at once."""
        session = online()
        for number in range(1, 21):
            session.received(message(number), 1.0)
        self.assertEqual(written(session), [{"op": "ack", "cursor": "20-0"}])

    def test_told_once(self) -> None:
        """A message sent again is acknowledged again, and not told again."""
        session = online()
        session.received(message(1), 1.0)
        session.received(message(1, attempt=2), 19.0)
        told = [action for action in session.take() if isinstance(action, Told)]
        self.assertEqual([each.frame["id"] for each in told], ["m1"])
        session.tick(30.0)
        self.assertEqual(written(session), [{"op": "ack", "cursor": "1-0"}])

    def test_no_way_back(self) -> None:
        """An older message sent again does not move the cursor back."""
        session = online()
        session.received(message(1), 1.0)
        session.received(message(2), 1.0)
        session.received(message(1, attempt=2), 1.0)
        session.tick(2.0)
        self.assertEqual(written(session), [{"op": "ack", "cursor": "2-0"}])

    def test_without_cursor(self) -> None:
        """What was never stored is told and not acknowledged."""
        session = online()
        session.received(bytes_of({"op": "message", "id": "x", "from": "you", "to": "me"}), 1.0)
        self.assertEqual([action.kind for action in session.take() if isinstance(action, Told)], ["message"])
        session.tick(5.0)
        self.assertEqual(written(session), [])

    def test_memory(self) -> None:
        """What is remembered is bounded."""
        session = online(limits=Limits(remembered=10))
        for number in range(100):
            session.received(message(number), 1.0)
        self.assertEqual(len(session._seen), 10)


class Calling(TestCase):
    """Sends and questions until they are answered."""

    def send(self, session: Session, cid: str, to: str = "you") -> None:
        """Send a message."""
        session.send({"cid": cid, "type": "text", "body": {}, "to": to}, 0.0)

    def test_answer(self) -> None:
        """`sent` answers; our own message that a resume brings back is not told."""
        session = online()
        self.send(session, "a")
        self.assertEqual(written(session)[0]["ref"], "a")
        session.received(bytes_of({"op": "sent", "ref": "a", "id": "m1", "ts": 1}), 1.0)
        self.assertEqual(session.take(), [Settled("a", {"op": "sent", "ref": "a", "id": "m1", "ts": 1})])
        session.received(message(1, **{"from": "me"}), 2.0)
        self.assertEqual([action for action in session.take() if isinstance(action, Told)], [])

    def test_order(self) -> None:
        """Messages to one place go one after the other, to different places at once."""
        session = online()
        self.send(session, "a")
        self.send(session, "b")
        self.send(session, "c", to="other")
        self.assertEqual([frame["cid"] for frame in written(session)], ["a", "c"])
        session.received(bytes_of({"op": "sent", "ref": "a", "id": "m", "ts": 1}), 1.0)
        self.assertEqual([frame["cid"] for frame in written(session)], ["b"])

    def test_over_connections(self) -> None:
        """What was not answered is sent again on the next connection, with the same cid."""
        session = online()
        self.send(session, "a")
        session.lost(1006, "", 1.0)
        session.tick(10.0)
        session.take()
        welcome(session, 10.0)
        frames = [frame for frame in written(session) if frame["op"] == "send"]
        self.assertEqual([frame["cid"] for frame in frames], ["a"])

    def test_answer_lost(self) -> None:
        """Our own message that comes with our cid is the answer that got lost."""
        session = online()
        self.send(session, "a")
        session.take()
        session.received(message(1, **{"from": "me", "cid": "a"}), 1.0)
        self.assertEqual([type(action) for action in session.take()], [Settled])

    def test_try_again(self) -> None:
        """`unavailable` is tried again after a while, another error is final."""
        session = online()
        self.send(session, "a")
        session.take()
        session.received(bytes_of({"op": "error", "ref": "a", "code": "unavailable", "reason": ""}), 1.0)
        self.assertEqual(session.take(), [])
        session.tick(3.0)
        self.assertEqual([frame["cid"] for frame in written(session)], ["a"])
        session.received(
            bytes_of({"op": "error", "ref": "a", "code": "not_allowed", "reason": "no", "field": "to"}), 3.0
        )
        (settled,) = session.take()
        assert isinstance(settled, Settled) and isinstance(settled.answer, IMError)
        self.assertEqual((settled.answer.code, settled.answer.field), ("not_allowed", "to"))

    def test_tries(self) -> None:
        """A call that is never answered fails in the end."""
        session = online(limits=Limits(tries=3))
        self.send(session, "a")
        for now in (10.0, 20.0, 30.0):
            session.received(bytes_of({"op": "pong", "ts": 1}), now)
            session.tick(now)
        settled = [action for action in session.take() if isinstance(action, Settled)]
        assert isinstance(settled[0].answer, IMError)
        self.assertEqual(settled[0].answer.code, "unavailable")

    def test_bounds(self) -> None:
        """Too many and too large ones are refused at once."""
        session = online(limits=Limits(queue=1))
        self.send(session, "a")
        self.assertEqual(self.assertRaises(IMError, self.send, session, "b").code, "queue_full")
        self.assertEqual(self.assertRaises(IMError, self.send, session, "a").code, "conflict")
        large = {"cid": "c", "type": "text", "body": {"text": "x" * 70000}, "to": "you"}
        self.assertEqual(self.assertRaises(IMError, session.send, large, 0.0).code, "too_large")

    def test_read_offline(self) -> None:
        """What was read while offline is said at the next welcome, once."""
        session = Session("device")
        session.read("c", 3)
        session.read("c", 2)
        session.connect(0.0)
        session.take()
        welcome(session, 0.0)
        self.assertIn({"op": "read", "conversation": "c", "seq": 3}, written(session))
        session.read("c", 4)
        self.assertEqual(written(session), [{"op": "read", "conversation": "c", "seq": 4}])

    def test_typing(self) -> None:
        """`typing` leaves every few seconds only."""
        session = online()
        for now in (1.0, 2.0, 3.9, 4.0):
            session.typing("c", now)
        self.assertEqual(len(written(session)), 2)
