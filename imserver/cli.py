"""``imctl``: the command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import imserver
from imserver.commands import bench, configuration, demonstration, messages, operations, tokens, trace, webhooks
from imserver.commands.target import CommandError, complain


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage text around it."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    made = _Parser(prog="imctl", description="Try, run and watch imserver.", allow_abbrev=False)
    made.add_argument("--version", action="version", version=f"imserver {imserver.__version__}")
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    for module in (demonstration, tokens, messages, operations, trace, webhooks, configuration, bench):
        module.add(commands)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0, or 1 after one line on stderr."""
    options = parser().parse_args(arguments)
    try:
        code = options.run(options)
        sys.stdout.flush()
    except CommandError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # as in `imctl genconfig | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
