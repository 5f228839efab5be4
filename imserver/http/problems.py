"""Errors of the HTTP interface as RFC 9457 problems (contract: HTTP, the table of statuses)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus

import msgspec

from imserver.protocol.codes import ErrorCode
from imserver.protocol.syntax import plain

MEDIA = "application/problem+json"
_LONGEST_DETAIL = 300
_LONGEST_FIELD = 200
_PLACE = re.compile(r"(?P<detail>.*) - at (?P<key>`key` in )?`\$(?P<path>.*)`", re.DOTALL)
_NAMED = re.compile(r".*(?:missing required|unknown) field `(?P<name>.*)`", re.DOTALL)


class ProblemDocument(msgspec.Struct, omit_defaults=False):
    """What an error looks like on the wire: RFC 9457 with the `code` of the contract.

    `field` is the path of the offending one, such as `messages[3].to`; `parts` are the parts that a server
    needs and how they are (only in a 503 of `/readyz`).
    """

    type: str
    title: str
    status: int
    detail: str
    code: ErrorCode
    field: str | msgspec.UnsetType = msgspec.UNSET
    parts: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


class Problem(Exception):
    """An error with its HTTP status; raise it anywhere in a call and the client gets it as a problem
    document.

    `headers` go out with it (such as `Retry-After`); `field` is the path of the offending field.
    """

    def __init__(
        self,
        status: int,
        code: ErrorCode,
        detail: str,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        parts: dict[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code: ErrorCode = code
        self.detail = detail[:_LONGEST_DETAIL]
        self.field = field[:_LONGEST_FIELD] if field else None
        self.headers: dict[str, str] = dict(headers or {})
        self.parts = parts

    def document(self) -> ProblemDocument:
        """The problem as it goes out; also what a batch puts into `error` of one result."""
        return ProblemDocument(
            type="about:blank",
            title=HTTPStatus(self.status).phrase,
            status=self.status,
            detail=self.detail,
            code=self.code,
            field=self.field or msgspec.UNSET,
            parts=self.parts or msgspec.UNSET,
        )

    def body(self) -> bytes:
        """The document as bytes of `application/problem+json`."""
        return msgspec.json.encode(self.document())


def bad_json(detail: str) -> Problem:
    """400: not JSON or not UTF-8."""
    return Problem(400, "invalid_json", detail)


def bad_query(detail: str, field: str | None = None) -> Problem:
    """400: a query that cannot be read, or one that is out of range."""
    return Problem(400, "invalid_frame", detail, field)


def unauthorized(detail: str = "A valid key or token is needed: Authorization: Bearer ...") -> Problem:
    """401: no or a wrong key or token."""
    return Problem(401, "not_allowed", detail, headers={"WWW-Authenticate": "Bearer"})


def forbidden(detail: str) -> Problem:
    """403: known, but not allowed."""
    return Problem(403, "not_allowed", detail)


def not_found(detail: str = "There is no such thing.") -> Problem:
    """404: no such thing."""
    return Problem(404, "not_found", detail)


def method_not_allowed(allowed: Iterable[str]) -> Problem:
    """405: no such method on it; `Allow` says which there are."""
    allow = ", ".join(allowed)
    return Problem(405, "not_allowed", f"Here one may: {allow}.", headers={"Allow": allow})


def conflict(detail: str, code: ErrorCode = "conflict") -> Problem:
    """409: the state of the thing forbids it (`conflict` or `no_agent`)."""
    return Problem(409, code, detail)


def too_large(limit: int) -> Problem:
    """413: the body is over `limit` bytes, announced or arriving."""
    return Problem(413, "too_large", f"A body may have at most {limit} bytes.")


def wrong_media(accepted: str) -> Problem:
    """415: another content type than the `accepted` one."""
    return Problem(415, "invalid_frame", f"The content type has to be {accepted}.")


def invalid(detail: str, field: str | None = None, code: ErrorCode = "invalid_frame") -> Problem:
    """422: JSON, but missing, ill-typed or out-of-range fields (or, with its code, a word that is
    blocked)."""
    return Problem(422, code, detail, field)


def rate_limited(retry_after_s: int = 1, detail: str = "Too many calls; try again later.") -> Problem:
    """429: too many calls; `retry_after_s` in seconds."""
    return Problem(429, "rate_limited", detail, headers={"Retry-After": str(max(1, retry_after_s))})


def unavailable(
    detail: str = "A part that is needed is away; try again.",
    retry_after_s: int = 1,
    *,
    parts: dict[str, str] | None = None,
) -> Problem:
    """503: a part it needs is away; `retry_after_s` in seconds."""
    return Problem(503, "unavailable", detail, headers={"Retry-After": str(max(1, retry_after_s))}, parts=parts)


def internal() -> Problem:
    """500: our own mistake; the log has it, the client gets no internals."""
    return Problem(500, "internal", "Something went wrong here; it has been logged.")


def from_validation(error: msgspec.ValidationError, prefix: str = "", status: int = 422) -> Problem:
    """What msgspec found wrong, with the path of the field as the contract writes it: `messages[3].to`.

    msgspec says where by ` - at `$.messages[3].to``, and of a missing or unknown field only where its owner
    is; `prefix` is the path of what was decoded, when that was itself a part of something.
    """
    detail, path = str(error), ""
    if place := _PLACE.fullmatch(detail):
        detail, path = place["detail"], place["path"]
        if place["key"]:
            detail += " in a key"
    if named := _NAMED.fullmatch(detail):
        path += f".{named['name']}"
    field = (prefix + path).removeprefix(".")
    return Problem(status, "invalid_frame", plain(detail), field)
