"""The measure that others are held against: a round trip over a stock Autobahn echo server in the same run."""

from __future__ import annotations

from typing import Any

from imserver.bench.figures import CPU, Latencies, Report, Row, ratio
from imserver.bench.stage import Stage, Usage

CLIENTS = 20
LATE_S = 0.05
"""A generator this late with a message has measured itself."""


class Plain:
    """What an echo took, and how many a second there were."""

    def __init__(self, p50_ms: float | None, per_s: float) -> None:
        self._p50_ms = p50_ms
        self._per_s = per_s

    def conclude(
        self,
        report: Report,
        phase: str,
        *,
        rate: float | None,
        accepted: int,
        refused: dict[str, int],
        tally: dict[str, Any],
        seconds: float,
        usage: Usage,
        late_s: float,
        answers: Latencies,
    ) -> Row:
        """Add what one phase found, and what is wrong with it; the new row."""
        ways = Latencies(tally["ways"])
        per_s = tally["delivered"] / seconds
        row = report.row(
            phase,
            asked_per_s=rate,
            accepted=accepted,
            delivered=tally["delivered"],
            per_s=per_s,
            **ways.columns(),  # type: ignore[arg-type]
            answer_p50_ms=answers.quantile_ms(0.5),
            latency_ratio=ratio(ways.quantile_ms(0.5), self._p50_ms) if rate is not None else None,
            rate_ratio=ratio(per_s, self._per_s) if rate is None else None,
            **usage.columns(tally["delivered"]),  # type: ignore[arg-type]
        )
        report.expect(phase, accepted, tally["delivered"])
        for why, count in refused.items():
            report.problems.append(f"{phase}: {count} refused: {why}")
        if tally["losses"]:
            report.problems.append(f"{phase}: connections were lost: {tally['losses']}")
        if tally["repeats"]:
            report.notes.append(f"{phase}: {tally['repeats']} messages came again, as they may.")
        if late_s > LATE_S:
            report.notes.append(f"{phase}: the load generator fell {late_s * 1000:.0f} ms behind its own schedule.")
        limit = usage.busiest()
        if limit:
            report.notes.append(f"{phase}: {limit}.")
        return row

    def explain(self, report: Report) -> None:
        """How to read the columns."""
        report.notes += [
            "p50, p95, p99: from the sender's call to the receiver's frame; answer_p50: until it was accepted.",
            "latency_ratio: p50 over that of the echo at the same rate; rate_ratio: messages a second over echoes.",
            "CPU: clients and bench are the load generator; all workers are one. At a low rate it counts what they",
            "do anyway, too, and each message pays for its own system calls.",
        ]


async def measured_echo(stage: Stage, report: Report, *, rate: float, seconds: float, size: int) -> Plain:
    """Echo at a rate, and as fast as it goes, with `CLIENTS` clients in a process of their own."""
    clients = stage.child("echo-clients", "crowd")
    await stage.open(clients, await stage.echo(), [None] * CLIENTS)
    frames = ['{"op":"echo"}'] * CLIENTS
    found: list[tuple[float | None, float]] = []
    for phase, asked in (("echo paced", rate), ("echo full", None)):
        usage = stage.usage()
        done = await clients.ask("send", seconds + 30, frames=frames, size=size, rate=asked, seconds=seconds)
        answers = Latencies(done["answers"])
        per_s = done["accepted"] / done["seconds"]
        spent = usage.spent()
        report.row(
            phase,
            asked_per_s=asked,
            per_s=per_s,
            **answers.columns(),  # type: ignore[arg-type]
            **{f"{name}{CPU}": spent[name] / max(1, done["accepted"]) * 1e6 for name in ("echo", "echo-clients")},
        )
        found.append((answers.quantile_ms(0.5), per_s))
    await clients.ask("close", 10.0)
    return Plain(found[0][0], found[1][1])
