"""``imctl webhooks``: how a channel's back office is told of what happens, and what it could not be told."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from imserver.commands.target import CommandError, Target, add_config, find, run, shown_time
from imserver.http.client import HttpClient


def add(commands: Any) -> None:
    """Put this command among the others."""
    parser = commands.add_parser(
        "webhooks",
        help="how back offices are told, and what they were not",
        description="Show how a channel's webhook fares; list, retry or drop events that were given up; post an event "
        "`ping` to see whether the back office hears. [channels.NAME] webhook_url and webhook_secrets say who is told.",
    )
    parser.add_argument(
        "action",
        nargs="?",
        choices=_ACTIONS,
        default="status",
        help="status: how it fares (the default); dead: events that were given up, oldest first, one JSON object a "
        "line; retry, drop: tell them after all, or forget them; ping: post an event that says nothing",
    )
    parser.add_argument("--all", action="store_true", help="retry, drop: all of them")
    parser.add_argument("--cursor", metavar="C", action="append", help="retry, drop: this one; may be repeated")
    add_config(parser)
    parser.set_defaults(run=webhooks)


def webhooks(options: argparse.Namespace) -> int:
    """Do what is asked."""
    target = find(options)
    if options.action in ("retry", "drop") and bool(options.all) == bool(options.cursor):
        raise CommandError(f"{options.action} what? Give --all, or --cursor C as imctl webhooks dead lists them")

    async def work(reactor: Any) -> int:
        return await _ACTIONS[options.action](target, HttpClient(reactor), options)

    return run(work)


async def _ask(target: Target, http: HttpClient, method: str, path: str = "", body: Any = None) -> Any:
    return await target.call(http, method, f"/v1/webhook{path}", body, server="business server")


async def _status(target: Target, http: HttpClient, options: argparse.Namespace) -> int:
    """0 if all is well, 1 if not."""
    found = await _ask(target, http, "GET")
    if found["url"] is None:
        raise CommandError(f"nobody is told of anything: [channels.{target.channel}] has no webhook_url")
    lines = {
        "channel": target.channel,
        "url": found["url"],
        "events": ", ".join(found["events"]) or "none",
        "waiting": f"{found['waiting']}, {found['retrying']} of them tried already",
        "dead": found["dead"],
        "last told": shown_time(found["told_ts"]) if found["told_ts"] else "never",
    }
    if found["failed_ts"]:
        lines["last failure"] = f"{shown_time(found['failed_ts'])}: {found['error']}"
    for name, value in lines.items():
        print(f"{name:<13} {value}")
    return 1 if found["dead"] or found["retrying"] else 0


async def _dead(target: Target, http: HttpClient, options: argparse.Namespace) -> int:
    after = "0-0"
    while (page := await _ask(target, http, "GET", f"/dead?limit=200&after={after}"))["dead"]:
        for one in page["dead"]:
            print(msgspec.json.encode(one).decode())
        after = page["next"]
    return 0


async def _moved(target: Target, http: HttpClient, options: argparse.Namespace, what: str) -> int:
    """How many events there were."""
    if not options.all:
        return int((await _ask(target, http, "POST", f"/dead/{what}", {"cursors": options.cursor}))["moved"])
    total = 0
    while moved := int((await _ask(target, http, "POST", f"/dead/{what}", {}))["moved"]):
        total += moved
    return total


async def _retry(target: Target, http: HttpClient, options: argparse.Namespace) -> int:
    print(f"{await _moved(target, http, options, 'retry')} events are told again")
    return 0


async def _drop(target: Target, http: HttpClient, options: argparse.Namespace) -> int:
    print(f"{await _moved(target, http, options, 'drop')} events are forgotten")
    return 0


async def _ping(target: Target, http: HttpClient, options: argparse.Namespace) -> int:
    told = await _ask(target, http, "POST", "/ping")
    print(f"event {told['id']} is on its way; imctl webhooks shows whether it was heard")
    return 0


_ACTIONS: dict[str, Callable[[Target, HttpClient, argparse.Namespace], Awaitable[int]]] = {
    "status": _status,
    "dead": _dead,
    "retry": _retry,
    "drop": _drop,
    "ping": _ping,
}
