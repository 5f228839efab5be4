"""Perspective Broker over real sockets: batches, deadlines, lost connections, a wrong secret."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.cred.error import UnauthorizedLogin
from twisted.internet import defer, protocol, reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from imserver import config
from imserver.rpc.interface import Pushed, RpcError
from imserver.rpc.peers import PerspectivePeers
from imserver.rpc.server import server_factory


class Recorder:
    """A receiver that writes down its calls."""

    def __init__(self) -> None:
        self.calls: list[list[Pushed]] = []
        self.closed: list[tuple[Any, ...]] = []
        self.fail = False

    def deliver(self, pushed: Sequence[Pushed]) -> list[int]:
        """As many connections as the tail is long."""
        if self.fail:
            raise RuntimeError("a secret of this machine")
        self.calls.append(list(pushed))
        return [len(item.tail) for item in pushed]

    def broadcast(self, role: str | None, platform: str | None, head: bytes, tail: bytes) -> int:
        """Three."""
        return 3

    def close(self, uid: str, conn: str | None, channels: Sequence[str], code: int, reason: str) -> int:
        """Writes it down."""
        self.closed.append((uid, conn, list(channels), code, reason))
        return 1

    def sever(self, kind: str, value: str, channels: Sequence[str], code: int, reason: str) -> int:
        """None."""
        return 0

    def present(self, uids: Sequence[str], role: str, channel: str) -> list[str]:
        """Whoever begins with the role."""
        return [uid for uid in uids if uid.startswith(role)]


def pushed(number: int, size: int = 0) -> Pushed:
    """A frame with its number in the cursor."""
    return Pushed(f"u{number}", "message", f"{number}-0", f"{number - 1}-0", b'["id"]', b"x" * (size or number))


class PeerTests(TestCase):
    """What `rpc.peers` promises."""

    secret = "a cluster secret of 32 characters!!"

    def listen(self, factory: Any, port: int = 0) -> Any:
        """Listen on the loopback until the test ends."""
        listening = reactor.listenTCP(port, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(listening.stopListening)
        return listening

    def peers(self, secret: str = secret, **more: Any) -> PerspectivePeers:
        """Connections that are closed when the test ends."""
        made = PerspectivePeers(reactor, config.Cluster(secret=secret, **more))
        self.addCleanup(made.stop)
        return made

    async def test_batch(self) -> None:
        """What comes in one turn goes as one call, in order, each with its own answer."""
        recorder = Recorder()
        port = self.listen(server_factory(recorder, self.secret)).getHost().port
        peer = self.peers().peer(f"tcp:127.0.0.1:{port}")
        items = [pushed(n) for n in range(1, 101)]
        counts = await defer.gatherResults([Deferred.fromCoroutine(peer.deliver(item)) for item in items])
        self.assertEqual(counts, list(range(1, 101)))
        self.assertEqual(recorder.calls, [items])
        self.assertEqual(await peer.broadcast(None, "web", b"[]", b"}"), 3)
        self.assertEqual(await peer.close("u", None, ("demo",), 4409, "why"), 1)
        self.assertEqual(recorder.closed, [("u", None, ["demo"], 4409, "why")])
        self.assertEqual(await peer.present(["merchant-1", "bob"], "merchant", "demo"), ["merchant-1"])

    async def test_large_batches_are_cut(self) -> None:
        """More than `rpc_batch_bytes` goes as several calls, all of it, in order."""
        recorder = Recorder()
        port = self.listen(server_factory(recorder, self.secret)).getHost().port
        peer = self.peers(rpc_batch_bytes=100_000).peer(f"tcp:127.0.0.1:{port}")
        items = [pushed(n, 60_000) for n in range(1, 21)]
        await defer.gatherResults([Deferred.fromCoroutine(peer.deliver(item)) for item in items])
        self.assertEqual([item for call in recorder.calls for item in call], items)
        self.assertGreater(len(recorder.calls), 10)

    async def test_queue_is_bounded(self) -> None:
        """What waits for a worker has a limit in bytes, and says so."""
        port = self.listen(server_factory(Recorder(), self.secret)).getHost().port
        peer = self.peers(rpc_queue_bytes=100_000).peer(f"tcp:127.0.0.1:{port}")
        first = Deferred.fromCoroutine(peer.deliver(pushed(1, 90_000)))
        with self.assertRaisesRegex(RpcError, "wait for"):
            await peer.deliver(pushed(2, 90_000))
        self.assertEqual(await first, 90_000)
        self.assertEqual(peer.queued_bytes, 0)

    async def test_silent_worker(self) -> None:
        """A worker that accepts and says nothing costs one deadline; after that nobody waits for it."""
        silent = protocol.Factory.forProtocol(protocol.Protocol)
        port = self.listen(silent).getHost().port
        peer = self.peers(rpc_timeout_s=0.2).peer(f"tcp:127.0.0.1:{port}")
        with self.assertRaisesRegex(RpcError, "did not answer"):
            await peer.deliver(pushed(1))
        with self.assertRaisesRegex(RpcError, "does not answer"):
            await peer.deliver(pushed(2))

    async def test_worker_comes_back(self) -> None:
        """A worker that was away is reached again on a fresh connection."""
        recorder = Recorder()
        listening = self.listen(server_factory(recorder, self.secret))
        port = listening.getHost().port
        peer = self.peers().peer(f"tcp:127.0.0.1:{port}")
        await peer.deliver(pushed(1))
        await listening.stopListening()
        peer._broker.transport.abortConnection()
        waiting = Deferred.fromCoroutine(peer.deliver(pushed(2)))
        self.listen(server_factory(recorder, self.secret), port)
        try:
            await waiting
        except RpcError:  # it was sent on the connection that broke
            await peer.deliver(pushed(2))
        self.assertEqual(recorder.calls[-1], [pushed(2)])

    async def test_failure_tells_nothing(self) -> None:
        """What goes wrong inside a worker is logged there and not told."""
        recorder = Recorder()
        recorder.fail = True
        port = self.listen(server_factory(recorder, self.secret)).getHost().port
        with self.assertRaises(RpcError) as caught:
            await self.peers().peer(f"tcp:127.0.0.1:{port}").deliver(pushed(1))
        self.assertNotIn("secret of this machine", str(caught.exception))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    async def test_wrong_secret(self) -> None:
        """Without the cluster's secret nobody calls anything."""
        recorder = Recorder()
        port = self.listen(server_factory(recorder, self.secret)).getHost().port
        with self.assertRaises(RpcError):
            await (
                self.peers("another secret of 32 characters!!!", rpc_timeout_s=0.3)
                .peer(f"tcp:127.0.0.1:{port}")
                .deliver(pushed(1))
            )
        self.assertEqual(recorder.calls, [])
        self.assertTrue(self.flushLoggedErrors(UnauthorizedLogin))
