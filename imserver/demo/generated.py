"""What a demo makes for itself: its secrets, once, and its configuration, at each start."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from imserver import config
from imserver.demo.addresses import HOST, Addresses, DemoError

CHANNEL = "demo"
SHOP = "demo-shop"
UPLINKS = {CHANNEL: "business", "demo-direct": "direct", "demo-journal": "journal"}
KEY = "demo"

Tree = dict[str, Any]


def cache_directory(environ: Mapping[str, str]) -> Path:
    """The user's cache directory, ours in it."""
    base = environ.get("XDG_CACHE_HOME") or ""
    if not os.path.isabs(base):
        base = os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".cache")
    return Path(base) / "imserver"


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)


class Secrets:
    """The secrets of one data directory, made when first asked for and kept, so that tokens outlive
    restarts.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, str] = {}
        if path.exists():
            try:
                self._known = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
            except msgspec.DecodeError as error:
                raise DemoError(f"{path}: is not what the demo wrote there ({error}); remove it") from None

    def get(self, name: str) -> str:
        """The secret of this name."""
        if name not in self._known:
            self._known[name] = secrets.token_hex(24)
            write_private(self._path, msgspec.json.format(msgspec.json.encode(self._known)).decode() + "\n")
        return self._known[name]


def settings(
    addresses: Addresses, data: Path, keep: Secrets, extra: Tree | None, environ: Mapping[str, str]
) -> config.Config:
    """The whole configuration of a demo; `config.ConfigError` names the mistakes in `extra` and `environ`.

    `extra` (as from TOML) wins over what is generated, and `environ` over both, but for the addresses.
    """
    mine: Tree = {
        "cluster": {"secret": keep.get("cluster")},
        "tokens": {"keys": {KEY: {"secret": keep.get("tokens")}}},
        "channels": {name: {"uplink": uplink} for name, uplink in UPLINKS.items()},
        "database": {"url": f"sqlite:///{data / 'imserver.sqlite'}"},
        "redis": {},
        "worker": {},
        "dispatcher": {},
        "business": {},
    }
    tree = _merged(mine, extra or {})
    channels = tree.get("channels")
    for name, channel in channels.items() if isinstance(channels, dict) else ():
        if isinstance(channel, dict) and "api_keys" not in channel:
            channel["api_keys"] = [keep.get(f"channels.{name}")]
    fixed = _addresses(addresses, keep)
    return config.parse(
        _merged(tree, fixed), {name: environ[name] for name in environ if name not in _fixed_names(fixed)}
    )


def _addresses(addresses: Addresses, keep: Secrets) -> Tree:
    return {
        "redis": {"url": f"redis://:{keep.get('redis')}@{HOST}:{addresses.redis}/0"},
        "worker": worker_settings(addresses, 0),
        "dispatcher": _http_server(addresses.dispatcher),
        "business": _http_server(addresses.business),
    }


def _http_server(port: int) -> Tree:
    return {"listen": endpoint(port), "url": f"http://{HOST}:{port}"}


def worker_settings(addresses: Addresses, index: int) -> dict[str, str]:
    """What differs from worker to worker in section [worker]."""
    ports = addresses.workers[index]
    return {
        "listen": endpoint(ports.ws),
        "http_listen": endpoint(ports.http),
        "rpc_listen": endpoint(ports.rpc),
        "url": f"ws://{HOST}:{ports.ws}/ws",
        "http_url": f"http://{HOST}:{ports.http}",
        "rpc_address": f"tcp:{HOST}:{ports.rpc}",
    }


def endpoint(port: int) -> str:
    """The server endpoint string of a port on the loopback."""
    return f"tcp:{port}:interface={HOST}"


def variable(section: str, key: str) -> str:
    """The environment variable that sets this key."""
    return f"{config.PREFIX}{section}__{key}".upper()


def _fixed_names(fixed: Tree) -> set[str]:
    return {variable(section, key) for section, keys in fixed.items() for key in keys}


def _merged(base: Tree, over: Tree) -> Tree:
    """`over` over `base`, section by section; neither is changed."""
    merged = {key: _merged(value, {}) if isinstance(value, dict) else value for key, value in base.items()}
    for key, value in over.items():
        if isinstance(value, dict):
            old = merged.get(key)
            merged[key] = _merged(old if isinstance(old, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def to_toml(tree: Tree, path: str = "") -> str:
    """A tree of sections as TOML."""
    values = [f"{_key(key)} = {_value(value)}\n" for key, value in tree.items() if not isinstance(value, dict)]
    text = (f"[{path}]\n" if path and values else "") + "".join(values)
    for key, value in tree.items():
        if isinstance(value, dict):
            text += "\n" * bool(text) + to_toml(value, f"{path}.{_key(key)}" if path else _key(key))
    return text


def _key(key: str) -> str:
    return key if key and key.isascii() and key.replace("-", "").replace("_", "").isalnum() else _value(key)


def _value(value: Any) -> str:
    """JSON writes strings, integers, booleans and lists as TOML does; floats Python does."""
    return repr(value) if isinstance(value, float) else msgspec.json.encode(value).decode()


def valkey_conf(addresses: Addresses, directory: Path, keep: Secrets) -> str:
    """The configuration of the embedded Valkey.

    `appendfsync always`: what was accepted survives the death of Redis and of the machine. With `everysec` an answer
    may go out before the write while an fsync is under way, and kill -9 loses it; `no` is safe for a process that
    dies, not for a machine.
    """
    return "\n".join(
        [
            f"bind {HOST}",
            f"port {addresses.redis}",
            f"requirepass {keep.get('redis')}",
            f'dir "{directory}"',
            "appendonly yes",
            "appendfsync always",
            'save ""',
            "maxmemory-policy noeviction",
            "daemonize no",
            "tcp-keepalive 60",
            "",
        ]
    )
