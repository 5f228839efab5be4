"""What was accepted goes to the dispatcher: in order for each conversation, by one server at a time.

Each conversation has an outbox in Redis; whoever has its lease sends its head, drops it, goes on with the next.  The
sweeper takes up what a server left behind.  Deliveries may repeat: an inbox takes each message once.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from msgspec import Raw
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from imserver import config
from imserver.business.conversations import PARTITIONS, Conversations, Envelope
from imserver.data.interface import Unavailable
from imserver.data.webhooks import RedisWebhooks
from imserver.http.client import HttpClient, Unreachable
from imserver.protocol.deliveries import Delivery
from imserver.protocol.tokens import CLUSTER_TTL_S, Tokens
from imserver.protocol.webhooks import message_event

log = Logger()

SWEPT_AT_ONCE = 200
"""Outboxes of one partition that one sweep takes up."""

DELIVERIES_MAX = 1000
_RETRIES = 2


class _Message(msgspec.Struct):
    id: str
    channel: str
    ts: int
    conversation: str | None = None


class _Result(msgspec.Struct):
    error: Any = None


class _Results(msgspec.Struct):
    results: list[_Result]


class Undelivered(Exception):
    """The dispatcher did not take it: try again later."""


class Outbox:
    """Sends what waits in the outboxes."""

    def __init__(
        self,
        reactor: Any,
        settings: config.Config,
        conversations: Conversations,
        client: HttpClient,
        tokens: Tokens,
        webhooks: RedisWebhooks,
    ) -> None:
        self.in_flight = 0
        self.dispatched = 0
        self.away = ""
        """Why the dispatcher did not take the last one; empty if it did."""
        self.healed: Callable[[str, int], Awaitable[None]] | None = None
        """Called with (conversation, ts) for what the sweeper found: what else may have been left undone."""
        self._reactor = reactor
        self._settings = settings
        self._conversations = conversations
        self._client = client
        self._tokens = tokens
        self._webhooks = webhooks
        self._signed = ("", 0.0)
        self._url = settings.dispatcher.url.rstrip("/") + "/v1/deliveries"
        self._running: set[Deferred[None]] = set()
        self._stopped = False

    def lease(self) -> str:
        """A token for one lease."""
        return secrets.token_hex(8)

    def send(self, queue: str, token: str, head: bytes) -> None:
        """Send from `head` on what is in an outbox whose lease is ours, in the background."""
        self._begin(self._drain(queue, token, head))

    def kick(self, queue: str) -> None:
        """Send what is in an outbox, unless another server is at it, in the background."""
        self._begin(self._take(queue))

    def announce(self, deliveries: Sequence[Delivery]) -> None:
        """Deliver what is never stored, in the background and once: best effort."""
        self._begin(self._announce(deliveries))

    async def deliver(self, deliveries: Sequence[Delivery]) -> None:
        """Give deliveries to the dispatcher; `Undelivered` unless all were taken."""
        body = msgspec.json.encode({"deliveries": deliveries})
        try:
            answer = await self._client.call(
                "POST",
                self._url,
                body=body,
                token=self._system_token(),
                timeout=self._settings.cluster.http_timeout_s,
                retries=_RETRIES,
            )
        except Unreachable as error:
            self.away = str(error)
            raise Undelivered(str(error)) from None
        if answer.status in (400, 413, 422):  # it will never be taken: do not hold up what follows
            log.error("the dispatcher refused a delivery for good: {body}", body=answer.body[:500])
            return
        if not 200 <= answer.status < 300:
            self.away = f"the dispatcher answered {answer.status}"
            raise Undelivered(self.away)
        errors = [result.error for result in msgspec.json.decode(answer.body, type=_Results).results if result.error]
        if errors:
            raise Undelivered(f"for some receivers: {errors[0]}")
        self.away = ""

    async def sweep(self) -> None:
        """Take up what has been waiting for long; `Unavailable` if Redis is."""
        until = self._now() - int(self._settings.business.sweep_after_s * 1000)
        numbers = list(range(PARTITIONS))
        random.shuffle(numbers)  # several servers sweep: let each begin elsewhere
        for number in numbers:
            for queue in await self._conversations.pending(number, until, SWEPT_AT_ONCE):
                if self.in_flight >= self._settings.business.dispatch_in_flight:
                    return
                self._begin(self._take(queue, swept=True))

    async def stop(self) -> None:
        """Let what is under way end; what waits others take up."""
        self._stopped = True
        for running in list(self._running):
            await running

    def _begin(self, work: Any) -> None:
        if self._stopped:
            work.close()
            return
        self.in_flight += 1
        running = Deferred.fromCoroutine(work)
        self._running.add(running)

        def ended(failure: Any) -> None:
            self.in_flight -= 1
            self._running.discard(running)
            if failure is not None and failure.check(Unavailable, Undelivered):
                log.info("left to the sweeper: {reason}", reason=failure.getErrorMessage())
            elif failure is not None:
                log.failure("dispatching failed", failure)

        running.addBoth(ended)

    async def _take(self, queue: str, *, swept: bool = False) -> None:
        token = self.lease()
        head = await self._conversations.take(queue, token)
        if head:
            await self._drain(queue, token, head, swept=swept)

    async def _drain(self, queue: str, token: str, head: bytes, *, swept: bool = False) -> None:
        delivered = not self._stopped and self.in_flight <= self._settings.business.dispatch_in_flight
        while head:
            if delivered:
                envelope = msgspec.json.decode(head, type=Envelope)
                message = msgspec.json.decode(envelope.message, type=_Message)
                try:
                    if swept and self.healed is not None and message.conversation:
                        await self.healed(message.conversation, self._now())
                    await self.deliver([_delivery(uid, envelope, message) for uid in envelope.to])
                    self.dispatched += 1
                    if envelope.sender and self._webhooks.wants(message.channel, "message"):  # not what is handed over
                        event = message_event(message.channel, message.id, message.ts, envelope.message)
                        await self._webhooks.record(message.channel, [event])
                except Undelivered as error:
                    log.info("{queue} is left to the sweeper: {error}", queue=queue, error=error)
                    delivered = False
            head = await self._conversations.sent(queue, token, self._now(), delivered=delivered)
            delivered = delivered and not self._stopped

    async def _announce(self, deliveries: Sequence[Delivery]) -> None:
        for start in range(0, len(deliveries), DELIVERIES_MAX):
            await self.deliver(deliveries[start : start + DELIVERIES_MAX])

    def _system_token(self) -> str:
        token, until = self._signed
        now = self._reactor.seconds()
        if now >= until:
            token = self._tokens.act_for_system(now)
            self._signed = token, now + CLUSTER_TTL_S / 2
        return token

    def _now(self) -> int:
        return int(self._reactor.seconds() * 1000)


def _delivery(uid: str, envelope: Envelope, message: _Message) -> Delivery:
    own = uid == envelope.sender
    frame = bytes(envelope.message)
    if own and envelope.cid:
        frame = frame[:-1] + b',"cid":"%s"}' % envelope.cid.encode()
    return Delivery(
        to=uid, channel=message.channel, id=message.id, frame=Raw(frame), origin=envelope.origin if own else ""
    )
