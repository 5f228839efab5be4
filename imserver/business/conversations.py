"""Conversations in Redis: one partition each, every change one script (design: Accept).

All keys of a conversation live in partition `crc16(id) % 64`, `im:{c:P}:...`, which is one cluster slot.  What the
scripts do is in `data/lua/conversation_*.lua`.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import Raw, field

from imserver.data import database
from imserver.data.database import Database
from imserver.data.redis import Redis

PARTITIONS = 64
UNANSWERED_MAX = 1000
"""Messages a customer wrote and nobody answered that a new agent gets into his inbox; the rest is in the history."""

UNANSWERED_TTL_S = 7 * 86400
SENDERS_MAX = 255
UNCOUNTED = ("system", "recall", "recalled")
"""Types that `unread` leaves out (contract: What holds for every connection, 4)."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Which conversation it is, and how far it has come."""

    id: str
    channel: str
    shop: str
    customer: str
    seq: int = 0
    ts: int = 0


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation as a list shows it to one user."""

    place: Place
    last: Raw | None
    unread: int


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A message to be accepted: all but what the script decides (`to`, `ts`, `seq`)."""

    id: str
    channel: str
    sender: str
    type: str
    body: bytes
    cid: str = ""
    origin: str = ""
    side: str = "backend"
    """Who writes: `customer`, `shop` (an agent: it answers the customer) or `backend`."""
    recalls: int = 0
    """The seq that is taken back, if it is a recall."""
    also_to: tuple[str, ...] = ()
    own_devices: bool = True


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """A message that is stored. `head` is of the outbox whose lease we got with it, or empty."""

    seq: int
    ts: int
    duplicate: bool = False
    head: bytes = b""


class Refused(Exception):
    """What a recall takes back is not the sender's own, or cannot be taken back."""


class Lost(Exception):
    """Redis does not know this conversation: bring it back first."""


class Envelope(msgspec.Struct, frozen=True):
    """What waits in an outbox: a message and the inboxes it is for. `sender` is the one who gets his `cid` with it."""

    to: tuple[str, ...]
    sender: str
    cid: str
    origin: str
    message: Raw


class _Open(msgspec.Struct, frozen=True):
    id: str
    sender: str = field(name="from")
    channel: str
    type: str
    body: Raw


def partition(queue: str) -> int:
    """The partition of a conversation or of another outbox."""
    return binascii.crc_hqx(queue.encode(), 0) % PARTITIONS


def prefix(number: int) -> str:
    """What the keys of a partition begin with; the braces make them one cluster slot."""
    return f"im:{{c:{number}}}"


