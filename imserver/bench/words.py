"""`imctl bench words`: what the word filter costs for a long text, with and without hits."""

from __future__ import annotations

import random
import string
import time
from collections.abc import Callable

import msgspec
import ujson

from imserver.bench.figures import Latencies, Report, ratio
from imserver.business.moderation import WordFilter

LIMIT_MS = 1.0
"""A text has to be looked through in less."""

TEXT_BYTES = 10_000
HITS = 20
_LATIN = string.ascii_lowercase
_HAN = "".join(map(chr, range(0x4E00, 0x5E00)))
_SEED = 11


def words(*, count: int, seconds: float) -> Report:
    """`count` words, half of them Latin and half Chinese, on texts of 10 kB of each kind, `seconds` for each phase."""
    rng = random.Random(_SEED)
    listed = _words(rng, count)
    some = listed[: max(2, count // 10)]
    report = Report(
        bench="words",
        parameters={"words": count, "text_bytes": TEXT_BYTES, "seconds": seconds},
    )
    whole = WordFilter(dict.fromkeys(listed, "mask"))
    tenth = WordFilter(dict.fromkeys(some, "mask"))
    for kind in ("latin", "chinese"):
        for hits in (0, HITS):
            body = _body(rng, kind, [word for word in some if (word[0] in _LATIN) == (kind == "latin")], hits)
            found = len(whole.moderate(body).words)
            if bool(found) != bool(hits):
                report.problems.append(f"{kind}: {found} words were found in a text with {hits}")
            took = _timed(lambda body=body: whole.moderate(body), seconds)  # type: ignore[misc]
            decoding = _timed(lambda body=body: ujson.loads(body), seconds / 4)  # type: ignore[misc]
            fewer = _timed(lambda body=body: tenth.moderate(body), seconds / 4)  # type: ignore[misc]
            p50 = took.quantile_ms(0.5)
            report.row(
                f"{kind}, {hits} hits",
                texts=len(took),
                bytes=len(body),
                **took.columns(),  # type: ignore[arg-type]
                json_ratio=ratio(p50, decoding.quantile_ms(0.5)),
                tenth_ratio=ratio(p50, fewer.quantile_ms(0.5)),
            )
            if p50 is None or p50 >= LIMIT_MS:
                report.problems.append(f"{kind}, {hits} hits: half of the texts took {LIMIT_MS:g} ms or more")
    report.notes += [
        "One text is a message's body of one string; hits are masked. The times are of CPU.",
        "json_ratio: p50 over that of decoding the same body with ujson; tenth_ratio: over that with a tenth of the",
        "words: near 1, it hardly grows with the list.",
    ]
    return report


def _words(rng: random.Random, count: int) -> list[str]:
    """Latin ones of 5 to 10 letters and Chinese ones of 3 or 4, in turn; each once."""
    found: dict[str, None] = {}
    while len(found) < count:
        latin = len(found) % 2 == 0
        letters, size = (_LATIN, rng.randint(5, 10)) if latin else (_HAN, rng.randint(3, 4))
        found["".join(rng.choices(letters, k=size))] = None
    return list(found)


def _body(rng: random.Random, kind: str, words: list[str], hits: int) -> bytes:
    """A message's body of about `TEXT_BYTES`, with so many of the words in it."""
    pieces: list[str] = []
    size = 0
    while size < TEXT_BYTES:
        if kind == "latin":
            piece = "".join(rng.choices(_LATIN, k=rng.randint(2, 9)))
            piece = piece.capitalize() if rng.random() < 0.1 else piece
            size += len(piece) + 1
        else:
            piece = "".join(rng.choices(_HAN, k=rng.randint(5, 15))) + rng.choice("，。！")
            size += 3 * len(piece)
        pieces.append(piece)
    for place in rng.sample(range(len(pieces)), hits):
        pieces[place] = rng.choice(words)
    return msgspec.json.encode({"text": (" " if kind == "latin" else "").join(pieces)})


def _timed(work: Callable[[], object], seconds: float) -> Latencies:
    """The CPU time of `work`, done again and again."""
    found = Latencies()
    work()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        before = time.thread_time()  # not what others do on this machine meanwhile
        work()
        found.add(time.thread_time() - before)
    return found
