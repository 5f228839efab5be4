"""The rules of what one connection is sent of its inbox (contract: What holds for every connection, 1, 2, 4, 6)."""

from __future__ import annotations

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from imserver.data.interface import Entry
from imserver.worker.actions import Read, Reread
from imserver.worker.delivery import PAGE
from imserver.worker.session import Session
from tests.worker.rules import NOW, Talk, close_of, cursor, entry, frames_of, numbers, only, rules


def entries(first: int, last: int, size: int = 0) -> list[Entry]:
    """Entries `first` to `last`."""
    return [entry(number, size=size) for number in range(first, last + 1)]


class Case(SynchronousTestCase):
    """A connection with defaults."""

    def unacknowledged(self, talk: Talk) -> int:
        """Messages in flight."""
        assert talk.session.delivery is not None
        return talk.session.delivery.unacknowledged


class OrderTests(Case):
    """In order, no gaps."""

    def test_in_order(self) -> None:
        """An entry that follows the last one is sent at once."""
        talk = Talk()
        talk.enter()
        self.assertEqual(numbers(talk.push(entry(1), entry(2), entry(3))), [1, 2, 3])
        (frame,) = frames_of(talk.push(entry(4)))
        self.assertEqual((frame["op"], frame["cursor"], "attempt" in frame), ("message", "4-0", False))

    def test_gap(self) -> None:
        """Before an entry that does not follow the last one, what is missing is read, once."""
        talk = Talk()
        talk.enter(start=1)
        self.assertEqual(talk.push(entry(4)), [Read("1-0", PAGE)])
        self.assertEqual(talk.push(entry(3), entry(2), entry(5)), [])
        self.assertEqual(numbers(talk.page(*entries(2, 5))), [2, 3, 4, 5])
        self.assertEqual(numbers(talk.push(entry(6))), [6])

    def test_duplicates(self) -> None:
        """What was considered already is not sent again."""
        talk = Talk()
        talk.enter()
        talk.push(entry(1), entry(2))
        self.assertEqual(talk.push(entry(1), entry(2), entry(1)), [])
        self.assertEqual(talk.push(entry(4)), [Read("2-0", PAGE)])
        self.assertEqual(numbers(talk.page(entry(3), entry(4))), [3, 4])
        self.assertEqual(talk.push(entry(3), entry(4)), [])

    def test_stored_during_a_read(self) -> None:
        """What is announced while a page is being read, and is not in it, is read after it."""
        talk = Talk()
        talk.enter()
        self.assertEqual(talk.session.check_inbox(), [Read("0-0", PAGE)])
        self.assertEqual(talk.push(entry(1)), [])
        self.assertEqual(talk.page(), [Read("0-0", PAGE)])
        self.assertEqual(numbers(talk.page(entry(1))), [1])

    def test_trimmed(self) -> None:
        """What has left the inbox is passed over, and what is not there is not asked for again and again."""
        talk = Talk()
        talk.enter(last=9)
        self.assertEqual(numbers(talk.page(entry(8), entry(9))), [8, 9])
        self.assertEqual(talk.session.behind("12-0"), [Read("9-0", PAGE)])
        self.assertEqual(talk.page(), [])
        self.assertEqual(numbers(talk.push(entry(10))), [10])

    def test_pages(self) -> None:
        """A full page may not be the last, even if it ends where the inbox was known to end."""
        talk = Talk()
        talk.enter(last=PAGE)
        found = talk.page(*entries(1, PAGE))
        self.assertEqual(numbers(found), list(range(1, PAGE + 1)))
        self.assertEqual(found[-1], Read(cursor(PAGE), PAGE))
        self.assertEqual(talk.page(), [])
        talk = Talk()
        talk.enter(last=PAGE + 1)
        talk.page(*entries(1, PAGE))
        self.assertEqual(numbers(talk.page(entry(PAGE + 1))), [PAGE + 1])

    def test_large_messages(self) -> None:
        """A page of large ones is sent piece by piece, so that nobody who reads is taken for a slow reader."""
        talk = Talk()
        talk.enter(last=40)
        found = talk.page(*entries(1, 40, size=60_000))
        first = numbers(found)
        self.assertEqual(first, list(range(1, 10)))
        self.assertEqual(found[-1], Read(cursor(9), 9))
        self.assertEqual(numbers(talk.page(*entries(10, 18))), list(range(10, 19)))
        self.assertEqual(numbers(talk.page(*entries(19, 36))), list(range(19, 37)))
        self.assertEqual(numbers(talk.page(*entries(37, 40))), list(range(37, 41)))

    def test_hint(self) -> None:
        """The mailbox says how far the inbox goes; what is known already needs no reading."""
        talk = Talk()
        talk.enter()
        talk.push(entry(1))
        self.assertEqual(talk.session.behind("1-0"), [])
        self.assertEqual(talk.session.behind("2-0"), [Read("1-0", PAGE)])
        self.assertEqual(talk.session.behind("3-0"), [])
        self.assertEqual(numbers(talk.page(entry(2))), [2])

    def test_unreadable(self) -> None:
        """An inbox that cannot be read is read later; meanwhile what follows is sent."""
        talk = Talk()
        talk.enter()
        talk.push(entry(3))
        talk.session.unreadable(again=False)
        self.assertEqual(numbers(talk.push(entry(1))), [1])
        self.assertEqual(talk.session.read_again(), [Read("1-0", PAGE)])
        talk.session.unreadable(again=False)
        self.assertEqual(talk.push(entry(4)), [Read("1-0", PAGE)])
        self.assertEqual(numbers(talk.page(*entries(2, 4))), [2, 3, 4])
        self.assertEqual(talk.session.read_again(), [])

    def test_not_for_it(self) -> None:
        """Its own, other channels', expired and other kinds' entries leave no hole."""
        talk = Talk(conn="w.1")
        talk.enter(platform="web")
        now_ms = int(NOW * 1000)
        found = talk.push(
            entry(1, origin="w.1"),
            entry(2, channel="other"),
            entry(3, expires=now_ms),
            entry(4, only=only(platform="ios")),
            entry(5, only=only(role="merchant")),
            entry(6, only=only(device="e")),
            entry(7, origin="w.2", expires=now_ms + 1, only=only(platform="web", role="customer", device="d")),
        )
        self.assertEqual(numbers(found), [7])
        self.assertEqual(self.unacknowledged(talk), 1)


