"""The rules that decide whether delivery kept its promises. No I/O: recorded evidence in, violations out.

The promises are those of the contract, "What holds for every connection". Whoever records is an application like any
other: it gives each message a `cid`, tries until it is accepted, acknowledges, resumes, and shows each id once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import msgspec

ATTEMPTS_MAX = 4
"""One transmission and three retransmissions."""

START = "0-0"


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """One try to send a message and what came of it; `id` is empty unless it was accepted."""

    at: float
    way: str
    outcome: str
    id: str = ""
    seq: int = 0


class Sending(msgspec.Struct):
    """A message as its sender knows it. `key` is unique, and in its body.

    `stream` names what is in one order: a sender sends the next one of a stream when the last one was accepted.
    `senders` are the devices that tried to send it: they need not be shown it.
    """

    key: str
    sender: str
    stream: str
    number: int
    receivers: tuple[str, ...] = ()
    conversation: str = ""
    only: str = ""
    senders: set[tuple[str, str]] = msgspec.field(default_factory=set)
    attempts: list[Attempt] = msgspec.field(default_factory=list)

    @property
    def accepted(self) -> bool:
        """Whether the servers have said that they have it."""
        return any(attempt.id for attempt in self.attempts)


class Shown(msgspec.Struct, frozen=True, gc=False):
    """A `message` frame that arrived."""

    at: float
    key: str
    id: str
    cursor: str
    attempt: int
    conversation: str
    seq: int


class Visit(msgspec.Struct):
    """One connection of a device, from `welcome` on.

    `acked` is the highest cursor that the device had ever acknowledged when it said hello.
    """

    uid: str
    device: str
    conn: str
    worker: str
    since: str
    acked: str
    resumed: bool
    at: float
    streaming: bool = False
    shown: list[Shown] = msgspec.field(default_factory=list)
    ended: str = ""


class Stored(msgspec.Struct, frozen=True, gc=False):
    """One entry of an inbox, of a history or of a journal."""

    cursor: str
    key: str
    id: str
    prev: str = ""
    origin: str = ""
    only: str = ""
    seq: int = 0


class Evidence(msgspec.Struct):
    """All that was recorded in one run."""

    sendings: dict[str, Sending] = msgspec.field(default_factory=dict)
    devices: dict[str, set[str]] = msgspec.field(default_factory=lambda: defaultdict(set))
    visits: list[Visit] = msgspec.field(default_factory=list)
    inboxes: dict[str, list[Stored]] = msgspec.field(default_factory=dict)
    histories: dict[str, list[Stored]] = msgspec.field(default_factory=dict)
    journal: list[Stored] | None = None
    """None if none was read."""

    faults: list[tuple[float, str]] = msgspec.field(default_factory=list)
    """What struck when, for trails."""


class Violation(msgspec.Struct, frozen=True):
    """A promise that was not kept; `key` of the message, if it is about one."""

    rule: str
    text: str
    key: str = ""


def violations(evidence: Evidence) -> list[Violation]:
    """Every violation that the evidence shows."""
    return [
        *_answers(evidence),
        *_missing(evidence),
        *_inboxes(evidence),
        *_visits(evidence),
        *_screens(evidence),
        *_histories(evidence),
        *_journal(evidence),
    ]


def position(cursor: str) -> tuple[int, int]:
    """A cursor as something to compare. (The contract calls it opaque: this is a test of the insides, too.)"""
    head, _, tail = cursor.partition("-")
    return int(head), int(tail)


def awaited(evidence: Evidence) -> Iterator[tuple[str, str, str]]:
    """(uid, device, key) of everything that has to be on some screen in the end."""
    for sending in evidence.sendings.values():
        if sending.accepted:
            for uid in sending.receivers:
                for device in evidence.devices[uid]:
                    if (uid, device) not in sending.senders and sending.only in ("", device):
                        yield uid, device, sending.key


def trail(evidence: Evidence, key: str) -> str:
    """Where one message has been."""
    sending = evidence.sendings.get(key)
    if sending is None:
        return f"{key}: nobody sent it"
    lines = [f"{key}: stream {sending.stream} number {sending.number} to {', '.join(sending.receivers)}"]
    events = [(a.at, f"sent by {a.way}: {a.outcome} {a.id} seq {a.seq}") for a in sending.attempts]
    for visit in evidence.visits:
        events += [
            (
                shown.at,
                f"shown to {visit.uid}/{visit.device} on {visit.conn} ({visit.worker}) cursor {shown.cursor}"
                f" attempt {shown.attempt} seq {shown.seq} id {shown.id}",
            )
            for shown in visit.shown
            if shown.key == key
        ]
    first = min((at for at, _ in events), default=0.0)
    events += [(at, f"-- {text}") for at, text in evidence.faults if first - 3 <= at <= first + 8]
    lines += [f"  {at:10.3f} {text}" for at, text in sorted(events)]
    for uid, entries in evidence.inboxes.items():
        lines += [
            f"             in the inbox of {uid} at {entry.cursor} after {entry.prev} origin {entry.origin or 'none'}"
            for entry in entries
            if entry.key == key
        ]
    for uid in sending.receivers:
        for device in sorted(evidence.devices[uid]):
            mine = [v for v in evidence.visits if (v.uid, v.device) == (uid, device)]
            if not any(s.key == key for v in mine for s in v.shown):
                last = ", ".join(
                    f"{v.conn}@{v.at:.3f} since {v.since or 'none'} last {v.shown[-1].cursor if v.shown else '-'}"
                    f" end {v.ended or 'open'}"
                    for v in mine[-3:]
                )
                lines.append(f"             never shown to {uid}/{device}; its last connections: {last}")
    return "\n".join(lines)


# -- What senders were told ------------------------------------------------------------------------------------


def _answers(evidence: Evidence) -> Iterator[Violation]:
    """The same (sender, cid) is the same message, however often it is sent (contract: Words, message id)."""
    ids: dict[str, str] = {}
    for sending in evidence.sendings.values():
        answers = {(attempt.id, attempt.seq) for attempt in sending.attempts if attempt.id}
        if len(answers) > 1:
            yield Violation("same cid, same message", f"answered as {sorted(answers)}", sending.key)
        for id in {id for id, _ in answers}:
            if ids.setdefault(id, sending.key) != sending.key:
                yield Violation("unique id", f"{id} is {ids[id]}, too", sending.key)


def _missing(evidence: Evidence) -> Iterator[Violation]:
    """Nothing accepted is lost, and every device has it (3 and 4)."""
    seen: dict[tuple[str, str], set[str]] = defaultdict(set)
    for visit in evidence.visits:
        seen[visit.uid, visit.device].update(shown.key for shown in visit.shown)
    for uid, device, key in awaited(evidence):
        if key not in seen[uid, device]:
            yield Violation("nothing accepted is missing", f"{uid}/{device} never got it", key)


# -- What is stored --------------------------------------------------------------------------------------------


def _once_and_in_order(evidence: Evidence, where: str, entries: Iterable[Stored]) -> Iterator[Violation]:
    """Each message once, only what was sent, and each sender's in the order in which it sent them."""
    known: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for entry in entries:
        if entry.key in known:
            yield Violation("stored once", f"{where} has it at {known[entry.key]} and {entry.cursor}", entry.key)
            continue
        known[entry.key] = entry.cursor
        sending = evidence.sendings.get(entry.key)
        if sending is None:
            yield Violation("only what was sent", f"{where} has {entry.id} at {entry.cursor}", entry.key)
            continue
        if entry.id not in {attempt.id for attempt in sending.attempts} and sending.accepted:
            yield Violation("same cid, same message", f"{where} has it as {entry.id}", entry.key)
        if numbers.get(sending.stream, 0) >= sending.number:
            yield Violation(
                "the sender's order", f"{where} has number {numbers[sending.stream]} of the stream before it", entry.key
            )
        numbers[sending.stream] = sending.number


