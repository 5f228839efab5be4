"""`imctl bench archive`: how fast the journals go into the database, and how far behind it is at a given rate."""

from __future__ import annotations

from statistics import median
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater

from imserver.bench.figures import CPU, Report, ratio
from imserver.bench.plain import LATE_S
from imserver.bench.stage import Stage, Usage
from imserver.business.journals import Journals
from imserver.data.database import Database
from imserver.data.redis import Redis

CONVERSATIONS = 200
SAMPLE_S = 0.25
ARCHIVED_S = 120.0
KEPT_UP_S = 2.0
"""Who has everything so soon after the last message has kept up."""

_PARTS = ("archiver", "business", "valkey", "postgresql", "feeder")

# Nobody is to be sent what is accepted here, it would be the dispatcher that is measured.
UNDISPATCHED = {"business": {"sweep_after_s": 86400.0}}


class _Lag:
    """Looks now and then how far the archive is behind."""

    def __init__(self, reactor: Any, journals: Journals) -> None:
        self._reactor = reactor
        self._journals = journals
        self._loop = LoopingCall(lambda: Deferred.fromCoroutine(self._sample()))
        self.lengths: list[int] = []
        self.ages: list[float] = []

    def start(self) -> None:
        """Begin to look."""
        self._loop.start(SAMPLE_S, now=False)

    def stop(self) -> None:
        """End it."""
        self._loop.stop()

    async def _sample(self) -> None:
        self.ages.append(await self._journals.age())
        self.lengths.append(await self._journals.length())

    async def over(self) -> float | None:
        """Wait until the journals are empty; after how many seconds, None if not in time."""
        started = self._reactor.seconds()
        while await self._journals.length():
            if self._reactor.seconds() > started + ARCHIVED_S:
                return None
            await deferLater(self._reactor, 0.02)
        return float(self._reactor.seconds() - started)


async def archive(
    reactor: Any,
    stage: Stage,
    *,
    database: str,
    postgresql: int | None,
    messages: int,
    rate: float,
    seconds: float,
    size: int,
) -> Report:
    """Drain `messages` from the journals, then feed `rate` a second while the business server archives them.

    `database` is what to call it, `postgresql` the process of its server, if it is known.
    """
    report = Report(
        bench="archive",
        parameters={
            "database": database,
            "messages": messages,
            "conversations": CONVERSATIONS,
            "seconds": seconds,
            "bytes": size,
            "batch": stage.settings.business.archive_batch,
        },
    )
    trees = {} if postgresql is None else {"postgresql": postgresql}
    kept = Database(reactor, stage.settings.database)
    redis = Redis(reactor, stage.settings.redis)
    try:
        await _drained(stage, report, kept, trees, messages, size)
        await _paced(reactor, stage, report, kept, trees, redis, rate, seconds, size)
    finally:
        await redis.stop()
        await kept.stop()
    report.notes += [
        "plain: rows from memory, inserted as the database's driver does it, in batches as large, by one process that",
        "does nothing else. drain: an archiver, from journals that are full. rate_ratio: its rows a second over plain.",
        "paced: a business server, while another process feeds the journals. lag: what was not in the database yet,",
        f"and for how long the oldest of it had been accepted, looked at every {SAMPLE_S:g} s. behind_s: how long",
        f"after the last message everything was there; kept_up: that was within {KEPT_UP_S:g} s.",
    ]
    return report


async def _drained(
    stage: Stage, report: Report, kept: Database, trees: dict[str, int], messages: int, size: int
) -> None:
    # in a database of its own of the same Redis, which the business server does not look at
    other = stage.settings.redis.url.removesuffix("/0") + "/1"
    settings = msgspec.to_builtins(stage.settings)
    archiver, feeder = stage.child("archiver", "archiving"), stage.child("feeder", "archiving")
    for child in (archiver, feeder):
        await child.ask("open", 30, settings=settings, redis=other)
    usage = stage.usage(trees)
    took = await archiver.ask("plain", 600, run=f"{stage.run}-plain", messages=messages, size=size)
    plain_per_s = messages / took
    report.row("plain", rows=messages, per_s=plain_per_s, **_cost(usage, messages))
    run = f"{stage.run}-drain"
    await feeder.ask("create", 60, run=run, conversations=CONVERSATIONS)
    filled = await feeder.ask("fill", 600, messages=messages, size=size)
    usage = stage.usage(trees)
    took = await archiver.ask("drain", 600, messages=filled["accepted"])
    per_s = filled["accepted"] / took
    row = report.row("drain", rows=filled["accepted"], per_s=per_s, rate_ratio=ratio(per_s, plain_per_s))
    report.add(row, **_cost(usage, filled["accepted"]))
    await _complete(report, "drain", kept, run, filled)


async def _paced(
    reactor: Any,
    stage: Stage,
    report: Report,
    kept: Database,
    trees: dict[str, int],
    redis: Redis,
    rate: float,
    seconds: float,
    size: int,
) -> None:
    feeder = stage.child("feeder", "archiving")
    await feeder.ask("open", 30, settings=msgspec.to_builtins(stage.settings), redis=stage.settings.redis.url)
    run = f"{stage.run}-paced"
    await feeder.ask("create", 60, run=run, conversations=CONVERSATIONS)
    lag = _Lag(reactor, Journals(redis, reactor, stage.settings.business))
    await lag.over()
    usage = stage.usage(trees)
    lag.start()
    fed = await feeder.ask("feed", seconds + 60, rate=rate, seconds=seconds, size=size)
    behind = await lag.over()
    lag.stop()
    row = report.row(
        "paced",
        asked_per_s=rate,
        rows=fed["accepted"],
        per_s=fed["accepted"] / fed["seconds"],
        lag_max=max(lag.lengths, default=0),
        lag_p50=median(lag.lengths or [0]),
        lag_max_s=max(lag.ages, default=0.0),
        lag_p50_s=median(lag.ages or [0.0]),
        behind_s=behind,
        kept_up="yes" if behind is not None and behind <= KEPT_UP_S else "no",
    )
    report.add(row, **_cost(usage, fed["accepted"]))
    if fed["late_s"] > LATE_S:
        report.notes.append(f"paced: the feeder fell {fed['late_s'] * 1000:.0f} ms behind its own schedule.")
    if limit := usage.busiest():
        report.notes.append(f"paced: {limit}.")
    if behind is None:
        report.problems.append(f"paced: not all was archived within {ARCHIVED_S:g} s")
    await _complete(report, "paced", kept, run, fed)


def _cost(usage: Usage, rows: int) -> dict[str, Any]:
    """The columns of those who have a part in it."""
    return {name: value for name, value in usage.columns(rows).items() if name.removesuffix(CPU) in _PARTS}


async def _complete(report: Report, phase: str, kept: Database, run: str, fed: dict[str, Any]) -> None:
    """Everything that was accepted has to be in the database, once."""
    query = (
        "SELECT conversation, count(*), count(DISTINCT seq), max(seq) FROM messages"
        f" WHERE substr(conversation, 1, {len(run) + 1}) = '{run}-' GROUP BY conversation"
    )
    found = await kept.run(lambda connection: list(connection.exec_driver_sql(query)))
    report.expect(phase, fed["accepted"], sum(count for _, count, _, _ in found))
    for conversation, count, numbers, last in found:
        if not count == numbers == last:
            report.problems.append(f"{phase}: {conversation} has {count} rows, {numbers} numbers, the last is {last}")
    for why, count in fed["refused"].items():
        report.problems.append(f"{phase}: {count} refused: {why}")
