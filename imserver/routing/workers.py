"""The live workers as this process last saw them."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from imserver.data.interface import ConnectionRecord, Lease, Leases
from imserver.rpc.interface import Peers

FRESH_S = 1.0
"""A view this old is looked up again before a worker is believed dead."""


class Workers:
    """A cached view of the leases, refreshed every second by its service, on announcements, and when in doubt."""

    def __init__(self, leases: Leases, peers: Peers, clock: IReactorTime, choice: random.Random | None = None) -> None:
        self._leases = leases
        self._peers = peers
        self._clock = clock
        self._random = choice or random.Random()
        self._by_incarnation: dict[str, Lease] = {}
        self._refreshed = float("-inf")
        self._refreshing: list[Deferred[None]] | None = None

    def all(self) -> list[Lease]:
        """Every live worker, by id."""
        return sorted(self._by_incarnation.values(), key=lambda lease: lease.id)

    def lease(self, incarnation: str) -> Lease | None:
        """The lease of an incarnation, None if it is not known to live."""
        return self._by_incarnation.get(incarnation)

    def pick(self) -> Lease | None:
        """The less loaded of two random workers that are not draining: spreads without a herd on the emptiest."""
        able = [lease for lease in self.all() if not lease.draining]
        if not able:
            return None
        return min(self._random.sample(able, min(2, len(able))), key=lambda lease: (lease.load, lease.connections))

    async def refresh(self) -> None:
        """Look the leases up now; several who ask meanwhile share one look-up."""
        if self._refreshing is not None:
            waiter: Deferred[None] = Deferred()
            self._refreshing.append(waiter)
            return await waiter
        self._refreshing = []
        failure: BaseException | None = None
        try:
            found = await self._leases.all()
            self._by_incarnation = {lease.incarnation: lease for lease in found}
            self._refreshed = self._clock.seconds()
            self._peers.keep({lease.rpc for lease in found})
        except BaseException as error:
            failure = error
            raise
        finally:
            waiting, self._refreshing = self._refreshing, None
            for waiter in waiting:
                if failure is None:
                    waiter.callback(None)
                else:
                    waiter.errback(failure)

    async def living(self, records: Any) -> tuple[list[ConnectionRecord], list[ConnectionRecord]]:
        """Connection records split into those of live workers and those of dead ones."""
        unknown = any(record.incarnation not in self._by_incarnation for record in records)
        if unknown and self._clock.seconds() - self._refreshed > FRESH_S / 10:
            await self.refresh()  # it may be a worker that started just now
        live = [record for record in records if record.incarnation in self._by_incarnation]
        return live, [record for record in records if record.incarnation not in self._by_incarnation]
