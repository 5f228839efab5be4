"""The twin of Perspective Broker within one process: calls that arrive at once."""

from __future__ import annotations

from collections.abc import Sequence

from imserver.ops.trail import Event
from imserver.rpc.interface import Peer, Pushed, Receiver, RpcError


class LocalPeer:
    """`interface.Peer` straight to a receiver of this process."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def deliver(self, pushed: Pushed) -> int:
        """Take it in."""
        return self._receiver.deliver([pushed])[0]

    async def broadcast(self, role: str | None, platform: str | None, head: bytes, tail: bytes) -> int:
        """Send to all."""
        return self._receiver.broadcast(role, platform, head, tail)

    async def close(self, uid: str, conn: str | None, channels: Sequence[str], code: int, reason: str) -> int:
        """Close a uid's connections."""
        return self._receiver.close(uid, conn, channels, code, reason)

    async def sever(self, kind: str, value: str, channels: Sequence[str], code: int, reason: str) -> int:
        """Close a uid's or an address's connections."""
        return self._receiver.sever(kind, value, channels, code, reason)

    async def trail(self, id: str, channel: str) -> list[Event]:
        """What it did with a message lately."""
        return self._receiver.trail(id, channel)

    async def present(self, uids: Sequence[str], role: str, channel: str) -> list[str]:
        """Who of these is connected to it."""
        return self._receiver.present(uids, role, channel)


class MemoryPeers:
    """`interface.Peers` among the receivers it is given; an unknown address is a worker that does not answer."""

    def __init__(self) -> None:
        self.receivers: dict[str, Receiver] = {}

    def peer(self, address: str) -> Peer:
        """The receiver at an address."""
        if address not in self.receivers:
            raise RpcError(f"nobody at {address}")
        return LocalPeer(self.receivers[address])

    def keep(self, addresses: set[str]) -> None:
        """Nothing to close."""
