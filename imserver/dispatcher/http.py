"""The dispatcher's HTTP interface: all its calls, and who may make them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from imserver import __version__, config
from imserver.data.bans import Bans
from imserver.data.interface import Inboxes, Unavailable
from imserver.data.journal import Journal
from imserver.dispatcher.access import Access
from imserver.dispatcher.backoffice import BackOffice
from imserver.dispatcher.blacklist import Blacklist
from imserver.dispatcher.presence import Whereabouts
from imserver.dispatcher.pushing import Pushing
from imserver.http.problems import Problem, unavailable
from imserver.http.resource import Api
from imserver.http.routes import Call, Route
from imserver.http.standard import Check, with_standard
from imserver.ops.metrics import Metrics
from imserver.protocol.tokens import Tokens
from imserver.routing.router import Router

log = Logger()


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the calls work with."""

    settings: config.Config
    clock: IReactorTime
    router: Router
    inboxes: Inboxes
    bans: Bans
    journal: Journal
    metrics: Metrics
    checks: Mapping[str, Check]


class DispatcherApi(Api):
    """All calls of the dispatcher, to be served by an `imserver.http.site.Site`."""

    def __init__(self, parts: Parts) -> None:
        settings, clock = parts.settings, parts.clock
        tokens = Tokens(settings)
        self.pushing = Pushing(settings, parts.router, clock, parts.metrics)
        office = BackOffice(settings, parts.journal, tokens, clock)
        parts.metrics.gauge_of("journal_waits", "Calls that wait for a journal entry.", lambda: office.waiting)
        routes = [
            *self.pushing.routes(),
            *Whereabouts(parts.router, parts.inboxes).routes(),
            *Blacklist(parts.router, parts.bans, clock).routes(),
        ]
        super().__init__(
            with_standard(
                [*(to_the_end(route) for route in routes), *office.routes()],
                title="imserver dispatcher",
                version=__version__,
                description="Push to users, and see where they are. Called by backends with the API key of a channel.",
                checks=parts.checks,
                registry=parts.metrics.registry,
                clock=clock,
            ),
            Access(settings, tokens, clock),
            clock=clock,
            allowed_origins=settings.dispatcher.allowed_origins,
            errors={Unavailable: _away},
            observe=parts.metrics.observe_http,
        )


def to_the_end(route: Route) -> Route:
    """`route` with a function that goes on when its client has gone.

    What is stored has to be pushed, and who is banned has to be closed, whether or not somebody waits for the answer.
    """
    return replace(route, function=_detached(route.function))


def _detached(function: Callable[[Call], Awaitable[Any]]) -> Callable[[Call], Awaitable[Any]]:
    async def call_to_the_end(call: Call) -> Any:
        answer: Deferred[Any] = Deferred()

        async def work() -> Any:
            return await function(call)

        def done(result: Any) -> None:
            if not answer.called:
                answer.callback(result)
            elif isinstance(result, Failure) and not result.check(Problem, Unavailable):
                log.failure("a call failed after its client had gone", result)

        Deferred.fromCoroutine(work()).addBoth(done)
        return await answer

    return call_to_the_end


def _away(error: Unavailable) -> Problem:
    log.warn("a call is refused: {why}", why=str(error))
    return unavailable("The data layer is away; try again.")
