"""The checker finds what is wrong: evidence of a good run, and of runs with one fault each."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from tests.faults.checker import START, Attempt, Evidence, Sending, Shown, Stored, Visit, violations

CONVERSATION = "c" * 32


def good() -> Evidence:
    """Three messages of one conversation from ann to bob, who has one device; all went well."""
    evidence = Evidence()
    evidence.devices["bob"] = {"phone"}
    visit = Visit(uid="bob", device="phone", conn="w.1", worker="w", since="", acked=START, resumed=True, at=1.0)
    entries = []
    for number in (1, 2, 3):
        key, id, cursor = f"ann/s-{number}", f"{number:032x}", f"{number}-0"
        evidence.sendings[key] = Sending(
            key=key,
            sender="ann",
            stream="s",
            number=number,
            receivers=("bob",),
            conversation=CONVERSATION,
            attempts=[Attempt(float(number), "ann/web", "sent", id, number)],
        )
        entries.append(Stored(cursor, key, id, f"{number - 1}-0", seq=number))
        visit.shown.append(Shown(number + 0.1, key, id, cursor, 1, CONVERSATION, number))
    evidence.visits.append(visit)
    evidence.inboxes["bob"] = entries
    evidence.histories[CONVERSATION] = list(entries)
    return evidence


def lose_the_last(evidence: Evidence) -> None:
    """The last message reached nobody."""
    evidence.visits[0].shown.pop()


def leave_one_out(evidence: Evidence) -> None:
    """The second message was skipped."""
    del evidence.visits[0].shown[1]


def swap(evidence: Evidence) -> None:
    """Two messages came in the wrong order."""
    shown = evidence.visits[0].shown
    shown[1], shown[2] = shown[2], shown[1]


def twice_under_another_id(evidence: Evidence) -> None:
    """A repeat got another id, so that no client can drop it."""
    first = evidence.visits[0].shown[0]
    again = msgspec.structs.replace(first, id="f" * 32, cursor="4-0", seq=4)
    evidence.visits[0].shown.append(again)
    evidence.inboxes["bob"].append(Stored("4-0", first.key, "f" * 32, "3-0", seq=4))


def two_answers(evidence: Evidence) -> None:
    """The same cid was told two ids."""
    evidence.sendings["ann/s-1"].attempts.append(Attempt(9.0, "ann/web", "duplicate", "e" * 32, 1))


def gap_in_history(evidence: Evidence) -> None:
    """A seq is missing."""
    del evidence.histories[CONVERSATION][1]


def attempt_left_out(evidence: Evidence) -> None:
    """A retransmission says attempt 3 after attempt 1."""
    last = evidence.visits[0].shown[-1]
    evidence.visits[0].shown.append(msgspec.structs.replace(last, attempt=3))


class CheckerTests(SynchronousTestCase):
    """One fault at a time."""

    def test_good(self) -> None:
        """Nothing is wrong with a good run."""
        self.assertEqual(violations(good()), [])

    def test_faults(self) -> None:
        """Each fault is seen, and leads to the message."""
        spoil: Callable[[Evidence], None]
        for spoil in (
            lose_the_last,
            leave_one_out,
            swap,
            twice_under_another_id,
            two_answers,
            gap_in_history,
            attempt_left_out,
        ):
            evidence = good()
            spoil(evidence)
            self.assertTrue(violations(evidence), spoil.__doc__)
