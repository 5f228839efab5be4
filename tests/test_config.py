"""The configuration: what is read, what overrides it, and every mistake at once."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from imserver import config

GOOD: dict[str, Any] = {
    "cluster": {"secret": "s" * 32},
    "tokens": {"keys": {"main": {"secret": "t" * 32}}},
    "channels": {"demo": {"api_keys": ["k" * 16]}},
}


class ConfigTests(SynchronousTestCase):
    """`config.parse` and `config.load`."""

    def mistakes(self, tree: dict[str, Any], environ: dict[str, str] | None = None) -> list[str]:
        """What is wrong with it."""
        return self.assertRaises(config.ConfigError, config.parse, tree, environ or {}).mistakes

    def test_defaults(self) -> None:
        """Only secrets, keys and channels have to be there; the contract's defaults are the defaults."""
        found = config.parse(GOOD, {})
        self.assertEqual((found.delivery.ack_timeout_s, found.delivery.retransmissions), (18.0, 3))
        self.assertEqual((found.connection.heartbeat_s, found.connection.max_frame), (60.0, 65536))
        self.assertEqual((found.connection.frames_per_s, found.connection.frames_burst), (100, 500))
        self.assertEqual((found.redis.startup_wait_s, found.messages.recall_s), (30.0, 120))
        self.assertEqual(found.channels["demo"].uplink, "business")

    def test_environment(self) -> None:
        """IM_SECTION__KEY overrides the file, whatever the type of the key."""
        found = config.parse(
            GOOD,
            {
                "IM_REDIS__URL": "redis://h:1/2",
                "IM_DELIVERY__ACK_TIMEOUT_S": "2",
                "IM_ASSIGNMENT__STICKY": "false",
                "IM_CHANNELS__CUSTOM_TOUR__API_KEYS": '["aaaaaaaaaaaaaaaa"]',
                "IM_WORKER__ALLOWED_ORIGINS": "https://a.example, https://b.example",
                "IM_LOG_DIR": "/var/log",
            },
        )
        self.assertEqual((found.redis.url, found.delivery.ack_timeout_s), ("redis://h:1/2", 2.0))
        self.assertFalse(found.assignment.sticky)
        self.assertEqual(found.channels["custom-tour"].api_keys, ["aaaaaaaaaaaaaaaa"])
        self.assertEqual(found.worker.allowed_origins, ["https://a.example", "https://b.example"])

    def test_every_mistake_at_once(self) -> None:
        """Each with its key and what would do."""
        tree = {
            "reddis": {},
            "worker": {"lisen": "tcp:1", "listen": "nonsense", "lease_ttl_s": "soon"},
            "delivery": {"ack_timeout_s": -1},
            "channels": {"Bad_Name": {"uplink": "sideways"}},
            "tokens": 3,
        }
        found = self.mistakes(tree, {"IM_NOWHERE__KEY": "1"})
        for key, hint in (
            ("reddis", "redis"),
            ("worker.lisen", "listen"),
            ("worker.listen", "endpoint"),
            ("worker.lease_ttl_s", "float"),
            ("delivery.ack_timeout_s", "> 0"),
            ("channels.Bad_Name", "a-z0-9-"),
            ("channels.Bad_Name.uplink", "sideways"),
            ("channels.Bad_Name.api_keys", "openssl"),
            ("tokens", "section"),
            ("tokens.keys", "tokens.keys.main"),
            ("cluster.secret", "32"),
            ("IM_NOWHERE__KEY", "nowhere"),
        ):
            self.assertTrue([text for text in found if text.startswith(f"{key}:") and hint in text], (key, found))

    def test_largest_body(self) -> None:
        """A body that could not travel between the servers is a mistake; what the largest does is tested elsewhere."""
        self.assertEqual(config.BODY_MAX, 262144)
        self.assertEqual(config.parse(GOOD | {"messages": {"body_max": 262144}}, {}).messages.body_max, 262144)
        self.assertEqual(
            self.mistakes(GOOD | {"messages": {"body_max": 262145}}),
            ["messages.body_max: expected `int` <= 262144, got 262145"],
        )

    def test_no_default_secrets(self) -> None:
        """Each secret has to be there, and long enough; a key belongs to one channel."""
        for path in ("cluster", "tokens", "channels"):
            self.assertTrue(self.mistakes({name: value for name, value in GOOD.items() if name != path}))
        twice = GOOD | {"channels": {"a": {"api_keys": ["k" * 16]}, "b": {"api_keys": ["k" * 16]}}}
        self.assertIn("key of channel a", " ".join(self.mistakes(twice)))

    def test_webhook(self) -> None:
        """A webhook has an address and usable secrets, and wants events that there are."""
        hook = {"webhook_url": "ftp://x", "webhook_secrets": ["whsec_MfKQ9r8", "hush"], "webhook_events": ["nonsense"]}
        found = self.mistakes(GOOD | {"channels": {"a": {"api_keys": ["k" * 16], **hook}}})
        keys = ("webhook_url", "webhook_secrets[0]", "webhook_secrets[1]", "webhook_events")
        self.assertEqual(sorted(text.split(":")[0] for text in found), sorted(f"channels.a.{key}" for key in keys))
        self.assertNotIn("hush", " ".join(found))
        hook = {"webhook_url": "https://x"}
        (found,) = self.mistakes(GOOD | {"channels": {"a": {"api_keys": ["k" * 16], **hook}}})
        self.assertIn("openssl rand -base64 32", found)

    def test_hours(self) -> None:
        """Opening hours and their time zone have to be some."""
        shop = {"opening_hours": ["mon-fri 09:00-18:00", "monday 9-18"], "time_zone": "Mars/Base"}
        found = self.mistakes(GOOD | {"channels": {"a": {"api_keys": ["k" * 16], **shop}}})
        keys = sorted(text.split(":")[0] for text in found)
        self.assertEqual(keys, ["channels.a.opening_hours[1]", "channels.a.time_zone"])

    def test_a_secret_is_not_told(self) -> None:
        """A mistake in a secret does not put it on the terminal."""
        found = " ".join(self.mistakes(GOOD | {"cluster": {"secret": ["hush-hush"]}}))
        self.assertNotIn("hush-hush", found)

    def test_template(self) -> None:
        """The commented configuration says what has to be filled in, and nothing else is wrong with it."""
        tree = tomllib.loads(config.default_toml())
        keys = sorted(text.split(":")[0] for text in self.mistakes(tree))
        self.assertEqual(keys, ["channels.custom-tour.api_keys", "cluster.secret", "tokens.keys.main.secret"])

    def test_files(self) -> None:
        """A file that is not there, or is no TOML, is one clear mistake."""
        self.assertIn("no such file", str(self.assertRaises(config.ConfigError, config.load, "/no/file", {})).lower())
        path = Path(self.mktemp())
        path.write_text("[redis")
        self.assertIn("not TOML", str(self.assertRaises(config.ConfigError, config.load, path, {})))
