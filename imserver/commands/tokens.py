"""``imctl token``."""

from __future__ import annotations

import argparse
import time
import typing
from typing import Any

import msgspec

from imserver.commands.target import CommandError, add_config, duration, find, json_object
from imserver.protocol import syntax
from imserver.protocol.tokens import INFO_MAX, TokenError, Tokens

ROLES = typing.get_args(syntax.Role)
PLATFORMS = typing.get_args(syntax.Platform)


def add(commands: Any) -> None:
    """Put this command among the others."""
    parser = commands.add_parser(
        "token",
        help="print a user's token",
        description="Print a token with which a user can connect.",
    )
    parser.add_argument("--uid", metavar="U", required=True, help="who")
    parser.add_argument("--role", metavar="R", required=True, choices=ROLES, help=", ".join(ROLES))
    add_config(parser, channel=False)
    parser.add_argument(
        "--channel",
        metavar="C",
        action="append",
        help="may be given several times; without it, the first one configured",
    )
    parser.add_argument("--ttl", metavar="TIME", type=duration, default=86400, help="1d (the default), 12h, 30m, 45s")
    parser.add_argument("--platform", metavar="P", choices=PLATFORMS, help=", ".join(PLATFORMS))
    parser.add_argument("--info", metavar="JSON", type=json_object, help='shown to the other side: {"name": "Ann"}')
    parser.set_defaults(run=token)


def token(options: argparse.Namespace) -> int:
    """Print a token."""
    names, options.channel = options.channel, None
    target = find(options)
    settings = target.settings
    names = names or [target.channel]
    for name in names:
        if name not in settings.channels:
            raise CommandError(f"there is no channel {name}; there is {', '.join(settings.channels)}")
    if not syntax.valid(syntax.Uid, options.uid):
        raise CommandError(f"--uid: {options.uid!r} is not 1-128 characters of A-Za-z0-9_.:@-")
    if options.ttl > settings.tokens.ttl_max_s:
        raise CommandError(f"--ttl: is longer than [tokens] ttl_max_s, {settings.tokens.ttl_max_s} s")
    if options.info is not None and len(msgspec.json.encode(options.info)) > INFO_MAX:
        raise CommandError(f"--info: is over {INFO_MAX} bytes")
    try:
        text, _ = Tokens(settings).issue(
            options.uid,
            options.role,
            list(dict.fromkeys(names)),
            options.ttl,
            time.time(),
            options.info,
            options.platform,
        )
    except TokenError as error:
        raise CommandError(str(error)) from None
    print(text)
    return 0
