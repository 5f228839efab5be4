"""``imctl status``, ``ban``, ``unban``, ``kick`` and ``drain``: what an operator does."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import msgspec

from imserver.commands.target import CommandError, Target, add_config, duration, find, run
from imserver.data.events import CHANNEL
from imserver.data.interface import Unavailable
from imserver.data.redis import Redis
from imserver.http.client import HttpClient, Unreachable
from imserver.protocol.codes import banned_until


def add(commands: Any) -> None:
    """Put these commands among the others."""
    parser = commands.add_parser("status", help="show what runs", description="Show the servers and their workers.")
    add_config(parser, channel=False)
    parser.set_defaults(run=status)

    for name, text, function in (
        ("ban", "Refuse a user or an address; live connections are closed.", ban),
        ("unban", "Let a user or an address in again.", unban),
    ):
        parser = commands.add_parser(name, help=text[0].lower() + text[1:-1], description=text)
        parser.add_argument("kind", choices=("uid", "ip"), help="uid or ip")
        parser.add_argument("value", help="which")
        if function is ban:
            parser.add_argument("--ttl", metavar="TIME", type=duration, help="1d, 12h, 30m, 45s; without it, for good")
            parser.add_argument("--reason", metavar="TEXT", help="why; the user is told")
        add_config(parser)
        parser.set_defaults(run=function)

    parser = commands.add_parser("kick", help="close a user's connections", description="Close a user's connections.")
    parser.add_argument("uid", metavar="UID")
    parser.add_argument("--conn", metavar="CONN", help="this connection alone")
    parser.add_argument("--reason", metavar="TEXT", help="why; the user is told")
    add_config(parser)
    parser.set_defaults(run=kick)

    parser = commands.add_parser(
        "drain", help="empty a worker", description="Make a worker send its clients to the others, and end."
    )
    parser.add_argument("worker", metavar="WORKER", help="its id; imctl status shows them")
    add_config(parser, channel=False)
    parser.set_defaults(run=drain)


def status(options: argparse.Namespace) -> int:
    """Show what runs."""
    target = find(options)

    async def work(reactor: Any) -> int:
        http = HttpClient(reactor)
        urls = {"dispatcher": target.dispatcher, "business": target.business}
        states = {name: await _readiness(http, url) for name, url in urls.items()}
        for name, state in states.items():
            print(f"{name:<11} {urls[name]:<32} {state}")
        workers = (await target.call(http, "GET", "/v1/workers"))["workers"]
        print(f"{'workers':<11} {len(workers)}, {sum(worker['connections'] for worker in workers)} connections")
        if workers:
            print()
            print(_table(workers))
        return 0 if workers and all(state == "ready" for state in states.values()) else 1

    return run(work)


async def _readiness(http: HttpClient, url: str) -> str:
    try:
        answer = await http.call("GET", f"{url}/readyz", timeout=5.0)
    except Unreachable:
        return "cannot be reached"
    return "ready" if answer.status == 200 else f"not ready: {answer.body.decode('utf-8', 'replace')[:300]}"


def _table(workers: list[dict[str, Any]]) -> str:
    rows = [("WORKER", "CONNECTIONS", "LOAD", "SINCE", "VERSION", "STATE", "URL")]
    for worker in sorted(workers, key=lambda worker: str(worker["id"])):
        since = datetime.fromtimestamp(worker["since_ts"] / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        state = "draining" if worker["draining"] else "up"
        load = f"{worker['load']:.2f}"
        rows.append((worker["id"], str(worker["connections"]), load, since, worker["version"], state, worker["url"]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def ban(options: argparse.Namespace) -> int:
    """Refuse a user or an address."""
    body = {"ttl_s": options.ttl, "reason": options.reason}
    entry = {name: value for name, value in body.items() if value is not None}
    answer = _blacklist(options, "PUT", entry)
    when = banned_until(answer.get("until_ts"))
    print(f"{options.kind} {answer.get('value', options.value)} is refused {when}")
    return 0


def unban(options: argparse.Namespace) -> int:
    """Let a user or an address in again."""
    _blacklist(options, "DELETE")
    print(f"{options.kind} {options.value} is let in again")
    return 0


def _blacklist(options: argparse.Namespace, method: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    path = f"/v1/blacklist/{options.kind}/{quote(options.value, safe='')}"
    return _one_call(find(options), method, path, body)


def kick(options: argparse.Namespace) -> int:
    """Close a user's connections."""
    path = f"/v1/users/{quote(options.uid, safe='')}/connections"
    if options.conn is not None:
        path += "/" + quote(options.conn, safe="")
    if options.reason is not None:
        path += f"?reason={quote(options.reason, safe='')}"
    closed = _one_call(find(options), "DELETE", path).get("closed", 0)
    print(f"{closed} connection{'' if closed == 1 else 's'} closed")
    return 0


def _one_call(target: Target, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    answers: list[dict[str, Any]] = []

    async def work(reactor: Any) -> int:
        answers.append(await target.call(HttpClient(reactor), method, path, body) or {})
        return 0

    if run(work) != 0:
        raise SystemExit(1)
    return answers[0]


def drain(options: argparse.Namespace) -> int:
    """Make a worker send its clients away, and end; it may be on another machine."""
    target = find(options)

    async def work(reactor: Any) -> int:
        workers = (await target.call(HttpClient(reactor), "GET", "/v1/workers"))["workers"]
        known = sorted(str(worker["id"]) for worker in workers)
        if options.worker not in known:
            raise CommandError(f"there is no worker {options.worker}; there is {', '.join(known) or 'none'}")
        redis = Redis(reactor, target.settings.redis)
        try:
            await redis.command("PUBLISH", CHANNEL, msgspec.json.encode({"event": "drain", "worker": options.worker}))
        except Unavailable as error:
            raise CommandError(str(error)) from None
        finally:
            await redis.stop()
        print(f"{options.worker} is told to drain; imctl status shows it until it is gone")
        return 0

    return run(work)
