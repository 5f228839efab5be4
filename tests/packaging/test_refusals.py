"""Tests of the three servers as an operator starts them wrongly: one line on stderr, exit code 1."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from pathlib import Path

from twisted.trial.unittest import SkipTest, TestCase

from tests.ops.processes import Process, start_twistd
from tests.servers import free_port, shared_valkey

CONFIG = """
[redis]
startup_wait_s = 0.5
[database]
url = "sqlite:///test.sqlite"
[cluster]
secret = "0123456789abcdef0123456789abcdef"
[tokens.keys.main]
secret = "0123456789abcdef0123456789abcdef"
[channels.test]
api_keys = ["0123456789abcdef"]
[worker]
listen = "tcp:0:interface=127.0.0.1"
http_listen = "tcp:0:interface=127.0.0.1"
[dispatcher]
listen = "tcp:0:interface=127.0.0.1"
[business]
listen = "tcp:0:interface=127.0.0.1"
"""


class RefusalTests:
    """What is the same for each server; a subclass says which it is."""

    server: str
    timeout = 120

    def setUp(self) -> None:
        """Skip where the server is missing."""
        name = self.server.removeprefix("im-")
        self.section = name.upper()
        package = f"imserver.{name}"
        if find_spec(package) is None or find_spec(f"{package}.tap") is None:
            raise SkipTest(f"{package}.tap does not exist")

    def start(self, *arguments: str, environ: dict[str, str] | None = None) -> Process:
        """Start the server."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        (directory / "test.toml").write_text(CONFIG)
        return start_twistd(self, [self.server, *arguments], directory=str(directory), environ=environ or {})

    async def refused(self, process: Process) -> str:
        """Wait for the end that the contract asks for; gives the line."""
        code = await process.when_ended()
        self.assertEqual((code, process.err.count("\n")), (1, 1), process.err + process.out)
        self.assertTrue(process.err.startswith(f"{self.server}: "), process.err)
        return process.err

    async def test_configuration(self) -> None:
        """Every mistake of the configuration is in the line, and no usage text beside it."""
        environ = {"IM_CLUSTER__SECRET": "short", f"IM_{self.section}__LISTEN": "nowhere"}
        line = await self.refused(self.start("--config", "test.toml", environ=environ))
        self.assertIn("cluster.secret", line)
        self.assertIn(f"{self.section.lower()}.listen", line)

    async def test_missing_file(self) -> None:
        """A configuration that is not there is told by its name."""
        self.assertIn("nowhere.toml", await self.refused(self.start("--config", "nowhere.toml")))

    async def test_no_configuration(self) -> None:
        """Without any configuration there is nothing to start with."""
        self.assertIn("--config", await self.refused(self.start()))

    async def test_redis(self) -> None:
        """A Redis that is not there is told after ``startup_wait_s``, with its address."""
        url = f"redis://127.0.0.1:{free_port()}/0"
        line = await self.refused(self.start("--config", "test.toml", environ={"IM_REDIS__URL": url}))
        self.assertIn(url.removesuffix("/0").removeprefix("redis://"), line)

    async def test_busy_port(self) -> None:
        """A busy port is told with its address and the setting to change."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            where = f"tcp:{other.getsockname()[1]}:interface=127.0.0.1"
            environ = {"IM_REDIS__URL": shared_valkey().url, f"IM_{self.section}__LISTEN": where}
            line = await self.refused(self.start("--config", "test.toml", environ=environ))
        self.assertIn(f"cannot listen on {where}: address already in use", line)
        self.assertIn(f"[{self.section.lower()}] listen", line)


class WorkerRefusalTests(RefusalTests, TestCase):
    """The worker."""

    server = "im-worker"


class DispatcherRefusalTests(RefusalTests, TestCase):
    """The dispatcher."""

    server = "im-dispatcher"


class BusinessRefusalTests(RefusalTests, TestCase):
    """The business server."""

    server = "im-business"
