"""The word filter: finds the words of a policy in a text and in the strings of a message body. No I/O.

Contract: `Words are looked for in every string of body ...`.  What it leaves open is decided so:

*  Only values are "strings of `body`", at any depth; the keys of objects are the client's own vocabulary.
*  A hit starts where a word of the original text starts if its first letter is of a spaced script, and ends
   where one ends if its last letter is; digits are such letters. ``a s s`` and ``a.s.s`` are hits of `ass`;
   ``class``, ``bass``, ``has sold`` and ``ass2`` are not. ``as s`` and, with `penis` in the list, ``pen is``
   are hits: spaces are skipped. Such a word is better flagged than masked.
*  Next to a letter of an unspaced script a word of Latin ends: ``你ass`` is a hit.
*  A mark that is a letter is never cut from the one before it: `か` is not in ``が``.
*  The marks on the last letter of a hit belong to it, so that none is left to sit on a ``*``.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple, get_args

import ahocorasick
import msgspec
import ujson

from imserver.business.normalisation import BREAK, JOIN, TABLE, is_attached, is_mark, is_spaced, normalise

Action = Literal["block", "mask", "flag"]

ACTIONS: tuple[Action, ...] = get_args(Action)
"""What may be done with a word, strongest first."""

# A string of valid JSON, and the colon that makes it a key. Possessive, so that it never backtracks.
_STRING = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"(\s*+:)?', re.DOTALL)
# One character inside a JSON string as it is written: a surrogate pair, another escape, or itself.
_CHARACTER = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.|[^\\]", re.DOTALL
)
_MANY_QUOTES = 100  # from here on looking at each string costs more than looking at all of the body first


class Hit(NamedTuple):
    """`text[start:end]` is the word `word` (as it was given), by whatever spelling."""

    start: int
    end: int
    word: str
    action: Action


class Verdict(msgspec.Struct, frozen=True):
    """What becomes of a message: the strongest action of its hits, or None without any.

    `body` is what to send on: the same bytes unless something was masked.  `words` are the words that were
    found and `flagged` those among them to be flagged, whatever else was found; each once.
    """

    action: Action | None
    body: bytes
    words: tuple[str, ...] = ()
    flagged: tuple[str, ...] = ()


class _Pattern(NamedTuple):
    size: int  # bytes of the normalised word
    starts_word: bool  # its first letter is of a spaced script
    ends_word: bool  # its last one is
    word: str
    action: Action


class WordFilter:
    """Finds the words of one policy; immutable.

    Made from {word: action}; `ValueError` names a word without any letter.  Of two words that normalise to
    the same the one with the stronger action counts.
    """

    def __init__(self, words: Mapping[str, Action]) -> None:
        patterns: dict[str, _Pattern] = {}
        for word, action in words.items():
            letters = normalise(word)
            if not letters:
                raise ValueError(f"{word!r} has no letters or digits to look for")
            known = patterns.get(letters)
            if known is None or ACTIONS.index(action) < ACTIONS.index(known.action):
                starts, ends = is_spaced(letters[0]), is_spaced(letters[-1])
                patterns[letters] = _Pattern(len(letters.encode()), starts, ends, word, action)
        # The automaton looks through the children of a node one by one. Made of bytes instead of characters
        # it has few of them at its root, which makes it ten times as fast on Chinese.
        self._automaton = ahocorasick.Automaton()
        for letters, pattern in patterns.items():
            self._automaton.add_word(_units(letters), pattern)
        self._automaton.make_automaton()
        self._count = len(patterns)

    def __len__(self) -> int:
        return self._count

    def check(self, text: str) -> list[Hit]:
        """All hits in `text`, overlapping ones too, by where they end."""
        if not self._count:
            return []
        folded = text.translate(TABLE)
        found = list(self._search(folded))
        if not found:
            return []
        positions = _positions(text, folded, {at for first, last, _ in found for at in (first, last)})
        return [
            Hit(positions[first], _past_marks(text, positions[last] + 1), pattern.word, pattern.action)
            for first, last, pattern in found
        ]

    def moderate(self, body: bytes) -> Verdict:
        """The verdict on `body`, a JSON object already known to be valid JSON and UTF-8.

        Masking touches the masked characters alone: every other byte, in escapes and numbers too, stays.
        """
        if not self._count or not self._may_hit(body):
            return Verdict(None, body)
        hits: list[Hit] = []
        masked: list[tuple[int, int, bytes]] = []
        for match in _STRING.finditer(body):
            if match[2] is not None:
                continue
            found = self.check(_text(match[1]))
            hits += found
            if spans := [hit for hit in found if hit.action == "mask"]:
                masked.append((match.start(1), match.end(1), _mask(match[1], spans)))
        if not hits:
            return Verdict(None, body)
        action = min((hit.action for hit in hits), key=ACTIONS.index)
        return Verdict(
            action,
            _replace(body, masked) if action == "mask" else body,
            tuple(dict.fromkeys(hit.word for hit in hits)),
            tuple(dict.fromkeys(hit.word for hit in hits if hit.action == "flag")),
        )

    def _may_hit(self, body: bytes) -> bool:
        """False if no string of `body` has a hit, found out in one go when there are many.

        Read as one text, a body without escapes has at least the hits of its strings: quotes end words.
        """
        if body.count(b'"') < _MANY_QUOTES or b"\\" in body:
            return True
        return any(self._search(body.decode().translate(TABLE)))

    def _search(self, folded: str) -> Iterator[tuple[int, int, _Pattern]]:
        """Each hit in a folded text: where its first and its last letter begin, in bytes of all letters."""
        spaced = folded.replace(JOIN, "")
        letters = spaced.replace(BREAK, "")
        encoded = b""
        ends: set[int] = set()  # where words end, and so where they start
        for last_byte, pattern in self._automaton.iter(_units(letters)):
            if not ends:
                encoded = letters.encode()
                ends.update(accumulate(map(len, spaced.encode().split(BREAK.encode()))))
            end: int = last_byte + 1
            first = end - pattern.size
            if pattern.starts_word and first and first not in ends and is_spaced(_letter_at(encoded, first - 1)):
                continue
            if end < len(encoded) and end not in ends:
                following = _letter_at(encoded, end)
                if (pattern.ends_word and is_spaced(following)) or is_attached(following):
                    continue
            yield first, _letter_start(encoded, last_byte), pattern


def _units(letters: str) -> str:
    """The bytes of `letters` as a text of as many characters, which is what the automaton takes."""
    return letters if letters.isascii() else letters.encode().decode("latin-1")


def _letter_start(encoded: bytes, at: int) -> int:
    while encoded[at] & 0xC0 == 0x80:
        at -= 1
    return at


def _letter_at(encoded: bytes, at: int) -> str:
    """The letter that the byte at `at` is a part of."""
    if encoded[at] < 0x80:
        return chr(encoded[at])
    start = _letter_start(encoded, at)
    return encoded[start : start + 4].decode(errors="ignore")[0]


def _positions(text: str, folded: str, wanted: set[int]) -> dict[int, int]:
    """Where in `text` the letters are that begin at the `wanted` byte offsets of all its letters."""
    pieces = folded.replace(JOIN, BREAK).split(BREAK)  # the n-th piece comes after n skipped characters
    ends = list(accumulate(map(len, pieces)))
    places = {}
    letters, before, count = "".join(pieces).encode(), 0, 0
    for offset in sorted(wanted):
        count += len(letters[before:offset].decode())
        before = offset
        places[offset] = count + bisect_right(ends, count)
    if len(folded) == len(text):  # nothing makes it shorter, so each character became exactly one
        return places
    widths = {character: len(TABLE[ord(character)]) for character in set(text)}
    starts = list(accumulate(map(widths.__getitem__, text)))
    return {offset: bisect_right(starts, place) for offset, place in places.items()}


def _past_marks(text: str, at: int) -> int:
    while at < len(text) and not text[at].isascii() and is_mark(text[at]):
        at += 1
    return at


def _text(written: bytes) -> str:
    """The value of a JSON string from what stands between its quotes."""
    text: str = ujson.loads(b'"' + written + b'"') if b"\\" in written else written.decode()
    return text


def _mask(written: bytes, hits: Iterable[Hit]) -> bytes:
    """What stands between the quotes of a JSON string, with the characters of the hits replaced."""
    text = written.decode()
    characters: Sequence[str] = _CHARACTER.findall(text) if "\\" in text else text
    pieces, done = [], 0
    for start, end in sorted((hit.start, hit.end) for hit in hits):
        if end > done:
            start = max(start, done)
            pieces += ["".join(characters[done:start]), "*" * (end - start)]
            done = end
    return "".join([*pieces, "".join(characters[done:])]).encode()


def _replace(body: bytes, parts: Iterable[tuple[int, int, bytes]]) -> bytes:
    pieces, done = [], 0
    for start, end, replacement in parts:
        pieces += [body[done:start], replacement]
        done = end
    return b"".join([*pieces, body[done:]])