def _inboxes(evidence: Evidence) -> Iterator[Violation]:
    for uid, entries in evidence.inboxes.items():
        yield from _once_and_in_order(evidence, f"the inbox of {uid}", entries)
        prev = START
        for entry in entries:
            if entry.prev != prev:
                yield Violation("no hole in an inbox", f"{uid}: {entry.cursor} follows {prev}, not {entry.prev}")
            prev = entry.cursor
        stored = {entry.key for entry in entries}
        for sending in evidence.sendings.values():
            if sending.accepted and uid in sending.receivers and sending.key not in stored:
                yield Violation("nothing accepted is missing", f"the inbox of {uid} does not have it", sending.key)


def _histories(evidence: Evidence) -> Iterator[Violation]:
    """`seq` 1, 2, 3, ... without gaps, as it was answered."""
    sent: dict[str, list[Sending]] = defaultdict(list)
    for sending in evidence.sendings.values():
        if sending.conversation and sending.accepted:
            sent[sending.conversation].append(sending)
    for conversation, entries in evidence.histories.items():
        yield from _once_and_in_order(evidence, f"the history of {conversation}", entries)
        seqs = [entry.seq for entry in entries]
        if seqs != list(range(1, len(seqs) + 1)):
            odd = next(i for i, seq in enumerate(seqs, 1) if seq != i)
            yield Violation("seq without gaps", f"{conversation}: ... {seqs[max(0, odd - 3) : odd + 3]} ...")
        known = {entry.key: entry.seq for entry in entries}
        for sending in sent[conversation]:
            answered = {attempt.seq for attempt in sending.attempts if attempt.id}
            if known.get(sending.key) not in answered:
                yield Violation(
                    "seq as answered", f"history has it as {known.get(sending.key)}, {answered} said", sending.key
                )


