"""Who calls, and what a caller may do (contract: Business server)."""

from __future__ import annotations

import hmac
from typing import Any

import msgspec
from twisted.internet.interfaces import IReactorTime

from imserver import config
from imserver.data.bans import Bans
from imserver.http.addresses import client_address
from imserver.http.problems import forbidden, invalid, unauthorized
from imserver.protocol.codes import banned_until
from imserver.protocol.tokens import Claims, TokenError, Tokens


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """A user with a token, or a backend with an API key (then without a uid)."""

    channels: tuple[str, ...]
    uid: str = ""
    role: str = ""
    info: dict[str, Any] | None = None
    conn: str = ""

    @property
    def backend(self) -> bool:
        """Whether it is a backend with an API key."""
        return not self.uid

    def channel(self, named: str | None) -> str:
        """The channel that is meant; a token of several has to name one."""
        if named is not None:
            if named not in self.channels:
                raise forbidden(f"This key or token is not for channel {named}.")
            return named
        if len(self.channels) > 1:
            raise invalid(f"The token is for several channels: name one of {', '.join(self.channels)}.", "channel")
        return self.channels[0]


class Access:
    """The authenticator of the business server's calls."""

    def __init__(self, settings: config.Config, tokens: Tokens, clock: IReactorTime, bans: Bans) -> None:
        self._keys = [(key.encode(), name) for name, channel in settings.channels.items() for key in channel.api_keys]
        self._tokens = tokens
        self._bans = bans
        self._proxies = settings.worker.trusted_proxies
        self._clock = clock

    async def __call__(self, request: Any, scheme: str) -> Caller:
        """Raises 401 for no or a wrong key or token, 403 for one that is good for something else."""
        kind, _, credential = (request.getHeader("authorization") or "").strip().partition(" ")
        credential = credential.strip()
        if kind.lower() != "bearer" or not credential:
            raise unauthorized()
        channel = self._channel(credential.encode("utf-8", "surrogateescape"))
        if channel is not None:
            if scheme == "token":
                raise forbidden("This call needs a user's token.")
            return Caller(channels=(channel,))
        try:
            claims = self._tokens.verify(credential, self._clock.seconds())
        except TokenError:
            raise unauthorized("This key or token is not valid.") from None
        if scheme == "key":
            raise forbidden("This call needs a channel's API key.")
        if not claims.cluster:  # a worker has let its user in already
            await self._refuse_banned(request, claims)
        return Caller(channels=claims.channels, uid=claims.uid, role=claims.role, info=claims.info, conn=claims.conn)

    async def _refuse_banned(self, request: Any, claims: Claims) -> None:
        """Who may not connect may not call either (contract: Close codes, 4403)."""
        peer = str(getattr(request.getClientAddress(), "host", "unix"))
        address = client_address(peer, request.getHeader("x-forwarded-for"), self._proxies)
        ban = await self._bans.check(claims.uid, address, claims.channels, int(self._clock.seconds() * 1000))
        if ban is not None:
            raise forbidden(f"blacklisted {banned_until(ban.until_ts)}")

    def _channel(self, credential: bytes) -> str | None:
        found = None
        for key, name in self._keys:  # all of them, so that the time taken tells nothing
            if hmac.compare_digest(key, credential):
                found = name
        return found
