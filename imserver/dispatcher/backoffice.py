"""What a back office asks for besides: its channel's journal, and tokens for its users."""

from __future__ import annotations

import msgspec
from twisted.internet.interfaces import IReactorTime

from imserver import config
from imserver.data.journal import Journal
from imserver.dispatcher.calls import JournalAnswer, JournalQuery, TokenAnswer, TokenQuestion
from imserver.http.problems import conflict, invalid, not_found, rate_limited
from imserver.http.routes import Call, Route
from imserver.protocol.syntax import START
from imserver.protocol.tokens import INFO_MAX, TokenError, Tokens

DAY_S = 86400


class BackOffice:
    """The calls about a channel's journal and tokens."""

    def __init__(self, settings: config.Config, journal: Journal, tokens: Tokens, clock: IReactorTime) -> None:
        self._settings = settings
        self._journal = journal
        self._tokens = tokens
        self._clock = clock
        self.waiting = 0

    def routes(self) -> list[Route]:
        """The calls."""
        return [
            Route(
                method="GET",
                path="/v1/journal",
                function=self.journal,
                summary="What clients of a journal channel sent, in order",
                description="`next` is the `after` of the next call. With `wait_s` an empty answer waits so long for an"
                " entry.",
                tag="journal",
                auth="key",
                query=JournalQuery,
                answer=JournalAnswer,
                problems=(404,),
            ),
            Route(
                method="POST",
                path="/v1/tokens",
                function=self.token,
                summary="A token for a user of this channel",
                tag="tokens",
                auth="key",
                body=TokenQuestion,
                answer=TokenAnswer,
                problems=(409,),
            ),
        ]

    async def journal(self, call: Call) -> JournalAnswer:
        """`GET /v1/journal`. A call that waits has a connection to Redis of its own, so they are counted."""
        channel: str = call.identity
        query: JournalQuery = call.query
        if self._settings.channels[channel].uplink != "journal":
            raise not_found("This channel has no journal.")
        after = query.after or START
        if query.wait_s and self.waiting >= self._settings.dispatcher.journal_waits:
            raise rate_limited(1, "Too many calls wait for a journal already; ask without wait_s.")
        self.waiting += bool(query.wait_s)
        try:
            entries = await self._journal.read(channel, after, query.limit, query.wait_s)
        finally:
            self.waiting -= bool(query.wait_s)
        return JournalAnswer(entries=entries, next=entries[-1].cursor if entries else after)

    async def token(self, call: Call) -> TokenAnswer:
        """`POST /v1/tokens`."""
        asked: TokenQuestion = call.body
        most = self._settings.tokens.ttl_max_s
        ttl_s = min(DAY_S, most) if asked.ttl_s is None else asked.ttl_s
        if ttl_s > most:
            raise invalid(f"Expected `int` <= {most}", "ttl_s")
        if asked.info is not None and len(msgspec.json.encode(asked.info)) > INFO_MAX:
            raise invalid(f"Expected at most {INFO_MAX} bytes", "info")
        try:
            token, exp = self._tokens.issue(
                asked.uid, asked.role, [call.identity], ttl_s, self._clock.seconds(), asked.info
            )
        except TokenError as error:
            raise conflict(str(error)) from None
        return TokenAnswer(token=token, exp=exp)
