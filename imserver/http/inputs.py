"""What comes in - body, query, path - read into structs, or refused with a problem (contract: HTTP)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from imserver.http.problems import Problem, bad_json, bad_query, from_validation, invalid
from imserver.protocol.syntax import too_deep


class _NotJson(Exception):
    """What the strict look found: no JSON, or JSON that two readers may understand differently."""


def _unique(pairs: list[tuple[str, object]]) -> None:
    if len(dict(pairs)) != len(pairs):
        raise _NotJson("JSON has a name twice in one object")


def _finite(text: str) -> None:
    if math.isinf(float(text)):
        raise ValueError("number out of range")


def _constant(text: str) -> None:
    raise _NotJson(f"{text} is not JSON")


_TOO_DEEP = "JSON is nested too deeply"
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_constant)


@lru_cache(maxsize=512)
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def read_json(raw: bytes, kind: Any, *, prefix: str = "", checked: bool = False) -> Any:
    """`raw` as a `kind` (any type msgspec knows), or a Problem.

    400 `invalid_json` for what is not JSON (NaN, Infinity, lone surrogates, names given twice and bottomless
    nesting included) or not UTF-8, even where `kind` would not look because it has a `msgspec.Raw` there; 422
    `invalid_frame` with the `field` for what does not fit. So every JSON reader behind us understands what
    passes, and all the same.

    `prefix` is the path of `raw` inside of what came in (`messages[3]`), `checked` says that `raw` is a part
    of what was already read here, so that only `kind` is to be looked at.
    """
    wrong: Problem | None = None
    try:
        text = "" if checked else raw.decode()
        value = _decoder(kind).decode(raw)
    except msgspec.ValidationError as error:
        wrong = from_validation(error, prefix)
    except UnicodeDecodeError:
        raise bad_json("The body is not UTF-8.") from None
    except RecursionError:
        raise bad_json(_TOO_DEEP) from None
    except msgspec.DecodeError as error:
        raise bad_json(str(error)) from None
    if not checked:
        if too_deep(raw):
            raise bad_json(_TOO_DEEP)
        try:
            if wrong:  # msgspec stops at the first field that does not fit: the rest may not even be JSON
                _decoder(msgspec.Raw).decode(raw)
            _STRICT.decode(text)
        except RecursionError:
            raise bad_json(_TOO_DEEP) from None
        except (_NotJson, msgspec.DecodeError, json.JSONDecodeError) as error:
            raise bad_json(str(error)) from None
        except ValueError:
            raise wrong or invalid("A number is out of range.") from None
    if wrong:
        raise wrong
    return value


def read_lines(raw: bytes) -> list[bytes]:
    """The lines of an NDJSON body, empty ones left out; each is to be read by `read_json` on its own."""
    return [line for line in (piece.strip(b" \t\r") for piece in raw.split(b"\n")) if line]


def read_query(query: bytes, kind: Any) -> Any:
    """A query string as the struct `kind`; 400 `invalid_frame` when it is broken.

    The last of a repeated parameter wins; unknown ones are ignored.
    """
    try:
        if _BROKEN_ESCAPE.search(query):
            raise ValueError("broken escape")
        pairs = parse_qsl(query.decode(), keep_blank_values=True, errors="strict", max_num_fields=100, separator="&")
    except ValueError:
        raise bad_query("The query cannot be read: it has to be URL-encoded UTF-8.") from None
    try:
        value = msgspec.convert(dict(pairs), kind, strict=False)
    except msgspec.ValidationError as error:
        raise from_validation(error, status=400) from None
    for field in msgspec.structs.fields(kind):
        number = getattr(value, field.name)
        if isinstance(number, float) and not math.isfinite(number):
            raise bad_query("Expected a finite number", field.encode_name)
    return value


def read_path(values: Mapping[str, str], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a path, each as its type in `kinds` (`str` if it has none); 422 with its name if it
    is not."""
    read: dict[str, Any] = {}
    for name, value in values.items():
        try:
            value.encode()
            read[name] = msgspec.convert(value, kinds.get(name, str), strict=False)
        except UnicodeEncodeError:
            raise invalid("The path is not UTF-8.", name) from None
        except msgspec.ValidationError as error:
            raise invalid(str(error), name) from None
    return read
