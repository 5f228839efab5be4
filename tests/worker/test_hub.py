"""Who is connected to a worker, and what other servers ask of it."""

from __future__ import annotations

from typing import Any

import ujson
from twisted.internet import task
from twisted.trial.unittest import SynchronousTestCase

from imserver.data.interface import Entry, Position
from imserver.ops.trail import Trail
from imserver.protocol.deliveries import Head, Only, encode_head
from imserver.rpc.interface import Pushed
from imserver.worker.hub import Hub
from tests.worker.rules import NOW, Talk, entry


class Guest:
    """A connection that writes down what it is told."""

    def __init__(self, conn: str, ip: str = "127.0.0.1", state: str = "open", **token: Any) -> None:
        self.talk = Talk(token, conn=conn)
        self.session = self.talk.session
        self.ip = ip
        self.frames: list[dict[str, Any]] = []
        self.entries: list[Entry] = []
        self.ended: list[tuple[int, str]] = []
        self.talk.hello(platform="web")
        if state != "admitting":
            self.session.admitted(Position("0-0", "0-0", True), NOW)
        if state == "closed":
            self.session.refuse(4413, "")

    def push(self, entry: Entry, head: Head, frame: bytes, now: float) -> None:
        """Write it down."""
        self.entries.append(entry)
        self.frames.append(ujson.loads(frame))

    def signal(self, head: Head, frame: bytes, now: float) -> None:
        """Write it down."""
        self.frames.append(ujson.loads(frame))

    def behind(self, cursor: str) -> None:
        """Nothing here calls it."""

    def end(self, code: int, reason: str) -> None:
        """Write it down, and be closed."""
        self.session.refuse(code, reason)
        self.ended.append((code, reason))


def pushed(number: int, uid: str = "u", **head: Any) -> Pushed:
    """Entry `number`, on its way."""
    item = entry(number, **head)
    return Pushed(uid, "message", item.cursor, item.prev, item.head, item.tail)


def signal(op: str = "typing", uid: str = "u", **head: Any) -> Pushed:
    """A frame that is not stored."""
    return Pushed(uid, op, "", "", encode_head(Head("x", **{"channel": "demo", **head})), b'"a":1}')


