"""The word lists, shared by all business servers through Redis, and the messages that were flagged.

A policy's list is a hash, ``im:{words}:list:POLICY``: normalised word → JSON of its `Entry`.  So two
spellings of one word are one entry; it shows the spelling that was put last.  ``im:{words}:versions`` holds a
random token for each policy, written by the same script that changes the list: whoever finds another token
than the one it knows reads the list again.  (A counter could go back in a crash, and then reach the same
number with another list.)

`Words.refresh` is to be called every second, which keeps the contract's "in force on every server within
2 s"; on the server that took the call a change is in force at once.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from msgspec import field
from twisted.internet.defer import DeferredLock
from twisted.internet.interfaces import IReactorTime

from imserver.business.moderation import ACTIONS, Action, WordFilter
from imserver.business.normalisation import normalise
from imserver.data.redis import pairs
from imserver.protocol.syntax import position

WORDS_MAX = 20_000
"""Words of one policy, unless told otherwise."""

WORD_MAX = 64
"""Characters of one word, as it is given."""

FLAGGED_MAX = 10_000
"""Flagged messages remembered for one channel, roughly; the oldest go first."""

_VERSIONS = "im:{words}:versions"

# KEYS: list, versions. ARGV: policy, new version, normalised word, entry, most words.
# Answers the version before (false: none), or -1 for a full list.
_PUT = """
local full = redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[5])
if full and redis.call('HEXISTS', KEYS[1], ARGV[3]) == 0 then return -1 end
local before = redis.call('HGET', KEYS[2], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[3], ARGV[4])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return before
"""

# KEYS: list, versions. ARGV: policy, new version, normalised word. Answers {entry, version before} or false.
_DELETE = """
local entry = redis.call('HGET', KEYS[1], ARGV[3])
if not entry then return false end
local before = redis.call('HGET', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[3])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return {entry, before}
"""


class WordError(ValueError):
    """A word, or what is to be done with it, that cannot be taken; the text says why."""


class TooManyWords(WordError):
    """The policy has as many words as it may have."""


class Entry(msgspec.Struct, frozen=True):
    """One word of a policy, what is done with it, and since when (ms)."""

    word: str
    action: Action
    ts: int


class Flagged(msgspec.Struct, frozen=True, kw_only=True):
    """One flagged message; `cursor` is its place in the channel's list."""

    id: str
    sender: str = field(name="from")
    conversation: str | None
    words: tuple[str, ...]
    ts: int
    cursor: str = ""


class Commands(Protocol):
    """What is needed of `imserver.data.redis.Redis`."""

    async def command(self, *args: str | bytes | int) -> Any:
        """One command; the answer as bytes, int, None or a list of them."""


class _Policy:
    """A policy as this server knows it; its filter is made when it is first needed after a change."""

    def __init__(self, version: bytes, entries: dict[bytes, Entry]) -> None:
        self.version = version
        self.entries = entries
        self.filter: WordFilter | None = None

    def changed(self, version: bytes) -> None:
        self.version = version
        self.filter = None