class AcknowledgementTests(Case):
    """Acknowledgement and retransmission."""

    def test_cumulative(self) -> None:
        """An `ack` covers everything up to it."""
        talk = Talk()
        talk.enter()
        talk.push(*entries(1, 10))
        talk.say(op="ack", cursor="7-0")
        self.assertEqual(self.unacknowledged(talk), 3)
        talk.say(op="ack", cursor="3-0")
        self.assertEqual(self.unacknowledged(talk), 3)

    def test_not_past_what_was_sent(self) -> None:
        """What was not for this connection is not acknowledged with it; its own is, since `sent` named it."""
        talk = Talk(conn="w.1")
        talk.enter()
        talk.push(entry(1), entry(2, channel="other"))
        assert talk.session.delivery is not None
        self.assertEqual(talk.session.delivery.acknowledged("2-0"), ("1-0", []))
        talk.push(entry(3, origin="w.1"), entry(4, channel="other"))
        self.assertEqual(talk.session.delivery.acknowledged("9-0"), ("3-0", []))

    def test_retransmission(self) -> None:
        """After 18 s without an `ack` again with `attempt` 2, then 3, then 4; then 4408."""
        talk = Talk(connection={"heartbeat_s": 1000.0})
        talk.enter()
        talk.push(entry(1))
        for attempt in (2, 3, 4):
            self.assertEqual(talk.session.deadline(), talk.now + 18)
            self.assertEqual(talk.wait(17.9), [])
            self.assertEqual(talk.wait(0.1), [Reread(f"0-{2**64 - 1}", PAGE)])
            (frame,) = frames_of(talk.session.reread([entry(1)], talk.now))
            self.assertEqual((frame["attempt"], frame["cursor"], frame["n"]), (attempt, "1-0", 1))
        self.assertEqual(close_of(talk.wait(18)), 4408)
        self.assertFalse(talk.session.open)

    def test_only_what_is_late(self) -> None:
        """Each message has its own time; an `ack` ends it."""
        talk = Talk(connection={"heartbeat_s": 1000.0})
        talk.enter()
        talk.push(entry(1), entry(2))
        talk.now += 10
        talk.push(entry(3))
        talk.now += 8
        talk.say(op="ack", cursor="1-0")
        self.assertEqual(talk.wait(0), [Reread(f"1-{2**64 - 1}", PAGE)])
        self.assertEqual(numbers(talk.session.reread(entries(2, 3), talk.now)), [2])
        self.assertEqual(talk.session.deadline(), NOW + 28)
        self.assertEqual(talk.wait(10), [Reread(f"2-{2**64 - 1}", PAGE)])
        self.assertEqual(numbers(talk.session.reread([entry(3)], talk.now)), [3])

    def test_acknowledged_meanwhile(self) -> None:
        """What is acknowledged while it is read again is not sent again."""
        talk = Talk()
        talk.enter()
        talk.push(*entries(1, 3))
        talk.wait(18)
        talk.say(op="ack", cursor="2-0")
        self.assertEqual(numbers(talk.session.reread(entries(1, 3), talk.now)), [3])

    def test_many_late(self) -> None:
        """More than a page of late ones is read page by page; large ones are sent piece by piece."""
        talk = Talk()
        talk.enter()
        talk.push(*entries(1, 200))
        (reread,) = talk.wait(18)
        found = talk.session.reread(entries(1, PAGE), talk.now)
        self.assertEqual(numbers(found), list(range(1, PAGE + 1)))
        self.assertEqual(found[-1], Reread(f"{PAGE}-{2**64 - 1}", PAGE))
        self.assertEqual(numbers(talk.session.reread(entries(PAGE + 1, 200), talk.now)), list(range(PAGE + 1, 201)))
        talk = Talk()
        talk.enter()
        talk.push(*entries(1, 20))
        talk.wait(18)
        found = talk.session.reread(entries(1, 20, size=60_000), talk.now)
        self.assertEqual(numbers(found), list(range(1, 10)))
        self.assertEqual(found[-1], Reread(f"9-{2**64 - 1}", PAGE))

    def test_trimmed_meanwhile(self) -> None:
        """What has left the inbox cannot be sent again; without an `ack` it ends as it would have."""
        talk = Talk(connection={"heartbeat_s": 1000.0})
        talk.enter()
        talk.push(entry(1))
        for _ in range(3):
            self.assertEqual(len(talk.wait(18)), 1)
            self.assertEqual(talk.session.reread([], talk.now), [])
        self.assertEqual(close_of(talk.wait(18)), 4408)

    def test_unreadable(self) -> None:
        """What could not be read again is tried at the next timeout; `attempt` counts what was really sent."""
        talk = Talk()
        talk.enter()
        talk.push(entry(1))
        talk.wait(18)
        talk.session.unreadable(again=True)
        self.assertEqual(talk.session.reread([entry(1)], talk.now), [])
        talk.wait(18)
        (frame,) = frames_of(talk.session.reread([entry(1)], talk.now))
        self.assertEqual(frame["attempt"], 2)

    def test_jitter(self) -> None:
        """The end comes up to a tenth of the time later, for each connection at its own moment."""
        talk = Talk()
        shared = rules(connection={"heartbeat_s": 1000.0})
        talk.session = Session(msgspec.structs.replace(shared, chance=lambda: 0.5), "w.1", talk.now)
        talk.enter()
        talk.push(entry(1))
        for _ in range(3):
            (again,) = talk.wait(18)
            self.assertIsInstance(again, Reread)
            talk.session.reread([entry(1)], talk.now)
        self.assertEqual(talk.wait(18.8), [])
        self.assertEqual(close_of(talk.wait(0.2)), 4408)

    def test_no_retransmissions(self) -> None:
        """Configured to none, the first timeout closes."""
        talk = Talk(delivery={"retransmissions": 0})
        talk.enter()
        talk.push(entry(1))
        self.assertEqual(close_of(talk.wait(18)), 4408)


