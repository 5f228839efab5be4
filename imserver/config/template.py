"""The configuration as a commented file: what `imctl genconfig` prints."""

from __future__ import annotations

import typing
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from imserver.config.tree import Channel, Config, Key, Tokens


def default_toml() -> str:
    """A commented configuration with every key: what `imctl genconfig` prints and `etc/imserver.toml` holds."""
    lines = [
        "# imserver: every key with its default. Only the lines that say FILL IN have to be filled in.",
        "# The environment overrides this file: IM_REDIS__URL sets [redis] url.",
        "",
    ]
    for section in msgspec.structs.fields(Config):
        kind = section.type
        if typing.get_origin(kind) is dict:
            lines += _section("channels.custom-tour", Channel)
        else:
            lines += _section(section.name, kind)
            if kind is Tokens:
                lines += _section("tokens.keys.main", Key)
    return "\n".join(lines)


_FILL_IN = {"cluster.secret", "tokens.keys.main.secret", "channels.custom-tour.api_keys"}


def _section(name: str, kind: type[msgspec.Struct]) -> list[str]:
    lines = [f"# {line.strip()}" for line in (kind.__doc__ or "").strip().splitlines()]
    lines.append(f"[{name}]")
    for described in msgspec.structs.fields(kind):
        if typing.get_origin(described.type) is dict:
            continue
        default = described.default if described.default is not msgspec.NODEFAULT else described.default_factory()
        text = _description(described.type)
        lines.append(f"# {text}" if text else "#")
        path = f"{name}.{described.name}"
        if path in _FILL_IN:
            example = ["..."] if isinstance(default, list) else "..."
            lines.append(f"# FILL IN: {described.name} = {_toml(example)}")
        else:
            lines.append(f"{described.name} = {_toml(default)}")
    return [*lines, ""]


def _description(kind: Any) -> str:
    found = [m.description for m in getattr(kind, "__metadata__", ()) if isinstance(m, Meta) and m.description]
    text = str(found[-1]) if found else ""
    plain = kind
    while typing.get_origin(plain) is Annotated:
        plain = typing.get_args(plain)[0]
    if typing.get_origin(plain) is Literal:
        text += f" ({', '.join(map(str, typing.get_args(plain)))})"
    return text


def _toml(value: Any) -> str:
    """A value as TOML; JSON writes strings, numbers, booleans and lists the same way."""
    return msgspec.json.encode(value).decode()
