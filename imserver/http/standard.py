"""The routes that every server has, without a key (contract: HTTP): health, readiness, metrics,
documentation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final, Literal

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from imserver.http import openapi
from imserver.http.problems import unavailable
from imserver.http.routes import Call, Reply, Route

CHECK_S: Final = 2.0
_RETRY_S: Final = 2
_POLICY: Final = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_FILES: Final = {
    "/docs": ("index.html", "text/html; charset=utf-8"),
    "/docs/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/docs/docs.css": ("docs.css", "text/css; charset=utf-8"),
    "/docs/icon.svg": ("icon.svg", "image/svg+xml"),
}

Check = Callable[[], Awaitable[Any]]
log = Logger()


class Health(msgspec.Struct):
    """The process is up."""

    status: Literal["ok"] = "ok"


class Readiness(msgspec.Struct):
    """All parts that the server needs can be reached."""

    parts: dict[str, Literal["ok"]]
    status: Literal["ready"] = "ready"


def with_standard(
    routes: Sequence[Route],
    *,
    title: str,
    version: str,
    description: str = "",
    checks: Mapping[str, Check],
    registry: CollectorRegistry,
    clock: IReactorTime,
) -> list[Route]:
    """`routes` and the standard ones, which describe them all.

    Each of `checks` is a coroutine that ends within CHECK_S seconds and without an exception when its part
    can be reached; `registry` holds the metrics. `title` and `version` are those of the OpenAPI document.
    """
    document = b""

    async def health(call: Call) -> Health:
        return Health()

    async def readiness(call: Call) -> Readiness:
        return await ready(checks, clock)

    async def metrics(call: Call) -> bytes:
        return bytes(generate_latest(registry))

    async def describe(call: Call) -> bytes:
        return document

    everything = [
        *routes,
        Route(
            method="GET",
            path="/healthz",
            function=health,
            answer=Health,
            tag="operation",
            summary="Is the process up?",
        ),
        Route(
            method="GET",
            path="/readyz",
            function=readiness,
            answer=Readiness,
            tag="operation",
            summary="Can all parts that the server needs be reached?",
            problems=(503,),
        ),
        Route(
            method="GET",
            path="/metrics",
            function=metrics,
            media=CONTENT_TYPE_PLAIN_0_0_4,
            tag="operation",
            summary="Metrics as Prometheus reads them",
        ),
        Route(
            method="GET",
            path="/openapi.json",
            function=describe,
            tag="operation",
            summary="This description, OpenAPI 3.1",
        ),
        *(_page(path, name, media) for path, (name, media) in _FILES.items()),
    ]
    document = msgspec.json.encode(openapi.document(everything, title=title, version=version, description=description))
    return everything


async def ready(checks: Mapping[str, Check], clock: IReactorTime) -> Readiness:
    """Make all checks at once; raises the 503 that names the parts that are away."""
    results = await gatherResults([_made(name, check, clock) for name, check in checks.items()])
    parts = dict(zip(checks, results, strict=True))
    if away := [name for name, result in parts.items() if result != "ok"]:
        raise unavailable(f"Away: {', '.join(away)}.", _RETRY_S, parts=parts)
    return Readiness(parts=dict.fromkeys(parts, "ok"))


def _made(name: str, check: Check, clock: IReactorTime) -> Deferred[str]:
    async def attempt() -> str:
        await check()
        return "ok"

    made = Deferred.fromCoroutine(attempt()).addTimeout(CHECK_S, clock)

    def away(failure: Any) -> str:
        log.warn("{name} is away: {reason}", name=name, reason=failure.getErrorMessage())
        return "away"

    return made.addErrback(away)


def _page(path: str, name: str, media: str) -> Route:
    content = files("imserver.http").joinpath("docs", name).read_bytes()

    async def page(call: Call) -> Reply:
        return Reply(content, headers={"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer"})

    return Route(
        method="GET",
        path=path,
        function=page,
        media=media,
        tag="operation",
        summary="This description, for people",
        hidden=path != "/docs",
    )
