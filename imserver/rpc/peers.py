"""A caller's side of Perspective Broker: one connection to each worker, batches, deadlines, bounds.

`ClientService.whenConnected` fires before Perspective Broker has negotiated, so readiness is taken from the login
started in `clientConnectionMade`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from twisted.application.internet import ClientService, backoffPolicy
from twisted.cred.credentials import UsernamePassword
from twisted.internet import defer, endpoints
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.spread import pb

from imserver import config
from imserver.ops.trail import Event
from imserver.rpc.interface import Peer, Pushed, Receiver, RpcError
from imserver.rpc.memory import LocalPeer
from imserver.rpc.server import LOGIN, basic_types, packed

log = Logger()
_BATCH_ITEMS = 2000  # Perspective Broker's list limit is far above; an answer of so many counts is small
_IN_FLIGHT_CALLS = 2
"""One call being answered, one on its way: what comes meanwhile goes together as the next. With many calls at a time
each carried one frame or two, and a call costs as much as 20 frames in one."""


class _LoginFactory(pb.PBClientFactory):
    """Logs in on every connection that it makes."""

    noisy = False

    def __init__(
        self,
        reactor: Any,
        settings: config.Cluster,
        connected: Callable[[Any], None],
        ready: Callable[[Any], None],
        gone: Callable[[Any], None],
    ) -> None:
        super().__init__(security=basic_types())
        self._reactor = reactor
        self._settings = settings
        self._connected = connected
        self._ready = ready
        self._gone = gone

    def clientConnectionMade(self, broker: Any) -> None:
        super().clientConnectionMade(broker)
        if hasattr(broker.transport, "setTcpKeepAlive"):
            broker.transport.setTcpKeepAlive(True)
            broker.transport.setTcpNoDelay(True)
        broker.notifyOnDisconnect(lambda: self._gone(broker))
        self._connected(broker)
        login = self.login(UsernamePassword(LOGIN, self._settings.secret.encode()))
        login.addTimeout(self._settings.rpc_timeout_s, self._reactor)
        login.addCallbacks(self._ready, lambda failure: self._refused(broker, failure))

    def _refused(self, broker: Any, failure: Failure) -> None:
        if failure.check(pb.PBConnectionLost, pb.DeadReferenceError, defer.TimeoutError) is None:
            log.warn("a worker refused the login, is [cluster] secret the same? {why}", why=failure.getErrorMessage())
        broker.transport.abortConnection()


class PerspectivePeer:
    """`interface.Peer` over one connection that comes back by itself."""

    def __init__(self, reactor: Any, address: str, settings: config.Cluster) -> None:
        self.address = address
        self.queued_bytes = 0
        self._reactor = reactor
        self._settings = settings
        self._perspective: Any = None
        self._broker: Any = None
        self._suspect = False
        self._waiting: list[Deferred[None]] = []
        self._queue: deque[tuple[Pushed, Deferred[int]]] = deque()
        self._flush_due: Any = None
        self._calls = 0
        self._service = ClientService(
            endpoints.clientFromString(reactor, address),
            _LoginFactory(reactor, settings, self._connected, self._ready, self._gone),
            retryPolicy=backoffPolicy(initialDelay=0.1, maxDelay=2.0, factor=1.6),
            clock=reactor,
        )
        self._service.startService()

    def stop(self) -> Deferred[Any]:
        """Close the connection; what waits fails."""
        if self._flush_due is not None and self._flush_due.active():
            self._flush_due.cancel()
        while self._queue:
            self._queue.popleft()[1].errback(RpcError("closed"))
        stopped = defer.maybeDeferred(self._service.stopService)
        self._abort()
        return stopped

    async def deliver(self, pushed: Pushed) -> int:
        """`Receiver.deliver` of one; what comes within one reactor turn goes as one call."""
        size = len(pushed.tail) + len(pushed.head) + len(pushed.uid) + 64
        if self.queued_bytes + size > self._settings.rpc_queue_bytes:
            raise RpcError(f"{self.queued_bytes} bytes wait for {self.address} already")
        if self._suspect and self._perspective is None:
            raise RpcError(f"{self.address} does not answer")
        done: Deferred[int] = Deferred()
        self._queue.append((pushed, done))
        self.queued_bytes += size
        self._flush_soon()
        try:
            return await done
        finally:
            self.queued_bytes -= size

    async def broadcast(self, role: str | None, platform: str | None, head: bytes, tail: bytes) -> int:
        """`Receiver.broadcast`."""
        return int(await self._call("broadcast", role, platform, head, tail))

    async def close(self, uid: str, conn: str | None, channels: Sequence[str], code: int, reason: str) -> int:
        """`Receiver.close`."""
        return int(await self._call("close", uid, conn, list(channels), code, reason))

    async def sever(self, kind: str, value: str, channels: Sequence[str], code: int, reason: str) -> int:
        """`Receiver.sever`."""
        return int(await self._call("sever", kind, value, list(channels), code, reason))

    async def trail(self, id: str, channel: str) -> list[Event]:
        """`Receiver.trail`."""
        return msgspec.json.decode(await self._call("trail", id, channel), type=list[Event])

    async def present(self, uids: Sequence[str], role: str, channel: str) -> list[str]:
        """`Receiver.present`."""
        return [str(uid) for uid in await self._call("present", list(uids), role, channel)]

    def _flush_soon(self) -> None:
        if self._flush_due is None and self._queue and self._calls < _IN_FLIGHT_CALLS:
            self._flush_due = self._reactor.callLater(0, self._flush)

    def _flush(self) -> None:
        self._flush_due = None
        while self._queue and self._calls < _IN_FLIGHT_CALLS:
            batch: list[tuple[Pushed, Deferred[int]]] = []
            size = 0
            while self._queue and len(batch) < _BATCH_ITEMS:
                size += len(self._queue[0][0].tail)
                if batch and size > self._settings.rpc_batch_bytes:
                    break
                batch.append(self._queue.popleft())
            self._calls += 1
            Deferred.fromCoroutine(self._send(batch))

    async def _send(self, batch: list[tuple[Pushed, Deferred[int]]]) -> None:
        try:
            counts: list[int] = await self._call("deliver", *packed([pushed for pushed, _ in batch]))
            if len(counts) != len(batch):
                raise RpcError(f"{self.address} answered {len(counts)} counts to {len(batch)} frames")
        except Exception as error:
            if not isinstance(error, RpcError):
                log.failure("a batch for {address} failed", address=self.address)
                error = RpcError(f"the call of {self.address} failed")
            for _, done in batch:
                done.errback(error)
        else:
            for (_, done), count in zip(batch, counts, strict=True):
                done.callback(count)
        finally:
            self._calls -= 1
            self._flush_soon()

    async def _call(self, name: str, *args: Any) -> Any:
        deadline = self._reactor.seconds() + self._settings.rpc_timeout_s
        try:
            await self._whenReady(deadline)
            pending: Deferred[Any] = self._perspective.callRemote(name, *args)
            # an answer that the policy rejects never fires, not even at disconnect
            return await pending.addTimeout(max(0.0, deadline - self._reactor.seconds()), self._reactor)
        except defer.TimeoutError:
            self._suspect = True
            self._abort()
            raise RpcError(f"{self.address} did not answer {name} in {self._settings.rpc_timeout_s} s") from None
        except (pb.PBConnectionLost, pb.DeadReferenceError):
            self._abort()
            raise RpcError(f"the connection to {self.address} was lost") from None
        except (pb.Error, pb.RemoteError) as error:
            raise RpcError(f"{self.address} could not do {name}: {error}") from None

    async def _whenReady(self, deadline: float) -> None:
        while self._perspective is None:
            if self._suspect:
                raise RpcError(f"{self.address} does not answer")
            waiter: Deferred[None] = Deferred()
            self._waiting.append(waiter)
            try:
                await waiter.addTimeout(max(0.0, deadline - self._reactor.seconds()), self._reactor)
            finally:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)

    def _connected(self, broker: Any) -> None:
        self._broker, self._perspective = broker, None

    def _ready(self, perspective: Any) -> None:
        self._perspective, self._suspect = perspective, False
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)

    def _gone(self, broker: Any) -> None:
        if broker is self._broker:
            self._broker = self._perspective = None

    def _abort(self) -> None:
        broker, self._broker, self._perspective = self._broker, None, None
        if broker is not None:
            broker.transport.abortConnection()


class PerspectivePeers:
    """`interface.Peers`: connections are opened when first needed and closed when their worker has gone."""

    def __init__(self, reactor: Any, settings: config.Cluster) -> None:
        self._reactor = reactor
        self._settings = settings
        self._peers: dict[str, PerspectivePeer] = {}
        self.local: dict[str, Receiver] = {}
        """What is in this very process needs no connection."""

    def peer(self, address: str) -> Peer:
        """The way to the worker at this client endpoint string."""
        if address in self.local:
            return LocalPeer(self.local[address])
        if address not in self._peers:
            self._peers[address] = PerspectivePeer(self._reactor, address, self._settings)
        return self._peers[address]

    def keep(self, addresses: set[str]) -> None:
        """Close the connections to all other workers."""
        for address in set(self._peers) - addresses:
            self._peers.pop(address).stop()

    def stop(self) -> Deferred[Any]:
        """Close every connection."""
        peers = list(self._peers.values())
        self._peers.clear()
        return defer.DeferredList([peer.stop() for peer in peers], consumeErrors=True)
