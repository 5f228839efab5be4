"""Who may connect: bans and suspensions."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from imserver.data.bans import Bans
from imserver.protocol.codes import banned_until
from imserver.protocol.tokens import Claims


class Admission:
    """Checks an attempt to connect; may raise `Unavailable`."""

    def __init__(self, clock: IReactorTime, bans: Bans) -> None:
        self._clock = clock
        self._bans = bans

    async def check(self, claims: Claims, ip: str) -> str | None:
        """Why this one may not connect, ending as the contract wants (Close codes, 4403); None if it may."""
        now_ms = int(self._clock.seconds() * 1000)
        ban = await self._bans.check(claims.uid, ip, claims.channels, now_ms)
        if ban is not None:
            return f"blacklisted {banned_until(ban.until_ts)}"
        suspended = await self._bans.attempt(claims.uid, ip, now_ms)
        return f"suspended for too many attempts {banned_until(suspended)}" if suspended is not None else None
