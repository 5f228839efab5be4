"""`imctl bench business`: customer to shop to agent, and the archive behind it."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater

from imserver.bench.figures import Latencies, Report, ratio
from imserver.bench.plain import measured_echo
from imserver.bench.stage import Stage

ARRIVE_S = 20.0
ARCHIVED_S = 30.0
SAMPLE_S = 0.5
_ARCHIVED = re.compile(rb"^im_archived_messages ([0-9.e+]+)", re.MULTILINE)


class _Archive:
    """Looks now and then how many messages have been archived."""

    def __init__(self, reactor: Any, stage: Stage, channel: str) -> None:
        self._reactor = reactor
        self._stage = stage
        self._channel = channel
        self._before = 0
        self._started = 0.0
        self._loop = LoopingCall(lambda: Deferred.fromCoroutine(self._sample()))
        self.samples: list[tuple[float, int]] = []
        """Seconds since the start, messages archived since then."""

    async def archived(self) -> int:
        """Messages that the business server has archived since it was started."""
        text = await self._stage.call("GET", f"{self._stage.settings.business.url}/metrics", self._channel)
        found = _ARCHIVED.search(text)
        return int(float(found[1])) if found else 0

    async def start(self) -> None:
        """Begin to look."""
        self._before = await self.archived()
        self._started = self._reactor.seconds()
        self._loop.start(SAMPLE_S, now=False)

    async def _sample(self) -> None:
        count = await self.archived() - self._before
        self.samples.append((self._reactor.seconds() - self._started, count))

    async def finish(self, expect: int) -> float | None:
        """Wait until so many have been archived, and stop looking; after how many seconds, None if not in time."""
        deadline = self._reactor.seconds() + ARCHIVED_S
        while (not self.samples or self.samples[-1][1] < expect) and self._reactor.seconds() < deadline:
            await deferLater(self._reactor, SAMPLE_S / 2)
        self._loop.stop()
        return next((seconds for seconds, count in self.samples if count >= expect), None)

    def behind(self, rate: float) -> float:
        """How many messages, at the most, were waiting for the archive while `rate` a second came in."""
        return max((max(0.0, rate * seconds - count) for seconds, count in self.samples), default=0.0)


async def business(
    reactor: Any, stage: Stage, *, customers: int, agents: int, rate: float, seconds: float, size: int
) -> Report:
    """`customers` write to a shop with `agents` agents; at a rate, then as fast as the answers come."""
    report = Report(
        bench="business",
        parameters={"customers": customers, "agents": agents, "seconds": seconds, "bytes": size},
    )
    plain = await measured_echo(stage, report, rate=rate, seconds=seconds, size=size)
    channel = stage.channel("business")
    shop = f"{stage.run}-shop"
    uids = [f"{stage.run}-a{i}" for i in range(agents)]
    for uid in uids:
        agent = {"shop": shop, "capacity": customers, "status": "online"}
        await stage.call("PUT", f"{stage.settings.business.url}/v1/agents/{uid}", channel, agent)
    await stage.open(stage.clients, stage.servers.workers[-1], [stage.token(uid, channel, "merchant") for uid in uids])
    tokens: list[str | None] = [stage.token(f"{stage.run}-c{i}", channel) for i in range(customers)]
    await stage.open(stage.clients, stage.servers.workers[0], tokens)
    frames = [msgspec.json.encode({"op": "send", "type": "text", "shop": shop}).decode()] * customers
    archive = _Archive(reactor, stage, channel)
    await archive.start()
    first = await stage.clients.ask("send", 60, frames=frames, size=size, rate=customers, seconds=1, first=agents)
    await stage.clients.ask("tally", ARRIVE_S + 5, expect=first["accepted"], wait_s=ARRIVE_S)
    await archive.finish(first["accepted"])
    for phase, asked in (("business paced", rate), ("business full", None)):
        archive = _Archive(reactor, stage, channel)
        await archive.start()
        usage = stage.usage()
        started = reactor.seconds()
        done = await stage.clients.ask(
            "send", seconds + 60, frames=frames, size=size, rate=asked, seconds=seconds, first=agents
        )
        tally = await stage.clients.ask("tally", ARRIVE_S + 5, expect=done["accepted"], wait_s=ARRIVE_S)
        row = plain.conclude(
            report,
            phase,
            rate=asked,
            accepted=done["accepted"],
            refused=done["errors"],
            tally=tally,
            seconds=reactor.seconds() - started,
            usage=usage,
            late_s=done["late_s"],
            answers=Latencies(done["answers"]),
        )
        whole = await archive.finish(done["accepted"])
        coming = done["accepted"] / done["seconds"]
        if whole is None:
            report.problems.append(f"{phase}: not all was archived within {ARCHIVED_S:g} s")
        report.add(
            row,
            archived_per_s=done["accepted"] / whole if whole else None,
            archive_ratio=ratio(done["accepted"] / whole, coming) if whole else None,
            behind_max=archive.behind(coming),
            behind_s=max(0.0, whole - done["seconds"]) if whole else None,
        )
    report.notes += [
        "archived_per_s: rows a second until all were in the database; archive_ratio: over the rate they came in at.",
        f"behind_max: messages waiting for the archive at the most, looked at every {SAMPLE_S:g} s; behind_s: how long",
        "after the last one was accepted the archive was complete, to the same precision.",
    ]
    plain.explain(report)
    return report