class HubTests(SynchronousTestCase):
    """What `hub` promises."""

    def setUp(self) -> None:
        """An empty hub."""
        clock = task.Clock()
        clock.advance(NOW)
        self.hub = Hub(clock, Trail(clock))

    def come(self, uid: str, *conns: str, **more: Any) -> list[Guest]:
        """Connections of a uid."""
        found = [Guest(conn, uid=uid, **more) for conn in conns]
        for guest in found:
            self.hub.add(uid, guest)
        return found

    def test_coming_and_going(self) -> None:
        """One, several, one, none; whoever is not there is removed without harm."""
        a, b, c = self.come("u", "a", "b", "c")
        (d,) = self.come("v", "d")
        self.assertEqual((self.hub.count, set(self.hub)), (4, {a, b, c, d}))
        self.hub.remove("u", b)
        self.hub.remove("u", b)
        self.assertEqual(list(self.hub.of("u")), [a, c])
        self.hub.remove("u", a)
        self.hub.remove("u", a)
        self.hub.remove("v", a)
        self.assertEqual(list(self.hub.of("u")), [c])
        self.hub.remove("u", c)
        self.hub.remove("w", c)
        self.assertEqual((list(self.hub.of("u")), self.hub.count, list(self.hub)), ([], 1, [d]))

    def test_deliver(self) -> None:
        """Every connection of the uid gets every entry, in order; the count is of those it is for."""
        a, b = self.come("u", "a", "b")
        (other,) = self.come("v", "c")
        counts = self.hub.deliver(
            [pushed(1), pushed(2, origin="a"), pushed(3, channel="else"), pushed(4, only=Only(platform="ios")),
             pushed(5, uid="nobody"), pushed(6, expires=1)]
        )  # fmt: skip
        self.assertEqual(counts, [2, 1, 0, 0, 0, 0])
        for guest in (a, b):  # a position moves over what is not for it, too
            self.assertEqual([item.cursor for item in guest.entries], ["1-0", "2-0", "3-0", "4-0", "6-0"])
        self.assertEqual(a.frames[0], {"op": "message", "cursor": "1-0", "id": f"{1:032x}", "n": 1, "body": ""})
        self.assertEqual(other.entries, [])

    def test_signals(self) -> None:
        """What is not stored has its own op and no cursor."""
        (a,) = self.come("u", "a")
        self.assertEqual(self.hub.deliver([signal("typing"), signal("message")]), [1, 1])
        self.assertEqual(a.frames, [{"op": "typing", "a": 1}, {"op": "message", "a": 1}])

    def test_who_counts(self) -> None:
        """Who is being admitted will have what is stored, but no signal; who was closed has nothing more."""
        self.come("u", "a", state="admitting")
        self.come("u", "b", state="closed")
        self.assertEqual(self.hub.deliver([pushed(1), signal()]), [1, 0])

    def test_broadcast(self) -> None:
        """To everyone of a channel, of a role, of a platform, who is open."""
        (a,) = self.come("u", "a")
        (b,) = self.come("v", "b", role="merchant")
        (c,) = self.come("w", "c", channels=["demo-direct"])
        (d,) = self.come("x", "d", state="admitting")
        head = encode_head(Head("x", "demo"))
        self.assertEqual(self.hub.broadcast(None, None, head, b'"n":1}'), 2)
        self.assertEqual(self.hub.broadcast("merchant", None, head, b'"n":2}'), 1)
        self.assertEqual(self.hub.broadcast("customer", "web", head, b'"n":3}'), 1)
        self.assertEqual(self.hub.broadcast(None, "ios", head, b'"n":4}'), 0)
        self.assertEqual([frame["n"] for frame in a.frames], [1, 3])
        self.assertEqual([frame["n"] for frame in b.frames], [1, 2])
        self.assertEqual(a.frames[0], {"op": "message", "n": 1})
        self.assertEqual(c.frames + d.frames, [])

    def test_close(self) -> None:
        """One connection, or all of a uid, of these channels; each counts once."""
        a, b = self.come("u", "a", "b")
        (c,) = self.come("u", "c", channels=["demo-direct"])
        self.assertEqual(self.hub.close("u", "b", ["demo"], 4409, "why"), 1)
        self.assertEqual((a.ended, b.ended), ([], [(4409, "why")]))
        self.assertEqual(self.hub.close("u", "c", ["demo"], 4409, "why"), 0)
        self.assertEqual(self.hub.close("u", None, ["demo"], 4409, "why"), 1)
        self.assertEqual((len(a.ended), len(b.ended), c.ended), (1, 1, []))
        self.assertEqual(self.hub.close("nobody", None, ["demo"], 4409, "why"), 0)

    def test_sever(self) -> None:
        """By uid or by address, of these channels; those being admitted, too."""
        (a,) = self.come("u", "a", ip="10.0.0.1")
        (b,) = self.come("v", "b", ip="10.0.0.1", state="admitting")
        (c,) = self.come("v", "c", ip="10.0.0.2", channels=["demo-direct"])
        self.assertEqual(self.hub.sever("ip", "10.0.0.1", ["demo"], 4403, "for good"), 2)
        self.assertEqual(self.hub.sever("uid", "v", ["demo-direct"], 4403, "for good"), 1)
        self.assertEqual([len(guest.ended) for guest in (a, b, c)], [1, 1, 1])

    def test_present(self) -> None:
        """Who is connected, or being admitted, in this role and channel; not who is being closed."""
        self.come("alice", "a1", role="merchant", channels=["demo", "demo-direct"])
        self.come("alma", "a2", state="admitting", role="merchant")
        self.come("anton", "a3", state="closed", role="merchant")
        self.come("bob", "b1", role="customer")
        everyone = ["alice", "alma", "anton", "bob", "nobody"]
        self.assertEqual(self.hub.present(everyone, "merchant", "demo"), ["alice", "alma"])
        self.assertEqual(self.hub.present(everyone, "merchant", "demo-direct"), ["alice"])
        self.assertEqual(self.hub.present(everyone, "customer", "demo"), ["bob"])