class Conversations:
    """The conversations of all channels."""

    def __init__(self, redis: Redis, archive: Database, *, cid_ttl_s: int, lease_s: float) -> None:
        self._redis = redis
        self._database = archive
        self._cid_ttl_s = cid_ttl_s
        self._lease_ms = int(lease_s * 1000)

    async def find(self, id: str) -> Place | None:
        """The conversation, from Redis or, where that has lost it, from the database; None if there is none."""
        key = f"{prefix(partition(id))}:conv:{id}"
        found = await self._redis.command("HMGET", key, "channel", "shop", "customer", "seq", "ts")
        if found[0] is not None:
            channel, shop, customer, seq, ts = (value.decode() for value in found)
            return Place(id=id, channel=channel, shop=shop, customer=customer, seq=int(seq), ts=int(ts))
        return await self._bring_back(id)

    async def create(self, id: str, channel: str, shop: str, customer: str, now: int) -> Place:
        """A new conversation, or the one that another server made meanwhile."""
        await self._create(id, [channel, shop, customer, now, 0, 0, "", b"", 1])
        return Place(id=id, channel=channel, shop=shop, customer=customer)

    async def repeat(self, queue: str, message_id: str) -> Accepted | None:
        """What a message with this id was accepted as, if it was."""
        found = await self._redis.command("GET", f"{prefix(partition(queue))}:dup:{message_id}")
        if found is None:
            return None
        seq, ts = found.split()
        return Accepted(seq=int(seq), ts=int(ts), duplicate=True)

    async def claim(self, message_id: str, queue: str) -> str:
        """Note where a message with a cid goes; the place that an earlier one with the same cid went to, or `queue`."""
        key = f"im:{{m:{message_id}}}"
        earlier = await self._redis.command("SET", key, queue, "NX", "GET", "EX", self._cid_ttl_s)
        return queue if earlier is None else earlier.decode()

    async def claimed(self, message_id: str) -> str | None:
        """Where a message with a cid went."""
        found = await self._redis.command("GET", f"im:{{m:{message_id}}}")
        return None if found is None else found.decode()

    async def reclaim(self, message_id: str, queue: str) -> None:
        """The earlier one was never accepted: it goes here now."""
        await self._redis.command("SET", f"im:{{m:{message_id}}}", queue, "EX", self._cid_ttl_s)

    async def accept(
        self, queue: str, draft: Draft, *, now: int, token: str, agent: str = "", epoch: int = 0, to: str = ""
    ) -> Accepted:
        """Store a message for good, in a conversation or (`to`) outside of any.

        `agent` and `epoch` say who has the conversation as the shop knows it.  `token` is for the lease on the outbox.
        Raises `Refused` and `Lost`.
        """
        opened = _Open(draft.id, draft.sender, draft.channel, draft.type, Raw(draft.body))
        answer = await self._redis.script(
            "conversation_accept",
            [prefix(partition(queue))],
            [
                *(queue, draft.id, msgspec.json.encode(opened)[:-1], draft.sender, draft.cid, draft.origin, now),
                *(self._cid_ttl_s, draft.side, int(draft.type not in UNCOUNTED), agent, epoch, draft.recalls),
                *(token, self._lease_ms, UNANSWERED_MAX, UNANSWERED_TTL_S, " ".join(draft.also_to)),
                *(int(draft.own_devices), to),
            ],
        )
        if answer[0] == b"unknown":
            raise Lost(queue)
        if answer[0] == b"refused":
            raise Refused(f"message {draft.recalls} is not yours to take back")
        if answer[0] == b"duplicate":
            return Accepted(seq=answer[1], ts=answer[2], duplicate=True)
        return Accepted(seq=answer[1], ts=answer[2], head=answer[4])

    async def hand_over(self, id: str, agent: str, epoch: int, now: int) -> int:
        """The shop has given the conversation to `agent` (empty: to nobody); the time of its last message."""
        ts: int = await self._redis.script("conversation_handover", [prefix(partition(id))], [id, agent, epoch, now])
        if ts < 0 and await self._bring_back(id) is not None:
            ts = await self._redis.script("conversation_handover", [prefix(partition(id))], [id, agent, epoch, now])
        return ts

    async def take(self, queue: str, token: str) -> bytes:
        """The lease on an outbox and its head; empty if it has none or another server has the lease."""
        head: bytes = await self._redis.script(
            "conversation_take", [prefix(partition(queue))], [queue, token, self._lease_ms]
        )
        return head

    async def sent(self, queue: str, token: str, now: int, *, delivered: bool) -> bytes:
        """The head is delivered: the next, if any.  If it is not: the lease is given back for a later try."""
        head: bytes = await self._redis.script(
            "conversation_sent", [prefix(partition(queue))], [queue, token, self._lease_ms, now, int(delivered)]
        )
        return head

    async def pending(self, number: int, until: int, limit: int) -> list[str]:
        """Outboxes of a partition whose oldest message has waited since `until` (ms) or longer."""
        found = await self._redis.command(
            "ZRANGEBYSCORE", f"{prefix(number)}:pending", "-inf", until, "LIMIT", 0, limit
        )
        return [name.decode() for name in found]

    async def read(self, id: str, uid: str, seq: int) -> tuple[bool, int, str]:
        """Move what `uid` has read forward: whether it moved, where it is now, and the agent."""
        moved, now_read, agent = await self._redis.script("conversation_read", [prefix(partition(id))], [id, uid, seq])
        return bool(moved), now_read, agent.decode()

    async def agent_of(self, id: str) -> str:
        """The agent it was last given to, or empty."""
        found = await self._redis.command("HGET", f"{prefix(partition(id))}:conv:{id}", "agent")
        return "" if found is None else found.decode()

    async def summary(self, id: str, uid: str) -> Summary | None:
        """As a list shows it to `uid`, with its exact unread count."""
        found = await self._redis.script("conversation_summary", [prefix(partition(id))], [id, uid])
        if not found:
            if await self._bring_back(id) is None:
                return None
            found = await self._redis.script("conversation_summary", [prefix(partition(id))], [id, uid])
        channel, shop, customer, ts, last, unread = found
        place = Place(
            id=id, channel=channel.decode(), shop=shop.decode(), customer=customer.decode(), ts=int(ts.decode())
        )
        return Summary(place=place, last=Raw(last) if last else None, unread=unread)

    async def _create(self, id: str, args: Sequence[Any]) -> None:
        await self._redis.script("conversation_create", [prefix(partition(id))], [id, *args])

    async def _bring_back(self, id: str) -> Place | None:
        """From the database into Redis; a partition that Redis has known from the beginning is not asked for."""
        whole = f"{prefix(partition(id))}:whole"
        if await self._redis.command("EXISTS", whole):
            return None
        kept = await self._database.run(lambda connection: _stored(connection, id))
        if kept is None:
            if await self._database.run(_empty):
                # all partitions at once: later the database is not empty, and may be away when another one asks
                for number in range(PARTITIONS):
                    await self._redis.command("SET", f"{prefix(number)}:whole", 1)
            return None
        place, created, senders, last, more = kept
        await self._create(
            id, [place.channel, place.shop, place.customer, created, place.seq, place.ts, last, senders, 0, *more]
        )
        return place


