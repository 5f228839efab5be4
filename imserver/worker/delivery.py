"""What one connection has been sent of its inbox: order, acknowledgement, retransmission. No I/O.

`position` is the last entry considered.  An entry is taken only when its `prev` is the position, so there is no hole,
whoever pushed it and whichever way it came; otherwise the missing part is read from the inbox first.  At most
`unacked_max` messages are in flight: beyond that, and while the client reads too slowly, the rest waits in the inbox.
Where the rules come from: contract, "What holds for every connection", 1, 2, 4 and 6.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from imserver import config
from imserver.data.interface import Entry
from imserver.protocol import codes, frames
from imserver.protocol.deliveries import Head, decode_head
from imserver.protocol.syntax import START, just_before, position
from imserver.worker.actions import Action, Close, Read, Reread, Send

FAR = f"{2**63}-0"
"""Somewhere on: whoever reads up to here stops when nothing more comes."""
PAGE = 128
"""Entries read from the inbox at a time; fewer when they are large."""


class InFlight:
    """One message that was sent and not acknowledged yet. The message itself is in the inbox, not here."""

    __slots__ = ("attempt", "cursor", "rereading", "since", "timeouts")

    def __init__(self, cursor: str, since: float) -> None:
        self.cursor = cursor
        self.since = since
        self.attempt = 1  # how often it was written; a read that failed, or a full buffer, makes it fewer than timeouts
        self.timeouts = 0
        self.rereading = False


class Audience:
    """What decides whether a message is for this connection: its own id, kind and channels."""

    __slots__ = ("channels", "conn", "device", "platform", "role")

    def __init__(self, conn: str, role: str, platform: str, device: str, channels: tuple[str, ...]) -> None:
        self.conn = conn
        self.role = role
        self.platform = platform
        self.device = device
        self.channels = channels

    def admits(self, head: Head, now: float) -> bool:
        """Whether a message with this head is for this connection at `now`."""
        return (
            head.channel in self.channels
            and head.origin != self.conn
            and (not head.expires or head.expires > now * 1000)
            and (head.only is None or head.only.admits(self.role, self.platform, self.device))
        )


class Delivery:
    """The sending side of one admitted connection."""

    __slots__ = (
        "_audience",
        "_burst",
        "_due",
        "_in_flight",
        "_jitter_s",
        "_limits",
        "_page",
        "_paused",
        "_position",
        "_reading",
        "_retransmits",
        "_sent",
        "_target",
        "owed",
    )

    def __init__(
        self,
        limits: config.Delivery,
        audience: Audience,
        start: str,
        burst: int,
        retransmits: bool = True,
        jitter_s: float = 0.0,
    ) -> None:
        self._limits = limits
        self._audience = audience
        self._burst = burst  # bytes written in one go: a page of large messages makes nobody a slow reader
        self._page = PAGE
        self._position = start
        self._sent = START  # the last that it was sent, which is as far as it may acknowledge
        self._target = ""  # announced since the last read was asked for
        self._due = 0.0
        self._reading = False
        self._paused = False
        self._retransmits = retransmits
        self._jitter_s = jitter_s
        self._in_flight: deque[InFlight] | None = None
        self.owed = 0
        """Bytes that came while the client was not reading."""

    @property
    def position(self) -> str:
        """The last inbox entry considered for this connection."""
        return self._position

    @property
    def unacknowledged(self) -> int:
        """Messages in flight."""
        return len(self._in_flight or ())

    def pushed(self, entry: Entry, head: Head, frame: bytes, now: float) -> list[Action]:
        """An entry arrived from a dispatcher; `frame` is what a first attempt looks like."""
        if entry.prev == self._position and not self._reading and self._open():
            return self._take(entry, head, frame, now)
        if position(entry.cursor) <= position(self._position):
            return []
        if self._paused:
            self.owed += len(frame)
        return self.behind(entry.cursor)

    def behind(self, cursor: str) -> list[Action]:
        """The inbox is known to go on up to `cursor`: read what is missing, when there is room."""
        if not self._target or position(cursor) > position(self._target):
            self._target = cursor
        return self._read_on()

    def page(self, entries: Sequence[Entry], now: float) -> list[Action]:
        """What was asked for with `Read` has been read."""
        self._reading = False
        found: list[Action] = []
        size, more = 0, len(entries) >= self._page
        self._page = min(PAGE, self._page * 2)
        for index, entry in enumerate(entries):
            if not self._open():
                more = True
                break
            if size > self._burst:
                self._page, more = index, True
                break
            frame = frames.message_frame(entry.tail, entry.cursor)
            taken = self._take(entry, decode_head(entry.head), frame, now)
            size += len(frame) if taken else 0
            found += taken
        if more:
            self._target = FAR
        elif self._target and position(self._target) <= position(self._position):
            self._target = ""
        return found + self._read_on()

    def unreadable(self, again: bool) -> None:
        """The inbox could not be read; `read_again` will try, and the next timeout if it was read `again`."""
        if again:
            for item in self._in_flight or ():
                if item.rereading:  # that Redis is away is no fault of the client's
                    item.rereading = False
                    item.timeouts -= 1
            return
        self._reading = False
        self._target = FAR

    def read_again(self) -> list[Action]:
        """Try what could not be read, or what there was no room for."""
        return self._read_on()

    def check_inbox(self) -> list[Action]:
        """Look for what nobody told us about, as after a lost lease."""
        return self.behind(FAR)

    def acknowledged(self, cursor: str) -> tuple[str, list[Action]]:
        """A cumulative acknowledgement: the cursor that holds, never past what was sent, and what there is room for."""
        if position(cursor) > position(self._sent):
            cursor = self._sent
        flight = self._in_flight
        while flight and position(flight[0].cursor) <= position(cursor):
            flight.popleft()
        if not flight:
            self._in_flight = None
        if self.unacknowledged > self._limits.unacked_max // 2:
            return cursor, []  # not a page for every single acknowledgement
        return cursor, self._read_on()

    def paused(self) -> None:
        """The client reads too slowly: nothing more is taken for now."""
        self._paused = True  # the transport says so again at every write into its full buffer

    def resumed(self) -> list[Action]:
        """The client reads again."""
        self._paused = False
        self.owed = 0
        return self._read_on()

    def deadline(self) -> float | None:
        """When `due` has something to do, None if nothing is in flight."""
        return self._due if self._in_flight else None

    def due(self, now: float) -> list[Action]:
        """Send again what was not acknowledged in time; give up after the last retransmission."""
        if not self._in_flight or now < self._due:
            return []
        timeout = self._limits.ack_timeout_s
        late = [item for item in self._in_flight if item.since + timeout <= now]
        for item in late:
            if item.timeouts >= self._limits.retransmissions:
                waited = timeout * (item.timeouts + 1)
                return [Close(codes.TIMEOUT, f"no acknowledgement of {item.cursor} within {waited:g} s")]
            item.timeouts += 1
            # jitter before the end: clients that lost the same server do not come back all at once
            item.since = now + (self._jitter_s if item.timeouts >= self._limits.retransmissions else 0.0)
            item.rereading = not self._paused  # a full buffer needs no second copy
        self._due = min(item.since for item in self._in_flight) + timeout
        return self._reread() if late else []

    def _reread(self) -> list[Action]:
        first = next((item for item in self._in_flight or () if item.rereading), None)
        return [Reread(just_before(first.cursor), PAGE)] if first is not None else []

    def reread(self, entries: Sequence[Entry]) -> list[Action]:
        """What was asked for with `Reread` has been read: the late ones among it are sent again."""
        channels = self._audience.channels  # which may be fewer than when it was sent
        tails = {entry.cursor: entry.tail for entry in entries if decode_head(entry.head).channel in channels}
        found: list[Action] = []
        size = 0
        for item in self._in_flight or ():
            if not item.rereading:
                continue
            beyond = len(entries) == PAGE and position(item.cursor) > position(entries[-1].cursor)
            if beyond or size > self._burst:
                return found + self._reread()
            item.rereading = False
            if self._paused:
                continue
            item.attempt += 1
            if item.cursor in tails:  # else it has left the inbox, or is no longer for this token
                frame = frames.message_frame(tails[item.cursor], item.cursor, item.attempt)
                size += len(frame)
                found.append(Send(frame))
        return found

    def _open(self) -> bool:
        return not self._paused and (
            not self._retransmits or self._in_flight is None or len(self._in_flight) < self._limits.unacked_max
        )

    def _read_on(self) -> list[Action]:
        if self._reading or not self._target or not self._open():
            return []
        self._reading = True
        self._target = ""  # all that is known of by now will be in the answer
        return [Read(self._position, self._page)]

    def _take(self, entry: Entry, head: Head, frame: bytes, now: float) -> list[Action]:
        self._position = entry.cursor
        if not self._audience.admits(head, now):
            if head.origin == self._audience.conn:
                self._sent = entry.cursor  # its `sent` says so
            return []
        self._sent = entry.cursor
        if self._retransmits:
            if self._in_flight is None:
                self._in_flight = deque()
                self._due = now + self._limits.ack_timeout_s
            self._in_flight.append(InFlight(entry.cursor, now))
        return [Send(frame)]
