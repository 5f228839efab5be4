"""What others may know of this worker: its lease, its connections' records, its comings and goings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from imserver.data.interface import ConnectionRecord, Connections, Events, Lease, Leases, Unavailable
from imserver.data.leases import LeaseTaken
from imserver.ops.background import Repeated

log = Logger()
BATCH = 100
"""Records written at a time when all have to be written again."""
FORGET_MAX = 100_000
"""Records that could not be removed yet; further ones are left to the routers, which remove what leads nowhere."""
REFRESH_S = 86_400.0


class Registered(Protocol):
    """A connection that can be registered again."""

    def record(self) -> ConnectionRecord:
        """What others may know of it."""

    def check_inbox(self) -> None:
        """Look for what nobody told us about."""

    @property
    def gone(self) -> bool:
        """Whether it has ended meanwhile."""


class Registration:
    """Renews one worker's lease and keeps the records of its connections."""

    def __init__(
        self,
        clock: IReactorTime,
        every_s: float,
        leases: Leases,
        connections: Connections,
        events: Events,
        describe: Callable[[], Lease],
        registered: Callable[[], Iterable[tuple[str, Registered]]],
        evicted: Callable[[], None],
    ) -> None:
        lease = describe()
        self.worker = lease.id
        self.incarnation = lease.incarnation
        self._clock = clock
        self._leases = leases
        self._connections = connections
        self._events = events
        self._describe = describe
        self._registered = registered
        self._evicted = evicted
        self._known = False
        self._stale = False
        self._forget: dict[str, str] = {}
        self._refreshed = clock.seconds()
        self._loop = Repeated(clock, "lease", every_s, self._beat, (Unavailable,))

    async def start(self) -> None:
        """Announce this worker, and go on doing so."""
        await self._renew()
        await self._events.announce({"event": "join", "worker": self.worker})
        self._loop.start()

    async def stop(self) -> None:
        """Take the lease down, so that nobody is sent here any more. Connections may go on for a while."""
        self._loop.stop()
        try:
            await self._leases.release(self._describe())
            await self._events.announce({"event": "leave", "worker": self.worker})
        except Unavailable as error:
            log.warn("the lease could not be taken down, it expires: {why}", why=str(error))

    async def renew_now(self) -> None:
        """Say at once what has changed, such as draining."""
        try:
            await self._renew()
        except Unavailable as error:
            log.warn("the lease could not be renewed: {why}", why=str(error))

    async def add(self, uid: str, record: ConnectionRecord) -> None:
        """A connection is being admitted; `Unavailable` if nobody could find it."""
        self._forget.pop(record.conn, None)
        await self._connections.add(uid, record)

    def remove(self, uid: str, conn: str, role: str) -> None:
        """A connection is gone; if that cannot be written now, it is later."""
        if len(self._forget) < FORGET_MAX:
            self._forget[conn] = uid
        self._spawn(self._remove(uid, conn, role), "a connection's record")

    def announce(self, uid: str, role: str) -> None:
        """An agent is online: somebody may be waiting for it."""
        if role == "merchant":
            self._spawn(self._events.announce({"event": "online", "uid": uid, "role": role}), "an agent's coming")

    async def _remove(self, uid: str, conn: str, role: str) -> None:
        await self._connections.remove(uid, conn)
        self._forget.pop(conn, None)
        if role == "merchant":
            await self._events.announce({"event": "offline", "uid": uid, "role": role})

    def _spawn(self, work: Any, what: str) -> None:
        def failed(failure: Any) -> None:
            if failure.check(Unavailable):
                log.debug("{what} could not be written: {why}", what=what, why=failure.getErrorMessage())
            else:
                log.failure("{what} could not be written", failure, what=what)

        Deferred.fromCoroutine(work).addErrback(failed)

    async def _beat(self) -> None:
        try:
            await self._renew()
        except LeaseTaken as error:
            log.critical("{why}; this one leaves", why=str(error))
            self._evicted()

    async def _renew(self) -> None:
        kept = await self._leases.renew(self._describe())
        if not kept and self._known:
            log.warn("the lease of {worker} was lost: every connection is registered again", worker=self.worker)
            self._stale = True
        self._known = True
        if self._stale or self._clock.seconds() - self._refreshed > REFRESH_S:
            await self._register_all()
        for conn, uid in list(self._forget.items())[:BATCH]:
            await self._connections.remove(uid, conn)
            self._forget.pop(conn, None)

    async def _register_all(self) -> None:
        """Others may have thought this worker dead and dropped its records, and messages passed it by."""
        everyone = list(self._registered())
        for start in range(0, len(everyone), BATCH):
            batch = [(uid, one) for uid, one in everyone[start : start + BATCH] if not one.gone]
            results: list[Any] = await defer.DeferredList(
                [Deferred.fromCoroutine(self._connections.add(uid, one.record())) for uid, one in batch],
                consumeErrors=True,
            )
            for succeeded, value in results:
                if not succeeded:
                    value.raiseException()  # the next beat tries again
            for _, one in batch:
                one.check_inbox()
        self._stale = False
        self._refreshed = self._clock.seconds()
