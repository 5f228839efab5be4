"""The journals: what was accepted and is not in the database yet, a Redis stream for each partition.

All business servers read them as one consumer group, so each entry is given to one of them.  It stays in its journal
until it is dropped, and an entry whose reader is silent for too long is given to another.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from imserver import config
from imserver.business.conversations import PARTITIONS, prefix
from imserver.data.redis import Redis, pairs
from imserver.ops.background import together

log = Logger()
GROUP = "archive"
REFUSED = "im:archive:refused"
"""The stream of entries that the database refuses for good."""

REFUSED_MAX = 1000
"""Entries kept of it; with the largest bodies they are 64 MB."""

REFUSED_MARK = b"refused:"
"""Begins what a conversation's tail holds for a message that is there: this, and its id in that stream."""


class Entry(NamedTuple):
    """One entry: its partition, its id there, and its fields."""

    partition: int
    id: str
    fields: dict[bytes, bytes]

    @property
    def queue(self) -> str:
        """The conversation it belongs to, or `to.UID`."""
        return self.fields.get(b"q", b"").decode()


class Journals:
    """The journals of all partitions, as one member of the consumer group sees them."""

    def __init__(self, redis: Redis, clock: IReactorTime, settings: config.Business) -> None:
        self.name = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(3)}"
        self._redis = redis
        self._clock = clock
        self._settings = settings
        self._claimed = 0.0

    async def join(self) -> None:
        """See to it that the group exists, from the beginning of each journal on."""
        await together(self._redis.script("journal_group", [_key(number)], [GROUP]) for number in range(PARTITIONS))

    async def read(self) -> list[Entry]:
        """About `archive_batch` new entries, and never many more, for their bodies have to fit into memory.

        Waits a while for the first.  Each journal gets a fair share, then those that have more get what is left.
        """
        batch = self._settings.archive_batch
        numbers: Sequence[int] = range(PARTITIONS)
        share = max(1, batch // PARTITIONS)
        found: dict[int, list[Entry]] = await self._unread(numbers, share, wait_s=self._settings.archive_wait_s)
        entries = [entry for some in found.values() for entry in some]
        while len(entries) < batch and (numbers := [n for n, some in found.items() if len(some) == share]):
            share = max(1, (batch - len(entries)) // len(numbers))
            found = await self._unread(numbers, share)
            entries += [entry for some in found.values() for entry in some]
        return entries

    async def _unread(self, numbers: Sequence[int], count: int, wait_s: float = 0.0) -> dict[int, list[Entry]]:
        """At most `count` new entries of each of these journals."""
        keys = [_key(number) for number in numbers]
        start = ("XREADGROUP", "GROUP", GROUP, self.name, "COUNT", count)
        streams = ("STREAMS", *keys, *[">"] * len(keys))
        if wait_s:
            patience = wait_s + self._redis.settings.command_timeout_s
            answer = await self._redis.blocking(*start, "BLOCK", int(wait_s * 1000), *streams, timeout_s=patience)
        else:
            answer = await self._redis.command(*start, *streams)
        by_key = {key.encode(): number for key, number in zip(keys, numbers, strict=True)}
        return {by_key[key]: _entries(by_key[key], entries) for key, entries in answer or []}

    async def claim(self) -> list[Entry]:
        """Every now and then: what a member read that has been silent since, ourselves included; a batch at a time."""
        now, batch = self._clock.seconds(), self._settings.archive_batch
        if now - self._claimed < self._settings.claim_after_s:
            return []
        idle_ms = int(self._settings.claim_after_s * 1000)
        found: list[Entry] = []
        for number in range(PARTITIONS):
            answer = await self._redis.command(
                *("XAUTOCLAIM", _key(number), GROUP, self.name, idle_ms, "0-0", "COUNT", batch - len(found))
            )
            found += _entries(number, answer[1])
            if len(found) >= batch:
                break
        else:
            self._claimed = now
        if found:
            log.info("{count} journal entries are taken over", count=len(found))
        return found

    async def drop(self, entries: Iterable[Entry]) -> None:
        """The database has these: they may go."""
        done: dict[int, list[str]] = {}
        for entry in entries:
            done.setdefault(entry.partition, []).extend((entry.id, entry.queue))
        await together(
            self._redis.script("conversation_archived", [prefix(number)], [GROUP, *those])
            for number, those in done.items()
        )

    async def refuse(self, entry: Entry, reason: str) -> None:
        """The database will never take this one: put it aside, where somebody can look at it and history reads it."""
        fields: list[bytes] = [value for pair in entry.fields.items() for value in pair]
        kept: bytes = await self._redis.command(
            *("XADD", REFUSED, "MAXLEN", REFUSED_MAX, "*", "reason", reason, "journal", _key(entry.partition)),
            *("entry", entry.id),
            *fields,
        )
        seq = entry.fields.get(b"seq", b"0") if entry.fields.get(b"kind") == b"message" else b"0"
        await self._redis.script(
            "conversation_refused", [prefix(entry.partition)], [GROUP, entry.id, entry.queue, seq, REFUSED_MARK + kept]
        )
        log.error(
            "the database refuses an entry of {journal} for good, it is {kept} in {refused} now: {reason}",
            journal=_key(entry.partition),
            kept=kept.decode(),
            refused=REFUSED,
            reason=reason,
        )

    async def length(self) -> int:
        """Entries in all journals."""
        return sum(await together(self._redis.command("XLEN", _key(number)) for number in range(PARTITIONS)))

    async def age(self) -> float:
        """For how many seconds the oldest entry has been waiting."""
        firsts = await together(
            self._redis.command("XRANGE", _key(number), "-", "+", "COUNT", 1) for number in range(PARTITIONS)
        )
        since = [int(first[0][0].partition(b"-")[0]) / 1000 for first in firsts if first]
        return max(0.0, self._clock.seconds() - min(since)) if since else 0.0

    async def refused(self) -> int:
        """Entries that were refused and that nobody has removed."""
        count: int = await self._redis.command("XLEN", REFUSED)
        return count


def _key(number: int) -> str:
    return f"{prefix(number)}:journal"


def _entries(number: int, entries: Sequence[Any]) -> list[Entry]:
    return [
        Entry(number, entry.decode(), pairs(fields))
        for entry, fields in entries
        if fields  # an entry that was deleted meanwhile has none
    ]
