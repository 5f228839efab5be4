"""``imctl genconfig`` and ``imctl checkconfig``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from imserver import config


def add(commands: Any) -> None:
    """Put these commands among the others."""
    parser = commands.add_parser(
        "genconfig",
        help="print a commented configuration",
        description="Print a configuration with every key, its meaning and its default.",
    )
    parser.set_defaults(run=genconfig)
    parser = commands.add_parser(
        "checkconfig",
        help="check a configuration",
        description="Name every mistake in a configuration (and in the IM_... variables that override it).",
    )
    parser.add_argument("file", metavar="FILE")
    parser.set_defaults(run=checkconfig)


def genconfig(options: argparse.Namespace) -> int:
    """Print a commented configuration."""
    sys.stdout.write(config.default_toml())
    return 0


def checkconfig(options: argparse.Namespace) -> int:
    """Print each mistake on a line of its own."""
    try:
        config.load(options.file, os.environ)
    except config.ConfigError as error:
        for mistake in error.mistakes:
            print(" ".join(mistake.split()), file=sys.stderr)
        return 1
    print(f"{options.file}: ok")
    return 0
