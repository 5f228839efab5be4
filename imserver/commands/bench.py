"""``imctl bench``: the load tests."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial
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
    common.add_argument("--seconds", metavar="S", type=_seconds, default=5.0, help="length of each phase: 5")
    common.add_argument("--bytes", metavar="B", type=_count, default=200, help="bytes of a message's body: 200")
    loading = argparse.ArgumentParser(add_help=False, parents=[common])
    loading.add_argument("--config", metavar="FILE", help="load the servers of this configuration")
    loading.add_argument("--running", action="store_true", help="load the demo that runs on this machine")
    loading.add_argument("--workers", metavar="N", type=_count, default=2, help="workers of our own stack: 2")
    archiving = argparse.ArgumentParser(add_help=False)
    archiving.add_argument(
        "--database",
        metavar="D",
        type=_database,
        default="both",
        help="sqlite, postgresql, both, or the URL of an empty database, which is left full: both",
    )
    for name, text, parents, arguments in (
        ("idle", "Memory for each idle connection of a worker.", [loading], {"connections": 5000}),
        ("push", "From a backend's HTTP call to the receiver's frame.", [loading], {"receivers": 100, "rate": 200}),
        ("direct", "From client to client over two workers.", [loading], {"pairs": 50, "rate": 200}),
        (
            "business",
            "From customer to agent, and into the archive.",
            [loading],
            {"customers": 40, "agents": 4, "rate": 50},
        ),
        (
            "archive",
            "From the journals into the database: how fast, and how far behind.",
            [common, archiving],
            {"messages": 20000, "rate": 2000},
        ),
        ("words", "The word filter on long texts, a quarter of the seconds for each kind.", [common], {"words": 5000}),
        ("all", "All of these, one after the other.", [loading, archiving], {"connections": 5000}),
    ):
        scenario = benches.add_parser(name, help=text[0].lower() + text[1:-1], description=text, parents=parents)
        for option, default in arguments.items():
            what = "messages a second of the paced phases" if option == "rate" else f"how many {option}"
            scenario.add_argument(f"--{option}", metavar="N", type=_count, default=default, help=f"{what}: {default}")
        scenario.set_defaults(run=bench, scenario=name)


def bench(options: argparse.Namespace) -> int:
    """Run one scenario, or all."""
    if find_spec("psutil") is None:
        raise CommandError("imctl bench needs psutil: pip install 'imserver[bench]'")
    if getattr(options, "config", None) is not None and options.running:
        raise CommandError("give --config or --running, not both")
    from imserver.bench.figures import machine, text

    names = tuple(_SCENARIOS) if options.scenario == "all" else (options.scenario,)
    where = machine()

    async def work(reactor: Any) -> int:
        reports: list[Report] = []
        for name in names:
            print(f"imctl bench {name} ...", file=sys.stderr)
            reports += await _SCENARIOS[name](reactor, options)
        if options.json:
            print(msgspec.json.encode({"machine": where, "reports": reports}).decode())
        else:
            print("\n\n".join(text(report) for report in reports))
            print("\n" + ", ".join(f"{name} {value}" for name, value in where.items()))
        return 1 if any(report.problems for report in reports) else 0

    return run(work)


async def _on(stage: Stage, name: str, scenario: Callable[[], Awaitable[Report]]) -> Report:
    """Run a scenario on its stage; `CommandError` says why it could not be."""
    from imserver.bench.orders import ChildError
    from imserver.bench.stage import BenchError
    from imserver.demo.addresses import DemoError

    try:
        await stage.start()
        return await scenario()
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


async def _idle(reactor: Any, options: argparse.Namespace) -> list[Report]:
    from imserver.bench.idle import idle
    from imserver.bench.stage import Stage

    stage = Stage(reactor, await _servers(reactor, options), workers=1)
    return [await _on(stage, "idle", lambda: idle(reactor, stage, options.connections))]


async def _push(reactor: Any, options: argparse.Namespace) -> list[Report]:
    from imserver.bench.push import push

    return await _loaded(reactor, options, "push", push, receivers=100, rate=200)


async def _direct(reactor: Any, options: argparse.Namespace) -> list[Report]:
    from imserver.bench.direct import direct

    return await _loaded(reactor, options, "direct", direct, pairs=50, rate=200)


async def _business(reactor: Any, options: argparse.Namespace) -> list[Report]:
    from imserver.bench.business import business

    return await _loaded(reactor, options, "business", business, customers=40, agents=4, rate=50)


async def _loaded(
    reactor: Any, options: argparse.Namespace, name: str, scenario: Callable[..., Awaitable[Report]], **sizes: int
) -> list[Report]:
    """A scenario whose servers may be others than our own; `sizes` are for `all`, which has no options for them."""
    from imserver.bench.stage import Stage

    stage = Stage(reactor, await _servers(reactor, options), workers=options.workers)
    given = {size: getattr(options, size, default) for size, default in sizes.items()}
    return [
        await _on(stage, name, lambda: scenario(reactor, stage, seconds=options.seconds, size=options.bytes, **given))
    ]


async def _archive(reactor: Any, options: argparse.Namespace) -> list[Report]:
    from imserver.bench.archive import UNDISPATCHED, archive
    from imserver.bench.postgresql import PostgreSQL
    from imserver.bench.stage import BenchError, Stage

    names = ("sqlite", "postgresql") if options.database == "both" else (options.database,)
    reports = []
    for name in names:
        try:
            server = PostgreSQL() if name == "postgresql" else None
        except BenchError as error:
            raise CommandError(f"bench archive: {error}") from None
        url = server.url if server is not None else name if "://" in name else None
        stage = Stage(reactor, workers=1, extra=UNDISPATCHED | ({"database": {"url": url}} if url else {}))
        work = partial(
            archive,
            reactor,
            stage,
            database=name.partition("://")[0],
            postgresql=None if server is None else server.pid,
            messages=getattr(options, "messages", 20000),
            rate=getattr(options, "rate", 2000),
            seconds=options.seconds,
            size=options.bytes,
        )
        try:
            reports.append(await _on(stage, "archive", work))
        finally:
            if server is not None:
                server.stop()
    return reports


async def _words(reactor: Any, options: argparse.Namespace) -> list[Report]:
    from imserver.bench.words import words

    return [words(count=getattr(options, "words", 5000), seconds=options.seconds / 4)]


_SCENARIOS: dict[str, Callable[[Any, argparse.Namespace], Awaitable[list[Report]]]] = {
    "idle": _idle,
    "push": _push,
    "direct": _direct,
    "business": _business,
    "archive": _archive,
    "words": _words,
}


def _count(text: str) -> int:
    """A number of things, for argparse."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1000000")
    return int(text)


def _database(text: str) -> str:
    """Which databases, for argparse."""
    if text not in ("sqlite", "postgresql", "both") and "://" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not sqlite, postgresql, both or a URL")
    return text


def _seconds(text: str) -> float:
    """A length of time, for argparse."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to {SECONDS_MAX:g}")
    return seconds
