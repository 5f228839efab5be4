"""Who is where: users, presence, kick, and the workers to connect to."""

from __future__ import annotations

from collections.abc import Sequence

from imserver.data.interface import ConnectionRecord, Inboxes
from imserver.dispatcher.calls import (
    Closed,
    ConnectionShown,
    EndpointAnswer,
    EndpointQuery,
    InboxShown,
    Kick,
    KickQuery,
    Presence,
    PresenceQuestion,
    Step,
    TrailAnswer,
    UserAnswer,
    WorkersAnswer,
    WorkerShown,
)
from imserver.http.problems import unavailable
from imserver.http.routes import Call, Route
from imserver.protocol.codes import KICKED
from imserver.protocol.syntax import Conn, MessageId, Uid
from imserver.routing.router import Router

REASON_BYTES = 123
"""A close frame has room for no more (RFC 6455, 5.5)."""


class Whereabouts:
    """The calls about connections. Of another channel's connections they show, count and close none."""

    def __init__(self, router: Router, inboxes: Inboxes) -> None:
        self._router = router
        self._inboxes = inboxes

    def routes(self) -> list[Route]:
        """The calls."""
        uid = {"uid": Uid}
        kick = {
            "function": self.kick,
            "auth": "key",
            "tag": "users",
            "body": Kick,
            "query": KickQuery,
            "answer": Closed,
        }
        return [
            Route(
                method="GET",
                path="/v1/messages/{id}/trail",
                function=self.trail,
                summary="Where a message has been lately, as far as the live servers remember",
                tag="users",
                auth="key",
                parameters={"id": MessageId},
                answer=TrailAnswer,
            ),
            Route(
                method="GET",
                path="/v1/users/{uid}",
                function=self.user,
                summary="Where a user is connected, and what waits for them",
                tag="users",
                auth="key",
                parameters=uid,
                answer=UserAnswer,
            ),
            Route(
                method="POST",
                path="/v1/presence",
                function=self.presence,
                summary="Who of many is online",
                tag="users",
                auth="key",
                body=PresenceQuestion,
                answer=dict[str, Presence],
            ),
            Route(
                method="DELETE",
                path="/v1/users/{uid}/connections",
                summary="Close a user's connections",
                parameters=uid,
                **kick,  # type: ignore[arg-type]
            ),
            Route(
                method="DELETE",
                path="/v1/users/{uid}/connections/{conn}",
                summary="Close one connection of a user",
                parameters={**uid, "conn": Conn},
                **kick,  # type: ignore[arg-type]
            ),
            Route(
                method="GET",
                path="/v1/endpoint",
                function=self.endpoint,
                summary="The worker that a client should connect to",
                tag="workers",
                auth="key",
                query=EndpointQuery,
                answer=EndpointAnswer,
            ),
            Route(
                method="GET",
                path="/v1/workers",
                function=self.workers,
                summary="All live workers",
                tag="workers",
                auth="key",
                answer=WorkersAnswer,
            ),
        ]

    async def trail(self, call: Call) -> TrailAnswer:
        """`GET /v1/messages/{id}/trail`: for `imctl trace`; bounded by what each server keeps."""
        events = await self._router.trail(call.path["id"], call.identity)
        return TrailAnswer([Step(server, event) for server, event in events])

    async def user(self, call: Call) -> UserAnswer:
        """`GET /v1/users/{uid}`; one never seen is offline with an empty inbox."""
        uid: str = call.path["uid"]
        (records,) = await self._router.locate([uid])
        mine = _of_channel(records, call.identity)
        length, last = await self._inboxes.length(uid, call.identity)
        return UserAnswer(
            uid=uid,
            online=bool(mine),
            connections=[_shown(record) for record in sorted(mine, key=lambda r: (r.since_ts, r.conn))],
            inbox=InboxShown(length=length, last=last),
        )

    async def presence(self, call: Call) -> dict[str, Presence]:
        """`POST /v1/presence`."""
        question: PresenceQuestion = call.body
        uids = list(dict.fromkeys(question.uids))
        found: dict[str, Presence] = {}
        for uid, records in zip(uids, await self._router.locate(uids), strict=True):
            mine = _of_channel(records, call.identity)
            found[uid] = Presence(online=bool(mine), platforms=sorted({record.platform for record in mine}))
        return found

    async def kick(self, call: Call) -> Closed:
        """`DELETE /v1/users/{uid}/connections[/{conn}]`: 4409; what is not there need not be closed."""
        body: Kick = call.body
        query: KickQuery = call.query
        reason = closing_reason(body.reason or query.reason or "kicked by the backend")
        conn = call.path.get("conn")
        closed = await self._router.close(call.path["uid"], conn, [call.identity], KICKED, reason)
        return Closed(closed=closed)

    async def endpoint(self, call: Call) -> EndpointAnswer:
        """`GET /v1/endpoint`: the less loaded of two random workers that are not draining."""
        workers = self._router.workers
        lease = workers.pick()
        if lease is None:
            await workers.refresh()
            lease = workers.pick()
        if lease is None:
            raise unavailable("No worker takes connections now.")
        return EndpointAnswer(url=lease.url, worker=lease.id)

    async def workers(self, call: Call) -> WorkersAnswer:
        """`GET /v1/workers`, as they are now."""
        await self._router.workers.refresh()
        return WorkersAnswer(
            workers=[
                WorkerShown(
                    id=lease.id,
                    url=lease.url,
                    http=lease.http,
                    host=lease.host,
                    connections=lease.connections,
                    load=lease.load,
                    version=lease.version,
                    since_ts=lease.since_ts,
                    draining=lease.draining,
                )
                for lease in self._router.workers.all()
            ]
        )


def closing_reason(text: str, ending: str = "") -> str:
    """`text` and, after a space, `ending`, as much of `text` as a close frame has room for."""
    ending = f" {ending}" if ending else ""
    return text.encode()[: REASON_BYTES - len(ending)].decode(errors="ignore") + ending


def _of_channel(records: Sequence[ConnectionRecord], channel: str) -> list[ConnectionRecord]:
    return [record for record in records if channel in record.channels]


def _shown(record: ConnectionRecord) -> ConnectionShown:
    return ConnectionShown(
        conn=record.conn,
        worker=record.worker,
        role=record.role,
        platform=record.platform,
        channel=record.channels[0] if len(record.channels) == 1 else list(record.channels),
        device=record.device,
        ip=record.ip,
        since_ts=record.since_ts,
    )
