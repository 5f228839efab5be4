"""Whatever happens on the way, every device gets every message, in order, without a hole.

Hypothesis plays dispatchers whose pushes are late, in any order, twice or lost (then the mailbox gives a hint), an
inbox that answers late or not at all, time, and clients that acknowledge as they like, go away, come back and stop
reading.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

import ujson
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import Raw
from twisted.internet import task
from twisted.trial.unittest import SynchronousTestCase

from imserver.data.interface import Acknowledged, Entry, Position
from imserver.data.memory import MemoryConnections, MemoryInboxes
from imserver.protocol.deliveries import Delivery, Only, decode_head
from imserver.protocol.frames import message_frame
from imserver.protocol.syntax import START, position
from imserver.worker.actions import Acknowledge, Action, Admit, Close, Ping, Read, Reread, Send
from imserver.worker.session import Rules, Session
from tests.worker.rules import NOW, rules

CHANNELS = {"a": ["demo", "demo-direct"], "b": ["demo"]}
"""Two devices and what their tokens cover."""
BUDGET = 65536


def result(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine gives that never has to wait."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


class Link:
    """One connection of a device: the session, what it asked for, and what is on its way to the client."""

    def __init__(self, session: Session, device: Device) -> None:
        self.session = session
        self.device = device
        self.admit: Admit | None = None
        self.found: Position | None = None
        self.asked: list[tuple[Read | Reread, list[Entry] | None]] = []
        self.retry = False
        self.paused = False
        self.sent: list[str] = []
        self.wire: list[dict[str, Any]] = []


class Device:
    """What a client's installation remembers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.link: Link | None = None
        self.shown: list[str] = []
        self.got = START
        self.skipped: set[str] = set()
        self.furthest = START


