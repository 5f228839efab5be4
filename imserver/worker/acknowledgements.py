"""Acknowledged cursors on their way to Redis: gathered per device, written in batches."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from imserver.data.interface import Acknowledged, Inboxes, Unavailable
from imserver.ops.background import Repeated
from imserver.protocol.syntax import position

log = Logger()
BATCH = 2000
WAITING_MAX = 200_000
"""Devices whose cursor waits while Redis is away; further ones are dropped: they get some messages twice."""


class Acknowledgements:
    """What was acknowledged and is not written yet."""

    def __init__(self, clock: IReactorTime, inboxes: Inboxes, every_s: float) -> None:
        self._inboxes = inboxes
        self._waiting: dict[tuple[str, str, tuple[str, ...]], str] = {}
        self._loop = Repeated(clock, "acknowledgements", every_s, self.flush, (Unavailable,))

    def start(self) -> None:
        """Begin to write."""
        self._loop.start()

    async def stop(self) -> None:
        """Write what is left."""
        self._loop.stop()
        try:
            await self.flush()
        except Unavailable as error:
            log.warn("{count} acknowledgements were not written: {why}", count=len(self._waiting), why=str(error))

    def put(self, uid: str, device: str, channels: tuple[str, ...], cursor: str) -> None:
        """This device has everything of these channels up to `cursor`."""
        key = (uid, device, channels)
        known = self._waiting.get(key)
        if known is None and len(self._waiting) >= WAITING_MAX:
            log.warn("an acknowledgement of {uid} is dropped, {count} are waiting", uid=uid, count=WAITING_MAX)
        elif known is None or position(cursor) > position(known):
            self._waiting[key] = cursor

    def flush_soon(self, uid: str, device: str, channels: tuple[str, ...]) -> None:
        """The device has gone and may come back at another worker any moment."""
        if (uid, device, channels) in self._waiting:
            self._loop.run_now()

    async def flush(self) -> None:
        """Write everything that waits now; `Unavailable` keeps it for the next time."""
        while self._waiting:
            batch = dict(list(self._waiting.items())[:BATCH])
            for key in batch:
                del self._waiting[key]
            try:
                await self._inboxes.acknowledge([Acknowledged(*key, cursor) for key, cursor in batch.items()])
            except Unavailable:
                for key, cursor in batch.items():
                    self.put(*key, cursor)
                raise
