"""`imctl bench direct`: client to worker to another worker to client, past dispatcher and business server."""

from __future__ import annotations

from typing import Any

import msgspec

from imserver.bench.figures import Latencies, Report
from imserver.bench.plain import measured_echo
from imserver.bench.stage import Stage

ARRIVE_S = 15.0


async def direct(reactor: Any, stage: Stage, *, pairs: int, rate: float, seconds: float, size: int) -> Report:
    """`pairs` senders at the first worker, each with a receiver at the last; at a rate, then as fast as it goes."""
    report = Report(
        bench="direct",
        parameters={"pairs": pairs, "workers": len(stage.servers.workers), "seconds": seconds, "bytes": size},
    )
    plain = await measured_echo(stage, report, rate=rate, seconds=seconds, size=size)
    channel = stage.channel("direct")
    receivers = [f"{stage.run}-r{i}" for i in range(pairs)]
    tokens: list[str | None] = [stage.token(f"{stage.run}-s{i}", channel) for i in range(pairs)]
    await stage.open(stage.clients, stage.servers.workers[0], tokens)
    await stage.open(stage.clients, stage.servers.workers[-1], [stage.token(uid, channel) for uid in receivers])
    frames = [msgspec.json.encode({"op": "send", "type": "text", "to": uid}).decode() for uid in receivers]
    for phase, asked in (("direct paced", rate), ("direct full", None)):
        usage = stage.usage()
        started = reactor.seconds()
        done = await stage.clients.ask("send", seconds + 30, frames=frames, size=size, rate=asked, seconds=seconds)
        tally = await stage.clients.ask("tally", ARRIVE_S + 5, expect=done["accepted"], wait_s=ARRIVE_S)
        plain.conclude(
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
    plain.explain(report)
    return report
