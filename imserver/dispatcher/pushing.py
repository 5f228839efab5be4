"""Messages from backends to inboxes: push, batch, broadcast, and the deliveries of our own servers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from msgspec import UNSET, Raw
from twisted.internet.interfaces import IReactorTime

from imserver import config
from imserver.dispatcher.bounds import Full, Room
from imserver.dispatcher.calls import (
    MESSAGES_MAX,
    Batch,
    BatchAnswer,
    BatchResult,
    BatchShown,
    Broadcast,
    BroadcastAnswer,
    Deliveries,
    DeliveriesAnswer,
    DeliveryResult,
    Push,
    PushAnswer,
    PushResult,
)
from imserver.http.inputs import read_json
from imserver.http.problems import Problem, invalid, unavailable
from imserver.http.rates import Rates
from imserver.http.routes import Call, Route
from imserver.ops.metrics import Metrics
from imserver.protocol.deliveries import Delivery
from imserver.protocol.frames import Message
from imserver.protocol.ids import message_id
from imserver.protocol.syntax import json_object
from imserver.routing.router import Outcome, Router

UNIT_BYTES: Final = 4096
"""A delivery counts as one, and one more for each of these that its frame is long."""

GROUP_UNITS: Final = 1000
"""So much is given to the router at a time, so that frames are made as they go out and not all at once."""


class Planned:
    """A push that has been looked at and may go out."""

    def __init__(self, push: Push, channel: str, secret: str, ts: int) -> None:
        self.ts = ts
        self.uids = [push.to] if isinstance(push.to, str) else list(dict.fromkeys(push.to))
        self._push = push
        self._channel = channel
        self._sender = push.from_ or channel
        self.id = message_id(secret, channel, self._sender, push.cid)

    def deliveries(self) -> Iterator[Delivery]:
        """One for each receiver."""
        push = self._push
        for uid in self.uids:
            message = Message(
                id=self.id,
                from_=self._sender,
                to=uid,
                channel=self._channel,
                type=push.type,
                body=push.body,
                ts=self.ts,
                conversation=push.conversation,
                seq=push.seq,
                cid=push.cid if uid == self._sender else None,
            )
            yield Delivery(
                to=uid,
                channel=self._channel,
                id=self.id,
                frame=Raw(msgspec.json.encode(message)),
                store=push.store,
                once=push.cid is not None,
                expires=0 if push.ttl_s is None else self.ts + int(push.ttl_s * 1000),
                only=push.only,
            )

    def answer(self, outcomes: list[Outcome]) -> PushAnswer:
        """What to tell the backend; raises 503 unless every receiver has it."""
        failed = [outcome.error for outcome in outcomes if outcome.error is not None]
        if failed:
            raise unavailable(
                f"Not stored for {len(failed)} of {len(outcomes)} receivers; call again with the same cid, and nobody"
                " gets it twice."
            )
        return PushAnswer(id=self.id, ts=self.ts, results=[_result(outcome, self._push.store) for outcome in outcomes])


class Pushing:
    """The calls that send."""

    def __init__(self, settings: config.Config, router: Router, clock: IReactorTime, metrics: Metrics) -> None:
        self._settings = settings
        self._router = router
        self._clock = clock
        self.room = Room(settings.dispatcher.deliveries_max, settings.dispatcher.calls_waiting)
        limits = {name: (channel.push_per_s, channel.push_burst) for name, channel in settings.channels.items()}
        self._rates = Rates(limits, clock, "pushed receivers")
        self._count = metrics.counter("deliveries", "Deliveries by what became of them.", ("channel", "status"))
        metrics.gauge_of(
            "deliveries_under_way", "Deliveries being stored and pushed, in units.", lambda: self.room.used
        )

    def routes(self) -> list[Route]:
        """The calls."""
        return [
            Route(
                method="POST",
                path="/v1/push",
                function=self.push,
                summary="Send a message to one uid or many",
                description="It is stored in each receiver's inbox and pushed to whoever is online. With a `cid` the"
                " call may be repeated for 24 hours: nobody gets it twice.",
                tag="messages",
                auth="key",
                body=Push,
                answer=PushAnswer,
                status=202,
            ),
            Route(
                method="POST",
                path="/v1/push/batch",
                function=self.batch,
                summary="Send many messages",
                description="One bad message stops no other. Messages to the same uid keep their order.",
                tag="messages",
                auth="key",
                body=Batch,
                body_shown=BatchShown,
                ndjson=True,
                answer=BatchAnswer,
                status=202,
            ),
            Route(
                method="POST",
                path="/v1/broadcast",
                function=self.broadcast,
                summary="Send a message to everyone of the channel who is online now",
                tag="messages",
                auth="key",
                body=Broadcast,
                answer=BroadcastAnswer,
                status=202,
            ),
            Route(
                method="POST",
                path="/v1/deliveries",
                function=self.deliveries,
                summary="Deliver frames (between servers of the cluster)",
                tag="cluster",
                auth="cluster",
                body=Deliveries,
                answer=DeliveriesAnswer,
                status=202,
            ),
        ]

    async def push(self, call: Call) -> PushAnswer:
        """`POST /v1/push`."""
        planned = self._planned(call.body, call.identity, "")
        self._rates.admit(call.identity, len(planned.uids))
        return planned.answer(await self._deliver(planned.deliveries()))

    async def batch(self, call: Call) -> BatchAnswer:
        """`POST /v1/push/batch`."""
        raws = call.body.messages if call.lines is None else call.lines
        if len(raws) > MESSAGES_MAX:
            raise invalid(f"Expected at most {MESSAGES_MAX} messages", "messages")
        planned: list[Planned | Problem] = []
        for index, raw in enumerate(raws):
            prefix = f"messages[{index}]"
            try:
                push = read_json(bytes(raw), Push, prefix=prefix, checked=call.lines is None)
                planned.append(self._planned(push, call.identity, prefix))
            except Problem as problem:
                planned.append(problem)
        good = [one for one in planned if isinstance(one, Planned)]
        self._rates.admit(call.identity, sum(len(one.uids) for one in good))
        made = await self._deliver(delivery for one in good for delivery in one.deliveries())
        if made and all(outcome.error is not None for outcome in made):
            raise unavailable(f"Nothing could be stored: {made[0].error}.")
        outcomes = iter(made)
        results: list[BatchResult] = []
        for one in planned:
            try:
                if isinstance(one, Problem):
                    raise one
                done = one.answer([next(outcomes) for _ in one.uids])
                results.append(BatchResult(id=done.id, ts=done.ts, results=done.results))
            except Problem as problem:
                results.append(BatchResult(error=problem.document()))
        return BatchAnswer(results=results)

    async def broadcast(self, call: Call) -> BroadcastAnswer:
        """`POST /v1/broadcast`: never stored, so whoever is not online never hears of it."""
        body: Broadcast = call.body
        channel: str = call.identity
        self._check_body(body.body, "")
        self._rates.admit(channel, 1)
        message = Message(
            id=message_id("", channel, channel, None),
            from_=channel,
            to=channel,
            channel=channel,
            type=body.type,
            body=body.body,
            ts=self._now_ms(),
        )
        delivery = Delivery(
            to=channel, channel=channel, id=message.id, frame=Raw(msgspec.json.encode(message)), store=False, once=False
        )
        workers, connections = await self._router.broadcast(delivery, body.role, body.platform)
        return BroadcastAnswer(id=message.id, workers=workers, connections=connections)

    async def deliveries(self, call: Call) -> DeliveriesAnswer:
        """`POST /v1/deliveries`: what could not be stored is told of each, and the caller tries that again."""
        given: list[Delivery] = call.body.deliveries
        for index, delivery in enumerate(given):
            if not json_object(delivery.frame):
                raise invalid("Expected `object`", f"deliveries[{index}].frame")
        outcomes = await self._deliver(given)
        results: list[DeliveryResult] = []
        for delivery, outcome in zip(given, outcomes, strict=True):
            if outcome.error is not None:
                results.append(DeliveryResult(to=outcome.to, status="failed", connections=0, error=outcome.error))
                continue
            done = _result(outcome, delivery.store and delivery.op == "message")
            results.append(
                DeliveryResult(to=done.to, status=done.status, cursor=done.cursor, connections=done.connections)
            )
        return DeliveriesAnswer(results=results)

    def _planned(self, push: Push, channel: str, prefix: str) -> Planned:
        self._check_body(push.body, prefix)
        return Planned(push, channel, self._settings.cluster.secret, self._now_ms())

    def _check_body(self, body: Raw, prefix: str) -> None:
        field = f"{prefix}.body" if prefix else "body"
        if not json_object(body):
            raise invalid("Expected `object`", field)
        if len(bytes(body)) > self._settings.messages.body_max:
            raise invalid(f"Expected at most {self._settings.messages.body_max} bytes", field)

    async def _deliver(self, deliveries: Iterable[Delivery]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for group, units in grouped(deliveries):
            outcomes += await self._deliver_group(group, units)
        return outcomes

    async def _deliver_group(self, group: list[Delivery], units: int) -> list[Outcome]:
        try:
            await self.room.enter(units)
        except Full:
            outcomes = [Outcome(delivery.to, error="too much is under way already") for delivery in group]
        else:
            try:
                outcomes = await self._router.deliver(group)
            finally:
                self.room.leave(units)
        for delivery, outcome in zip(group, outcomes, strict=True):
            status = "failed" if outcome.error is not None else _result(outcome, delivery.store).status
            self._count.labels(delivery.channel, status).inc()
        return outcomes

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)


def grouped(deliveries: Iterable[Delivery]) -> Iterator[tuple[list[Delivery], int]]:
    """Deliveries in groups of about `GROUP_UNITS`, made only as they are asked for."""
    group: list[Delivery] = []
    units = 0
    for delivery in deliveries:
        group.append(delivery)
        units += 1 + len(bytes(delivery.frame)) // UNIT_BYTES
        if units >= GROUP_UNITS:
            yield group, units
            group, units = [], 0
    if group:
        yield group, units


def _result(outcome: Outcome, stored: bool) -> PushResult:
    """`queued` only for what waits in an inbox: what is not stored was pushed to whoever was online, if to nobody."""
    if outcome.duplicate:
        status = "duplicate"
    elif outcome.connections or not stored:
        status = "pushed"
    else:
        status = "queued"
    return PushResult(
        to=outcome.to,
        status=status,  # type: ignore[arg-type]
        cursor=UNSET if outcome.cursor is None else outcome.cursor,
        connections=outcome.connections,
    )
