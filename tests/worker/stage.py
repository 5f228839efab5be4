"""A whole worker to connect to: in this process, over real sockets, on a real Valkey."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import ujson
from twisted.internet import reactor, task
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from imserver.protocol.tokens import Tokens
from imserver.worker.service import Worker
from tests.servers import settings, shared_valkey

ANSWER_S = 5.0
_ANYWHERE = "tcp:0:interface=127.0.0.1"


class Client:
    """A third-party WebSocket client; its blocking calls run in threads."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def say(self, **frame: Any) -> None:
        """One frame."""
        await self.write(ujson.dumps(frame))

    async def write(self, data: str | bytes) -> None:
        """A message as it is: text, or bytes as a binary one."""
        await deferToThread(self.socket.send, data)

    async def hear(self) -> dict[str, Any]:
        """The next frame."""
        found: dict[str, Any] = ujson.loads(await deferToThread(self.socket.recv, ANSWER_S))
        return found

    async def ask(self, **frame: Any) -> dict[str, Any]:
        """Say something and hear the next frame."""
        await self.say(**frame)
        return await self.hear()

    async def hello(self, token: str, device: str = "d", **more: Any) -> dict[str, Any]:
        """Say hello, and hear the answer."""
        return await self.ask(op="hello", token=token, device=device, **more)

    async def messages(self, count: int) -> list[dict[str, Any]]:
        """The next frames, all of them messages."""
        found = [await self.hear() for _ in range(count)]
        assert {frame["op"] for frame in found} <= {"message"}, found
        return found

    async def silent(self) -> bool:
        """Whether nothing is on its way: the answer to a ping is the next frame."""
        return (await self.ask(op="ping", ref="silent"))["op"] == "pong"

    async def closed(self) -> tuple[int, str]:
        """Why it is closed, past all frames before."""

        def wait() -> tuple[int, str]:
            try:
                while True:
                    self.socket.recv(ANSWER_S)
            except ConnectionClosed as error:
                return (error.rcvd.code, error.rcvd.reason) if error.rcvd is not None else (1006, "")

        found: tuple[int, str] = await deferToThread(wait)
        return found

    async def leave(self) -> None:
        """Close it."""
        await deferToThread(self.socket.close)


class Stage(TestCase):
    """Tests with workers."""

    timeout = 30
    sections: dict[str, dict[str, object]] = {}

    async def setUp(self) -> None:
        """An empty Valkey, and one worker."""
        self.valkey = shared_valkey()
        self.running: set[Worker] = set()
        self.addCleanup(self.clean)
        self.worker = await self.work("w1", **self.sections)

    async def work(self, name: str, **sections: dict[str, object]) -> Worker:
        """Start a worker; it is stopped when the test ends, after its clients."""
        own = {"listen": _ANYWHERE, "http_listen": _ANYWHERE, "rpc_listen": _ANYWHERE, "drain_s": 0.2}
        sections = {**sections, "worker": {**own, **sections.get("worker", {})}}
        configured = settings(redis={"url": self.valkey.url}, **sections)
        self.tokens = Tokens(configured)
        worker = Worker(reactor, configured, name)
        self.running.add(worker)
        await worker.start()
        return worker

    async def stop(self, worker: Worker) -> None:
        """Stop a worker, before the test ends."""
        self.running.discard(worker)
        await worker.stop()

    async def clean(self) -> None:
        """Stop all workers; Autobahn's shared timers outlive the connections that they were for."""
        for worker in list(self.running):
            await self.stop(worker)
        for call in reactor.getDelayedCalls():  # type: ignore[attr-defined]
            if "_BatchedTimer" in getattr(call.func, "__qualname__", ""):
                call.cancel()

    def token(self, uid: str, *channels: str, role: str = "customer", ttl_s: int = 3600, **more: Any) -> str:
        """A user's token; for the `direct` channel by default."""
        return self.tokens.issue(uid, role, channels or ("demo-direct",), ttl_s, time.time(), **more)[0]

    async def connect(self, worker: Worker | None = None, path: str = "/ws", **options: Any) -> Client:
        """A client that has connected and said nothing."""
        url = self.address(worker).replace("/ws", path)
        client = Client(await deferToThread(connect, url, max_size=None, **options))
        self.addCleanup(client.leave)
        return client

    async def come(self, uid: str, device: str = "d", worker: Worker | None = None, **hello: Any) -> Client:
        """A client that was welcomed."""
        client = await self.connect(worker)
        welcome = await client.hello(self.token(uid), device, **hello)
        self.assertEqual((welcome["op"], welcome["uid"], welcome["device"]), ("welcome", uid, device))
        return client

    def address(self, worker: Worker | None = None) -> str:
        """Where a worker's WebSocket is."""
        return (worker or self.worker)._addresses[0]

    def http(self, worker: Worker | None = None) -> str:
        """Where a worker's HTTP calls are."""
        return (worker or self.worker)._addresses[1]

    async def raw(self, text: bytes = b"", receive_buffer: int = 0) -> socket.socket:
        """A bare socket; `text` is what goes before the handshake's last line."""
        host, _, port = self.address().removeprefix("ws://").removesuffix("/ws").rpartition(":")
        made = socket.socket()
        self.addCleanup(made.close)
        if receive_buffer:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        made.settimeout(ANSWER_S)
        made.connect((host, int(port)))
        made.sendall(
            b"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n" + text + b"\r\n"
        )
        return made

    async def upgraded(self, **options: Any) -> socket.socket:
        """A bare socket whose handshake is over."""
        made = await self.raw(**options)
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += await deferToThread(made.recv, 1)
        self.assertIn(b"101", answer.splitlines()[0])
        return made

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for a condition; the test's own timeout ends it."""
        while not holds():
            await task.deferLater(reactor, 0.01)  # type: ignore[arg-type]


def masked(opcode: int, payload: bytes) -> bytes:
    """A whole frame from a client, with a mask of zeros."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 65536:
        head = bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


def read_close(connection: socket.socket) -> int:
    """The code of the close frame that comes next on a bare socket, past other small frames; 0 if none comes."""

    def exactly(count: int) -> bytes:
        found = b""
        while len(found) < count:
            more = connection.recv(count - len(found))
            if not more:
                raise EOFError
            found += more
        return found

    try:
        while True:
            first, size = exactly(2)
            if size == 126:
                size = int.from_bytes(exactly(2), "big")
            elif size == 127:
                size = int.from_bytes(exactly(8), "big")
            payload = exactly(size)
            if first & 15 == 8:
                return int.from_bytes(payload[:2], "big")
    except (EOFError, ConnectionError):
        return 0
