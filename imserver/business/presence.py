"""Who is online: has a live connection, that is, one on a worker whose lease is alive (design: Route)."""

from __future__ import annotations

from collections.abc import Sequence

from imserver.data.interface import Connections, Leases

MERCHANT = "merchant"


class Presence:
    """Looks agents up at the moment somebody is to be assigned; nothing is remembered."""

    def __init__(self, connections: Connections, leases: Leases) -> None:
        self._connections = connections
        self._leases = leases

    async def agents_online(self, channel: str, uids: Sequence[str]) -> set[str]:
        """Those of `uids` who are connected as agents in `channel`."""
        if not uids:
            return set()
        records = await self._connections.of_many(uids)
        if not any(records):
            return set()
        live = {lease.incarnation for lease in await self._leases.all()}
        return {
            uid
            for uid, known in zip(uids, records, strict=True)
            if any(
                record.role == MERCHANT and channel in record.channels and record.incarnation in live
                for record in known
            )
        }
