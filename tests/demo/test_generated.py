"""What a demo makes for itself: ports, secrets, configuration."""

from __future__ import annotations

import os
import socket
import tomllib
from pathlib import Path
from typing import Any

import msgspec
from twisted.trial.unittest import TestCase

from imserver import config
from imserver.demo import generated, running
from imserver.demo.addresses import Addresses, DemoError, WorkerPorts, choose

ADDRESSES = Addresses(8080, 8081, 8082, 8083, (WorkerPorts(8090, 8091, 8092), WorkerPorts(8093, 8094, 8095)))


class Ports(TestCase):
    """Which ports are chosen."""

    def test_counted(self) -> None:
        """They follow the page's in a fixed order."""
        base = choose(0, 1).web
        chosen = choose(base, 2)
        self.assertEqual(chosen.ports()[:4], [base, base + 1, base + 2, base + 3])
        self.assertEqual(chosen.workers[1], WorkerPorts(base + 13, base + 14, base + 15))

    def test_free(self) -> None:
        """Any that are free: all different, and below those that the kernel gives away."""
        ports = choose(0, 3).ports()
        self.assertEqual(len(set(ports)), 13)
        self.assertLess(max(ports), 32768)

    def test_busy(self) -> None:
        """One that is taken is named, in one line."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            error = self.assertRaises(DemoError, choose, port, 1)
        self.assertIn(f"port {port} of 127.0.0.1 is in use", str(error))

    def test_nonsense(self) -> None:
        """Ports and numbers of workers that cannot be."""
        for port, workers in ((-1, 1), (65530, 2), (70000, 1), (0, 0), (0, 1000)):
            self.assertRaises(DemoError, choose, port, workers)


class Settings(TestCase):
    """The configuration of a demo."""

    def setUp(self) -> None:
        """A data directory."""
        self.data = Path(self.mktemp())
        self.data.mkdir()

    def settings(self, extra: dict[str, Any] | None = None, **environ: str) -> config.Config:
        """The configuration with these."""
        return generated.settings(ADDRESSES, self.data, generated.Secrets(self.data / "secrets.json"), extra, environ)

    def test_complete(self) -> None:
        """It is valid, has the three channels with keys of their own, and listens on the loopback."""
        made = self.settings()
        self.assertEqual(
            {name: channel.uplink for name, channel in made.channels.items()},
            {"demo": "business", "demo-direct": "direct", "demo-journal": "journal"},
        )
        self.assertEqual(len({channel.api_keys[0] for channel in made.channels.values()}), 3)
        self.assertEqual(made.dispatcher.listen, "tcp:8081:interface=127.0.0.1")
        self.assertEqual(made.worker.url, "ws://127.0.0.1:8090/ws")

    def test_secrets_stay(self) -> None:
        """A restart has the same secrets, which nobody else may read."""
        self.assertEqual(self.settings(), self.settings())
        self.assertEqual((self.data / "secrets.json").stat().st_mode & 0o777, 0o600)

    def test_own_settings(self) -> None:
        """What the user says wins, except for addresses; a channel without keys gets one."""
        extra: dict[str, Any] = {
            "delivery": {"ack_timeout_s": 1.0},
            "channels": {"orders": {"uplink": "direct"}, "demo": {"push_per_s": 7}},
            "redis": {"url": "redis://elsewhere:1/0", "command_timeout_s": 1.5},
            "database": {"url": "postgresql+psycopg://somewhere/db"},
        }
        made = self.settings(extra)
        self.assertEqual(made.delivery.ack_timeout_s, 1.0)
        self.assertEqual(len(made.channels["orders"].api_keys), 1)
        self.assertEqual((made.channels["demo"].push_per_s, made.channels["demo"].uplink), (7, "business"))
        self.assertTrue(made.redis.url.endswith("@127.0.0.1:8083/0"))
        self.assertEqual(made.redis.command_timeout_s, 1.5)
        self.assertEqual(made.database.url, "postgresql+psycopg://somewhere/db")
        self.assertEqual(next(iter(made.channels)), "demo")

    def test_environment(self) -> None:
        """The environment wins over both, except for addresses."""
        made = self.settings({"delivery": {"ack_timeout_s": 1.0}}, IM_DELIVERY__ACK_TIMEOUT_S="2", IM_REDIS__URL="x")
        self.assertEqual(made.delivery.ack_timeout_s, 2.0)
        self.assertTrue(made.redis.url.startswith("redis://"))

    def test_mistakes(self) -> None:
        """Every mistake of the user is named."""
        error = self.assertRaises(
            config.ConfigError,
            self.settings,
            {"delivery": {"ack": 1}, "worker": {"drain_s": "x"}, "channels": 3},
        )
        self.assertEqual(len(error.mistakes), 4)

    def test_toml(self) -> None:
        """The file says the same as the tree it was written from."""
        tree: dict[str, Any] = {
            "top": 1,
            "a": {
                "text": 'quo"te\\ \n',
                "list": ["x", "y"],
                "yes": True,
                "float": 1e-7,
                "b": {"c-d": {"e": 1}},
            },
            "odd key": {"x.y": 2},
            "empty": {},
        }
        known = tomllib.loads(generated.to_toml(tree))
        self.assertEqual(known | {"empty": {}}, tree)
        made = self.settings({"channels": {"orders": {}}})
        self.assertEqual(config.parse(tomllib.loads(generated.to_toml(msgspec.to_builtins(made))), {}), made)


class Finding(TestCase):
    """How other commands find a demo."""

    def setUp(self) -> None:
        """A data directory and a cache directory."""
        self.data = Path(self.mktemp()).absolute()
        self.data.mkdir()
        self.environ = {"XDG_CACHE_HOME": str(self.data)}

    def test_found(self) -> None:
        """While it runs, and not afterwards, even if it could not say so."""
        self.assertIsNone(running.find(self.environ))
        lock = running.Lock(self.data)
        told = running.Running(os.getpid(), str(self.data), "config", {"ready": True})
        running.announce(told, self.environ)
        pointer = self.data / "imserver" / "demo.json"
        self.assertEqual(pointer.stat().st_mode & 0o777, 0o600)
        self.assertEqual(running.find(self.environ), told)
        lock.release()
        self.assertIsNone(running.find(self.environ))
        running.withdraw(self.data, self.environ)
        self.assertFalse(pointer.exists())

    def test_second(self) -> None:
        """A second demo does not get the same data directory."""
        lock = running.Lock(self.data)
        self.assertIn("another demo", str(self.assertRaises(DemoError, running.Lock, self.data)))
        lock.release()
        running.Lock(self.data).release()
