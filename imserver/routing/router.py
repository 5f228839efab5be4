"""Brings frames to every connection of their receivers (design: How a message travels, 3 to 5).

A message is stored first.  Then each worker that holds a connection of the receiver is called; if that fails, the call
is tried once more on a fresh connection; then the worker's mailbox is told; and in any case the message is in the
inbox, from which the worker reads when it sees a gap and the client when it resumes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import msgspec
from twisted.logger import Logger

from imserver.data.interface import ConnectionRecord, Connections, Inboxes, Lease, Unavailable, Webhooks
from imserver.ops.background import together
from imserver.ops.trail import Event, Trail
from imserver.protocol.deliveries import Delivery, encode_head
from imserver.protocol.webhooks import offline_event
from imserver.routing.workers import Workers
from imserver.rpc.interface import Peer, Peers, Pushed, RpcError

log = Logger()
Answer = TypeVar("Answer")


UNTOLD_MAX = 10_000
"""Hints that wait while neither a worker nor its mailbox can be reached; other users see it with their next message."""


class Mailboxes(Protocol):
    """Where a worker that cannot be called finds which uids have something new."""

    async def put(self, incarnation: str, uid: str, cursor: str) -> None:
        """Tell it."""


class _Sent(msgspec.Struct, frozen=True):
    """What a frame says of its sender and its time."""

    sender: str = msgspec.field(name="from", default="")
    ts: int = 0


class Outcome(msgspec.Struct, frozen=True):
    """What became of one delivery. `error` says that it was not stored and has to be tried again."""

    to: str
    cursor: str | None = None
    duplicate: bool = False
    connections: int = 0
    error: str | None = None


class Router:
    """Used by the dispatcher, and by a worker for its `direct` uplink."""

    def __init__(
        self,
        inboxes: Inboxes,
        connections: Connections,
        workers: Workers,
        peers: Peers,
        mailboxes: Mailboxes,
        count: Callable[[str], None] = lambda strategy: None,
        trail: Trail | None = None,
        webhooks: Webhooks | None = None,
    ) -> None:
        self._inboxes = inboxes
        self._connections = connections
        self._peers = peers
        self._mailboxes = mailboxes
        self._count = count
        self._trail = trail
        self._webhooks = webhooks
        self._untold: dict[tuple[str, str], str] = {}
        self.workers = workers

    async def deliver(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        """Store and push; one outcome each, in order. What goes to one uid keeps its order."""
        by_uid: dict[str, list[int]] = {}
        for index, delivery in enumerate(deliveries):
            by_uid.setdefault(delivery.to, []).append(index)
        outcomes: list[Outcome] = [Outcome(delivery.to) for delivery in deliveries]

        async def one_uid(indices: list[int]) -> None:
            for index in indices:
                outcomes[index] = await self._deliver(deliveries[index])

        await together([one_uid(indices) for indices in by_uid.values()])
        return outcomes

    async def _deliver(self, delivery: Delivery) -> Outcome:
        try:
            if delivery.op == "message" and delivery.store:
                stored = await self._inboxes.append(delivery)
                cursor, prev, records, duplicate = stored.cursor, stored.prev, stored.connections, stored.duplicate
            else:
                records, cursor, prev, duplicate = await self._connections.of(delivery.to), "", "", False
        except Unavailable as error:
            return Outcome(delivery.to, error=str(error))
        if duplicate:  # what is stored counts, not what this repeat says: with no predecessor it is read from there
            prev = ""
        pushed = Pushed(
            delivery.to, delivery.op, cursor, prev, encode_head(delivery.head), bytes(delivery.frame).lstrip()[1:]
        )
        live = await self._live(delivery.to, records) if records else []
        reached = await self._push(pushed, live)
        if self._trail is not None and delivery.op == "message":
            self._trail.stored(delivery.id, delivery.channel, delivery.to, cursor, duplicate, reached)
        if cursor and not any(delivery.channel in record.channels for record in live):
            try:
                await self._tell_offline(delivery)
            except Unavailable as error:
                if delivery.once:  # may be tried again without harm
                    return Outcome(delivery.to, error=str(error))
                log.warn("the back office is not told that {uid} is offline: {why}", uid=delivery.to, why=str(error))
        return Outcome(delivery.to, cursor or None, duplicate, reached)

    async def _tell_offline(self, delivery: Delivery) -> None:
        """Nobody is there for a message: the back office may find another way to the receiver."""
        if self._webhooks is None or not self._webhooks.wants(delivery.channel, "offline"):
            return
        sent = msgspec.json.decode(delivery.frame, type=_Sent)
        if sent.sender != delivery.to:  # a sender's own copy is missed by nobody
            event = offline_event(delivery.channel, delivery.id, sent.ts, delivery.frame, delivery.to)
            await self._webhooks.record(delivery.channel, [event])

    async def _push(self, pushed: Pushed, live: Sequence[ConnectionRecord]) -> int:
        if not live:
            self._count("inbox" if pushed.cursor else "nobody")
        return sum(
            await together([self._push_to(incarnation, pushed) for incarnation in {r.incarnation for r in live}])
        )

    async def _push_to(self, incarnation: str, pushed: Pushed) -> int:
        lease = self.workers.lease(incarnation)
        if lease is None:
            return 0
        for strategy in ("rpc", "rpc_retry"):
            try:
                reached = await self._peers.peer(lease.rpc).deliver(pushed)
            except RpcError as error:
                log.debug("{strategy} to {worker}: {why}", strategy=strategy, worker=lease.id, why=str(error))
            else:
                self._count(strategy)
                return reached
        if pushed.cursor:
            try:
                await self._mailboxes.put(incarnation, pushed.uid, pushed.cursor)
                self._count("mailbox")
            except Unavailable as error:
                self._count("inbox")
                self._tell_later(incarnation, pushed)
                log.warn("{worker} could not be told: {why}", worker=lease.id, why=str(error))
        else:
            self._count("lost_signal")
        return 0

    def _tell_later(self, incarnation: str, pushed: Pushed) -> None:
        """Nobody could be told of an entry that a live connection may be waiting for: `look` tries again."""
        if len(self._untold) < UNTOLD_MAX:
            self._untold[incarnation, pushed.uid] = pushed.cursor

    async def look(self) -> None:
        """Once a second: see which workers live, and tell those what they could not be told before."""
        await self.workers.refresh()
        for (incarnation, uid), cursor in list(self._untold.items()):
            if self.workers.lease(incarnation) is not None:
                await self._mailboxes.put(incarnation, uid, cursor)
                self._count("mailbox")
            if self._untold.get((incarnation, uid)) == cursor:
                del self._untold[incarnation, uid]

    async def _live(self, uid: str, records: Sequence[ConnectionRecord]) -> list[ConnectionRecord]:
        """The connections that live, and off with the records of the others."""
        try:
            live, dead = await self.workers.living(records)
            for record in dead:  # a conn id is unique, so this cannot hit a connection that came later
                await self._connections.remove(uid, record.conn)
        except Unavailable as error:  # stored already: who cannot be told finds it in the inbox
            log.warn("workers cannot be looked up: {why}", why=str(error))
            return [record for record in records if self.workers.lease(record.incarnation) is not None]
        return live

    async def locate(self, uids: Sequence[str]) -> list[tuple[ConnectionRecord, ...]]:
        """For each uid its connections on live workers."""
        found = await self._connections.of_many(uids)
        live, _ = await self.workers.living([record for records in found for record in records])
        conns = {record.conn for record in live}
        return [tuple(record for record in records if record.conn in conns) for records in found]

    async def broadcast(self, delivery: Delivery, role: str | None, platform: str | None) -> tuple[int, int]:
        """A frame that is not stored to every connection of a channel; how many workers and connections it reached."""
        head, tail = encode_head(delivery.head), bytes(delivery.frame).lstrip()[1:]
        counts = await self._ask_all(lambda peer: peer.broadcast(role, platform, head, tail))
        return len(counts), sum(counts)

    async def trail(self, id: str, channel: str) -> list[tuple[str, Event]]:
        """What every server that can be asked did with a message lately: (its name, what)."""
        found = [("dispatcher", event) for event in (self._trail.of(id, channel) if self._trail is not None else ())]
        leases = self.workers.all()
        for lease, events in zip(
            leases, await self._answers(lambda peer: peer.trail(id, channel), leases), strict=True
        ):
            found += [(lease.id, event) for event in events or ()]
        return sorted(found, key=lambda named: named[1].ts)

    async def close(self, uid: str, conn: str | None, channels: Sequence[str], code: int, reason: str) -> int:
        """Close a uid's connections (or one) that have one of these channels; how many."""
        (records,) = await self.locate([uid])
        wanted = {record.incarnation for record in records if conn in (None, record.conn)}
        leases = [lease for lease in self.workers.all() if lease.incarnation in wanted]
        return sum(await self._ask_all(lambda peer: peer.close(uid, conn, channels, code, reason), leases))

    async def sever(self, kind: str, value: str, channels: Sequence[str], code: int, reason: str) -> int:
        """Close every connection of a uid or an address that has one of these channels, on all workers."""
        await self.workers.refresh()
        return sum(await self._ask_all(lambda peer: peer.sever(kind, value, channels, code, reason)))

    async def _ask_all(self, call: Callable[[Peer], Awaitable[int]], leases: list[Lease] | None = None) -> list[int]:
        answers = await self._answers(call, self.workers.all() if leases is None else leases)
        return [answer for answer in answers if answer is not None]

    async def _answers(self, call: Callable[[Peer], Awaitable[Answer]], leases: Sequence[Lease]) -> list[Answer | None]:
        """What each worker answers, None for one that does not."""

        async def ask(lease: Lease) -> Answer | None:
            for _ in range(2):
                try:
                    return await call(self._peers.peer(lease.rpc))
                except RpcError as error:
                    log.info("{worker}: {why}", worker=lease.id, why=str(error))
            return None

        return await together([ask(lease) for lease in leases])
