"""How the word filter reads a text: every character by itself becomes the letters it stands for.

The contract (`Words are looked for ...`) asks for NFKC, folded case, no marks, and spaces, punctuation and
zero-width characters between letters skipped.  Characters are decomposed (NFKD) and never composed again, in
words and texts alike: then each can be folded without looking at its neighbours, which `str.translate` does
at the speed of C, and ``e`` + U+0301 equals ``é``.  Decisions where the contract is silent:

*  A mark is removed if it adorns a letter (accents, Arabic and Hebrew points, strokes, variation selectors,
   skin tones). It stays if it *is* a letter: vowel signs, viramas and tone marks of Indic and South-East
   Asian scripts, the voicing marks of kana (``が`` is not ``か``).
*  Hangul is decomposed into its jamo, so a syllable written either way is the same. It is a spaced script.
*  Symbols (``$ + | ~ ★``) are skipped like punctuation; pictographs (U+1F000 and up, emoji) are letters, so
   that they can be words; they are matched anywhere.
*  Characters that cannot be seen (category Cf, fillers) and removed marks are skipped without ending a word:
   ``cl`` + U+200B + ``ass`` reads, and counts, as ``class``. So is the Arabic tatweel, which only stretches.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right

BREAK = " "
"""What a skipped character becomes that ends a word: spaces, punctuation, symbols, controls."""

JOIN = "\x01"
"""What a skipped character becomes that does not: marks and characters that cannot be seen."""

_CACHED = 0x20000  # a bound for the table: what lies above (rare Han, mostly) is folded each time
_PICTOGRAPHS = 0x1F000
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_UNSEEN = frozenset(
    [0x034F, 0x0640, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2065, 0x3164, 0xFFA0]
    + [*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xFFF0, 0xFFF9), *range(0xE0000, 0xE1000)]
)

# First code points of the ranges whose scripts put no spaces between words, each with the first one after it.
_UNSPACED = [
    (0x0E00, 0x10A0),  # Thai, Lao, Tibetan, Myanmar
    (0x1780, 0x1800),  # Khmer
    (0x1950, 0x1AB0),  # Tai Le, New Tai Lue, Khmer symbols, Buginese, Tai Tham
    (0x1B00, 0x1B80),  # Balinese
    (0x2E80, 0x3130),  # Han radicals, Hiragana, Katakana, Bopomofo
    (0x3190, 0xA4D0),  # Kanbun, Bopomofo and Katakana extensions, Han, Yi
    (0xA980, 0xAAE0),  # Javanese, Myanmar extensions, Cham, Tai Viet
    (0xE000, 0xFB00),  # private use, Han compatibility
    (0x16FE0, 0x1B300),  # Tangut, Khitan, Nushu, Kana extensions
    (_PICTOGRAPHS, 0x110000),  # pictographs, Han extensions, private use
]
_UNSPACED_EDGES = [edge for pair in _UNSPACED for edge in pair]


class _Table(dict[int, str]):
    """For `str.translate`: code point → its letters, `BREAK` or `JOIN`; filled as characters are met."""

    def __missing__(self, code: int) -> str:
        folded = _fold(chr(code))
        if code < _CACHED:
            self[code] = folded
        return folded


TABLE = _Table()


def normalise(word: str) -> str:
    """The letters of `word`, which is what two spellings of one word have in common; empty if it has none."""
    return word.translate(TABLE).replace(BREAK, "").replace(JOIN, "")


def is_spaced(letter: str) -> bool:
    """Whether a letter, as `normalise` gives them, is of a script with spaces between words; digits are."""
    return letter.isascii() or bisect_right(_UNSPACED_EDGES, ord(letter)) % 2 == 0


def is_attached(letter: str) -> bool:
    """Whether a letter, as `normalise` gives them, is a mark that belongs to the letter before it."""
    return not letter.isascii() and unicodedata.category(letter)[0] == "M"


def is_mark(character: str) -> bool:
    """Whether a character of a text is a removed mark, and so a part of the letter before it."""
    if ord(character) in _SKIN_TONES:
        return True
    return unicodedata.category(character)[0] == "M" and TABLE[ord(character)] == JOIN


def _fold(character: str) -> str:
    decomposed = unicodedata.normalize("NFKD", character).casefold()
    letters = "".join(filter(_is_letter, unicodedata.normalize("NFKD", decomposed)))
    return letters or (JOIN if _joins(character) else BREAK)


def _is_letter(character: str) -> bool:
    code, category = ord(character), unicodedata.category(character)
    if code in _UNSEEN:
        return False
    if category == "Mn":
        # Combining classes: 0 vowel signs; 7-9 nukta, voicing, virama; 84-132 vowels and tones of Telugu,
        # Thai, Lao and Tibetan.
        return (kind := unicodedata.combining(character)) == 0 or 7 <= kind <= 9 or 84 <= kind <= 132
    if category == "So":
        return code >= _PICTOGRAPHS
    return category[0] in "LN" or category in ("Mc", "Cn", "Co")


def _joins(character: str) -> bool:
    code, category = ord(character), unicodedata.category(character)
    return category[0] == "M" or category == "Cf" or code in _UNSEEN or code in _SKIN_TONES
