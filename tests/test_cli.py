"""``imctl`` as a process: what it prints, and its exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import jwt
from twisted.trial.unittest import TestCase

from imserver import config
from imserver.protocol.tokens import Tokens

ROOT = Path(__file__).parent.parent

SETTINGS = """
[cluster]
secret = "a test's own cluster secret, 32+ characters"
[tokens.keys.test]
secret = "a test's own token secret, 32 or more"
[channels.demo]
api_keys = ["demo-key-0123456789"]
[channels.other]
api_keys = ["other-key-0123456789"]
[dispatcher]
url = "http://127.0.0.1:9"
"""


class Command(TestCase):
    """One command at a time."""

    def setUp(self) -> None:
        """A configuration, and a cache directory without a demo."""
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.file = self.directory / "imserver.toml"
        self.file.write_text(SETTINGS)

    def imctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it."""
        return subprocess.run(
            [sys.executable, "-m", "imserver.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "XDG_CACHE_HOME": str(self.directory), "PYTHONPATH": str(ROOT)},
        )

    def refused(self, *arguments: str, code: int = 1) -> str:
        """Its one line on stderr."""
        done = self.imctl(*arguments)
        self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (code, "", 1), done.stderr)
        return done.stderr

    def token(self, *arguments: str) -> str:
        """A token with these."""
        done = self.imctl("token", "--uid", "u", "--role", "customer", "--config", str(self.file), *arguments)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout.strip()

    def test_default_configuration(self) -> None:
        """`genconfig` prints what etc/ holds; it names what has to be filled in, one mistake a line."""
        printed = self.imctl("genconfig").stdout
        self.assertEqual(printed, (ROOT / "etc" / "imserver.toml").read_text())
        self.assertEqual(set(tomllib.loads(printed)), set(config.Config.__struct_fields__))
        self.file.write_text(printed)
        done = self.imctl("checkconfig", str(self.file))
        self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (1, "", 3))

    def test_checkconfig(self) -> None:
        """A good one is ok, a file that is not there one clear line."""
        done = self.imctl("checkconfig", str(self.file))
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, f"{self.file}: ok\n", ""))
        self.assertIn("cannot be read", self.refused("checkconfig", "/nowhere.toml"))

    def test_token(self) -> None:
        """A token that the servers accept, with all that was asked for."""
        text = self.token(
            "--ttl",
            "2h",
            "--platform",
            "ios",
            "--info",
            '{"name": "Ann"}',
            "--channel",
            "other",
            "--channel",
            "demo",
        )
        claims = Tokens(config.load(self.file, {})).verify(text, time.time())
        self.assertEqual(
            (claims.uid, claims.role, claims.channels, claims.platform, claims.info),
            ("u", "customer", ("other", "demo"), "ios", {"name": "Ann"}),
        )
        self.assertLess(abs(claims.exp - time.time() - 7200), 60)

    def test_token_defaults(self) -> None:
        """One day, the first channel."""
        payload = jwt.decode(self.token(), options={"verify_signature": False})
        self.assertEqual((payload["channel"], payload["exp"] - payload["iat"]), ("demo", 86400))

    def test_token_mistakes(self) -> None:
        """Each is one clear line."""
        common = ["token", "--config", str(self.file), "--role", "customer", "--uid"]
        self.assertIn("no channel nope; there is demo, other", self.refused(*common, "u", "--channel", "nope"))
        self.assertIn("--uid", self.refused(*common, "with space"))
        self.assertIn("ttl_max_s", self.refused(*common, "u", "--ttl", "9999d"))
        self.assertIn("1024 bytes", self.refused(*common, "u", "--info", '{"x": "' + 2000 * "x" + '"}'))
        self.assertIn("not a time", self.refused(*common, "u", "--ttl", "soon", code=2))
        self.assertIn("not a JSON object", self.refused(*common, "u", "--info", "[1]", code=2))
        self.assertIn("customer", self.refused("token", "--uid", "u", "--role", "king", code=2))

    def test_without_demo(self) -> None:
        """Without a demo and without --config it says what would do."""
        self.assertIn("no demo is running", self.refused("token", "--uid", "u", "--role", "customer"))

    def test_unknown(self) -> None:
        """Unknown commands, options and files."""
        self.assertIn("frobnicate", self.refused("frobnicate", code=2))
        self.assertIn("--frob", self.refused("genconfig", "--frob", code=2))
        self.refused(code=2)
        self.assertIn("cannot be read", self.refused("status", "--config", "/nowhere.toml"))

    def test_dispatcher_away(self) -> None:
        """A dispatcher that is not there is one clear line."""
        where = ["--config", str(self.file)]
        for command in (
            ["send", "--to", "u", "--text", "hi"],
            ["kick", "u"],
            ["ban", "uid", "u"],
            ["drain", "w"],
        ):
            self.assertIn("the dispatcher cannot be reached", self.refused(*command, *where))

    def test_demo_mistakes(self) -> None:
        """A demo with a mistake in its settings says so and does not start."""
        self.file.write_text("[delivery]\nack = 1\n[nothing]\n")
        line = self.refused(
            "demo",
            "--port",
            "0",
            "--json",
            "--data",
            str(self.directory / "data"),
            "--config",
            str(self.file),
        )
        self.assertIn("delivery.ack", line)
        self.assertIn("nothing", line)

    def test_help(self) -> None:
        """Every command explains itself."""
        commands = (
            "demo",
            "token",
            "send",
            "listen",
            "status",
            "ban",
            "unban",
            "kick",
            "drain",
            "genconfig",
            "checkconfig",
        )
        listed = self.imctl("--help").stdout
        for command in commands:
            self.assertIn(command, listed)
