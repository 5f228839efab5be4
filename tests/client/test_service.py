"""The client over real sockets, against a small worker that speaks the contract."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jwt
import msgspec
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from imserver.client import IMClient, IMError, Limits


class Peer(WebSocketServerProtocol):
    """One connection of the worker: it welcomes, answers `send`, and keeps what it got."""

    def onConnect(self, request: Any) -> tuple[str, dict[str, str]]:
        """Take the subprotocol offered."""
        self.factory.offered.append(list(request.protocols))
        return "im.v1", {}

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Take a frame."""
        frame = msgspec.json.decode(payload)
        self.factory.heard(self, frame)

    def say(self, **frame: Any) -> None:
        """Send a frame."""
        self.sendMessage(msgspec.json.encode(frame))


class Worker(WebSocketServerFactory):
    """A worker on a free port; `expect` waits for a frame."""

    protocol = Peer
    noisy = False

    def __init__(self) -> None:
        super().__init__(protocols=["im.v1"])
        self.offered: list[list[str]] = []
        self.frames: list[tuple[Peer, dict[str, Any]]] = []
        self.refuse: int | None = None
        self.answering = True
        self._waiting: list[tuple[Callable[[dict[str, Any]], bool], Deferred[tuple[Peer, dict[str, Any]]]]] = []

    def heard(self, peer: Peer, frame: dict[str, Any]) -> None:
        """Take in a frame, and answer it."""
        if frame["op"] == "hello" and self.refuse is not None:
            peer.sendClose(self.refuse, "refused")
            self.refuse = None
        elif frame["op"] == "hello":
            peer.say(
                op="welcome", conn="c", uid="me", device=frame["device"], ts=int(time.time() * 1000),
                heartbeat_s=60, ack_timeout_s=18, max_frame=65536, resumed=True,
            )  # fmt: skip
        elif frame["op"] == "send" and self.answering:
            peer.say(op="sent", ref=frame["ref"], id="m-" + frame["cid"], ts=1)
        elif frame["op"] == "history":
            peer.say(op="history", ref=frame["ref"], messages=[], more=False)
        self.frames.append((peer, frame))
        for wanted, waiter in list(self._waiting):
            if wanted(frame):
                self._waiting.remove((wanted, waiter))
                waiter.callback((peer, frame))

    def expect(self, op: str, **fields: Any) -> Deferred[tuple[Peer, dict[str, Any]]]:
        """The next frame like this."""
        waiter: Deferred[tuple[Peer, dict[str, Any]]] = Deferred()
        self._waiting.append((lambda frame: {**frame, "op": op, **fields} == frame, waiter))
        return waiter.addTimeout(5, reactor)


def token() -> str:
    """Some token that lasts."""
    return jwt.encode({"sub": "me", "exp": int(time.time()) + 3600}, "x" * 32)


class Client(TestCase):
    """One client, one worker."""

    timeout = 20

    def setUp(self) -> None:
        """Start a worker and a client."""
        self.worker = Worker()
        self.port: Any = reactor.listenTCP(0, self.worker, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.tokens = 0
        self._waiting: list[tuple[str, Deferred[dict[str, Any]]]] = []
        self.client = IMClient(
            reactor,
            urls=[f"ws://127.0.0.1:{self.port.getHost().port}/ws"],
            get_token=self.next_token,
            device="test",
            hear=self.hear,
            limits=Limits(delay_min_s=0.01, delay_max_s=0.02, ack_delay_s=0.01),
        )

    async def tearDown(self) -> None:
        """End both."""
        await self.client.stopService()
        await self.port.stopListening()

    def next_token(self) -> str:
        """Count how often a token is asked for."""
        self.tokens += 1
        return token()

    def hear(self, kind: str, frame: dict[str, Any]) -> None:
        """Keep what the client tells."""
        self.told.append((kind, frame))
        for wanted, waiter in list(self._waiting):
            if wanted == kind:
                self._waiting.remove((wanted, waiter))
                waiter.callback(frame)

    def expect(self, kind: str) -> Deferred[dict[str, Any]]:
        """The next thing of this kind."""
        waiter: Deferred[dict[str, Any]] = Deferred()
        self._waiting.append((kind, waiter))
        return waiter.addTimeout(5, reactor)

    async def start(self) -> Peer:
        """Connect; the worker's end of the connection."""
        hello, welcome = self.worker.expect("hello"), self.expect("welcome")
        self.client.startService()
        peer, _ = await hello
        await welcome
        return peer

    async def test_conversation(self) -> None:
        """Connect with the subprotocol, send, ask, receive, acknowledge."""
        peer = await self.start()
        self.assertEqual(self.worker.offered, [["im.v1"]])
        sent = await self.client.send({"text": "hi"}, to="you", cid="a")
        self.assertEqual(sent["id"], "m-a")
        self.assertEqual((await self.client.history("c", limit=3))["messages"], [])
        ack = self.worker.expect("ack", cursor="2-0")
        peer.say(op="message", id="1", cursor="1-0", to="me", body={"n": 1}, **{"from": "you"})
        peer.say(op="message", id="2", cursor="2-0", to="me", body={"n": 2}, **{"from": "you"})
        await ack
        self.assertEqual([frame["id"] for kind, frame in self.told if kind == "message"], ["1", "2"])

    async def test_resume(self) -> None:
        """A connection that breaks comes back after the last message, with what was not answered."""
        peer = await self.start()
        told = self.expect("message")
        peer.say(op="message", id="1", cursor="1-0", to="me", body={}, **{"from": "you"})
        await told
        self.worker.answering = False
        out, again = self.worker.expect("send"), self.worker.expect("hello", since="1-0")
        sent = self.client.send({}, to="you", cid="a")
        await out
        self.worker.answering = True
        peer.transport.abortConnection()
        await again
        self.assertEqual((await sent)["id"], "m-a")
        self.assertEqual(self.tokens, 1)

    async def test_new_token(self) -> None:
        """4401 makes it ask for a new token."""
        self.worker.refuse = 4401
        welcome = self.expect("welcome")
        self.client.startService()
        await welcome
        self.assertEqual(self.tokens, 2)

    async def test_kicked(self) -> None:
        """4409 ends it, and what waits."""
        peer = await self.start()
        self.worker.answering = False
        out = self.worker.expect("send")
        sent = self.client.send({}, to="you")
        await out
        ended = self.expect("status")
        peer.sendClose(4409, "kicked")
        error = await self.assertFailure(sent, IMError)
        self.assertEqual(error.code, "stopped")
        self.assertEqual(await ended, {"status": "stopped", "code": 4409, "reason": "kicked"})

    async def test_nobody_there(self) -> None:
        """Nobody listening is a reason to wait and try again."""
        number = self.port.getHost().port
        await self.port.stopListening()
        self.client.startService()
        while (await self.expect("status"))["status"] != "waiting":
            continue
        welcome = self.expect("welcome")
        self.port = reactor.listenTCP(number, self.worker, interface="127.0.0.1")  # type: ignore[attr-defined]
        await welcome

    async def test_cancelled(self) -> None:
        """A call whose answer is no longer wanted is forgotten."""
        await self.start()
        self.worker.answering = False
        out = self.worker.expect("send")
        sent = self.client.send({}, to="you")
        await out
        sent.addErrback(lambda _: None)
        sent.cancel()
        self.assertEqual(self.client.session._calls, {})
