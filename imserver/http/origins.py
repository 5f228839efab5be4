"""Which web pages of other origins may call us (CORS). Tokens travel in headers, so there are no
credentials."""

from __future__ import annotations

from collections.abc import Collection, Sequence

_ASKED_HEADERS = "Authorization, Content-Type, Last-Event-ID"
_SHOWN_HEADERS = "Retry-After, WWW-Authenticate"
_MAX_AGE_S = 600


def answer_headers(origin: str | None, allowed: Collection[str]) -> dict[str, str]:
    """Headers for every answer to a page of `origin`; `allowed` are origins, or `*` for any."""
    if not allowed:
        return {}
    if "*" in allowed:
        return {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": _SHOWN_HEADERS}
    headers = {"Vary": "Origin"}
    if origin is not None and origin in allowed:
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = _SHOWN_HEADERS
    return headers


def preflight_headers(origin: str | None, allowed: Collection[str], methods: Sequence[str]) -> dict[str, str]:
    """Headers that an answer to OPTIONS has besides: what a page of `origin` may send, when it may at all."""
    headers = {"Allow": ", ".join(methods)}
    if "*" in allowed or (origin is not None and origin in allowed):
        headers["Access-Control-Allow-Methods"] = ", ".join(methods)
        headers["Access-Control-Allow-Headers"] = _ASKED_HEADERS
        headers["Access-Control-Max-Age"] = str(_MAX_AGE_S)
    return headers