class Words:
    """The word lists in Redis, and their filters on this server.

    Every call that asks Redis may raise `imserver.data.interface.Unavailable`.
    """

    def __init__(
        self,
        redis: Commands,
        clock: IReactorTime,
        *,
        words_max: int = WORDS_MAX,
        flagged_max: int = FLAGGED_MAX,
    ) -> None:
        self._redis = redis
        self._words_max = words_max
        self._flagged_max = flagged_max
        self._clock = clock
        self._policies: dict[str, _Policy] = {}
        self._nothing = WordFilter({})
        self._lock = DeferredLock()  # what was read before a change must not be taken in after it

    def filter_for(self, policy: str) -> WordFilter:
        """The filter of the list as this server knows it; of no words for a policy without a list."""
        known = self._policies.get(policy)
        if known is None:
            return self._nothing
        if known.filter is None:
            known.filter = WordFilter({entry.word: entry.action for entry in known.entries.values()})
        return known.filter

    async def put(self, policy: str, word: str, action: Action) -> Entry:
        """Add a word or replace its entry; `WordError` if that cannot be."""
        if action not in ACTIONS:
            raise WordError(f"an action is one of {', '.join(ACTIONS)}, not {action!r}")
        if len(word) > WORD_MAX:
            raise WordError(f"a word has at most {WORD_MAX} characters, this one has {len(word)}")
        letters = _key(word)
        if not letters:
            raise WordError(f"{word!r} has no letters or digits to look for")
        entry, version = Entry(word, action, self._now()), _version()
        async with self._lock:
            before = await self._script(_PUT, policy, version, letters, msgspec.json.encode(entry), self._words_max)
            if before == -1:
                raise TooManyWords(f"there are {self._words_max} words already, which is the limit")
            if (known := await self._known(policy, before, version)) is not None:
                known.entries[letters] = entry
        return entry

    async def get(self, policy: str, word: str) -> Entry | None:
        """The entry of a word in whatever spelling."""
        found = await self._redis.command("HGET", _list_key(policy), _key(word))
        return None if found is None else _entry(found)

    async def delete(self, policy: str, word: str) -> Entry | None:
        """Remove a word; the entry it had."""
        letters, version = _key(word), _version()
        async with self._lock:
            found = await self._script(_DELETE, policy, version, letters)
            if found is None:
                return None
            if (known := await self._known(policy, found[1], version)) is not None:
                known.entries.pop(letters, None)
        return _entry(found[0])

    async def refresh(self) -> None:
        """Take in what other servers changed: one small command if that is nothing."""
        async with self._lock:
            versions = pairs(await self._redis.command("HGETALL", _VERSIONS))
            for policy in self._policies.keys() - {name.decode() for name in versions}:
                del self._policies[policy]
            for name, version in versions.items():
                known = self._policies.get(policy := name.decode())
                if known is None or known.version != version:
                    await self._load(policy, version)

    async def record_flag(
        self, channel: str, *, id: str, sender: str, conversation: str | None, words: Sequence[str]
    ) -> None:
        """Remember a flagged message for those who look through them."""
        flagged = Flagged(id=id, sender=sender, conversation=conversation, words=tuple(words), ts=self._now())
        await self._redis.command(
            *("XADD", _flagged_key(channel), "MAXLEN", "~", self._flagged_max, "*"),
            *("flagged", msgspec.json.encode(flagged)),
        )

    async def list_flagged(self, channel: str, after: str = "0-0", limit: int = 50) -> tuple[Flagged, ...]:
        """Up to `limit` flagged messages later than the cursor `after`, oldest first.

        `ValueError` if `after` is no cursor.
        """
        position(after)
        entries = await self._redis.command("XRANGE", _flagged_key(channel), f"({after}", "+", "COUNT", limit)
        return tuple(
            msgspec.structs.replace(msgspec.json.decode(fields[1], type=Flagged), cursor=cursor.decode())
            for cursor, fields in entries
        )

    async def list(self, policy: str) -> tuple[Entry, ...]:
        """All entries, by word."""
        found = pairs(await self._redis.command("HGETALL", _list_key(policy)))
        return tuple(sorted(map(_entry, found.values()), key=lambda entry: entry.word))

    async def _known(self, policy: str, before: bytes | None, version: bytes) -> _Policy | None:
        """The policy if it was up to date before our change; otherwise None, and all was read again."""
        known = self._policies.get(policy)
        if known is None or known.version != before:
            await self._load(policy, version)
            return None
        known.changed(version)
        return known

    async def _load(self, policy: str, version: bytes) -> None:
        # read after the version: what changed in between is read again at the next refresh, never missed
        found = pairs(await self._redis.command("HGETALL", _list_key(policy)))
        self._policies[policy] = _Policy(version, {letters: _entry(entry) for letters, entry in found.items()})

    async def _script(self, source: str, policy: str, *args: str | bytes | int) -> Any:
        return await self._redis.command("EVAL", source, 2, _list_key(policy), _VERSIONS, policy, *args)

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)


def _list_key(policy: str) -> str:
    return f"im:{{words}}:list:{policy}"


def _flagged_key(channel: str) -> str:
    return f"im:flagged:{channel}"


def _key(word: str) -> bytes:
    return normalise(word).encode()


def _version() -> bytes:
    return secrets.token_hex(8).encode()


def _entry(stored: bytes) -> Entry:
    return msgspec.json.decode(stored, type=Entry)
