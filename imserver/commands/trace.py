"""``imctl trace``: where one message has been."""

from __future__ import annotations

import argparse
import re
from typing import Any

import msgspec

from imserver.commands.target import CALL_TIMEOUT_S, CommandError, Target, add_config, find, run, shown_time
from imserver.http.client import HttpClient, Unreachable


def add(commands: Any) -> None:
    """Put this command among the others."""
    parser = commands.add_parser(
        "trace",
        help="where one message has been",
        description="Show where a message has been: accepted, archived, stored in which inboxes, sent to which "
        "connections, acknowledged when. The archive is asked, and what the live servers remember of the last "
        "thousands of messages.",
    )
    parser.add_argument("id", metavar="MESSAGE_ID", help="32 hex characters, as in `sent` or the answer to a push")
    add_config(parser)
    parser.set_defaults(run=trace)


def trace(options: argparse.Namespace) -> int:
    """Print the trail, oldest first."""
    target = find(options)
    if not re.fullmatch("[0-9a-f]{32}", options.id):
        raise CommandError(f"{options.id} is no message id: those have 32 characters of 0-9a-f")

    async def work(reactor: Any) -> int:
        http = HttpClient(reactor)
        lines = await _accepted(target, http, options.id)
        trail = (await target.call(http, "GET", f"/v1/messages/{options.id}/trail"))["trail"]
        lines += [(step["event"]["ts"], step["server"], _said(step["event"])) for step in trail]
        if not lines:
            raise CommandError(f"nobody knows message {options.id} in channel {target.channel} (any more)")
        for ts, server, text in sorted(lines):
            print(f"{shown_time(ts) if ts else '':<23}  {server:<12} {text}")
        return 0

    return run(work)


async def _accepted(target: Target, http: HttpClient, id: str) -> list[tuple[int, str, str]]:
    """What the business server knows; nothing of a message that did not go through it."""
    url = f"{target.business}/v1/messages/{id}"
    try:
        answer = await http.call("GET", url, token=target.key, timeout=CALL_TIMEOUT_S)
    except Unreachable as error:
        return [(0, "business", f"cannot be asked: {error}")]
    if answer.status == 404:
        return []
    if answer.status != 200:
        return [(0, "business", f"cannot be asked: it answered {answer.status}")]
    found = msgspec.json.decode(answer.body)
    where = f" as {found['seq']} of conversation {found['conversation']}" if found.get("conversation") else ""
    kept = "in the archive" if found["archived"] else "in the journal, not archived yet"
    return [(found["ts"], "business", f"accepted{where}; {kept}")]


def _said(event: dict[str, Any]) -> str:
    """One event in words."""
    match event["what"]:
        case "stored" | "duplicate":
            place = f" at {event['cursor']}" if event.get("cursor") else ""
            again = " (again)" if event["what"] == "duplicate" else ""
            kept = "stored in the inbox of" if event.get("cursor") else "meant for"
            return f"{kept} {event['uid']}{place}{again}, reached {event.get('connections', 0)} connections"
        case "sent":
            return f"sent to {event['uid']} on {event['conn']}, attempt {event.get('attempt', 1)}"
        case _:
            return f"{event['what']} by {event['uid']} on {event['conn']}"
