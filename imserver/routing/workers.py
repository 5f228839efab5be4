"""The live workers as this process last saw them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred

from imserver.data.interface import ConnectionRecord, Lease, Leases
from imserver.rpc.interface import Peers

FRESH_S = 1.0
"""The view is looked up again so often, and before a worker is believed dead."""


class Workers:
    """A cached view of the leases, refreshed every second by its service, on announcements, and when in doubt."""

    def __init__(self, leases: Leases, peers: Peers, choice: random.Random | None = None) -> None:
        self._leases = leases
        self._peers = peers
        self._random = choice or random.Random()
        self._by_incarnation: dict[str, Lease] = {}
        self._refreshing = False
        self._waiting: list[Deferred[None]] = []

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
        """Look the leases up now; who asks while that is under way shares the next look, never one begun before."""
        if self._refreshing:
            waiter: Deferred[None] = Deferred()
            self._waiting.append(waiter)
            return await waiter
        self._refreshing = True
        try:
            found = await self._leases.all()
            self._by_incarnation = {lease.incarnation: lease for lease in found}
            self._peers.keep({lease.rpc for lease in found})
        finally:
            self._refreshing = False
            waiting, self._waiting = self._waiting, []
            if waiting:
                Deferred.fromCoroutine(self.refresh()).addBoth(_tell, waiting)

    async def living(
        self, records: Sequence[ConnectionRecord]
    ) -> tuple[list[ConnectionRecord], list[ConnectionRecord]]:
        """Connection records split into those of live workers and those of dead ones.

        A worker's lease is older than its records: only who is missing from a look at the leases that is younger than
        the records is dead.
        """
        if any(record.incarnation not in self._by_incarnation for record in records):
            await self.refresh()
        live = [record for record in records if record.incarnation in self._by_incarnation]
        return live, [record for record in records if record.incarnation not in self._by_incarnation]


def _tell(result: Any, waiting: list[Deferred[None]]) -> None:
    for waiter in waiting:
        waiter.callback(result)  # a failure becomes an errback
