"""``imctl send`` and ``imctl listen``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any
from urllib.parse import quote

import msgspec
from twisted.internet.defer import Deferred

from imserver.client import IMClient
from imserver.commands.target import (
    CommandError,
    Target,
    add_config,
    complain,
    duration,
    find,
    json_object,
    run,
)
from imserver.commands.tokens import PLATFORMS, ROLES
from imserver.http.client import HttpClient
from imserver.protocol import syntax
from imserver.protocol.tokens import Tokens

_TOKEN_S = 3600


def add(commands: Any) -> None:
    """Put these commands among the others."""
    parser = commands.add_parser(
        "send",
        help="push a message to a user",
        description="Push a message to a user, as a backend does; prints the dispatcher's answer.",
    )
    parser.add_argument(
        "--to", metavar="U", required=True, action="append", help="the receiver; may be given several times"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", metavar="T", help='the same as --type text --body {"text": T}')
    what.add_argument("--body", metavar="JSON", type=json_object)
    parser.add_argument("--type", metavar="TYPE", default="text", help="text (the default), card, ...")
    parser.add_argument("--from", metavar="U", dest="sender", help="the sender; without it, the channel itself")
    parser.add_argument("--cid", metavar="CID", help="the sender's own id, so that a repeat is no second message")
    parser.add_argument(
        "--ttl",
        metavar="TIME",
        type=duration,
        help="not to be delivered later than 1d, 12h, 30m, 45s from now",
    )
    parser.add_argument("--online-only", action="store_true", help="do not store it for those who are away")
    add_config(parser)
    parser.set_defaults(run=send)

    parser = commands.add_parser(
        "listen",
        help="print what a user receives",
        description="Connect as a user; print each frame that comes, one a line; acknowledge messages.",
    )
    parser.add_argument("--uid", metavar="U", required=True, help="who to be")
    parser.add_argument("--role", metavar="R", choices=ROLES, default="customer", help=", ".join(ROLES))
    parser.add_argument("--platform", metavar="P", choices=PLATFORMS, default="other", help=", ".join(PLATFORMS))
    parser.add_argument("--device", metavar="D", default="imctl", help="the device's name: imctl")
    parser.add_argument("--since", metavar="CURSOR", help="where to begin; $ for what is new only")
    add_config(parser)
    parser.set_defaults(run=listen)


def send(options: argparse.Namespace) -> int:
    """Push a message."""
    target = find(options)
    body = options.body if options.text is None else {"text": options.text}
    push: dict[str, Any] = {
        "to": options.to if len(options.to) > 1 else options.to[0],
        "type": options.type,
        "body": body,
    }
    for name, value in (("from", options.sender), ("cid", options.cid), ("ttl_s", options.ttl)):
        if value is not None:
            push[name] = value
    if options.online_only:
        push["store"] = False

    async def work(reactor: Any) -> int:
        answer = await target.call(HttpClient(reactor), "POST", "/v1/push", push)
        print(msgspec.json.encode(answer).decode())
        return 0

    return run(work)


def listen(options: argparse.Namespace) -> int:
    """Print what a user receives."""
    target = find(options)
    for option, kind in (("uid", syntax.Uid), ("device", syntax.Device), ("since", syntax.Since)):
        value = getattr(options, option)
        if value is not None and not syntax.valid(kind, value):
            raise CommandError(f"--{option}: {value!r} is not valid")
    return run(lambda reactor: _listen(reactor, target, options))


async def _listen(reactor: Any, target: Target, options: argparse.Namespace) -> int:
    http = HttpClient(reactor)
    tokens = Tokens(target.settings)
    ended: Deferred[int] = Deferred()

    async def next_url() -> str:
        answer = await target.call(http, "GET", f"/v1/endpoint?uid={quote(options.uid)}")
        return str(answer["url"])

    def token() -> str:
        return tokens.issue(options.uid, options.role, [target.channel], _TOKEN_S, time.time())[0]

    def hear(kind: str, frame: dict[str, Any]) -> None:
        if kind == "status":
            _tell_status(frame)
            if frame["status"] == "stopped":
                ended.callback(1)
            return
        try:
            sys.stdout.write(msgspec.json.encode(frame).decode() + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            os._exit(1)  # nobody reads any more: at once, so that what was not read is not acknowledged

    client = IMClient(
        reactor,
        urls=next_url,
        get_token=token,
        device=options.device,
        hear=hear,
        since=options.since,
        platform=options.platform,
    )
    client.startService()
    reactor.addSystemEventTrigger("before", "shutdown", client.stopService)
    return await ended


def _tell_status(frame: dict[str, Any]) -> None:
    if frame["status"] == "waiting":
        complain(f"not connected ({frame['code']} {frame['reason']}); next try in {frame['delay_s']:.1f} s")
    elif frame["status"] == "stopped":
        complain(f"the server has ended this ({frame['code']} {frame['reason']})")
