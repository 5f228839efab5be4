"""The routes of messages and conversations (contract: Business server); agents and words are in `http_shops`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from twisted.internet.defer import Deferred, DeferredList

from imserver.business.assignment import State
from imserver.business.history import Page
from imserver.business.lists import Listed
from imserver.business.messages import Messages, Send, Sent
from imserver.business.threads import Threads
from imserver.http.problems import not_found
from imserver.http.routes import Call, Function, Route, Scheme
from imserver.protocol.syntax import START, ConversationId, Cursor, Limit, ReadSeq, Seq, Shop, Timestamp, Uid, valid

TAG = "conversations"


class ListQuery(msgspec.Struct):
    """What to list."""

    limit: Limit = 50
    before: Annotated[Timestamp | None, Meta(description="only conversations whose last message is older")] = None
    state: State | None = None
    shop: Shop | None = None
    uid: Annotated[Uid | None, Meta(description="with an API key: whose")] = None


class ConversationList(msgspec.Struct):
    """Newest first by `ts`, the time of the last message."""

    conversations: list[Listed]
    more: bool


class HistoryQuery(msgspec.Struct):
    """Which page; the newest when neither `before` nor `after` is given."""

    before: Seq | None = None
    after: ReadSeq | None = None
    limit: Limit = 50


class After(msgspec.Struct):
    """From where on, oldest first."""

    after: Cursor = START
    limit: Limit = 50


class ReadBody(msgspec.Struct, forbid_unknown_fields=True):
    """How far one has read."""

    seq: ReadSeq


class ReadAnswer(msgspec.Struct):
    """How far one has read now: it never goes back."""

    seq: int


class TransferBody(msgspec.Struct, forbid_unknown_fields=True):
    """Who is to have the conversation."""

    agent: Uid


class NoBody(msgspec.Struct, forbid_unknown_fields=True):
    """Nothing to say."""


class Nothing(msgspec.Struct):
    """It is done."""


class Kept:
    """Runs a route's function to its end even if its client goes away: half a change of state is none."""

    def __init__(self, introduce: Callable[[Any], Awaitable[None]]) -> None:
        self._introduce = introduce
        self._running: set[Deferred[Any]] = set()

    def __call__(self, function: Function) -> Function:
        """The function, kept."""

        async def whole(call: Call) -> Any:
            await self._introduce(call.identity)
            return await function(call)

        async def kept(call: Call) -> Any:
            running = Deferred.fromCoroutine(whole(call))
            self._running.add(running)
            running.addBoth(self._ended, running)
            answer: Deferred[Any] = Deferred()
            running.chainDeferred(answer)
            return await answer

        return kept

    async def finish(self) -> None:
        """Wait for what still runs."""
        while self._running:
            await DeferredList([self._ended_of(running) for running in self._running])

    def _ended_of(self, running: Deferred[Any]) -> Deferred[None]:
        """Fires when it has ended, without taking its result."""
        done: Deferred[None] = Deferred()

        def ended(result: Any) -> Any:
            done.callback(None)
            return result

        running.addBoth(ended)
        return done

    def _ended(self, result: Any, running: Deferred[Any]) -> Any:
        self._running.discard(running)
        return result


def routes(messages: Messages, threads: Threads, kept: Kept) -> list[Route]:
    """The routes of messages and conversations."""

    def conversation(call: Call) -> str:
        id: str = call.path["id"]
        if not valid(ConversationId, id):
            raise not_found("There is no such conversation.")
        return id

    async def send(call: Call) -> Sent:
        return await messages.send(call.identity, call.body)

    async def listed(call: Call) -> ConversationList:
        query: ListQuery = call.query
        return ConversationList(
            *await threads.listed(call.identity, query.uid, query.shop, query.before, query.limit, query.state)
        )

    async def history(call: Call) -> Page:
        query: HistoryQuery = call.query
        return await threads.history(call.identity, conversation(call), query.before, query.after, query.limit)

    async def read(call: Call) -> ReadAnswer:
        return ReadAnswer(await threads.read(call.identity, conversation(call), call.body.seq))

    async def typing(call: Call) -> None:
        await threads.typing(call.identity, conversation(call))

    async def transfer(call: Call) -> Nothing:
        await threads.transfer(call.identity, conversation(call), call.body.agent)
        return Nothing()

    async def close(call: Call) -> Nothing:
        await threads.close(call.identity, conversation(call))
        return Nothing()

    both: Scheme = "key or token"
    return [
        Route(
            method="POST",
            path="/v1/messages",
            function=kept(send),
            body=Send,
            answer=Sent,
            status=202,
            auth=both,
            tag="messages",
            summary="Write a message",
            description="To a `shop` (a customer starts or continues its conversation), into a `conversation`, or `to`"
            " a uid. 202 means that it is stored and will arrive; the same `cid` again gives the same answer.",
            problems=(404, 409, 429, 503),
        ),
        Route(
            method="GET",
            path="/v1/conversations",
            function=kept(listed),
            query=ListQuery,
            answer=ConversationList,
            auth=both,
            tag=TAG,
            summary="List conversations, newest first",
            description="One's own; with an API key those of `uid` or of `shop`; for an agent with `shop` all of it.",
            problems=(503,),
        ),
        Route(
            method="GET",
            path="/v1/conversations/{id}/messages",
            function=kept(history),
            query=HistoryQuery,
            answer=Page,
            auth=both,
            tag=TAG,
            summary="A page of a conversation's messages, in seq order",
            problems=(404, 503),
        ),
        Route(
            method="POST",
            path="/v1/conversations/{id}/read",
            function=kept(read),
            body=ReadBody,
            answer=ReadAnswer,
            auth="token",
            tag=TAG,
            summary="Everything up to `seq` has been seen",
            problems=(404, 503),
        ),
        Route(
            method="POST",
            path="/v1/conversations/{id}/typing",
            function=kept(typing),
            body=NoBody,
            status=204,
            auth="token",
            tag=TAG,
            summary="Tell the other side that one is writing; never stored",
            problems=(404, 503),
        ),
        Route(
            method="POST",
            path="/v1/conversations/{id}/transfer",
            function=kept(transfer),
            body=TransferBody,
            answer=Nothing,
            auth=both,
            tag=TAG,
            summary="Give the conversation to another agent of the shop, who is online and not full",
            problems=(404, 409, 503),
        ),
        Route(
            method="POST",
            path="/v1/conversations/{id}/close",
            function=kept(close),
            body=NoBody,
            answer=Nothing,
            auth=both,
            tag=TAG,
            summary="Close the conversation; the next waiting customer is served",
            problems=(404, 503),
        ),
    ]
