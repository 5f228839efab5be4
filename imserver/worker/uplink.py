"""Answers what a client asks for, by the channel's uplink: the business server, the inbox, or a journal.

To the business server each request goes as the public HTTP call that it is, with a token of the cluster that acts for
the user (contract: Business server; Channels).
"""

from __future__ import annotations

from typing import Protocol

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from imserver import config
from imserver.data.interface import Unavailable, Webhooks
from imserver.data.journal import Journal, JournalEntry
from imserver.http.client import Answer, HttpClient, Unreachable
from imserver.protocol import frames
from imserver.protocol.codes import ErrorCode
from imserver.protocol.deliveries import Delivery
from imserver.protocol.ids import message_id
from imserver.protocol.tokens import Claims, Tokens
from imserver.protocol.webhooks import message_event
from imserver.routing.router import Router
from imserver.worker.actions import Request

log = Logger()
RETRIES = 2


class Agents(Protocol):
    """Who is an agent of a shop, for `send_to = "agents"`."""

    async def is_agent(self, channel: str, uid: str) -> bool:
        """Whether this uid is one in this channel."""


class _Accepted(msgspec.Struct):
    """What the business server answers to POST /v1/messages, as far as it matters here."""

    id: str
    ts: int
    conversation: str | None = None
    seq: int | None = None
    duplicate: bool = False


class _Problem(msgspec.Struct):
    detail: str = ""
    title: str = ""
    code: str = "internal"
    field: str | None = None


class _Posted(msgspec.Struct, omit_defaults=True):
    """The body of POST /v1/messages."""

    cid: str
    type: str
    body: msgspec.Raw
    to: str | None = None
    conversation: str | None = None
    shop: str | None = None
    skill: str | None = None


class Refused(Exception):
    """An answer of op `error`."""

    def __init__(self, code: ErrorCode, reason: str, field: str | None = None) -> None:
        super().__init__(f"{code}: {reason}")
        self.code: ErrorCode = code
        self.reason = reason
        self.field = field


