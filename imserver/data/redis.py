"""Redis or Valkey over txredisapi: bytes in, bytes out, a deadline on every command, no unbounded queue.

Each connection is a `ClientService` of its own around txredisapi's protocol.  Its factories are not used: they stop
reconnecting for good when a connection breaks while it authenticates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import txredisapi
from twisted.application.internet import ClientService, backoffPolicy
from twisted.internet import defer, endpoints, protocol
from twisted.internet.abstract import isIPAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger

from imserver import config
from imserver.data.interface import Unavailable
from imserver.ops import startup

log = Logger()
Result = TypeVar("Result")

_IDLE_BLOCKING_MAX = 16
# answers that mean "not now": the server is loading, has no memory or disk, or is no master any more
_NOT_NOW = ("LOADING", "OOM", "MISCONF", "READONLY", "BUSY", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "NOREPLICAS")

Argument = str | bytes | int


class Address:
    """Where a Redis is, and who we are to it: a parsed [redis] url."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.password = unquote(parts.password) if parts.password else None
        self.username = unquote(parts.username) if parts.username else None
        if parts.scheme == "unix":
            self.path: str | None = unquote(parts.path)
            self.db = int(parse_qs(parts.query).get("db", ["0"])[0])
            self.text = f"unix://{self.path}"
        else:
            self.path = None
            self.host = parts.hostname or "127.0.0.1"
            self.port = parts.port or 6379
            self.db = int(parts.path.strip("/") or 0)
            self.text = f"redis://{self.host}:{self.port}/{self.db}"

    def endpoint(self, reactor: Any, timeout_s: float) -> IStreamClientEndpoint:
        """Where to connect."""
        if self.path is not None:
            return endpoints.UNIXClientEndpoint(reactor, self.path, timeout=timeout_s)
        if isIPAddress(self.host):  # HostnameEndpoint leaves a timer behind when it is stopped while it connects
            return endpoints.TCP4ClientEndpoint(reactor, self.host, self.port, timeout=timeout_s)
        return endpoints.HostnameEndpoint(reactor, self.host, self.port, timeout=timeout_s)


class _Protocol(txredisapi.RedisProtocol):  # type: ignore[misc]
    """txredisapi's protocol, with a command put together at a third of the cost."""

    def _build_command(self, *args: Any, **kwargs: Any) -> bytes:
        pieces = [b"*%d\r\n" % len(args)]
        for arg in args:
            value = arg if isinstance(arg, bytes) else self._encode_value(arg)
            pieces.append(b"$%d\r\n%b\r\n" % (len(value), value))
        return b"".join(pieces)


class _Factory(protocol.Factory):
    """What txredisapi's protocol expects of its factory, with reconnecting left to ClientService."""

    noisy = False
    isLazy = False

    def __init__(
        self, kind: type[txredisapi.BaseRedisProtocol], address: Address, ready: Callable[[Any], None]
    ) -> None:
        self._kind = kind
        self._address = address
        self._ready = ready

    def buildProtocol(self, addr: object) -> Any:
        made = self._kind(
            charset=None,
            convertNumbers=False,
            username=self._address.username,
            password=self._address.password,
            dbid=self._address.db or None,
        )
        made.factory = self
        made.whenConnected().addCallback(self._ready)
        return made

    def stopTrying(self) -> None:
        """Called when a connection breaks at AUTH: the next one may not."""

    def connectionError(self, why: str) -> None:
        log.warn("{why}", why=why)


class _Link:
    """One connection that comes back by itself."""

    def __init__(
        self,
        reactor: Any,
        address: Address,
        timeout_s: float,
        ready: Callable[[_Link], None] = lambda link: None,
        kind: type[txredisapi.BaseRedisProtocol] = _Protocol,
    ) -> None:
        self.protocol: Any = None
        self._settling: Any = None
        self._reactor = reactor
        self._announce = ready
        self._service = ClientService(
            address.endpoint(reactor, timeout_s),
            _Factory(kind, address, self._connected),
            retryPolicy=backoffPolicy(initialDelay=0.05, maxDelay=2.0, factor=1.6),
            clock=reactor,
        )
        self._service.startService()

    def _connected(self, made: Any) -> None:
        # without a password this runs inside connectionMade, before ClientService itself knows of the connection
        self._settling = self._reactor.callLater(0, self._settled, made)

    def _settled(self, made: Any) -> None:
        if made.connected:
            self.protocol = made
            made.whenDisconnected().addCallback(lambda _: self._lost(made))
            self._announce(self)

    def _lost(self, made: Any) -> None:
        if self.protocol is made:
            self.protocol = None

    def abort(self) -> None:
        """Drop the connection at once; what is in flight fails, a new one is opened."""
        if self.protocol is not None:
            self.protocol.transport.abortConnection()

    def stop(self) -> Deferred[Any]:
        if self._settling is not None and self._settling.active():
            self._settling.cancel()
        stopped = defer.maybeDeferred(self._service.stopService)
        self.abort()
        return stopped


