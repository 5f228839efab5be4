"""Where messages have been: what one server did with them lately, in memory, bounded.

For `imctl trace`. Each server keeps its newest events; a question goes through all of them, so asking costs a few
milliseconds and recording next to nothing.
"""

from __future__ import annotations

import re
from collections import deque

import msgspec
from twisted.internet.interfaces import IReactorTime

from imserver.protocol.syntax import position

LENGTH = 10_000
"""Events of one server that are kept."""
_PREFIX = 512
_SENT = re.compile(
    rb'\{"op":"message"(?:,"cursor":"(?P<cursor>[0-9-]+)")?(?:,"attempt":(?P<attempt>\d))?,"id":"(?P<id>[0-9a-f]{32})"'
    rb',"from":"[^"]*"(?:,"to":"[^"]*")?,"channel":"(?P<channel>[^"]*)"'
)


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that happened to a message."""

    ts: int
    what: str
    """`stored`, `duplicate`, `pushed`, `sent` or `acknowledged`."""
    uid: str = ""
    cursor: str = ""
    conn: str = ""
    attempt: int = 0
    connections: int = 0


class Trail:
    """The newest events of one server."""

    def __init__(self, clock: IReactorTime, length: int = LENGTH) -> None:
        self._clock = clock
        self._stored: deque[tuple[float, tuple[str, str], str, str, bool, int]] = deque(maxlen=length)
        self._sent: deque[tuple[float, str, str, bytes]] = deque(maxlen=length)
        self._acknowledged: deque[tuple[float, str, str]] = deque(maxlen=length)

    def stored(self, id: str, channel: str, uid: str, cursor: str, duplicate: bool, connections: int) -> None:
        """A message is in an inbox, and was pushed to so many connections."""
        self._stored.append((self._clock.seconds(), (id, channel), uid, cursor, duplicate, connections))

    def sent(self, uid: str, conn: str, frame: bytes) -> None:
        """A frame was written to a connection; what it says is looked at only when somebody asks."""
        self._sent.append((self._clock.seconds(), uid, conn, frame[:_PREFIX]))

    def acknowledged(self, conn: str, cursor: str) -> None:
        """A connection has everything up to a cursor."""
        self._acknowledged.append((self._clock.seconds(), conn, cursor))

    def of(self, id: str, channel: str) -> list[Event]:
        """What is known of one message of a channel, oldest first."""
        found = [
            Event(int(at * 1000), "duplicate" if duplicate else "stored", uid, cursor, connections=connections)
            for at, stored, uid, cursor, duplicate, connections in self._stored
            if stored == (id, channel)
        ]
        wanted = (id.encode(), channel.encode())
        for at, uid, conn, prefix in self._sent:
            match = _SENT.match(prefix)
            if match is None or match.group("id", "channel") != wanted:
                continue
            cursor = (match["cursor"] or b"").decode()
            found.append(Event(int(at * 1000), "sent", uid, cursor, conn, int(match["attempt"] or 1)))
            acked = self._covering(conn, cursor, at) if cursor and not match["attempt"] else None
            if acked is not None:
                found.append(Event(int(acked * 1000), "acknowledged", uid, cursor, conn))
        return sorted(found, key=lambda event: event.ts)

    def _covering(self, conn: str, cursor: str, since: float) -> float | None:
        """When the connection first acknowledged this cursor or a later one."""
        mine = position(cursor)
        acks = ((at, upto) for at, acked, upto in self._acknowledged if acked == conn and at >= since)
        return next((at for at, upto in acks if position(upto) >= mine), None)
