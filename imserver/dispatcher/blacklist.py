"""Who may not connect: the blacklist of a channel (design: Blacklist and suspension)."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from imserver.data.bans import Ban, Bans, Kind, normal_address
from imserver.dispatcher.calls import BanBody, BanShown
from imserver.dispatcher.presence import closing_reason
from imserver.http.problems import invalid, not_found
from imserver.http.routes import Call, Route
from imserver.protocol.codes import BANNED, banned_until
from imserver.protocol.syntax import Uid, valid
from imserver.routing.router import Router


class Blacklist:
    """The calls."""

    def __init__(self, router: Router, bans: Bans, clock: IReactorTime) -> None:
        self._router = router
        self._bans = bans
        self._clock = clock

    def routes(self) -> list[Route]:
        """The calls."""
        path = "/v1/blacklist/{kind}/{value}"
        common = {"auth": "key", "tag": "blacklist", "parameters": {"kind": Kind}, "answer": BanShown}
        return [
            Route(
                method="GET",
                path=path,
                function=self.get,
                summary="Whether a uid or an address may not connect",
                problems=(404,),
                **common,  # type: ignore[arg-type]
            ),
            Route(
                method="PUT",
                path=path,
                function=self.put,
                body=BanBody,
                summary="Let a uid or an address connect no more",
                description="For `ttl_s` seconds, without it for good. Live connections are closed with 4403. It holds"
                " for connections whose token covers this key's channel.",
                **common,  # type: ignore[arg-type]
            ),
            Route(
                method="DELETE",
                path=path,
                function=self.delete,
                summary="Let a uid or an address connect again",
                problems=(404,),
                **common,  # type: ignore[arg-type]
            ),
        ]

    async def get(self, call: Call) -> BanShown:
        """`GET /v1/blacklist/{kind}/{value}`."""
        kind, value = _subject(call)
        return _entry(await self._bans.get(call.identity, kind, value, self._now_ms()))

    async def put(self, call: Call) -> BanShown:
        """`PUT /v1/blacklist/{kind}/{value}`: stored first, so that whoever is closed cannot come back."""
        kind, value = _subject(call)
        body: BanBody = call.body
        now_ms = self._now_ms()
        until_ts = None if body.ttl_s is None else now_ms + int(body.ttl_s * 1000)
        ban = Ban(kind, value, call.identity, until_ts, body.reason)
        await self._bans.put(ban, now_ms)
        why = f"{body.reason}: blacklisted" if body.reason else "blacklisted"
        reason = closing_reason(why, banned_until(until_ts))
        await self._router.sever(kind, value, [call.identity], BANNED, reason)
        return _entry(ban)

    async def delete(self, call: Call) -> BanShown:
        """`DELETE /v1/blacklist/{kind}/{value}`: gives the entry that was."""
        kind, value = _subject(call)
        return _entry(await self._bans.take(call.identity, kind, value, self._now_ms()))

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)


def _subject(call: Call) -> tuple[Kind, str]:
    kind: Kind = call.path["kind"]
    value: str = call.path["value"]
    if kind == "uid":
        if not valid(Uid, value):
            raise invalid("Not a uid", "value")
        return kind, value
    try:
        return kind, normal_address(value)
    except ValueError as error:
        raise invalid(f"Not an IP address: {error}", "value") from None


def _entry(ban: Ban | None) -> BanShown:
    if ban is None:
        raise not_found("There is no such entry.")
    return BanShown(kind=ban.kind, value=ban.value, until_ts=ban.until_ts, reason=ban.reason)
