"""Typed routes: what one call of the HTTP interface takes and gives, and which route a request is for. No
I/O."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal
from urllib.parse import unquote

from twisted.web import server

from imserver.http.problems import method_not_allowed, not_found

Scheme = Literal["key", "token", "key or token", "cluster"]
METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")


class Taken(Enum):
    """What a function returns that has taken the request over (Server-Sent Events); it writes and finishes
    itself."""

    TAKEN = "taken"


TAKEN: Final = Taken.TAKEN


@dataclass(slots=True)
class Call:
    """One call, read and checked: what a route's function gets.

    `path` parameters by name, `query` and `body` as the route's structs (None if it has none), `identity` as
    the authenticator gave it (None for a route without a scheme), `raw` the bytes of the body, `lines` the
    raw lines of an NDJSON body (None for a JSON one), `request` for those who stream or look at headers.
    """

    request: server.Request
    path: dict[str, Any]
    query: Any = None
    body: Any = None
    identity: Any = None
    raw: bytes = b""
    lines: list[bytes] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with a status or headers other than the route's usual ones."""

    value: Any = None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


Function = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One call: `method` and `path` (`/v1/users/{uid}`), and what it takes and gives.

    The `function` is a coroutine from a `Call` to a struct of type `answer` (or anything else msgspec
    encodes), bytes that are already encoded, None (`{}`, or nothing for 204), a `Reply`, or `TAKEN`.

    `parameters` gives the types of the path's parameters. `query` and `body` are struct types, the latter
    better with `forbid_unknown_fields` (contract: HTTP). `body_shown` is the type in the OpenAPI document
    when the function decodes parts of its `body` itself (`list[Raw]`). `ndjson`: `application/x-ndjson` is
    taken too, as `Call.lines`. `media` is the content type of the answer. `stream`: the function takes the
    request over; no HEAD then. `problems` are statuses it may answer besides those that follow from the rest.
    `hidden`: not in the document.
    """

    method: str
    path: str
    function: Function
    summary: str
    answer: Any = None
    tag: str = "other"
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    query: Any = None
    body: Any = None
    body_shown: Any = None
    ndjson: bool = False
    status: int = 200
    auth: Scheme | None = None
    media: str = "application/json"
    stream: bool = False
    problems: tuple[int, ...] = ()
    hidden: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"{self.method} {self.path}: the method has to be one of {', '.join(METHODS)}")
        if not self.path.startswith("/"):
            raise ValueError(f"{self.method} {self.path}: the path has to start with /")
        if unknown := set(self.parameters) - set(self.names):
            raise ValueError(f"{self.method} {self.path}: no such parameter in the path: {', '.join(sorted(unknown))}")

    @property
    def names(self) -> list[str]:
        """The names of the path's parameters, in order."""
        return [part[1:-1] for part in self.path.split("/") if part.startswith("{")]


@dataclass(slots=True)
class _Place:
    """One path template and its routes by method."""

    template: str
    parts: list[str]
    routes: dict[str, Route] = field(default_factory=dict)

    @property
    def allowed(self) -> list[str]:
        methods: list[str] = [method for method in METHODS if method in self.routes]
        if "GET" in self.routes and not self.routes["GET"].stream:
            methods.insert(1, "HEAD")
        return [*methods, "OPTIONS"]

    def match(self, parts: Sequence[str]) -> dict[str, str] | None:
        values: dict[str, str] = {}
        for mine, given in zip(self.parts, parts, strict=True):
            if mine.startswith("{"):
                if not given:
                    return None
                values[mine[1:-1]] = unquote(given, errors="surrogateescape")
            elif mine != given and mine != unquote(given, errors="replace"):
                return None
        return values


@dataclass(frozen=True, slots=True)
class Match:
    """Where a path leads: its `template` and `routes` by method, the methods `allowed`, the `values` in the
    path."""

    template: str
    routes: Mapping[str, Route]
    allowed: list[str]
    values: dict[str, str]

    def route(self, method: str) -> Route | None:
        """The route for `method` (None for OPTIONS, GET's for HEAD); raises 405 when there is none."""
        if method not in self.allowed:
            raise method_not_allowed(self.allowed)
        return self.routes.get("GET" if method == "HEAD" else method)


class Table:
    """All routes of a server, to look requests up in. Literal parts of a path win over parameters."""

    def __init__(self, routes: Sequence[Route]) -> None:
        places: dict[str, _Place] = {}
        for route in routes:
            place = places.setdefault(route.path, _Place(route.path, route.path.split("/")))
            if route.method in place.routes:
                raise ValueError(f"{route.method} {route.path} is there twice")
            place.routes[route.method] = route
        self._by_length: dict[int, list[_Place]] = {}
        for place in sorted(places.values(), key=lambda place: [part.startswith("{") for part in place.parts]):
            self._by_length.setdefault(len(place.parts), []).append(place)

    def find(self, path: str) -> Match:
        """Where `path`, still URL-encoded, leads; raises 404 when it is nowhere."""
        parts = path.split("/")
        for place in self._by_length.get(len(parts), ()):
            values = place.match(parts)
            if values is not None:
                return Match(place.template, place.routes, place.allowed, values)
        raise not_found()
