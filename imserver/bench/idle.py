"""`imctl bench idle`: what a connection costs on which nothing happens."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import deferLater

from imserver.bench.figures import Report, ratio
from imserver.bench.orders import Child
from imserver.bench.stage import Stage, Usage, memory_bytes

SETTLE_S = 2.0
PROCESS_MAX = 8000
"""Connections of one process of clients: file descriptors are bounded."""


async def idle(reactor: Any, stage: Stage, connections: int) -> Report:
    """`connections` admitted clients at one worker, and as many at a stock Autobahn echo server."""
    report = Report(bench="idle", parameters={"connections": connections})
    channel = stage.channel("direct")
    uids = [f"{stage.run}-{i}" for i in range(connections)]
    tokens: list[str | None] = [stage.token(uid, channel) for uid in uids]
    valkey = stage.servers.pids.get("valkey")
    ours = await _measured(
        reactor, stage, "worker", stage.servers.workers[0], stage.pid("worker-1"), tokens, valkey, report
    )
    url = await stage.echo()
    stock = await _measured(
        reactor, stage, "stock Autobahn", url, stage.child("echo", "echo").pid, [None] * connections, None, report
    )
    for row, value in zip(report.rows, (ours, stock), strict=True):
        report.add(row, memory_ratio=ratio(value, stock))
    report.notes.append("kb_each: resident memory of the server's process for each connection but the first few.")
    report.notes.append("open_cpu_ms: CPU time of the server to let one in.")
    report.notes.append("worker: after hello (token checked, registered, inbox looked up); stock: handshake only.")
    return report


async def _measured(
    reactor: Any,
    stage: Stage,
    phase: str,
    url: str,
    pid: int,
    tokens: list[str | None],
    valkey: int | None,
    report: Report,
) -> float:
    """Bytes of memory for each connection; what comes with the very first ones is not counted."""
    some = max(1, len(tokens) // 20)
    crowds = [stage.child(f"clients-{i}", "crowd") for i in range(1 + (len(tokens) - 1) // PROCESS_MAX)]
    await stage.open(crowds[0], url, tokens[:some])
    await deferLater(reactor, SETTLE_S)
    before, stored = memory_bytes(pid), memory_bytes(valkey) if valkey else 0
    opening = Usage({"server": pid})
    seconds = await _spread(stage, crowds, url, tokens[some:])
    await deferLater(reactor, SETTLE_S)
    opened = opening.spent()["server"]
    count = len(tokens) - some
    after, stored_after = memory_bytes(pid), memory_bytes(valkey) if valkey else 0
    resting = Usage({"server": pid})
    await deferLater(reactor, SETTLE_S)
    report.row(
        phase,
        connections=len(tokens),
        kb_each=(after - before) / count / 1024,
        valkey_kb_each=(stored_after - stored) / count / 1024 if valkey else None,
        opened_per_s=count / seconds,
        open_cpu_ms=opened / count * 1e3,
        idle_cpu_percent=resting.spent()["server"] / SETTLE_S * 100,
    )
    for crowd in crowds:
        losses = (await crowd.ask("tally", 10.0, expect=0, wait_s=0.0))["losses"]
        if losses:
            report.problems.append(f"{phase}: connections were lost: {losses}")
        await crowd.ask("close", 30.0)
    return (after - before) / count


async def _spread(stage: Stage, crowds: list[Child], url: str, tokens: list[str | None]) -> float:
    """Connect over several processes, one after the other; the seconds in all."""
    seconds = 0.0
    for index, crowd in enumerate(crowds):
        part = tokens[index :: len(crowds)]
        if part:
            seconds += await stage.open(crowd, url, part)
    return seconds
