"""Who is connected to this worker: uid → connections. It is what other servers call (`rpc.interface.Receiver`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from imserver.data.interface import Entry
from imserver.ops.trail import Event, Trail
from imserver.protocol.deliveries import Head, decode_head
from imserver.protocol.frames import message_frame
from imserver.rpc.interface import Pushed
from imserver.worker.session import Session


class Connected(Protocol):
    """One connection of a client, whatever carries it."""

    session: Session
    ip: str

    def push(self, entry: Entry, head: Head, frame: bytes, now: float) -> None:
        """An inbox entry for it."""

    def signal(self, head: Head, frame: bytes, now: float) -> None:
        """A frame that is not stored."""

    def behind(self, cursor: str) -> None:
        """Its inbox goes up to `cursor` now."""

    def end(self, code: int, reason: str) -> None:
        """Close it."""


class Hub:
    """The connections of one worker."""

    def __init__(self, clock: IReactorTime, trail: Trail) -> None:
        self._clock = clock
        self._trail = trail
        self._by_uid: dict[str, Connected | list[Connected]] = {}  # most users have one connection: no list for them
        self.count = 0

    def add(self, uid: str, connected: Connected) -> None:
        """A connection is being admitted."""
        known = self._by_uid.get(uid)
        if known is None:
            self._by_uid[uid] = connected
        elif isinstance(known, list):
            known.append(connected)
        else:
            self._by_uid[uid] = [known, connected]
        self.count += 1

    def remove(self, uid: str, connected: Connected) -> None:
        """It is gone."""
        known = self._by_uid.get(uid)
        if known is connected:
            del self._by_uid[uid]
            self.count -= 1
        elif isinstance(known, list) and connected in known:
            known.remove(connected)
            if len(known) == 1:
                self._by_uid[uid] = known[0]
            self.count -= 1

    def of(self, uid: str) -> Sequence[Connected]:
        """A uid's connections."""
        known = self._by_uid.get(uid)
        if known is None:
            return ()
        return list(known) if isinstance(known, list) else (known,)

    def __iter__(self) -> Iterator[Connected]:
        for uid in list(self._by_uid):
            yield from self.of(uid)

    # -- rpc.interface.Receiver --------------------------------------------------------------------------------

    def deliver(self, pushed: Sequence[Pushed]) -> list[int]:
        """Take these in, in order; for each the number of connections that it reached.

        One encoded frame serves all connections of a uid.
        """
        now = self._clock.seconds()
        return [self._deliver(item, now) for item in pushed]

    def _deliver(self, item: Pushed, now: float) -> int:
        connected = self.of(item.uid)
        if not connected:
            return 0
        head = decode_head(item.head)
        if item.cursor:
            entry = Entry(item.cursor, item.prev, item.head, item.tail)
            frame = message_frame(item.tail, item.cursor)
            for one in connected:  # also those it is not for: their position moves over it
                one.push(entry, head, frame, now)
        else:
            frame = b'{"op":"%s",' % item.op.encode() + item.tail
            for one in connected:
                one.signal(head, frame, now)
        return sum(_reaches(one.session, head, bool(item.cursor), now) for one in connected)

    def broadcast(self, role: str | None, platform: str | None, head: bytes, tail: bytes) -> int:
        """Send a frame that is not stored to every connection of this kind."""
        now = self._clock.seconds()
        decoded = decode_head(head)
        frame = message_frame(tail, None)
        reached = 0
        for one in self:
            audience = one.session.audience
            if audience is None or not one.session.open or not audience.admits(decoded, now):
                continue
            if role in (None, audience.role) and platform in (None, audience.platform):
                one.signal(decoded, frame, now)
                reached += 1
        return reached

    def close(self, uid: str, conn: str | None, channels: Sequence[str], code: int, reason: str) -> int:
        """Close a uid's connections (or one) that have one of these channels."""
        wanted = [one for one in self.of(uid) if conn in (None, one.session.conn) and _concerned(one, channels)]
        return _end(wanted, code, reason)

    def sever(self, kind: str, value: str, channels: Sequence[str], code: int, reason: str) -> int:
        """Close every connection of this `uid` or `ip` that has one of these channels."""
        among = self.of(value) if kind == "uid" else [one for one in self if one.ip == value]
        return _end([one for one in among if _concerned(one, channels)], code, reason)

    def trail(self, id: str, channel: str) -> list[Event]:
        """What this worker did with a message lately."""
        return self._trail.of(id, channel)

    def present(self, uids: Sequence[str], role: str, channel: str) -> list[str]:
        """Those of `uids` who are connected now, in this role and channel."""

        def meant(one: Connected) -> bool:
            audience = one.session.audience
            return audience is not None and audience.role == role and _concerned(one, (channel,))

        return [uid for uid in uids if any(map(meant, self.of(uid)))]


def _reaches(session: Session, head: Head, stored: bool, now: float) -> bool:
    """Who is being admitted gets what is stored with its backlog, and nothing else."""
    able = session.live if stored else session.open
    return able and session.audience is not None and session.audience.admits(head, now)


def _concerned(one: Connected, channels: Sequence[str]) -> bool:
    audience = one.session.audience
    return one.session.live and audience is not None and not set(channels).isdisjoint(audience.channels)


def _end(wanted: list[Connected], code: int, reason: str) -> int:
    for one in wanted:
        one.end(code, reason)
    return len(wanted)
