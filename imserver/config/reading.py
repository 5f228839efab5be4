"""From a TOML file and the environment to a checked tree, with every mistake named at once."""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from imserver.config.checks import inconsistencies
from imserver.config.tree import Config

PREFIX = "IM_"
SECRET = frozenset({"secret", "api_keys", "url", "webhook_secrets", "webhook_url"})
"""Keys whose values are not shown to whoever reads of a mistake."""
S = TypeVar("S", bound=msgspec.Struct)


class ConfigError(Exception):
    """What is wrong with a configuration: `mistakes`, one sentence each, every one of them."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = mistakes


def load(path: str | Path, environ: Mapping[str, str]) -> Config:
    """The checked configuration of `path`, overridden by `environ`; `ConfigError` names every mistake."""
    return parse(read(path), environ)


def read(path: str | Path) -> dict[str, Any]:
    """The TOML file as plain dictionaries; `ConfigError` if it cannot be read or is not TOML."""
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            [f"{path}: cannot be read: {error.strerror}; imctl genconfig prints a configuration"]
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not TOML: {error}"]) from None


def parse(tree: dict[str, Any], environ: Mapping[str, str]) -> Config:
    """`tree` (as from TOML) with `environ` over it, typed and checked."""
    mistakes: list[str] = []
    config = _struct(Config, _override(tree, environ, mistakes), "", mistakes)
    mistakes.extend(inconsistencies(config))
    if mistakes:
        raise ConfigError(mistakes)
    return config


def _override(tree: dict[str, Any], environ: Mapping[str, str], mistakes: list[str]) -> dict[str, Any]:
    merged = _copy(tree)
    sections = {f.name for f in msgspec.structs.fields(Config)}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or "__" not in name:
            continue
        *parents, leaf = name[len(PREFIX) :].lower().split("__")
        if not parents or parents[0] not in sections:
            mistakes.append(f"{name}: there is no [{parents[0] if parents else ''}]; it is IM_SECTION__KEY")
            continue
        if parents[0] == "channels" and len(parents) > 1:
            parents[1] = parents[1].replace(
                "_", "-"
            )  # a channel's name has no underscore, an environment name no hyphen
        node = merged
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                mistakes.append(f"{name}: {parent} is a value, not a section")
                break
        else:
            node[leaf] = _FromEnvironment(environ[name])
    return merged


def _copy(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in tree.items()}


class _FromEnvironment(str):
    """A text that may have to become a number, a boolean or a list."""


def _struct(kind: type[S], data: Any, path: str, mistakes: list[str]) -> S:
    if not isinstance(data, dict):
        mistakes.append(f"{path}: is a section, not a value: write [{path}]")
        return kind()
    known = {f.name: f for f in msgspec.structs.fields(kind)}
    for key in data:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
            mistakes.append(f"{_join(path, key)}: unknown key; {hint}")
    values: dict[str, Any] = {}
    for name, described in known.items():
        if name in data:
            values[name] = _value(described.type, data[name], _join(path, name), mistakes)
    return kind(**{name: value for name, value in values.items() if value is not None})


def _value(kind: Any, value: Any, path: str, mistakes: list[str]) -> Any:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _struct(kind, value, path, mistakes)
    if typing.get_origin(kind) is dict:
        if not isinstance(value, dict):
            mistakes.append(f"{path}: is a section, not a value: write [{path}.NAME]")
            return None
        return {
            name: _struct(typing.get_args(kind)[1], item, _join(path, name), mistakes) for name, item in value.items()
        }
    if isinstance(value, _FromEnvironment):
        value = _untext(kind, value)
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        told = "" if path.rpartition(".")[2] in SECRET else f", got {value!r}"
        mistakes.append(f"{path}: {str(error)[0].lower()}{str(error)[1:]}{told}")
        return None


def _untext(kind: Any, text: str) -> Any:
    plain = typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind
    if plain is str or typing.get_origin(plain) in (Literal, types.UnionType):
        return str(text)
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return [item.strip() for item in text.split(",")] if typing.get_origin(plain) is list else str(text)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else str(key)
