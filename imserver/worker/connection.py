"""One client connection: carries out what its session's rules ask for. The thin shell between rules and I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from imserver.data.interface import ConnectionRecord, Entry, Inboxes, Unavailable
from imserver.ops.trail import Trail
from imserver.protocol import codes, frames
from imserver.protocol.deliveries import Head
from imserver.worker.acknowledgements import Acknowledgements
from imserver.worker.actions import (
    Acknowledge,
    Action,
    Admit,
    Close,
    Ping,
    Read,
    Register,
    Request,
    Reread,
    Send,
)
from imserver.worker.admission import Admission
from imserver.worker.hub import Hub
from imserver.worker.registration import Registration
from imserver.worker.session import Rules, Session
from imserver.worker.uplink import Uplink
from imserver.worker.wheel import Wheel

log = Logger()
RETRY_S = 1.0
"""After an inbox could not be read, it is tried again so much later."""


class Face(Protocol):
    """What carries a connection: a WebSocket, or a stream over HTTP."""

    def send(self, frame: bytes) -> bool:
        """Write one frame; true if it was added to a buffer that is full already."""

    def ping(self) -> None:
        """See whether the other end lives."""

    def close(self, code: int, reason: str) -> None:
        """Say why and close."""

    def hold(self) -> None:
        """Read nothing more for now."""

    def release(self) -> None:
        """Read again."""


@dataclass(frozen=True)
class Surroundings:
    """What all connections of a worker share."""

    clock: IReactorTime
    rules: Rules
    opened: set[Connection]
    hub: Hub
    wheel: Wheel
    inboxes: Inboxes
    admission: Admission
    registration: Registration
    acknowledgements: Acknowledgements
    uplink: Uplink
    trail: Trail
    closing: Callable[[int], None]


class Connection:
    """`hub.Connected` and `wheel.Timed` for one client."""

    __slots__ = (
        "_face",
        "_left",
        "_near",
        "_requests",
        "_retry_at",
        "_working",
        "ip",
        "session",
        "since_ts",
        "wheel_tick",
    )

    def __init__(self, near: Surroundings, face: Face, conn: str, ip: str) -> None:
        now = near.clock.seconds()
        self._near = near
        self._face = face
        self._requests: deque[Request] | None = None
        self._working = False
        self._retry_at = 0.0
        self._left = False
        self.ip = ip
        self.since_ts = int(now * 1000)
        self.session = Session(near.rules, conn, now)
        self.wheel_tick = 0
        near.wheel.schedule(self, self.session.deadline())

    @property
    def _uid(self) -> str:
        claims = self.session.claims
        return claims.uid if claims is not None else ""

    # -- from the face -----------------------------------------------------------------------------------------

    def heard(self) -> None:
        """Bytes arrived."""
        self.session.heard(self._near.clock.seconds())

    def received(self, text: bytes) -> None:
        """One text frame."""
        self._perform(self.session.received(text, self._near.clock.seconds()))

    def paused(self) -> None:
        """The client does not read."""
        self.session.paused()

    def resumed(self) -> None:
        """The client reads again."""
        self._perform(self.session.resumed())

    def lost(self) -> None:
        """The connection is gone."""
        self.session.lost()
        self._near.opened.discard(self)
        self._leave()

    def _leave(self) -> None:
        """Everything that knows of it forgets it: at the latest when it is gone, at the earliest when it is closed.

        A client that does not read may take half a minute to see why it was closed; it is not online meanwhile.
        """
        if self._left:
            return
        self._left = True
        self._near.wheel.schedule(self, None)
        self._requests = None  # what is being answered is finished: it may be stored already, and not pushed yet
        claims = self.session.claims
        if claims is not None:
            self._near.hub.remove(claims.uid, self)
            self._near.acknowledgements.flush_soon(claims.uid, self.session.device, self.session.acknowledging)
            self._near.registration.remove(claims.uid, self.session.conn, claims.role)

    def admit_stream(self, admit: Admit) -> None:
        """A stream's request has said what a `hello` would, and was checked before its headers went out."""
        self.session.admit_stream(admit.claims, admit.device, admit.platform)
        self._spawn(self._admit(admit, stream=True))

    @property
    def gone(self) -> bool:
        """Whether it has ended."""
        return not self.session.live

    # -- from other servers ------------------------------------------------------------------------------------

    def push(self, entry: Entry, head: Head, frame: bytes, now: float) -> None:
        """An inbox entry for it."""
        self._perform(self.session.pushed(entry, head, frame, now))

    def signal(self, head: Head, frame: bytes, now: float) -> None:
        """A frame that is not stored."""
        self._perform(self.session.signalled(head, frame, now))

    def behind(self, cursor: str) -> None:
        """Its inbox goes up to `cursor` now."""
        self._perform(self.session.behind(cursor))

    def check_inbox(self) -> None:
        """Look for what nobody told us about."""
        self._perform(self.session.check_inbox())

    def end(self, code: int, reason: str) -> None:
        """Close it."""
        self._perform(self.session.refuse(code, reason))

    def reconnect(self, after_ms: int) -> None:
        """Ask the client to come back elsewhere."""
        if self.session.open:
            self._perform([Send(frames.encode(frames.Reconnect(after_ms=after_ms)))])

    # -- time --------------------------------------------------------------------------------------------------

    def due(self, now: float) -> float | None:
        """The wheel says that it is time."""
        if self._retry_at and now >= self._retry_at:
            self._retry_at = 0.0
            self._perform(self.session.read_again())
        self._perform(self.session.due(now))
        return self._deadline()

    def _deadline(self) -> float | None:
        when = self.session.deadline()
        return min(when, self._retry_at) if when is not None and self._retry_at else when

    # -- actions -----------------------------------------------------------------------------------------------

    def _perform(self, actions: Sequence[Action]) -> None:
        if not actions:
            return
        sent = False
        for action in actions:
            match action:
                case Send():
                    sent = True
                    self._near.trail.sent(self._uid, self.session.conn, action.frame)
                    if self._face.send(action.frame):
                        self._perform(self.session.written_while_paused(len(action.frame)))
                case Acknowledge():
                    session = self.session
                    self._near.acknowledgements.put(self._uid, session.device, session.acknowledging, action.cursor)
                    self._near.trail.acknowledged(self.session.conn, action.cursor)
                case Read() | Reread():
                    self._spawn(self._read(action))
                case Request():
                    self._request(action)
                case Ping():
                    self._face.ping()
                case Admit():
                    self._spawn(self._admit(action))
                case Register():
                    self._spawn(self._register())
                case Close():
                    self._near.closing(action.code)
                    self._face.close(action.code, action.reason)
                    self._leave()
        if sent:
            self._near.wheel.schedule(self, self._deadline())

    def _spawn(self, work: Any) -> None:
        Deferred.fromCoroutine(work).addErrback(self._broken)

    def _broken(self, failure: Any) -> None:
        if failure.check(CancelledError) is None:
            log.failure("connection {conn} broke", failure, conn=self.session.conn)
            self._perform(self.session.refuse(codes.OVERLOADED, "internal error"))

    # -- admission ---------------------------------------------------------------------------------------------

    def record(self) -> ConnectionRecord:
        """What others may know of it."""
        claims, audience = self.session.claims, self.session.audience
        assert claims is not None and audience is not None
        return ConnectionRecord(
            self.session.conn,
            self._near.registration.worker,
            self._near.registration.incarnation,
            claims.role,
            audience.platform,
            claims.channels,
            self.session.device,
            self.ip,
            self.since_ts,
        )

    async def _admit(self, admit: Admit, stream: bool = False) -> None:
        """Registered before the inbox is looked at: what is stored from now on is pushed, all before is backlog."""
        near, session = self._near, self.session
        uid = admit.claims.uid
        session.admitting(admit)
        near.hub.add(uid, self)
        try:
            refusal = None if stream else await near.admission.check(admit.claims, self.ip)
            if refusal is not None:
                self._perform(session.refuse(codes.BANNED, refusal))
                return
            await near.registration.add(uid, self.record())
            await near.acknowledgements.flush()
            start = await near.inboxes.resume(uid, admit.device, admit.since, admit.claims.channels)
        except Unavailable as error:
            log.warn("{uid} is not admitted: {why}", uid=uid, why=str(error))
            self._perform(session.refuse(codes.OVERLOADED, "the data layer is away, try again"))
            return
        if not session.admissible:  # it went away meanwhile, perhaps before it was registered
            near.hub.remove(uid, self)
            near.registration.remove(uid, session.conn, admit.claims.role)
            return
        self._perform(session.admitted(start, near.clock.seconds(), retransmits=not stream))
        near.registration.announce(uid, admit.claims.role)

    async def _register(self) -> None:
        assert self.session.claims is not None
        try:
            await self._near.registration.add(self.session.claims.uid, self.record())
        except Unavailable as error:
            log.warn("{conn} could not be registered again: {why}", conn=self.session.conn, why=str(error))
            self._perform(self.session.refuse(codes.OVERLOADED, "the data layer is away, try again"))

    # -- the inbox ---------------------------------------------------------------------------------------------

    async def _read(self, action: Read | Reread) -> None:
        assert self.session.claims is not None
        try:
            entries = await self._near.inboxes.read(self.session.claims.uid, action.after, action.limit)
        except Unavailable as error:
            log.debug("the inbox of {conn} cannot be read: {why}", conn=self.session.conn, why=str(error))
            self.session.unreadable(isinstance(action, Reread))
            self._retry_at = self._near.clock.seconds() + RETRY_S
            self._near.wheel.schedule(self, self._deadline())
            return
        now = self._near.clock.seconds()
        self._perform(
            self.session.page(entries, now) if isinstance(action, Read) else self.session.reread(entries, now)
        )

    # -- requests ----------------------------------------------------------------------------------------------

    def _request(self, request: Request) -> None:
        """In order, one at a time: two messages of one sender never overtake each other."""
        if self._requests is None:
            self._requests = deque()
        self._requests.append(request)
        if len(self._requests) >= self._near.rules.connection.requests_max:
            self._face.hold()
        if not self._working:
            self._working = True  # before it begins: what is refused at once is done before it returns
            self._spawn(self._work())

    async def _work(self) -> None:
        held = False
        try:
            while self._requests:
                request = self._requests[0]
                assert self.session.claims is not None
                answer = await self._near.uplink.answer(
                    self.session.claims, self.session.conn, self.session.device, request
                )
                if self._requests is None or not self.session.open:
                    return
                held = held or len(self._requests) >= self._near.rules.connection.requests_max
                self._requests.popleft()
                if answer is not None:
                    self._perform([Send(answer)])
                if held and len(self._requests) < self._near.rules.connection.requests_max:
                    held = False
                    self._face.release()
        finally:
            self._working = False