def _journal(evidence: Evidence) -> Iterator[Violation]:
    if evidence.journal is None:
        return
    yield from _once_and_in_order(evidence, "the journal", evidence.journal)
    stored = {entry.key for entry in evidence.journal}
    for sending in evidence.sendings.values():
        if sending.stream.startswith("journal:") and sending.accepted and sending.key not in stored:
            yield Violation("nothing accepted is missing", "the journal does not have it", sending.key)


# -- What each connection was sent -----------------------------------------------------------------------------


def _visits(evidence: Evidence) -> Iterator[Violation]:
    """In order, no gaps, retransmissions counted (1 and 2)."""
    places = {uid: {entry.cursor: i for i, entry in enumerate(e)} for uid, e in evidence.inboxes.items()}
    for visit in evidence.visits:
        name = f"{visit.uid}/{visit.device} on {visit.conn} ({visit.worker})"
        if not visit.resumed:
            yield Violation("resume", f"{name}: resumed false with since {visit.since or 'none'}")
        attempts: dict[str, int] = {}
        firsts: list[Shown] = []
        for shown in visit.shown:
            known = attempts.get(shown.cursor, 0)
            if shown.attempt != known + 1 or shown.attempt > ATTEMPTS_MAX or (visit.streaming and known):
                yield Violation("attempts are counted", f"{name}: attempt {shown.attempt} after {known}", shown.key)
            attempts[shown.cursor] = shown.attempt
            if known:
                continue
            if firsts and position(shown.cursor) <= position(firsts[-1].cursor):
                yield Violation("in order", f"{name}: {shown.cursor} after {firsts[-1].cursor}", shown.key)
            firsts.append(shown)
        if visit.uid in places and firsts:
            yield from _no_gaps(visit, name, firsts, evidence.inboxes[visit.uid], places[visit.uid])


def _no_gaps(
    visit: Visit, name: str, firsts: list[Shown], entries: list[Stored], places: dict[str, int]
) -> Iterator[Violation]:
    since = visit.since or visit.acked
    if since != START and since not in places:
        yield Violation("since is kept", f"{name}: {since} is not in the inbox")
        return
    begin = places[since] + 1 if since != START else 0
    if not visit.since and firsts[0].cursor in places:  # what it acknowledged need not have arrived
        begin = min(begin, places[firsts[0].cursor])
    end = places.get(firsts[-1].cursor)
    if end is None:
        yield Violation("only what is stored", f"{name}: {firsts[-1].cursor} is not in the inbox", firsts[-1].key)
        return
    got = {shown.cursor for shown in firsts}
    for entry in entries[begin : end + 1]:
        meant = entry.origin != visit.conn and entry.only in ("", visit.device)
        if meant and entry.cursor not in got:
            yield Violation("no gaps", f"{name}: {entry.cursor} was left out", entry.key)
        elif not meant and entry.cursor in got:
            yield Violation("not for it", f"{name}: {entry.cursor} (its own, or for another device)", entry.key)


def _screens(evidence: Evidence) -> Iterator[Violation]:
    """What each device shows, after it has dropped the ids that it has shown before: in order, each message once."""
    last: dict[tuple[str, str], str] = {}
    ids: dict[tuple[str, str], set[str]] = defaultdict(set)
    keys: dict[tuple[str, str], set[str]] = defaultdict(set)
    seqs: dict[tuple[str, str, str], int] = {}
    for visit in sorted(evidence.visits, key=lambda visit: visit.at):
        screen = (visit.uid, visit.device)
        name = "/".join(screen)
        for shown in visit.shown:
            if shown.id in ids[screen]:
                continue
            ids[screen].add(shown.id)
            if shown.key in keys[screen]:
                yield Violation("once on the screen", f"{name}: again as {shown.id}", shown.key)
            keys[screen].add(shown.key)
            sending = evidence.sendings.get(shown.key)
            if sending is not None and screen in sending.senders:
                continue  # it wrote this itself: on its screen since then, and known by the id in `sent`
            if position(shown.cursor) <= position(last.get(screen, START)):
                yield Violation("in order on the screen", f"{name}: {shown.cursor} after {last[screen]}", shown.key)
            last[screen] = shown.cursor
            if shown.seq:
                before = seqs.get((*screen, shown.conversation), 0)
                if shown.seq <= before:
                    yield Violation("seq in order", f"{name}: {shown.seq} after {before}", shown.key)
                seqs[(*screen, shown.conversation)] = shown.seq