class FlowTests(Case):
    """Clients that do not keep up."""

    def test_unacknowledged_bound(self) -> None:
        """At most so many are in flight; the rest waits in the inbox and follows when there is room again."""
        talk = Talk(delivery={"unacked_max": 10})
        talk.enter()
        self.assertEqual(numbers(talk.push(*entries(1, 12))), list(range(1, 11)))
        self.assertEqual(self.unacknowledged(talk), 10)
        self.assertEqual(len(talk.say(op="ack", cursor="4-0")), 1)  # only half a window is worth a page
        self.assertEqual(talk.say(op="ack", cursor="5-0")[1:], [Read("10-0", PAGE)])
        self.assertEqual(numbers(talk.page(*entries(11, 12))), [11, 12])
        self.assertEqual(numbers(talk.push(entry(13))), [13])

    def test_backlog_beyond_the_bound(self) -> None:
        """A backlog larger than the bound comes in parts, whole."""
        talk = Talk(delivery={"unacked_max": 7})
        talk.enter(last=100)
        got: list[int] = []
        done = 0
        while done < 100:
            got += numbers(talk.page(*entries(done + 1, 100)))
            self.assertLessEqual(self.unacknowledged(talk), 7)
            done = got[-1]
            talk.say(op="ack", cursor=cursor(done))
        self.assertEqual(got, list(range(1, 101)))

    def test_bound_of_one(self) -> None:
        """One at a time works, too."""
        talk = Talk(delivery={"unacked_max": 1})
        talk.enter()
        self.assertEqual(numbers(talk.push(entry(1), entry(2))), [1])
        self.assertEqual(talk.say(op="ack", cursor="1-0")[1:], [Read("1-0", PAGE)])
        self.assertEqual(numbers(talk.page(entry(2))), [2])

    def test_paused(self) -> None:
        """While a client does not read, nothing is written; when it reads again, what it missed follows."""
        talk = Talk()
        talk.enter()
        talk.push(entry(1))
        talk.session.paused()
        self.assertEqual(talk.push(*entries(2, 5)), [])
        self.assertEqual(talk.session.resumed(), [Read("1-0", PAGE)])
        self.assertEqual(numbers(talk.page(*entries(2, 5))), [2, 3, 4, 5])
        self.assertEqual(talk.session.resumed(), [])

    def test_paused_during_a_read(self) -> None:
        """A page that comes for a client that does not read any more waits in the inbox."""
        talk = Talk()
        talk.enter(last=3)
        talk.session.paused()
        self.assertEqual(talk.page(*entries(1, 3)), [])
        self.assertEqual(talk.session.check_inbox(), [])
        self.assertEqual(talk.session.resumed(), [Read("0-0", PAGE)])

    def test_budget(self) -> None:
        """A slow reader over its byte budget: 4413. What it reads in time does not add up."""
        talk = Talk(connection={"write_budget": 100_000})
        talk.enter()
        for number in range(1, 20, 2):
            talk.session.paused()
            self.assertIsNone(close_of(talk.push(entry(number, size=60_000))))
            talk.session.resumed()
            talk.page(entry(number), entry(number + 1))
        talk.session.paused()
        self.assertIsNone(close_of(talk.push(entry(21, size=60_000))))
        self.assertEqual(close_of(talk.push(entry(22, size=60_000))), 4413)
        self.assertEqual(talk.push(entry(23)), [])

    def test_budget_of_written(self) -> None:
        """So do the answers and signals that were written into a full buffer."""
        talk = Talk(connection={"write_budget": 100_000})
        talk.enter()
        talk.session.paused()
        self.assertEqual(talk.session.written_while_paused(60_000), [])
        talk.session.paused()  # the transport says it at every write
        self.assertEqual(talk.session.written_while_paused(40_000), [])
        self.assertEqual(close_of(talk.session.written_while_paused(1)), 4413)

    def test_late_while_paused(self) -> None:
        """A full buffer needs no second copy; its time runs all the same."""
        talk = Talk(connection={"heartbeat_s": 1000.0})
        talk.enter()
        talk.push(entry(1))
        talk.session.paused()
        for _ in range(3):
            self.assertEqual(talk.wait(18), [])
        self.assertEqual(close_of(talk.wait(18)), 4408)