def _empty(connection: sa.Connection) -> bool:
    return connection.execute(sa.select(database.conversations.c.id).limit(1)).first() is None


def _stored(connection: sa.Connection, id: str) -> tuple[Place, int, bytes, bytes, list[Any]] | None:
    """A conversation as the database has it: its place, when it began, who sent what, the last message, reads."""
    known, table = database.conversations, database.messages
    row = connection.execute(sa.select(known).where(known.c.id == id)).first()
    if row is None:
        return None
    people: dict[str, int] = {}
    senders = bytearray()
    kinds = connection.execute(
        sa.select(table.c.seq, table.c.sender, table.c.type).where(table.c.conversation == id).order_by(table.c.seq)
    )
    for seq, sender, kind in kinds:
        senders.extend(bytes(max(0, seq - 1 - len(senders))))
        counts = kind not in UNCOUNTED
        senders.append(min(people.setdefault(sender, len(people) + 1), SENDERS_MAX) if counts else 0)
    newest = connection.execute(
        sa.select(table).where(table.c.conversation == id).order_by(table.c.seq.desc()).limit(1)
    ).first()
    more: list[Any] = ["people", len(people)]
    for sender, index in people.items():
        more += [f"who:{sender}", min(index, SENDERS_MAX)]
    for uid, seq in connection.execute(
        sa.select(database.reads.c.uid, database.reads.c.seq).where(database.reads.c.conversation == id)
    ):
        more += [f"read:{uid}", seq]
    place = Place(
        id=id,
        channel=row.channel,
        shop=row.shop,
        customer=row.customer,
        seq=newest.seq if newest else 0,
        ts=newest.ts if newest else 0,
    )
    last = msgspec.json.encode(stored_message(newest)) if newest else b""
    return place, row.created, bytes(senders), last, more


class StoredMessage(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A message as history shows it."""

    id: str
    sender: str = field(name="from")
    to: str
    channel: str
    type: str
    body: Raw
    ts: int
    conversation: str | None = None
    seq: int = 0


def stored_message(row: Any) -> StoredMessage:
    """A row of the archive as a message."""
    return StoredMessage(
        id=row.id,
        sender=row.sender,
        to=row.receiver,
        channel=row.channel,
        type=row.type,
        body=Raw(row.body.encode()),
        ts=row.ts,
        conversation=row.conversation,
        seq=row.seq or 0,
    )
