"""The rules of one client connection: frames, announcements and time in, actions out. No I/O.

awaiting hello → being admitted → open → closed.  Where the rules come from: contract, "WebSocket (worker)".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from imserver import config
from imserver.data.interface import Entry, Position
from imserver.protocol import codes, frames
from imserver.protocol.codes import FrameError
from imserver.protocol.deliveries import Head
from imserver.protocol.syntax import START, position
from imserver.protocol.tokens import Claims, TokenError
from imserver.worker.actions import Acknowledge, Action, Admit, Close, Ping, Register, Request, Send
from imserver.worker.delivery import FAR, Audience, Delivery

EARLY_MAX = 64
"""Frames that may come between `hello` and `welcome`."""


JITTER = 0.1
"""A connection that is given up for missing acknowledgements ends up to this part of `ack_timeout_s` later."""


class Rules(msgspec.Struct, frozen=True):
    """What all sessions of a worker share."""

    connection: config.Connection
    delivery: config.Delivery
    channels: Mapping[str, config.Channel]
    verify: Callable[[str, float], Claims]
    chance: Callable[[], float]
    """A random number from 0 to 1."""


class Session:
    """One connection's state."""

    __slots__ = (
        "_bad", "_early", "_latest", "_pinged", "_read_at", "_rules", "_state", "_tokens", "_tokens_at",
        "acknowledging", "audience", "claims", "conn", "delivery", "device",
    )  # fmt: skip

    def __init__(self, rules: Rules, conn: str, now: float) -> None:
        self._rules = rules
        self._state = "new"
        self._bad = 0
        self._read_at = now
        self._pinged = False
        self._tokens = float(rules.connection.frames_burst)
        self._tokens_at = now
        self._early: list[frames.Incoming] | None = None
        self._latest = ""
        self.conn = conn
        self.claims: Claims | None = None
        self.device = ""
        self.audience: Audience | None = None
        self.acknowledging: tuple[str, ...] = ()
        """The channels in which an `ack` counts: those of the token from the beginning until now."""
        self.delivery: Delivery | None = None

    @property
    def open(self) -> bool:
        """Whether `welcome` has been said and nothing ended it."""
        return self._state == "open"

    @property
    def admissible(self) -> bool:
        """Whether it still waits to be admitted."""
        return self._state == "admitting"

    @property
    def live(self) -> bool:
        """Whether it is open or will be: what is stored now reaches it."""
        return self._state in ("admitting", "open")

    # -- from the client ---------------------------------------------------------------------------------------

    def heard(self, now: float) -> None:
        """Bytes arrived: the client lives."""
        if self._state != "new":  # until hello, `_read_at` is when it connected
            self._read_at = now
            self._pinged = False

    def received(self, text: bytes, now: float) -> list[Action]:
        """One text frame."""
        if self._state == "closed":
            return []
        if not self._within_rate(now):
            return self._close(codes.TOO_MANY_FRAMES, "too many frames per second")
        try:
            frame = frames.decode(text)
            if self._state == "new" and not isinstance(frame, frames.Hello):
                raise FrameError("not_allowed", "the first frame has to be hello", ref=getattr(frame, "ref", None))
        except FrameError as error:
            return self._bad_frame(error)
        if self._state == "admitting":
            return self._wait(frame)
        return self._frame(frame, now)

    def _within_rate(self, now: float) -> bool:
        limits = self._rules.connection
        grown = self._tokens + (now - self._tokens_at) * limits.frames_per_s
        self._tokens = min(float(limits.frames_burst), grown) - 1
        self._tokens_at = now
        return self._tokens >= 0

    def _bad_frame(self, error: FrameError) -> list[Action]:
        self._bad += 1
        answer = _error(error)
        if self._bad >= self._rules.connection.bad_frames:
            return [answer, *self._close(codes.BAD_FRAMES, f"{self._bad} invalid frames in a row")]
        return [answer]

    def _wait(self, frame: frames.Incoming) -> list[Action]:
        self._early = self._early or []
        if len(self._early) >= EARLY_MAX:
            return [_error(FrameError("rate_limited", "wait for welcome", ref=getattr(frame, "ref", None)))]
        self._early.append(frame)
        return []

    def _frame(self, frame: frames.Incoming, now: float) -> list[Action]:
        try:
            found = self._meant(frame, now)
        except FrameError as error:
            if error.code == "invalid_frame":
                return self._bad_frame(error)
            found = [_error(error)]
        self._bad = 0  # valid, even if it was refused
        return found

    def _meant(self, frame: frames.Incoming, now: float) -> list[Action]:
        match frame:
            case frames.Hello():
                return self._hello(frame, now)
            case frames.Ping():
                return [Send(frames.encode(frames.Pong(ts=int(now * 1000), ref=frame.ref)))]
            case frames.Ack():
                return self._ack(frame)
            case frames.Refresh():
                return self._refresh(frame, now)
            case frames.Send():
                return [Request(frame, self._sendable(frame))]
            case _:
                return [Request(frame, "")]

    def _hello(self, frame: frames.Hello, now: float) -> list[Action]:
        if self._state != "new":
            raise FrameError("not_allowed", "hello was said already")
        try:
            claims = self._rules.verify(frame.token, now)
        except TokenError as error:
            return self._close(codes.TOKEN, str(error))
        self._state = "admitting"
        return [Admit(claims, frame.device, claims.platform or frame.platform or "other", frame.since)]

    def _refresh(self, frame: frames.Refresh, now: float) -> list[Action]:
        assert self.claims is not None and self.audience is not None
        try:
            claims = self._rules.verify(frame.token, now)
        except TokenError as error:
            raise FrameError("not_allowed", str(error), field="token", ref=frame.ref) from None
        if claims.uid != self.claims.uid:
            raise FrameError("not_allowed", "the new token is another user's", field="token", ref=frame.ref)
        changed = (claims.role, claims.channels) != (self.claims.role, self.claims.channels)
        self.claims = claims
        self.audience.role, self.audience.channels = claims.role, claims.channels
        # of a channel that comes in only now, messages before may be unsent: its cursor waits for the next hello
        self.acknowledging = tuple(channel for channel in self.acknowledging if channel in claims.channels)
        answer = Send(frames.encode(frames.Refreshed(ts=int(now * 1000), ref=frame.ref)))
        return [answer, Register()] if changed else [answer]

    def _sendable(self, frame: frames.Send) -> str:
        """The channel of a `send`, if its uplink takes such a frame (contract: Channels)."""
        assert self.claims is not None
        channel = frame.channel
        if channel is None:
            if len(self.claims.channels) > 1:
                raise FrameError(
                    "invalid_frame", "the token has several channels: name one", field="channel", ref=frame.ref
                )
            channel = self.claims.channels[0]
        if channel not in self.claims.channels:
            raise FrameError("not_allowed", f"the token is not for channel {channel}", field="channel", ref=frame.ref)
        if frame.type == "system":
            raise FrameError("not_allowed", "type system is for backends", field="type", ref=frame.ref)
        settings = self._rules.channels[channel]
        addressed = next((name for name in ("shop", "conversation", "to") if getattr(frame, name) is not None), None)
        if settings.uplink == "journal" and addressed:
            raise FrameError("not_allowed", "a journal channel takes no receiver", field=addressed, ref=frame.ref)
        if settings.uplink == "direct" and addressed != "to":
            raise FrameError("not_allowed", "a direct channel takes only `to`", field=addressed or "to", ref=frame.ref)
        if settings.uplink == "business" and addressed is None:
            raise FrameError("invalid_frame", "give one of to, conversation and shop", field="to", ref=frame.ref)
        if addressed == "shop" and self.claims.role != "customer":
            raise FrameError("not_allowed", "only a customer writes to a shop", field="shop", ref=frame.ref)
        return channel

    def _ack(self, frame: frames.Ack) -> list[Action]:
        assert self.delivery is not None
        before = self.delivery.unacknowledged
        cursor, actions = self.delivery.acknowledged(frame.cursor)
        if self.delivery.unacknowledged < before:
            self._tokens += 1  # what we sent may be acknowledged one by one, however fast we sent it
        return [Acknowledge(cursor), *actions] if cursor != START else actions

    # -- from the server ---------------------------------------------------------------------------------------

    def admit_stream(self, claims: Claims, device: str, platform: str) -> None:
        """A receiving HTTP stream needs no hello: its request said it all. `admitted` follows."""
        self._state = "admitting"
        self._prepare(claims, device, platform)

    def _prepare(self, claims: Claims, device: str, platform: str) -> None:
        self.claims = claims
        self.device = device
        self.acknowledging = claims.channels
        self.audience = Audience(self.conn, claims.role, platform, device, claims.channels)

    def admitting(self, admit: Admit) -> None:
        """The shell begins to admit: from now on pushes are for this connection, and wait for its position."""
        self._prepare(admit.claims, admit.device, admit.platform)

    def admitted(self, start: Position, now: float, retransmits: bool = True) -> list[Action]:
        """Registered, and the position is known: `welcome`, then the backlog, then what waited."""
        if self._state != "admitting":
            return []
        assert self.claims is not None and self.audience is not None
        self._state = "open"
        limits = self._rules
        welcome = frames.Welcome(
            conn=self.conn,
            uid=self.claims.uid,
            device=self.device,
            ts=int(now * 1000),
            heartbeat_s=limits.connection.heartbeat_s,
            ack_timeout_s=limits.delivery.ack_timeout_s,
            max_frame=limits.connection.max_frame,
            resumed=start.resumed,
        )
        burst = limits.connection.write_budget // 2
        jitter_s = limits.delivery.ack_timeout_s * JITTER * limits.chance()
        self.delivery = Delivery(limits.delivery, self.audience, start.cursor, burst, retransmits, jitter_s)
        found: list[Action] = [Send(frames.encode(welcome))]
        latest = max(self._latest or START, start.last, key=position)
        if latest != start.cursor:
            found += self.delivery.behind(latest)
        self._latest = ""
        early, self._early = self._early or [], None
        for frame in early:
            if self._state == "open":
                found += self._frame(frame, now)
        return found

    def pushed(self, entry: Entry, head: Head, frame: bytes, now: float) -> list[Action]:
        """An inbox entry from a dispatcher."""
        if self._state == "admitting":
            self._latest = max(self._latest or START, entry.cursor, key=position)
            return []
        if self.delivery is None or self._state == "closed":
            return []
        return self._within_budget(self.delivery.pushed(entry, head, frame, now))

    def signalled(self, head: Head, frame: bytes, now: float) -> list[Action]:
        """A frame that is not stored: sent if it is for this connection and it is open."""
        if self.delivery is None or self.audience is None or not self.open or not self.audience.admits(head, now):
            return []
        return [Send(frame)]

    def page(self, entries: Sequence[Entry], now: float) -> list[Action]:
        """What was asked for with `Read`."""
        return self.delivery.page(entries, now) if self.delivery is not None and self.open else []

    def reread(self, entries: Sequence[Entry], now: float) -> list[Action]:
        """What was asked for with `Reread`."""
        return self.delivery.reread(entries) if self.delivery is not None and self.open else []

    def unreadable(self, again: bool) -> None:
        """What was asked for with `Read` (or, `again`, with `Reread`) could not be read."""
        if self.delivery is not None:
            self.delivery.unreadable(again)

    def read_again(self) -> list[Action]:
        """Try again to read the inbox."""
        return self.delivery.read_again() if self.delivery is not None and self.open else []

    def check_inbox(self) -> list[Action]:
        """Look for what nobody told us about."""
        if self._state == "admitting":
            self._latest = FAR
        return self.delivery.check_inbox() if self.delivery is not None and self.open else []

    def behind(self, cursor: str) -> list[Action]:
        """The mailbox says that the inbox goes up to `cursor`."""
        if self._state == "admitting":
            self._latest = max(self._latest or START, cursor, key=position)
            return []
        if self.delivery is None or not self.open or position(cursor) <= position(self.delivery.position):
            return []
        return self.delivery.behind(cursor)

    def paused(self) -> None:
        """The client does not read: the transport's buffer is full."""
        if self.delivery is not None:
            self.delivery.paused()

    def resumed(self) -> list[Action]:
        """The client reads again."""
        return self.delivery.resumed() if self.delivery is not None and self.open else []

    def written_while_paused(self, size: int) -> list[Action]:
        """Bytes were added to a full buffer."""
        if self.delivery is None:
            return []
        self.delivery.owed += size
        return self._within_budget([])

    def _within_budget(self, actions: list[Action]) -> list[Action]:
        assert self.delivery is not None
        if self.delivery.owed > self._rules.connection.write_budget:
            return self._close(codes.SLOW_READER, "reads too slowly; what is left waits in the inbox")
        return actions

    # -- time --------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `due` has something to do at the earliest, None if never."""
        limits = self._rules.connection
        if self._state == "closed":
            return None
        if self._state == "new":
            return self._read_at + limits.hello_timeout_s
        when = self._read_at + limits.heartbeat_s * (2 if self._pinged else 1)
        if self.claims is not None:
            when = min(when, float(self.claims.exp))
        if self.delivery is not None:
            when = min(when, self.delivery.deadline() or when)
        return when

    def due(self, now: float) -> list[Action]:
        """Time has come for a ping, a retransmission or an end."""
        limits = self._rules.connection
        if self._state == "closed":
            return []
        if self._state == "new":
            late = now >= self._read_at + limits.hello_timeout_s
            return self._close(codes.TIMEOUT, "no hello in time") if late else []
        if self.claims is not None and now >= self.claims.exp:
            return self._close(codes.TOKEN, "token expired")
        found: list[Action] = []
        silent = now - self._read_at
        if silent >= 2 * limits.heartbeat_s:
            return self._close(codes.TIMEOUT, f"nothing was read for {int(silent)} s")
        if silent >= limits.heartbeat_s and not self._pinged:
            self._pinged = True
            found.append(Ping())
        if self.delivery is not None:
            found += self.delivery.due(now)
        if any(isinstance(action, Close) for action in found):
            self._state = "closed"
        return found

    def refuse(self, code: int, reason: str) -> list[Action]:
        """End the connection for a reason that the shell knows."""
        return self._close(code, reason)

    def lost(self) -> None:
        """The connection is gone."""
        self._state = "closed"

    def _close(self, code: int, reason: str) -> list[Action]:
        if self._state == "closed":
            return []
        self._state = "closed"
        return [Close(code, reason)]


def _error(error: FrameError) -> Send:
    return Send(frames.encode(frames.Error(code=error.code, reason=error.reason, ref=error.ref, field=error.field)))
