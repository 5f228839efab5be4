"""A worker's side of Perspective Broker: who logs in with the cluster's secret may call it.

Only lists, strings, numbers and None cross the wire; one `pb.Error` with a short text is all a caller ever sees of a
failure here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.cred import checkers, portal
from twisted.internet import defer
from twisted.logger import Logger
from twisted.spread import jelly, pb
from zope.interface import implementer

from imserver.rpc.interface import Pushed, Receiver

log = Logger()
LOGIN = b"cluster"
TRAIL_MAX = 500
"""Events of one message that one server tells: well below the limit of a string in Perspective Broker."""


def basic_types() -> jelly.SecurityOptions:
    """A policy that admits lists, strings, numbers and None, and references for the login."""
    policy = jelly.SecurityOptions()
    policy.allowBasicTypes()
    policy.allowTypes("remote", "local", "lcache", "remote_cache")
    return policy


class _Avatar(pb.Avatar):
    """What a server that has logged in may call."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def perspective_deliver(self, heads: list[list[Any]], block: bytes) -> list[int]:
        return _answered(lambda: self._receiver.deliver(_unpacked(heads, block)))

    def perspective_broadcast(self, role: str | None, platform: str | None, head: bytes, tail: bytes) -> int:
        return _answered(lambda: self._receiver.broadcast(role, platform, head, tail))

    def perspective_close(self, uid: str, conn: str | None, channels: list[str], code: int, reason: str) -> int:
        return _answered(lambda: self._receiver.close(uid, conn, channels, code, reason))

    def perspective_sever(self, kind: str, value: str, channels: list[str], code: int, reason: str) -> int:
        return _answered(lambda: self._receiver.sever(kind, value, channels, code, reason))

    def perspective_trail(self, id: str, channel: str) -> bytes:
        return bytes(_answered(lambda: msgspec.json.encode(self._receiver.trail(id, channel)[:TRAIL_MAX])))

    def perspective_present(self, uids: list[str], role: str, channel: str) -> list[str]:
        return list(_answered(lambda: self._receiver.present(uids, role, channel)))


def _answered(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception:
        log.failure("a call from another server failed")
        raise pb.Error("internal") from None


def packed(pushed: list[Pushed]) -> tuple[list[list[Any]], bytes]:
    """Many frames as a list of heads and one block of bytes, which Perspective Broker carries ten times as fast."""
    heads = [[item.uid, item.op, item.cursor, item.prev, item.head, len(item.tail)] for item in pushed]
    return heads, b"".join(item.tail for item in pushed)


def _unpacked(heads: list[list[Any]], block: bytes) -> list[Pushed]:
    found: list[Pushed] = []
    start = 0
    for uid, op, cursor, prev, head, size in heads:
        found.append(Pushed(uid, op, cursor, prev, head, block[start : start + size]))
        start += size
    if start != len(block):
        raise ValueError("the block does not fit its heads")
    return found


@implementer(portal.IRealm)
class _Realm:
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def requestAvatar(self, avatarId: object, mind: object, *interfaces: object) -> Any:
        if pb.IPerspective not in interfaces:
            return defer.fail(NotImplementedError("only IPerspective"))
        return pb.IPerspective, _Avatar(self._receiver), lambda: None


class _Broker(pb.Broker):
    transport: Any

    def connectionMade(self) -> None:
        if hasattr(self.transport, "setTcpKeepAlive"):
            self.transport.setTcpKeepAlive(True)
            self.transport.setTcpNoDelay(True)
        super().connectionMade()


def server_factory(receiver: Receiver, secret: str) -> pb.PBServerFactory:
    """What a worker listens with on its `rpc_listen`."""
    checker = checkers.InMemoryUsernamePasswordDatabaseDontUse(**{LOGIN.decode(): secret.encode()})
    factory = pb.PBServerFactory(portal.Portal(_Realm(receiver), [checker]), security=basic_types())
    factory.protocol = _Broker
    factory.noisy = False
    return factory
