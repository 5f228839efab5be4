"""Who is online: is connected to a worker that says so itself, at the moment it is asked.

The records in Redis say which workers to ask.  A worker that just died leaves its records, and its lease for some
seconds; it does not answer any more, so its agents are not online.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.logger import Logger

from imserver.data.interface import Connections, Lease
from imserver.ops.background import together
from imserver.routing.workers import Workers
from imserver.rpc.interface import Peers, RpcError

log = Logger()
MERCHANT = "merchant"
ANSWER_S = 1.0
"""A worker that does not say within this time who is there holds nobody: they wait, and are served when it does."""

UIDS_MAX = 1000
"""Uids in one question to a worker, well below the limits of Perspective Broker."""


class Presence:
    """Looks agents up at the moment somebody is to be assigned; nothing is remembered."""

    def __init__(self, connections: Connections, workers: Workers, peers: Peers) -> None:
        self._connections = connections
        self._workers = workers
        self._peers = peers

    async def agents_online(self, channel: str, uids: Sequence[str]) -> set[str]:
        """Those of `uids` who are connected as agents in `channel`."""
        asked: dict[str, set[str]] = {}
        found = await self._connections.of_many(uids) if uids else []
        live, _ = await self._workers.living([record for records in found for record in records])
        incarnations = {record.incarnation for record in live}
        for uid, records in zip(uids, found, strict=True):
            for record in records:
                if record.role == MERCHANT and channel in record.channels and record.incarnation in incarnations:
                    asked.setdefault(record.incarnation, set()).add(uid)
        answers = await together(
            self._present(self._workers.lease(incarnation), sorted(there), channel)
            for incarnation, there in asked.items()
        )
        return set().union(*answers)

    async def _present(self, lease: Lease | None, uids: list[str], channel: str) -> set[str]:
        present: set[str] = set()
        if lease is None:
            return present
        try:
            for start in range(0, len(uids), UIDS_MAX):
                some = uids[start : start + UIDS_MAX]
                present.update(await self._peers.peer(lease.rpc).present(some, MERCHANT, channel))
        except RpcError as error:
            log.info("{worker} does not say who is there: {why}", worker=lease.id, why=str(error))
        return present
