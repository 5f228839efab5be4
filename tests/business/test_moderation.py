"""The word filter: what is a hit, what is innocent, and what masking leaves alone."""

from __future__ import annotations

import string
import sys
import unicodedata

import ujson
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from imserver.business.moderation import Action, Verdict, WordFilter
from imserver.business.normalisation import BREAK, JOIN, TABLE, normalise

SEPARATORS = [
    *string.punctuation,
    " ",
    "\t",
    "\n",
    "\u3000",
    "、",
    "。",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\u00ad",
]
LATIN_WORDS = st.text("abcdefgs", min_size=1, max_size=6)
HAN_WORDS = st.text("傻逼笨蛋坏人", min_size=1, max_size=4)
PROSE = st.text(
    st.one_of(
        st.sampled_from('aAbBsSé\u0301 .-\u200b傻逼가ﬁßẞが🍆★1"\\\n'),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=60,
)


def found(words: list[str] | dict[str, Action], text: str) -> list[str]:
    """The pieces of `text` that are hits."""
    actions: dict[str, Action] = words if isinstance(words, dict) else dict.fromkeys(words, "mask")
    return [text[hit.start : hit.end] for hit in WordFilter(actions).check(text)]


def masked(words: list[str], text: str) -> str:
    """`text` after it went through the filter in a body."""
    body = ujson.dumps({"text": text}, ensure_ascii=False).encode()
    verdict = WordFilter(dict.fromkeys(words, "mask")).moderate(body)
    text_of: str = ujson.loads(verdict.body)["text"]
    return text_of


class HitTests(TestCase):
    """`WordFilter.check`."""

    def test_spellings(self) -> None:
        """Width, case, marks and what stands between the letters do not hide a word."""
        for text in (
            "ass",
            "ASS",
            "ＡＳＳ",
            "a s s",
            "a.s.s",
            "a-s-s",
            "a _ s\n\ts",
            "ás\u200bs",
            "a\u00adss",
            "aſs",
        ):
            self.assertEqual(found(["ass"], f"an {text}, yes"), [text])
        self.assertEqual(found(["ass"], "as s"), ["as s"])
        self.assertEqual(found(["creme"], "crème cre\u0300me"), ["crème", "cre\u0300me"])
        self.assertEqual(found(["crème"], "CREME"), ["CREME"])
        self.assertEqual(found(["كلب"], "كَلْب كـلـب"), ["كَلْب", "كـلـب"])

    def test_a_longer_word_is_left_alone(self) -> None:
        """A word of a spaced script does not match inside a longer one, nor across innocent neighbours."""
        for text in (
            *(
                "class",
                "bass",
                "assist",
                "pass class",
                "has sold",
                "as sassy",
                "was as super",
                "ass2",
                "2ass",
            ),
            *("cl\u200bass", "cla\u00adss", "ásśa", "glasse\u0301s", "mass.", "ẞ laẞ"),
        ):
            self.assertEqual(found(["ass"], text), [], text)
        self.assertEqual(found(["ass"], "bass ass."), ["ass"])
        self.assertEqual(found(["рак"], "дурак рак"), ["рак"])
        self.assertEqual(found(["가"], "각 나가 가\u11a8 가!"), ["가"])

    def test_unspaced_scripts_match_anywhere(self) -> None:
        """Han, kana and Thai have no word ends; next to them a Latin word ends."""
        self.assertEqual(found(["傻逼"], "你这个傻逼啊 傻 逼 傻★逼"), ["傻逼", "傻 逼", "傻★逼"])
        self.assertEqual(found(["バカ"], "このﾊﾞｶめ"), ["ﾊﾞｶ"])
        self.assertEqual(found(["ควาย"], "ไอ้ควายเอ้ย"), ["ควาย"])
        self.assertEqual(found(["ass"], "你ass好"), ["ass"])
        self.assertEqual(found(["傻b"], "大傻B 傻bug"), ["傻B"])
        self.assertEqual(found(["🍆"], "x🍆🏻y"), ["🍆🏻"])

    def test_a_letter_is_not_cut(self) -> None:
        """A mark that is a letter stays with the one before it."""
        self.assertEqual(found(["か"], "が ガ か\u3099 か"), ["か"])
        self.assertEqual(found(["क"], "का कि क"), ["क"])
        self.assertEqual(found(["กา"], "ก่า"), [])

    def test_expanding_characters(self) -> None:
        """One character that stands for several letters is a hit as a whole."""
        self.assertEqual(found(["fix"], "a ﬁx"), ["ﬁx"])
        self.assertEqual(found(["straße"], "STRASSE straẞe"), ["STRASSE", "straẞe"])
        self.assertEqual(found(["会社"], "ﬁ ㍿ 株式会社"), ["㍿", "会社"])
        self.assertEqual(
            found(["바보"], "ﬁ 바보 " + unicodedata.normalize("NFD", "바보")),
            ["바보", unicodedata.normalize("NFD", "바보")],
        )

    def test_phrases(self) -> None:
        """A word may be a phrase; its spaces are skipped like all others."""
        self.assertEqual(found(["buy now"], "BUY  now, buynow, buy nowhere"), ["BUY  now", "buynow"])

    def test_words_without_letters_are_refused(self) -> None:
        """Nothing to look for is a mistake, said clearly."""
        for word in ("", " ", "***", "\u200b", "\u0301"):
            with self.assertRaisesRegex(ValueError, "no letters or digits"):
                WordFilter({word: "mask"})

    def test_same_word_twice(self) -> None:
        """Of two spellings of one word the stronger action counts."""
        hits = WordFilter({"Bad": "flag", "BAD": "block", "b.a.d": "mask"}).check("bad")
        self.assertEqual([(hit.word, hit.action) for hit in hits], [("BAD", "block")])

    def test_no_words(self) -> None:
        """An empty list finds nothing."""
        self.assertEqual(WordFilter({}).check("anything"), [])
        self.assertEqual(WordFilter({}).moderate(b'{"a": "b"}'), Verdict(None, b'{"a": "b"}'))


class NormalisationTests(TestCase):
    """The table that each character is folded with."""

    def test_every_character(self) -> None:
        """Folding twice is folding once, canonical equivalents fold alike, and nothing folds to nothing."""
        for code in range(sys.maxunicode + 1):
            folded = TABLE[code]
            self.assertTrue(folded)
            if folded not in (BREAK, JOIN):
                self.assertEqual(normalise(folded), folded, hex(code))
            if (equivalent := unicodedata.normalize("NFD", chr(code))) != chr(code):
                self.assertEqual(normalise(equivalent), normalise(chr(code)), hex(code))

    def test_punctuation_is_skipped(self) -> None:
        """All ASCII but letters and digits."""
        for character in map(chr, range(128)):
            self.assertEqual(normalise(character), character.lower() if character.isalnum() else "")


class VerdictTests(TestCase):
    """`WordFilter.moderate`."""

    def setUp(self) -> None:
        """A word for each action, and a phrase that contains another word."""
        self.filter = WordFilter({"worst": "block", "bad": "mask", "bad egg": "mask", "odd": "flag"})

    def test_untouched(self) -> None:
        """Without a hit the body is the same bytes."""
        body = b' { "text" : "all is \\u0067ood", "n": 1e400 , "n": 12345678901234567890.10 }'
        self.assertEqual(self.filter.moderate(body), Verdict(None, body))

    def test_everything_else_keeps_its_bytes(self) -> None:
        """Masking replaces characters inside strings: spacing, escapes, numbers and order stay."""
        body = (
            '{"a" :[ 1e400, -0.0, 12345678901234567890, '
            '{"deep":"so b\\u0061d \\ud83d\\ude00 \\/ \\"b\\n\\ta d\\""}],\n'
            '"a":null, "é":"bàd é" , "esc\\u0061pe": "\\u0062\\u00e1d egg\\u0301!" }'
        ).encode()
        expected = (
            '{"a" :[ 1e400, -0.0, 12345678901234567890, '
            '{"deep":"so *** \\ud83d\\ude00 \\/ \\"******\\""}],\n'
            '"a":null, "é":"*** é" , "esc\\u0061pe": "********!" }'
        ).encode()
        verdict = self.filter.moderate(body)
        self.assertEqual(verdict, Verdict("mask", expected, ("bad", "bad egg")))

    def test_keys_are_not_looked_at(self) -> None:
        """Values only; a string before a colon is a key, wherever the colon stands."""
        body = b'{"bad":1,"odd" : {"worst"\n:"fine"},"x":["good","bad:"]}'
        self.assertEqual(self.filter.moderate(body), Verdict("mask", body.replace(b'"bad:"', b'"***:"'), ("bad",)))

    def test_strings_are_not_joined(self) -> None:
        """A word spread over two strings is none."""
        for body in (b'{"x":["b","a","d"]}', b'{"b":"ad"}', b'{"x":["b","a","d","\\n"]}'):
            self.assertEqual(self.filter.moderate(body), Verdict(None, body))

    def test_many_strings(self) -> None:
        """A body of many strings gets the same verdict as one of few."""
        for count in (1, 200):
            innocent = b'{"bad":[' + b'"fine","b","ad",' * count + b'1],"b":"ad"}'
            self.assertEqual(self.filter.moderate(innocent), Verdict(None, innocent))
            for written in (b'"b.a.d"', b'"\\u0062.ad"'):
                guilty, cured = (innocent.replace(b"1]", last + b"]") for last in (written, b'"*****"'))
                expected = cured if written == b'"b.a.d"' else cured.replace(b"*****", b"****")
                self.assertEqual(self.filter.moderate(guilty), Verdict("mask", expected, ("bad",)))

    def test_the_strongest_action_wins(self) -> None:
        """Block over mask over flag; what is blocked is not masked, and flags are told in any case."""
        body = b'{"t":"an odd bad thing"}'
        self.assertEqual(
            self.filter.moderate(body),
            Verdict("mask", b'{"t":"an odd *** thing"}', ("odd", "bad"), ("odd",)),
        )
        body = b'{"t":"the worst bad odd odd one"}'
        self.assertEqual(self.filter.moderate(body), Verdict("block", body, ("worst", "bad", "odd"), ("odd",)))
        self.assertEqual(self.filter.moderate(b'{"t":"odd"}').action, "flag")

    def test_masks_cover_the_union(self) -> None:
        """Overlapping hits are masked from the first letter to the last."""
        self.assertEqual(masked(["a b", "b c", "傻逼", "逼样"], "a b c 傻逼样!"), "***** ***!")
        self.assertEqual(masked(["bad"], "x b-a\u0301-d\u0301! x"), "x *******! x")
        self.assertEqual(masked(["🍆"], "a 🍆 b"), "a * b")

    def test_lone_surrogates(self) -> None:
        """Half a character, which JSON can carry, stays as it is."""
        self.assertEqual(
            self.filter.moderate(b'{"t":"\\ud83d bad \\ude00\\ud83d"}').body,
            b'{"t":"\\ud83d *** \\ude00\\ud83d"}',
        )


class PropertyTests(TestCase):
    """What holds for every text."""

    @settings(deadline=None)
    @given(st.lists(st.one_of(LATIN_WORDS, HAN_WORDS), min_size=1, max_size=5), PROSE)
    def test_only_hits_change(self, words: list[str], text: str) -> None:
        """A mask has the length of what it masks, all outside of hits stays, and a hit is gone afterwards."""
        hits = WordFilter(dict.fromkeys(words, "mask")).check(text)
        result = masked(words, text)
        covered = {at for hit in hits for at in range(hit.start, hit.end)}
        self.assertEqual(result, "".join("*" if at in covered else character for at, character in enumerate(text)))
        for hit in WordFilter(dict.fromkeys(words, "mask")).check(result):
            self.assertNotIn("*", (result[hit.start], result[hit.end - 1]))

    @settings(deadline=None)
    @given(st.lists(st.one_of(LATIN_WORDS, HAN_WORDS), min_size=1, max_size=5), PROSE)
    def test_a_hit_spells_its_word(self, words: list[str], text: str) -> None:
        """What is hit normalises to the word, or a little more where a character is several letters."""
        for hit in WordFilter(dict.fromkeys(words, "flag")).check(text):
            self.assertIn(normalise(hit.word), normalise(text[hit.start : hit.end]))

    @settings(deadline=None)
    @given(st.one_of(LATIN_WORDS, HAN_WORDS), st.data())
    def test_separators_do_not_hide(self, word: str, data: st.DataObject) -> None:
        """Whatever is skipped may stand between the letters; the hit is from the first to the last."""
        gap = st.text(SEPARATORS, max_size=3)
        text = word[0] + "".join(data.draw(gap) + letter for letter in word[1:])
        self.assertIn(text, found([word], f"xyz {text}! xyz"))

    @settings(deadline=None)
    @given(LATIN_WORDS, st.text("xyz", min_size=1), st.text("xyz", min_size=1))
    def test_embedded_words_are_innocent(self, word: str, before: str, after: str) -> None:
        """In a longer word of its script a word is not found, with or without what cannot be seen."""
        for text in (
            before + word,
            word + after,
            before + word + after,
            before + "\u200b" + word + "\u00ad" + after,
        ):
            self.assertEqual(found([word], text), [])

    @settings(deadline=None)
    @given(LATIN_WORDS, PROSE, st.booleans())
    def test_bodies(self, word: str, text: str, escaped: bool) -> None:
        """However a text is written as JSON, the same characters are masked."""
        text = f"{text} {word} {text}"
        body = ujson.dumps({"k": [1, text]}, ensure_ascii=escaped).encode()
        verdict = WordFilter({word: "mask"}).moderate(body)
        self.assertEqual(verdict.action, "mask")
        self.assertEqual(ujson.loads(verdict.body), {"k": [1, masked([word], text)]})
