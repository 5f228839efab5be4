"""`imctl bench push`: from a backend's HTTP call through dispatcher and worker to the client."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, gatherResults

from imserver.bench.calls import Calls
from imserver.bench.figures import Latencies, Report
from imserver.bench.load import looped, paced
from imserver.bench.plain import Plain, measured_echo
from imserver.bench.stage import Stage

LINES = 32
"""Connections of the backend."""
WIDTH = 16
"""Calls under way at a time when it pushes as fast as it can."""
BATCH = 100
ANSWER_S = 20.0
ARRIVE_S = 15.0


class _Push(msgspec.Struct):
    to: str
    type: str
    body: dict[str, Any]


class _Backend:
    """Pushes, and counts what was accepted."""

    def __init__(self, calls: Calls, uids: list[str], size: int) -> None:
        self._calls = calls
        self._uids = uids
        self._pad = "x" * max(0, size - 36)
        self._next = 0
        self.accepted = 0
        self.refused: Counter[str] = Counter()
        self.answers = Latencies()

    def _push(self) -> _Push:
        self._next += 1
        uid = self._uids[self._next % len(self._uids)]
        return _Push(uid, "text", {"at": time.monotonic_ns(), "pad": self._pad})

    async def single(self, number: int) -> None:
        """One message, one call."""
        await self._call("/v1/push", msgspec.json.encode(self._push()), 1)

    async def batch(self, number: int) -> None:
        """`BATCH` messages with one call."""
        body = msgspec.json.encode({"messages": [self._push() for _ in range(BATCH)]})
        await self._call("/v1/push/batch", body, BATCH)

    async def _call(self, path: str, body: bytes, messages: int) -> None:
        since = time.monotonic()
        status, answer = await self._calls.post(path, body)
        if status == 202 and (messages == 1 or answer.count(b'"error"') == 0):
            self.accepted += messages
            self.answers.add(time.monotonic() - since)
        else:
            self.refused[f"{status} {answer[:120].decode('utf-8', 'replace')}"] += 1


async def push(reactor: Any, stage: Stage, *, receivers: int, rate: float, seconds: float, size: int) -> Report:
    """`receivers` clients over all workers; first at a rate, then as fast as the backend's calls are answered."""
    report = Report(
        bench="push",
        parameters={"receivers": receivers, "workers": len(stage.servers.workers), "seconds": seconds, "bytes": size},
    )
    plain = await measured_echo(stage, report, rate=rate, seconds=seconds, size=size)
    channel = stage.channel("direct")
    uids = [f"{stage.run}-r{i}" for i in range(receivers)]
    workers = stage.servers.workers
    for index, url in enumerate(workers):
        await stage.open(stage.clients, url, [stage.token(uid, channel) for uid in uids[index :: len(workers)]])
    calls = await stage.calls(stage.settings.dispatcher.url, channel, LINES)
    for phase, each, one in (("push", 1, _Backend.single), ("push/batch", BATCH, _Backend.batch)):
        backend = _Backend(calls, uids, size)
        await _phase(reactor, stage, report, plain, backend, f"{phase} paced", each, one, rate, seconds)
        backend = _Backend(calls, uids, size)
        await _phase(reactor, stage, report, plain, backend, f"{phase} full", each, one, None, seconds)
    report.notes.append(f"push/batch: {BATCH} messages a call; its latency includes making the whole call.")
    plain.explain(report)
    return report


async def _phase(
    reactor: Any,
    stage: Stage,
    report: Report,
    plain: Plain,
    backend: _Backend,
    phase: str,
    each: int,
    one: Callable[[_Backend, int], Awaitable[None]],
    rate: float | None,
    seconds: float,
) -> None:
    usage = stage.usage()
    started = reactor.seconds()
    late = 0.0
    if rate is None:
        await looped(reactor, WIDTH if each == 1 else 4, seconds, lambda i: one(backend, i))
    else:
        asked: list[Deferred[None]] = []
        calls_rate = max(rate / each, 1 / seconds)
        late = await paced(
            reactor,
            calls_rate,
            seconds,
            lambda i: asked.append(Deferred.fromCoroutine(one(backend, i))),  # type: ignore[arg-type]
        )
        await gatherResults(asked).addTimeout(ANSWER_S, reactor)
    tally = await stage.clients.ask("tally", ARRIVE_S + 5, expect=backend.accepted, wait_s=ARRIVE_S)
    plain.conclude(
        report,
        phase,
        rate=rate,
        accepted=backend.accepted,
        refused=dict(backend.refused),
        tally=tally,
        seconds=reactor.seconds() - started,
        usage=usage,
        late_s=late,
        answers=backend.answers,
    )
