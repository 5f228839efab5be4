"""User tokens (JWT) and the tokens with which our own servers call each other (contract: Tokens)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jwt
import msgspec
from jwt.types import Options

from imserver import config
from imserver.protocol.syntax import ChannelName, Platform, Role, Uid

CLUSTER = "cluster"
INFO_MAX = 1024
CLUSTER_TTL_S = 60


class TokenError(Exception):
    """A token that is not accepted; the text says why and may be told to the client."""


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """Who somebody is, as a valid token says."""

    uid: str
    role: str
    channels: tuple[str, ...]
    exp: int
    platform: str | None = None
    info: dict[str, Any] | None = None
    conn: str = ""
    cluster: bool = False


class _Payload(msgspec.Struct, kw_only=True):
    sub: Uid
    role: Role
    channel: ChannelName | list[ChannelName]
    exp: int | float
    nbf: int | float | None = None
    platform: Platform | None = None
    info: dict[str, Any] | None = None
    conn: str = ""


# exp and nbf are compared here, with the time given; PyJWT would look at the machine's clock
_OPTIONS: Options = {
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
    "verify_sub": False,
    "verify_jti": False,
}


class Tokens:
    """Verifies and signs with the keys of a configuration."""

    def __init__(self, settings: config.Config) -> None:
        self._channels = frozenset(settings.channels)
        self._keys: dict[str, tuple[str, str]] = {CLUSTER: ("HS256", settings.cluster.secret)}
        self._signing = settings.tokens.signing or next(iter(settings.tokens.keys))
        self._secret = settings.cluster.secret
        for kid, key in settings.tokens.keys.items():
            self._keys[kid] = (key.alg, key.secret if key.alg == "HS256" else Path(key.public_key_file).read_text())
        signing = settings.tokens.keys[self._signing]
        self._private = signing.secret if signing.alg == "HS256" else ""
        if signing.alg != "HS256" and signing.private_key_file:
            self._private = Path(signing.private_key_file).read_text()

    def verify(self, token: str, now: float) -> Claims:
        """The claims of a valid token at `now` (seconds); `TokenError` otherwise."""
        if not token:
            raise TokenError("token missing")
        payload, kid = self._signed(token)
        try:
            found = msgspec.convert(payload, _Payload)
        except msgspec.ValidationError as error:
            raise TokenError(f"token invalid: {error}") from None
        if found.exp <= now:
            raise TokenError("token expired")
        if found.nbf is not None and found.nbf > now:
            raise TokenError("token not valid yet")
        if found.info is not None and len(msgspec.json.encode(found.info)) > INFO_MAX:
            raise TokenError(f"token invalid: info is over {INFO_MAX} bytes")
        named = [found.channel] if isinstance(found.channel, str) else found.channel
        channels = tuple(name for name in named if name in self._channels)
        if not channels:
            raise TokenError("token invalid: it names no channel of this server")
        return Claims(
            uid=found.sub,
            role=found.role,
            channels=channels,
            exp=int(found.exp),
            platform=found.platform,
            info=found.info,
            conn=found.conn if kid == CLUSTER else "",
            cluster=kid == CLUSTER,
        )

    def _signed(self, token: str) -> tuple[dict[str, Any], str]:
        try:
            header = jwt.get_unverified_header(token)
            kid = header.get("kid")
            candidates = [kid] if kid is not None else [name for name in self._keys if name != CLUSTER]
            reason = "it names an unknown key"
            for name in candidates:
                alg, key = self._keys.get(name, ("", ""))
                if alg != header.get("alg"):
                    continue
                try:
                    return jwt.decode(token, key, algorithms=[alg], options=_OPTIONS), str(name)
                except jwt.InvalidSignatureError:
                    reason = "the signature is wrong"
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise TokenError(f"token invalid: {error}") from None
        raise TokenError(f"token invalid: {reason}")

    def issue(
        self,
        uid: str,
        role: str,
        channels: Iterable[str],
        ttl_s: int,
        now: float,
        info: dict[str, Any] | None = None,
        platform: str | None = None,
    ) -> tuple[str, int]:
        """A user token and its `exp` (seconds); `TokenError` if this server has only a verifying key."""
        if not self._private:
            raise TokenError(f"[tokens.keys.{self._signing}] has no private_key_file, so no token can be signed here")
        names = list(channels)
        exp = int(now) + ttl_s
        payload: dict[str, Any] = {"sub": uid, "role": role, "channel": names[0] if len(names) == 1 else names}
        payload |= {"iat": int(now), "exp": exp} | ({"info": info} if info is not None else {})
        payload |= {"platform": platform} if platform is not None else {}
        alg = self._keys[self._signing][0]
        return jwt.encode(payload, self._private, algorithm=alg, headers={"kid": self._signing}), exp

    def act_for(self, claims: Claims, conn: str, now: float) -> str:
        """A token of the cluster with which one server calls another on behalf of a user's connection."""
        payload: dict[str, Any] = {
            "sub": claims.uid,
            "role": claims.role,
            "channel": list(claims.channels),
            "exp": int(now) + CLUSTER_TTL_S,
            "conn": conn,
        }
        if claims.info is not None:
            payload["info"] = claims.info
        if claims.platform is not None:
            payload["platform"] = claims.platform
        return jwt.encode(payload, self._secret, algorithm="HS256", headers={"kid": CLUSTER})

    def act_for_system(self, now: float) -> str:
        """A token of the cluster for what a server does on its own account, on every channel."""
        system = Claims(uid="system", role="system", channels=tuple(sorted(self._channels)), exp=0)
        return self.act_for(system, "", now)