class DeliveryMachine(RuleBasedStateMachine):
    """One user with two devices, one worker, many senders."""

    unacked_max = 1000
    swift = False
    """The inbox answers by itself, most of the time."""
    eager = False
    """Clients read and acknowledge by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = task.Clock()
        self.clock.advance(NOW)
        self.configured: Rules = rules()
        self.devices = [Device(name) for name in CHANNELS]
        self.links: list[Link] = []
        self.pushes: list[tuple[Entry, list[Link]]] = []
        self.hints: list[tuple[str, list[Link]]] = []
        self.entries: list[Entry] = []
        self.index = {START: 0}
        self.conns = 0
        self.busy = False

    @initialize(
        unacked_max=st.sampled_from([1, 2, 5, 1000]), at_once=st.booleans(), swift=st.booleans(), eager=st.booleans()
    )
    def configure(self, unacked_max: int, at_once: bool, swift: bool, eager: bool) -> None:
        """A window, small or large; the devices are connected, or are about to be; who answers by itself."""
        self.unacked_max, self.swift, self.eager = unacked_max, swift, eager
        self.configured = rules(  # nothing leaves the inbox, nobody talks too much: other tests are about that
            delivery={"unacked_max": unacked_max, "inbox_length": 1_000_000},
            connection={"write_budget": BUDGET, "frames_burst": 1_000_000},
        )
        self.inboxes = MemoryInboxes(self.clock, self.configured.delivery, MemoryConnections())
        for at in (0, 1):
            self.connect(at, None, at_once)

    # -- senders and dispatchers -------------------------------------------------------------------------------

    @rule(
        count=st.sampled_from([1, 1, 2, 3, 40, 130]),
        size=st.sampled_from([0, 0, 0, 20_000]),
        channel=st.sampled_from(["demo", "demo", "demo", "demo-direct", "demo-journal"]),
        origin=st.sampled_from([None, None, None, 0, 1]),
        kind=st.sampled_from([None, None, None, "ios", "expires"]),
        at_once=st.booleans(),
    )
    def send(self, count: int, size: int, channel: str, origin: int | None, kind: str | None, at_once: bool) -> None:
        """Store some messages; their pushes are on their way to whoever is registered now, or arrive at once."""
        for _ in range(count if not size else min(count, 10)):
            link = self.devices[origin].link if origin is not None else None
            delivery = Delivery(
                to="u",
                channel=channel,
                id=f"{len(self.entries):032x}",
                frame=Raw(b'{"id":"%032x","body":"%s"}' % (len(self.entries), b"x" * size)),
                origin=link.session.conn if link is not None else "",
                expires=int(self.clock.seconds() * 1000) + 3000 if kind == "expires" else 0,
                only=Only(platform="ios") if kind == "ios" else None,
            )
            cursor = result(self.inboxes.append(delivery)).cursor
            self.entries.append(result(self.inboxes.read("u", self.last(), 1))[0])
            assert self.entries[-1].cursor == cursor
            self.index[cursor] = len(self.entries)
            if at_once:
                self.arrive(self.entries[-1], list(self.links))
            else:
                self.pushes.append((self.entries[-1], list(self.links)))

    def last(self) -> str:
        """Where the inbox ends."""
        return self.entries[-1].cursor if self.entries else START

    @precondition(lambda self: self.pushes)
    @rule(at=st.integers(0, 500), fate=st.sampled_from(["arrive", "arrive", "arrive", "twice", "lost"]))
    def push(self, at: int, fate: str) -> None:
        """One push arrives, whichever; or it does not, and the mailbox is told."""
        entry, links = self.pushes[at % len(self.pushes)]
        if fate != "twice":
            del self.pushes[at % len(self.pushes)]
        if fate == "lost":
            self.hints.append((entry.cursor, links))
        else:
            self.arrive(entry, links)

    @precondition(lambda self: self.pushes)
    @rule(count=st.integers(1, 150))
    def push_in_order(self, count: int) -> None:
        """Most of the time they come one after another."""
        for entry, links in self.pushes[:count]:
            self.arrive(entry, links)
        del self.pushes[:count]

    def arrive(self, entry: Entry, links: Sequence[Link]) -> None:
        """As the hub does it."""
        frame = message_frame(entry.tail, entry.cursor)
        for link in links:
            self.perform(link, link.session.pushed(entry, decode_head(entry.head), frame, self.clock.seconds()))

    @precondition(lambda self: self.hints)
    @rule(at=st.integers(0, 100))
    def hint(self, at: int) -> None:
        """The mailbox is read."""
        cursor, links = self.hints.pop(at % len(self.hints))
        for link in links:
            self.perform(link, link.session.behind(cursor))

    @rule()
    def lease_lost(self) -> None:
        """Pushes may have passed this worker by: they are lost, and nobody gives a hint."""
        self.pushes = [(entry, []) for entry, _ in self.pushes]
        for link in list(self.links):
            self.perform(link, link.session.check_inbox())

    # -- the worker's shell ------------------------------------------------------------------------------------

    def perform(self, link: Link, actions: Sequence[Action]) -> None:
        """Carry out what the rules ask for."""
        for action in actions:
            if link not in self.links:
                return
            match action:
                case Send():
                    self.written(link, action.frame)
                case Read() | Reread():
                    link.asked.append((action, None))
                case Acknowledge():
                    own = decode_head(self.entries[self.index[action.cursor] - 1].head).origin == link.session.conn
                    assert own or position(action.cursor) <= position(link.device.furthest)
                    result(
                        self.inboxes.acknowledge(
                            [Acknowledged("u", link.device.name, link.session.acknowledging, action.cursor)]
                        )
                    )
                case Close():
                    assert action.code in (4408, 4413), action
                    self.lose(link)
                case Ping():
                    link.session.heard(self.clock.seconds())
        if not self.busy:
            self.busy = True
            while self.go_on():
                pass
            self.busy = False

    def go_on(self) -> bool:
        """Do one thing of those that happen by themselves; whether there was one."""
        for link in self.links:
            if self.swift and link.asked:
                self.answer(link, "both")
                return True
            if self.eager and link.wire and not link.paused:
                self.read(link, 1000, "last")
                return True
        return False

    def written(self, link: Link, text: bytes) -> None:
        """A frame is on its way; the first time that a message is sent, nothing before it may be missing."""
        frame = ujson.loads(text)
        link.wire.append(frame)
        if frame["op"] == "message":
            cursor = frame["cursor"]
            if "attempt" in frame:
                assert cursor in link.sent and 2 <= frame["attempt"] <= 4
            else:
                assert link.found is not None
                before = link.sent[-1] if link.sent else link.found.cursor
                between = [
                    entry for entry in self.entries[self.index[before] : self.index[cursor]] if self.wants(link, entry)
                ]
                assert [entry.cursor for entry in between] == [cursor], (before, between, cursor)
                link.sent.append(cursor)
                link.device.furthest = max(link.device.furthest, cursor, key=position)
        if link.paused:
            self.perform(link, link.session.written_while_paused(len(text)))

    def wants(self, link: Link, entry: Entry) -> bool:
        """Whether an entry is for this connection."""
        head = decode_head(entry.head)
        return (
            head.channel in CHANNELS[link.device.name]
            and head.origin != link.session.conn
            and head.only is None
            and (not head.expires or head.expires > self.clock.seconds() * 1000)
        )

    def lose(self, link: Link) -> None:
        """The connection is gone, with what is on its way."""
        link.session.lost()
        self.links.remove(link)
        link.device.link = None

    @precondition(lambda self: self.links)
    @rule(at=st.integers(0, 1), step=st.sampled_from(["both", "both", "look", "race", "fail"]))
    def inbox(self, at: int, step: str) -> None:
        """The inbox looks, answers (with what it had when it looked, so something may be stored since), or fails."""
        self.answer(self.links[at % len(self.links)], step)

    def answer(self, link: Link, step: str) -> None:
        """What the inbox does with the first thing that this one asked."""
        if not link.asked:
            return
        action, entries = link.asked[0]
        if step == "fail":
            del link.asked[0]
            link.session.unreadable(isinstance(action, Reread))
            link.retry = True
            return
        if entries is None:
            entries = result(self.inboxes.read("u", action.after, action.limit))
            link.asked[0] = action, entries
        if step == "race":
            self.send(1, 0, "demo", None, None, True)
        if step != "look" and link in self.links:
            del link.asked[0]
            answer = link.session.page if isinstance(action, Read) else link.session.reread
            self.perform(link, answer(entries, self.clock.seconds()))

    @precondition(lambda self: self.links)
    @rule(seconds=st.sampled_from([0.001, 0.5, 5.0, 18.0]))
    def time(self, seconds: float) -> None:
        """Time passes."""
        self.clock.advance(seconds)
        for link in list(self.links):
            if link.retry:
                link.retry = False
                self.perform(link, link.session.read_again())
            deadline = link.session.deadline()
            found = link.session.due(self.clock.seconds())
            assert not found or (deadline is not None and deadline <= self.clock.seconds())
            self.perform(link, found)

    # -- clients -----------------------------------------------------------------------------------------------

    @rule(at=st.integers(0, 1), since=st.sampled_from([None, None, "got", "$"]), at_once=st.booleans())
    def connect(self, at: int, since: str | None, at_once: bool) -> None:
        """A device connects: from here on it is registered. It is welcomed, at once or later."""
        device = self.devices[at]
        if device.link is not None:
            return
        self.conns += 1
        link = Link(Session(self.configured, f"w.{self.conns}", self.clock.seconds()), device)
        token = ujson.dumps({"channels": CHANNELS[device.name], "exp": int(NOW) + 10**8})
        hello = {"op": "hello", "token": token, "device": device.name}
        if since is not None:
            hello["since"] = device.got if since == "got" else "$"
        (admit,) = link.session.received(ujson.dumps(hello).encode(), self.clock.seconds())
        assert isinstance(admit, Admit)
        link.session.admitting(admit)
        link.admit = admit
        device.link = link
        self.links.append(link)
        if at_once:
            self.welcome(link, "both")

    @precondition(lambda self: any(not link.session.open for link in self.links))
    @rule(step=st.sampled_from(["both", "both", "look", "race"]))
    def admit(self, step: str) -> None:
        """The position of one that waits is looked up, and it is welcomed then or later."""
        self.welcome(next(link for link in self.links if not link.session.open), step)

    def welcome(self, link: Link, step: str) -> None:
        """Do both, or one, or both with a lost lease and a message in between."""
        assert link.admit is not None
        if link.found is None:
            link.found = result(
                self.inboxes.resume("u", link.device.name, link.admit.since, link.admit.claims.channels)
            )
            if link.admit.since == "$":
                link.device.skipped |= {entry.cursor for entry in self.entries[: self.index[link.found.cursor]]}
        if step == "race":
            self.send(1, 0, "demo", None, None, False)
            self.lease_lost()
        if step != "look" and link in self.links:
            self.perform(link, link.session.admitted(link.found, self.clock.seconds()))

    @precondition(lambda self: self.links)
    @rule(at=st.integers(0, 1), count=st.integers(1, 200), ack=st.sampled_from(["last", "last", "first", "far", None]))
    def receive(self, at: int, count: int, ack: str | None) -> None:
        """A client reads some frames, shows what is new, and perhaps acknowledges."""
        self.read(self.links[at % len(self.links)], count, ack)

    def read(self, link: Link, count: int, ack: str | None) -> None:
        """What one client does."""
        frames = [frame for frame in link.wire[:count] if frame["op"] == "message"]
        del link.wire[:count]
        link.session.heard(self.clock.seconds())
        device = link.device
        for frame in frames:
            if frame["cursor"] not in device.shown:
                device.shown.append(frame["cursor"])
            device.got = max(device.got, frame["cursor"], key=position)
        if frames and ack is not None:
            cursor = {"last": frames[-1]["cursor"], "first": frames[0]["cursor"], "far": f"{2**62}-0"}[ack]
            if ack == "far":  # a client that lies has only itself to blame
                device.skipped.update(link.sent)
                device.skipped.update(e.cursor for e in self.entries if position(e.cursor) <= position(link.sent[-1]))
            self.perform(link, self.said(link, {"op": "ack", "cursor": cursor}))

    def unacknowledged(self, link: Link) -> int:
        """What is in flight."""
        return link.session.delivery.unacknowledged if link.session.delivery is not None else 0

    def said(self, link: Link, frame: dict[str, Any]) -> list[Action]:
        """The client says something."""
        return link.session.received(ujson.dumps(frame).encode(), self.clock.seconds())

    @precondition(lambda self: self.links)
    @rule(at=st.integers(0, 1), pause=st.booleans())
    def reading(self, at: int, pause: bool) -> None:
        """A client stops reading, or reads again."""
        link = self.links[at % len(self.links)]
        if pause != link.paused:
            link.paused = pause
            if pause:
                link.session.paused()
            else:
                self.perform(link, link.session.resumed())

    @precondition(lambda self: self.links)
    @rule(at=st.integers(0, 1), since=st.sampled_from(["away", None, None, "got"]), at_once=st.booleans())
    def disconnect(self, at: int, since: str | None, at_once: bool) -> None:
        """A connection breaks; most of the time the client comes back."""
        link = self.links[at % len(self.links)]
        self.lose(link)
        if since != "away":
            self.connect(self.devices.index(link.device), since, at_once)

    # -- what holds --------------------------------------------------------------------------------------------

    @invariant()
    def bounded(self) -> None:
        """What is in flight, and what is owed to a slow reader, has its bound."""
        for link in self.links:
            delivery = link.session.delivery
            if delivery is not None:
                assert self.unacknowledged(link) <= self.unacked_max
                assert delivery.owed <= BUDGET
                assert sum(isinstance(action, Read) for action, _ in link.asked) <= 1

    def teardown(self) -> None:
        """When the dust has settled, every device has everything."""
        if not hasattr(self, "inboxes"):
            return
        self.back()
        self.push_in_order(len(self.pushes))
        while self.hints:
            self.hint(0)
        for _ in range(100_000):
            self.back()
            for at, link in enumerate(list(self.links)):
                self.reading(at, False)
                self.inbox(at, "both")
                if link.retry and link in self.links:
                    link.retry = False
                    self.perform(link, link.session.read_again())
                if link.wire and link in self.links:
                    self.receive(self.links.index(link), 1000, "last")
                if link in self.links and self.unacknowledged(link):
                    self.perform(link, self.said(link, {"op": "ack", "cursor": link.sent[-1]}))
            if len(self.links) == 2 and not any(link.asked or link.wire for link in self.links):
                break
        for device in self.devices:
            link = device.link
            assert link is not None
            missing = {entry.cursor for entry in self.entries if self.wants(link, entry)}
            missing -= {*device.shown, *device.skipped, *self.own(device)}
            assert not missing, (device.name, missing)

    def back(self) -> None:
        """Both devices are connected and welcomed; one that was closed as a slow reader comes back."""
        for at in (0, 1):
            self.connect(at, None, True)
        for link in list(self.links):
            if not link.session.open:
                self.welcome(link, "both")

    def own(self, device: Device) -> set[str]:
        """What the device itself sent and was told so: its own acknowledgements cover it."""
        return {entry.cursor for entry in self.entries if decode_head(entry.head).origin}


class MachineTests(SynchronousTestCase):
    """Runs it."""

    def test_machine(self) -> None:
        """Every history that Hypothesis thinks of ends well."""
        run_state_machine_as_test(
            DeliveryMachine,
            settings=settings(
                max_examples=150,
                stateful_step_count=50,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
