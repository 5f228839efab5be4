"""The client as a Twisted service: carries out over Autobahn what `session` decides."""

from __future__ import annotations

import random as chance
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.application.service import Service
from twisted.internet import endpoints, ssl
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger

from imserver.client.actions import (
    Drop,
    Frame,
    IMError,
    Limits,
    Open,
    Renew,
    Settled,
    Told,
    Write,
    new_id,
    token_end,
)
from imserver.client.session import Session

log = Logger()

SUBPROTOCOL = "im.v1"
_CLOSE_TIMEOUT_S = 2.0
_FRAME_MAX = 16 * 1024 * 1024

Hear = Callable[[str, Frame], None]


class _Protocol(WebSocketClientProtocol):
    """Tells its client what happens on one connection."""

    client: IMClient | None = None

    def onOpen(self) -> None:
        if self.client is not None:
            self.client._opened(self)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.client is not None:
            self.client._received(self, payload)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self.factory.gone.callback(None)
        if self.client is not None:
            self.client._lost(self, code or 1006, reason or "")


class IMClient(Service):
    """One user, connected while the service runs.

    `urls` are workers to try in turn, or a function that gives (or awaits) the next one; `get_token`
    likewise gives a token, at the start, before it ends and after it was refused. `hear(kind, frame)` is
    told `status`, `welcome`, `message`, `read`, `typing`, `state`, and an `error` that answers no call.
    Each message is told once, in order. `since` is a cursor kept from before; without one comes what
    `device` has not acknowledged.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        urls: Sequence[str] | Callable[[], str | Awaitable[str]],
        get_token: Callable[[], str | Awaitable[str]],
        device: str,
        hear: Hear = lambda kind, frame: None,
        since: str | None = None,
        platform: str = "other",
        limits: Limits | None = None,
        random: Callable[[], float] = chance.random,
        epoch: Callable[[], float] = time.time,
    ) -> None:
        self.session = Session(device, since=since, platform=platform, limits=limits, random=random)
        self._limits = limits or Limits()
        self._reactor = reactor
        self._urls = urls
        self._turn = int(random() * len(urls)) if isinstance(urls, Sequence) else 0
        self._get_token = get_token
        self._hear = hear
        self._epoch = epoch
        self._token = ""
        self._protocol: _Protocol | None = None
        self._opening: Deferred[None] | None = None
        self._timer: Any = None
        self._pending: dict[str, Deferred[Frame]] = {}
        self._running = False

    # -- For the application -------------------------------------------------------------------------------

    def startService(self) -> None:
        """Connect, and stay connected."""
        super().startService()
        self.session.connect(self._now())
        self._act()

    def stopService(self) -> Deferred[None]:
        """Acknowledge what has come, and disconnect; fires when the connection is closed."""
        super().stopService()
        protocol = self._protocol
        self.session.close()
        self._act()
        return Deferred.fromCoroutine(self._closed(protocol))

    def send(self, body: Frame, *, type: str = "text", cid: str = "", **target: str) -> Deferred[Frame]:
        """Send a message to one of `to=`, `shop=`, `conversation=` (and `channel=`, `skill=`); fires with `sent`.

        Fails with `IMError`. It is sent again, over new connections too, until it is answered; giving the
        `cid` of an earlier attempt is safe.
        """
        message = {"cid": cid or new_id(), "type": type, "body": body, **target}
        return self._called(lambda: self.session.send(message, self._now()))

    def history(self, conversation: str, **page: int) -> Deferred[Frame]:
        """A page of a conversation (`before=`, `after=`, `limit=`): `messages` and `more`."""
        frame = {"op": "history", "conversation": conversation, **page}
        return self._called(lambda: self.session.call(frame, self._now()))

    def conversations(self, **page: int) -> Deferred[Frame]:
        """One's conversations, newest first (`before=`, `limit=`): `conversations` and `more`."""
        return self._called(lambda: self.session.call({"op": "conversations", **page}, self._now()))

    def read(self, conversation: str, seq: int) -> None:
        """Say that everything up to `seq` has been read."""
        self.session.read(conversation, seq)
        self._act()

    def typing(self, conversation: str) -> None:
        """Say that the user is writing."""
        self.session.typing(conversation, self._now())
        self._act()

    # -- What the session decides --------------------------------------------------------------------------

    def _called(self, call: Callable[[], str]) -> Deferred[Frame]:
        answer: Deferred[Frame] = Deferred(lambda _: self._forget(answer))
        try:
            ref = call()
        except IMError as error:
            answer.errback(error)
            return answer
        self._pending[ref] = answer
        self._act()
        return answer

    def _forget(self, answer: Deferred[Frame]) -> None:
        for ref, pending in list(self._pending.items()):
            if pending is answer:
                del self._pending[ref]
                self.session.forget(ref, self._now())
        self._act()

    def _now(self) -> float:
        return float(self._reactor.seconds())

    def _act(self) -> None:
        if self._running:
            return  # an action's listener called us: the loop below takes what it added
        self._running = True
        try:
            while actions := self.session.take():
                for action in actions:
                    self._carry_out(action)
        finally:
            self._running = False
        self._set_timer()

    def _carry_out(self, action: Any) -> None:
        if isinstance(action, Write):
            if self._protocol is not None:
                self._protocol.sendMessage(action.text)
        elif isinstance(action, Told):
            self._tell(action)
        elif isinstance(action, Settled):
            answer = self._pending.pop(action.ref, None)
            if answer is None:
                log.debug("an answer that nobody waits for")
            elif isinstance(action.answer, IMError):
                answer.errback(action.answer)
            else:
                answer.callback(action.answer)
        elif isinstance(action, Open):
            self._opening = Deferred.fromCoroutine(self._open(action))
        elif isinstance(action, Drop):
            self._drop()
        elif isinstance(action, Renew):
            Deferred.fromCoroutine(self._renew())

    def _tell(self, told: Told) -> None:
        try:
            self._hear(told.kind, told.frame)
        except Exception:
            log.failure("the application failed to take in {kind}", kind=told.kind)

    def _set_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        due = self.session.deadline
        if due is not None:
            self._timer = self._reactor.callLater(max(0.0, due - self._now()), self._tick)

    def _tick(self) -> None:
        self.session.tick(self._now())
        self._act()

    # -- Connections ---------------------------------------------------------------------------------------

    async def _open(self, action: Open) -> None:
        try:
            if action.fresh or (token_end(self._token) or 0) <= self._epoch():
                self._token = await _awaited(self._get_token)
            url = action.url or await self._next_url()
            factory: Any = WebSocketClientFactory(url, protocols=[SUBPROTOCOL], reactor=self._reactor)
            factory.noisy = False
            factory.protocol = _Protocol
            factory.gone = Deferred()
            factory.setProtocolOptions(
                openHandshakeTimeout=self._limits.open_timeout_s,
                closeHandshakeTimeout=_CLOSE_TIMEOUT_S,
                maxMessagePayloadSize=_FRAME_MAX,
                failByDrop=False,
                tcpNoDelay=True,
            )
            protocol: Any = await _endpoint(self._reactor, url, self._limits.open_timeout_s).connect(factory)
        except CancelledError:
            return
        except Exception as error:  # a name that does not resolve, a refused connection, a token that cannot be had
            self._opening = None
            self.session.lost(1006, f"cannot connect: {error}", self._now())
            self._act()
            return
        self._opening = None
        self._protocol = protocol
        protocol.client = self
        if protocol.state == protocol.STATE_OPEN:  # the handshake was faster than this coroutine
            self._opened(protocol)
        elif protocol.state == protocol.STATE_CLOSED:
            self._lost(protocol, 1006, "connection lost")

    async def _next_url(self) -> str:
        if not isinstance(self._urls, Sequence):
            return await _awaited(self._urls)
        self._turn += 1
        return self._urls[self._turn % len(self._urls)]

    async def _renew(self) -> None:
        try:
            self._token = await _awaited(self._get_token)
        except Exception:
            log.failure("no new token; the old one is used as long as it lasts")
            return
        self.session.renewed(self._token, self._now(), self._epoch())
        self._act()

    def _drop(self) -> None:
        if self._opening is not None:
            opening, self._opening = self._opening, None
            opening.cancel()
        if self._protocol is not None:
            protocol, self._protocol = self._protocol, None
            protocol.client = None
            protocol.sendClose(1000)

    def _opened(self, protocol: _Protocol) -> None:
        if protocol is self._protocol:
            self.session.opened(self._token, self._now())
            self._act()

    def _received(self, protocol: _Protocol, payload: bytes) -> None:
        if protocol is self._protocol:
            self.session.received(payload, self._now())
            self._act()

    def _lost(self, protocol: _Protocol, code: int, reason: str) -> None:
        if protocol is self._protocol:
            self._protocol = None
            self.session.lost(code, reason, self._now())
            self._act()

    async def _closed(self, protocol: _Protocol | None) -> None:
        if protocol is not None:
            await protocol.factory.gone


async def _awaited(function: Callable[[], str | Awaitable[str]]) -> str:
    result = function()
    return result if isinstance(result, str) else await result


def _endpoint(reactor: Any, url: str, timeout_s: float) -> IStreamClientEndpoint:
    parts = urlsplit(url)
    host = parts.hostname or "127.0.0.1"
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    endpoint = endpoints.HostnameEndpoint(reactor, host, port, timeout=timeout_s)
    if parts.scheme == "wss":
        return endpoints.wrapClientTLS(ssl.optionsForClientTLS(host), endpoint)
    return endpoint