class Uplink:
    """One for all connections of a worker."""

    def __init__(
        self,
        clock: IReactorTime,
        settings: config.Config,
        tokens: Tokens,
        http: HttpClient,
        router: Router,
        journal: Journal,
        agents: Agents,
        webhooks: Webhooks,
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._tokens = tokens
        self._http = http
        self._router = router
        self._journal = journal
        self._agents = agents
        self._webhooks = webhooks

    async def answer(self, claims: Claims, conn: str, device: str, request: Request) -> bytes | None:
        """The frame that answers a request, None if there is none."""
        frame = request.frame
        ref = getattr(frame, "ref", None)
        try:
            match frame:
                case frames.Send():
                    return frames.encode(await self._send(claims, conn, device, frame, request.channel))
                case frames.History():
                    query = _query(before=frame.before, after=frame.after, limit=frame.limit)
                    path = f"/v1/conversations/{frame.conversation}/messages?{query}"
                    return frames.answer_frame("history", frame.ref, await self._ask(claims, conn, "GET", path))
                case frames.Conversations():
                    path = f"/v1/conversations?{_query(before=frame.before, limit=frame.limit)}"
                    return frames.answer_frame("conversations", frame.ref, await self._ask(claims, conn, "GET", path))
                case frames.Read():
                    path = f"/v1/conversations/{frame.conversation}/read"
                    await self._ask(claims, conn, "POST", path, msgspec.json.encode({"seq": frame.seq}))
                case frames.Typing():
                    await self._ask(claims, conn, "POST", f"/v1/conversations/{frame.conversation}/typing", b"{}")
                case _:
                    raise Refused("internal", f"nobody answers {type(frame).__name__}")
        except Refused as error:
            return frames.encode(frames.Error(code=error.code, reason=error.reason, field=error.field, ref=ref))
        except Unavailable as error:
            log.warn("a request of {conn} failed: {why}", conn=conn, why=str(error))
            return frames.encode(frames.Error(code="unavailable", reason="the data layer is away, try again", ref=ref))
        return None

    async def _send(self, claims: Claims, conn: str, device: str, frame: frames.Send, channel: str) -> frames.Sent:
        if len(bytes(frame.body)) > self._settings.messages.body_max:
            raise Refused("too_large", f"a body has at most {self._settings.messages.body_max} bytes", "body")
        uplink = self._settings.channels[channel].uplink
        if uplink == "direct":
            return await self._send_direct(claims, conn, frame, channel)
        if uplink == "journal":
            return await self._send_to_journal(claims, device, frame, channel)
        acting = msgspec.structs.replace(claims, channels=(channel,))
        posted = _Posted(frame.cid, frame.type, frame.body, frame.to, frame.conversation, frame.shop, frame.skill)
        answer = await self._ask(acting, conn, "POST", "/v1/messages", msgspec.json.encode(posted))
        accepted = msgspec.json.decode(answer, type=_Accepted)
        return frames.Sent(
            ref=frame.ref,
            id=accepted.id,
            ts=accepted.ts,
            conversation=accepted.conversation,
            seq=accepted.seq,
            duplicate=accepted.duplicate,
        )

    async def _send_direct(self, claims: Claims, conn: str, frame: frames.Send, channel: str) -> frames.Sent:
        """Into the receiver's inbox, and the sender's own for its other devices, past all other servers."""
        to = frame.to or ""
        policy = self._settings.channels[channel].send_to
        free = to == claims.uid or policy == "any"
        if not free and (policy == "none" or not await self._agents.is_agent(channel, to)):
            whom = "agents and themselves" if policy == "agents" else "themselves"
            raise Refused("not_allowed", f"channel {channel} lets clients send to {whom} only", "to")
        ts = int(self._clock.seconds() * 1000)
        message = frames.Message(
            id=message_id(self._settings.cluster.secret, channel, claims.uid, frame.cid),
            from_=claims.uid,
            to=to,
            channel=channel,
            type=frame.type,
            body=frame.body,
            ts=ts,
        )
        own = msgspec.structs.replace(message, cid=frame.cid)
        deliveries = [_delivery(own, claims.uid, conn)]
        if to != claims.uid:
            deliveries.insert(0, _delivery(message, to, conn))
        outcomes = await self._router.deliver(deliveries)
        failed = next((outcome.error for outcome in outcomes if outcome.error is not None), None)
        if failed is not None:
            raise Unavailable(failed)
        await self._tell(channel, message.id, ts, deliveries[0].frame)
        return frames.Sent(
            ref=frame.ref, id=message.id, ts=ts, cursor=outcomes[-1].cursor, duplicate=outcomes[0].duplicate
        )

    async def _send_to_journal(self, claims: Claims, device: str, frame: frames.Send, channel: str) -> frames.Sent:
        settings = self._settings
        ts = int(self._clock.seconds() * 1000)
        entry = JournalEntry(
            id=message_id(settings.cluster.secret, channel, claims.uid, frame.cid),
            from_=claims.uid,
            device=device,
            type=frame.type,
            body=frame.body,
            ts=ts,
        )
        cursor, duplicate = await self._journal.append(
            channel,
            entry,
            length=settings.channels[channel].journal_length,
            remember_s=settings.delivery.cid_ttl_s,
        )
        placed = msgspec.structs.replace(entry, cursor=cursor)
        await self._tell(channel, entry.id, ts, msgspec.Raw(msgspec.json.encode(placed)))
        return frames.Sent(ref=frame.ref, id=entry.id, ts=ts, cursor=cursor, duplicate=duplicate)

    async def _tell(self, channel: str, id: str, ts: int, message: msgspec.Raw) -> None:
        """The back office is to hear of what did not go through the business server, too."""
        if self._webhooks.wants(channel, "message"):
            await self._webhooks.record(channel, [message_event(channel, id, ts, message)])

    async def _ask(self, claims: Claims, conn: str, method: str, path: str, body: bytes | None = None) -> bytes:
        try:
            answer = await self._http.call(
                method,
                self._settings.business.url + path,
                body=body,
                token=self._tokens.act_for(claims, conn, self._clock.seconds()),
                timeout=self._settings.cluster.http_timeout_s,
                retries=RETRIES,
            )
        except Unreachable as error:
            log.warn("the business server did not answer: {why}", why=str(error))
            raise Refused("unavailable", "the business server did not answer, try again") from None
        if answer.status >= 300:
            raise _refusal(answer)
        return answer.body


def _delivery(message: frames.Message, to: str, conn: str) -> Delivery:
    frame = msgspec.Raw(msgspec.json.encode(message))
    return Delivery(to=to, channel=message.channel, id=message.id, frame=frame, origin=conn)


def _refusal(answer: Answer) -> Refused:
    try:
        problem = msgspec.json.decode(answer.body, type=_Problem)
    except msgspec.DecodeError:
        problem = _Problem(detail=f"the business server answered {answer.status}")
    if answer.status >= 500 and answer.status != 503:
        return Refused("internal", "the business server failed")
    if answer.status in (401, 503):
        return Refused("unavailable", "the business server cannot answer now, try again")
    try:
        code = msgspec.convert(problem.code, ErrorCode)
    except msgspec.ValidationError:
        code = "internal"
    return Refused(code, problem.detail or problem.title, problem.field)


def _query(**values: int | None) -> str:
    return "&".join(f"{name}={value}" for name, value in values.items() if value is not None)