class Redis:
    """Commands and scripts with a deadline; `Unavailable` whenever Redis does not answer as it should."""

    def __init__(self, reactor: Any, settings: config.Redis) -> None:
        self.address = Address(settings.url)
        self.settings = settings
        self.in_flight = 0
        self._reactor = reactor
        self._waiting: list[Deferred[None]] = []
        self._links = [self._link() for _ in range(settings.connections)]
        self._idle: list[_Link] = []
        self._blocked: set[_Link] = set()
        self._next = 0
        self._scripts: dict[str, tuple[str, bytes]] = {}
        self._stopped = False

    def _link(self) -> _Link:
        return _Link(self._reactor, self.address, self.settings.command_timeout_s, self._ready)

    def _ready(self, link: _Link) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)

    async def command(self, *args: Argument) -> Any:
        """One command; the answer as bytes, int, None or a list of them."""
        if self.in_flight >= self.settings.in_flight_max:
            raise Unavailable(f"{self.in_flight} Redis commands are waiting already")
        self.in_flight += 1
        try:
            link = await self._usable()
            return await self._run(link, args, self.settings.command_timeout_s)
        finally:
            self.in_flight -= 1

    async def script(self, name: str, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Run `lua/NAME.lua`; all keys have to share one hash tag."""
        digest, source = self._script(name)
        try:
            return await self.command("EVALSHA", digest, len(keys), *keys, *args)
        except txredisapi.ResponseError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
        return await self.command("EVAL", source, len(keys), *keys, *args)

    async def blocking(self, *args: Argument, timeout_s: float) -> Any:
        """A command that waits at the server (XREAD BLOCK ...), on a connection that nobody else uses meanwhile."""
        if self._stopped:
            raise Unavailable("Redis connection is closed")
        link = self._idle.pop() if self._idle else self._link()
        self._blocked.add(link)
        whole = False
        try:
            await self._connected(lambda: link.protocol is not None)
            answer = await self._run(link, args, timeout_s)
            whole = True
            return answer
        finally:
            self._blocked.discard(link)
            if whole and not self._stopped and len(self._idle) < _IDLE_BLOCKING_MAX:
                self._idle.append(link)
            else:
                link.stop()

    async def insist(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        """What a server needs of Redis to start: tried for `startup_wait_s`, then `StartupError`."""
        return await startup.insist(
            self._reactor,
            attempt,
            wait_s=self.settings.startup_wait_s,
            what=f"Redis at {self.address.text}; see [redis] url",
            errors=(Unavailable,),
        )

    async def ping(self) -> None:
        """Raises `Unavailable` unless Redis answers."""
        await self.command("PING")

    def stop(self) -> Deferred[Any]:
        """Close every connection."""
        self._stopped = True
        links = [*self._links, *self._idle, *self._blocked]
        self._idle.clear()
        return defer.DeferredList([link.stop() for link in links], consumeErrors=True)

    async def _usable(self) -> _Link:
        link = self._any()
        if link is None:
            await self._connected(lambda: any(link.protocol is not None for link in self._links))
            link = self._any()
        if link is None:
            raise Unavailable(f"not connected to Redis at {self.address.text}")
        return link

    def _any(self) -> _Link | None:
        """The next connection in turn that there is."""
        for _ in self._links:
            self._next = (self._next + 1) % len(self._links)
            if self._links[self._next].protocol is not None:
                return self._links[self._next]
        return None

    async def _connected(self, usable: Callable[[], bool]) -> None:
        deadline = self._reactor.seconds() + self.settings.command_timeout_s
        while not usable():
            if self._stopped:
                raise Unavailable("Redis connection is closed")
            left = deadline - self._reactor.seconds()
            waiter: Deferred[None] = Deferred()
            self._waiting.append(waiter)
            try:
                await waiter.addTimeout(max(0.0, left), self._reactor)
            except defer.TimeoutError:
                raise Unavailable(f"not connected to Redis at {self.address.text}") from None
            finally:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)

    async def _run(self, link: _Link, args: Sequence[Argument], timeout_s: float) -> Any:
        # who is cancelled leaves the connection alone, others wait on it too; its answer is dropped when it comes
        try:
            pending: Deferred[Any] = link.protocol.execute_command(*map(_encoded, args))
            return await pending.addTimeout(timeout_s, self._reactor)
        except defer.TimeoutError:
            link.abort()  # a path that is cut would otherwise hold everything that follows for minutes
            raise Unavailable(f"Redis did not answer {args[0]!r} within {timeout_s} s") from None
        except txredisapi.ConnectionError as error:
            raise Unavailable(f"Redis: {error}") from None
        except txredisapi.ResponseError as error:
            if str(error).split(" ", 1)[0].lstrip("-") in _NOT_NOW:
                raise Unavailable(f"Redis: {error}") from None
            raise

    def _script(self, name: str) -> tuple[str, bytes]:
        if name not in self._scripts:
            source = resources.files("imserver.data").joinpath("lua", f"{name}.lua").read_bytes()
            self._scripts[name] = hashlib.sha1(source, usedforsecurity=False).hexdigest(), source
        return self._scripts[name]


class Subscription:
    """Pub/sub on a connection of its own: `hear(payload)` for each message, `hear(None)` after each (re)connection."""

    def __init__(
        self, reactor: Any, settings: config.Redis, channel: str, hear: Callable[[bytes | None], None]
    ) -> None:
        subscription = self

        class _Subscriber(txredisapi.SubscriberProtocol):
            def messageReceived(self, pattern: object, channel: object, message: bytes) -> None:
                subscription._heard(message)

        self._hear = hear
        self._channel = channel
        self._link = _Link(reactor, Address(settings.url), settings.command_timeout_s, self._connected, _Subscriber)

    def _connected(self, link: _Link) -> None:
        link.protocol.subscribe(self._channel).addErrback(lambda failure: failure.trap(txredisapi.ConnectionError))
        self._heard(None)

    def _heard(self, payload: bytes | None) -> None:
        try:
            self._hear(payload)
        except Exception:
            log.failure("an announcement on {channel} could not be taken in", channel=self._channel)

    def stop(self) -> Deferred[Any]:
        """Close the connection."""
        return self._link.stop()


def pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """A hash, or the fields of a stream's entry, as Redis answers it: field, value, field, value, ..."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _encoded(value: Argument) -> bytes:
    if isinstance(value, bytes):
        return value
    return value.encode() if isinstance(value, str) else b"%d" % value
