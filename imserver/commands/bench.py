"""``imctl bench``: the load tests."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import msgspec
from twisted.internet.defer import TimeoutError
from twisted.internet.error import ConnectError, ConnectionClosed

from imserver.commands.target import CommandError, Target, find, run
from imserver.demo import running
from imserver.http.client import HttpClient, Unreachable

if TYPE_CHECKING:
    from imserver.bench.figures import Report
    from imserver.bench.stage import Servers, Stage

SECONDS_MAX = 600.0


def add(commands: Any) -> None:
    """Put this command among the others."""
    parser = commands.add_parser(
        "bench",
        help="measure speed and memory",
        description="Start servers and clients on this machine, load them for some seconds, and print what that took,"
        " as ratios to a stock Autobahn echo server in the same run. Exit code 1 if a message was lost.",
    )
    benches = parser.add_subparsers(title="scenarios", metavar="SCENARIO", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one line of JSON instead of tables")
    common.add_argument("--config", metavar="FILE", help="load the servers of this configuration")
    common.add_argument("--running", action="store_true", help="load the demo that runs on this machine")
    common.add_argument("--workers", metavar="N", type=_count, default=2, help="workers of our own stack: 2")
    common.add_argument("--seconds", metavar="S", type=_seconds, default=5.0, help="length of each phase: 5")
    common.add_argument("--bytes", metavar="B", type=_count, default=200, help="bytes of a message's body: 200")
    for name, text, arguments in (
        ("idle", "Memory for each idle connection of a worker.", {"connections": 5000}),
        ("push", "From a backend's HTTP call to the receiver's frame.", {"receivers": 100, "rate": 200}),
        ("direct", "From client to client over two workers.", {"pairs": 50, "rate": 200}),
        ("business", "From customer to agent, and into the archive.", {"customers": 40, "agents": 4, "rate": 50}),
        ("all", "All of these, one after the other.", {"connections": 5000}),
    ):
        scenario = benches.add_parser(name, help=text[0].lower() + text[1:-1], description=text, parents=[common])
        for option, default in arguments.items():
            what = "messages a second of the paced phases" if option == "rate" else f"how many {option}"
            scenario.add_argument(f"--{option}", metavar="N", type=_count, default=default, help=f"{what}: {default}")
        scenario.set_defaults(run=bench, scenario=name)


def bench(options: argparse.Namespace) -> int:
    """Run one scenario, or all."""
    if find_spec("psutil") is None:
        raise CommandError("imctl bench needs psutil: pip install 'imserver[bench]'")
    if options.config is not None and options.running:
        raise CommandError("give --config or --running, not both")
    from imserver.bench.figures import machine, text

    names = ("idle", "push", "direct", "business") if options.scenario == "all" else (options.scenario,)
    where = machine()

    async def work(reactor: Any) -> int:
        reports = [await _one(reactor, name, options) for name in names]
        if options.json:
            print(msgspec.json.encode({"machine": where, "reports": reports}).decode())
        else:
            print("\n\n".join(text(report) for report in reports))
            print("\n" + ", ".join(f"{name} {value}" for name, value in where.items()))
        return 1 if any(report.problems for report in reports) else 0

    return run(work)


async def _one(reactor: Any, name: str, options: argparse.Namespace) -> Report:
    from imserver.bench.orders import ChildError
    from imserver.bench.stage import BenchError, Stage
    from imserver.demo.addresses import DemoError

    print(f"imctl bench {name} ...", file=sys.stderr)
    stage = Stage(reactor, await _servers(reactor, options), workers=1 if name == "idle" else options.workers)
    try:
        await stage.start()
        return await _SCENARIOS[name](reactor, stage, options)
    except (BenchError, ChildError, DemoError, Unreachable, ConnectError, ConnectionClosed, TimeoutError) as error:
        for line in () if stage.interrupted else stage.said:
            print(line, file=sys.stderr)
        raise CommandError(f"bench {name}: {str(error) or type(error).__name__}") from None
    finally:
        await stage.stop()


async def _servers(reactor: Any, options: argparse.Namespace) -> Servers | None:
    """The servers to load, None for a stack of our own."""
    if options.config is None and not options.running:
        return None
    from imserver.bench.stage import Servers

    target: Target = find(options)
    if options.running:
        demo = running.find(os.environ)
        assert demo is not None  # `find` has just seen it
        return Servers(settings=target.settings, workers=demo.ready["workers"], pids=demo.ready["pids"])
    http = HttpClient(reactor)
    try:
        workers = (await target.call(http, "GET", "/v1/workers"))["workers"]
    finally:
        await http.close()
    if not workers:
        raise CommandError("these servers have no worker")
    return Servers(settings=target.settings, workers=[worker["url"] for worker in workers])


async def _idle(reactor: Any, stage: Stage, options: argparse.Namespace) -> Report:
    from imserver.bench.idle import idle

    return await idle(reactor, stage, options.connections)


async def _push(reactor: Any, stage: Stage, options: argparse.Namespace) -> Report:
    from imserver.bench.push import push

    return await push(
        reactor,
        stage,
        receivers=getattr(options, "receivers", 100),
        rate=getattr(options, "rate", 200),
        seconds=options.seconds,
        size=options.bytes,
    )


async def _direct(reactor: Any, stage: Stage, options: argparse.Namespace) -> Report:
    from imserver.bench.direct import direct

    return await direct(
        reactor,
        stage,
        pairs=getattr(options, "pairs", 50),
        rate=getattr(options, "rate", 200),
        seconds=options.seconds,
        size=options.bytes,
    )


async def _business(reactor: Any, stage: Stage, options: argparse.Namespace) -> Report:
    from imserver.bench.business import business

    return await business(
        reactor,
        stage,
        customers=getattr(options, "customers", 40),
        agents=getattr(options, "agents", 4),
        rate=getattr(options, "rate", 50),
        seconds=options.seconds,
        size=options.bytes,
    )


_SCENARIOS: dict[str, Callable[[Any, Stage, argparse.Namespace], Awaitable[Report]]] = {
    "idle": _idle,
    "push": _push,
    "direct": _direct,
    "business": _business,
}


def _count(text: str) -> int:
    """A number of things, for argparse."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1000000")
    return int(text)


def _seconds(text: str) -> float:
    """A length of time, for argparse."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to {SECONDS_MAX:g}")
    return seconds
