"""Who calls: a backend with an API key of a channel, or a server of the cluster (contract: Dispatcher)."""

from __future__ import annotations

import hmac
from typing import Any

from twisted.internet.interfaces import IReactorTime

from imserver import config
from imserver.http.problems import forbidden, unauthorized
from imserver.protocol.tokens import Claims, TokenError, Tokens


class Access:
    """The authenticator of the dispatcher's calls: gives the name of a channel for `key`, claims for `cluster`."""

    def __init__(self, settings: config.Config, tokens: Tokens, clock: IReactorTime) -> None:
        self._keys = [(key.encode(), name) for name, channel in settings.channels.items() for key in channel.api_keys]
        self._tokens = tokens
        self._clock = clock

    async def __call__(self, request: Any, scheme: str) -> str | Claims:
        """Raises 401 for no or a wrong key or token, 403 for one that is good for something else."""
        kind, _, credential = (request.getHeader("authorization") or "").strip().partition(" ")
        credential = credential.strip()
        if kind.lower() != "bearer" or not credential:
            raise unauthorized()
        channel = self._channel(credential.encode("utf-8", "surrogateescape"))
        if scheme == "key" and channel is not None:
            return channel
        claims = None
        if channel is None:
            try:
                claims = self._tokens.verify(credential, self._clock.seconds())
            except TokenError:
                raise unauthorized("This key or token is not valid.") from None
        if scheme == "cluster" and claims is not None and claims.cluster:
            return claims
        needed = "a channel's API key" if scheme == "key" else "a token of the cluster"
        raise forbidden(f"This call needs {needed}.")

    def _channel(self, credential: bytes) -> str | None:
        found = None
        for key, name in self._keys:  # all of them, so that the time taken tells nothing
            if hmac.compare_digest(key, credential):
                found = name
        return found
