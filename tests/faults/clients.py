"""Applications: people with several devices who talk, acknowledge when they like, and lose their connections.

The WebSocket client is `websockets`, so that nothing of ours is on this side.
"""

from __future__ import annotations

import asyncio  # noqa: TID251
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from tests.faults.checker import START, Attempt, Evidence, Sending, Shown, Visit, position
from tests.faults.cluster import Cluster
from tests.faults.wire import NoAnswer, call, events

ANSWER_S = 4.0
RETRIABLE = ("unavailable", "rate_limited")
"""Errors that say: try again."""


class World:
    """What all clients of a run share, and how they are to behave now."""

    def __init__(self, cluster: Cluster, choice: random.Random) -> None:
        self.cluster = cluster
        self.choice = choice
        self.evidence = Evidence()
        self.counts: Counter[str] = Counter()
        self.odd: list[tuple[str, str]] = []
        """(what, key) that no server should ever have answered."""
        self.opened: set[str] = set()
        """Conversations that somebody has written into."""
        self.talking = True
        self.calm = False
        """Connections are kept, and everything is acknowledged."""
        self.giving_up = False

    def now(self) -> float:
        """Seconds, for trails."""
        return round(time.time(), 3)


class Device:
    """One device of a user: a WebSocket, or (`streaming`) a stream of Server-Sent Events; one connection at a time."""

    def __init__(self, world: World, uid: str, name: str, token: str, *, streaming: bool = False) -> None:
        self.uid = uid
        self.name = name
        self.keys: set[str] = set()
        """The messages that it has shown."""
        self._world = world
        self._token = token
        self._streaming = streaming
        self._last = ""
        self._acked = START
        self._mute_until = 0.0
        self._socket: ClientConnection | None = None
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        world.evidence.devices[uid].add(name)

    @property
    def connected(self) -> bool:
        """Whether it can send now."""
        return self._socket is not None

    async def live(self) -> None:
        """Be connected, again and again, until cancelled."""
        while True:
            try:
                await (self._stream() if self._streaming else self._talk())
            except (OSError, TimeoutError, WebSocketException, NoAnswer):
                self._world.counts["broken"] += 1
            finally:
                self._socket = None
                answers, self._answers = self._answers, {}
                for answer in answers.values():
                    answer.cancel()
            await asyncio.sleep(self._world.choice.uniform(0.02, 0.5))

    async def request(self, frame: dict[str, Any]) -> dict[str, Any]:
        """Send a frame with a `ref` and wait for its answer; `NoAnswer`."""
        if self._socket is None:
            raise NoAnswer("not connected")
        ref = f"r{self._world.counts['requests']}"
        self._world.counts["requests"] += 1
        answer = self._answers[ref] = asyncio.get_running_loop().create_future()
        try:
            await self._socket.send(json.dumps({**frame, "ref": ref}))
            return await asyncio.wait_for(answer, ANSWER_S)
        except (OSError, TimeoutError, WebSocketException) as error:
            raise NoAnswer(type(error).__name__) from None
        except asyncio.CancelledError:
            if answer.cancelled():
                raise NoAnswer("the connection was lost") from None
            raise
        finally:
            self._answers.pop(ref, None)

    # -- WebSocket ---------------------------------------------------------------------------------------------

    async def _talk(self) -> None:
        choice, worker = self._world.choice, self._world.choice.choice(self._world.cluster.workers)
        since = self._last if self._last and choice.random() < 0.5 else ""
        acked = self._acked
        port = self._world.cluster.links[f"{worker}.ws"].port
        socket = await connect(
            f"ws://127.0.0.1:{port}/ws",
            subprotocols=["im.v1"],  # type: ignore[list-item]
            compression=None,
            proxy=None,
            open_timeout=5,
            ping_interval=3,
            ping_timeout=3,
            close_timeout=1,
            max_queue=None,
        )
        try:
            hello = {"op": "hello", "token": self._token, "device": self.name} | ({"since": since} if since else {})
            await socket.send(json.dumps(hello))
            async with asyncio.timeout(6):
                welcome = json.loads(await socket.recv())
            if welcome["op"] != "welcome":
                self._world.odd.append((f"welcome expected, got {welcome}", ""))
                return
            visit = self._visit(welcome, worker, since, acked)
            if choice.random() < 0.2:
                self._mute_until = time.monotonic() + choice.uniform(1, 10)
            if self._world.calm and self._last:
                await self._acknowledge(socket, self._last)
            self._socket = socket
            stay = None if self._world.calm else choice.expovariate(1 / 8)
            try:
                async with asyncio.timeout(stay):
                    async for text in socket:
                        self._heard(visit, json.loads(text), socket)
            except TimeoutError:
                visit.ended = "left"
                if choice.random() < 0.5:
                    socket.transport.abort()
            else:
                visit.ended = f"closed {socket.close_code} {socket.close_reason}"
            finally:
                visit.ended = visit.ended or f"lost {socket.close_code}"
                if socket.close_code is not None:
                    self._world.counts[f"close {socket.close_code}"] += 1
        finally:
            self._socket = None
            await socket.close()

    def _visit(self, welcome: dict[str, Any], worker: str, since: str, acked: str) -> Visit:
        visit = Visit(
            uid=self.uid,
            device=self.name,
            conn=welcome["conn"],
            worker=worker,
            since=since,
            acked=acked,
            resumed=welcome["resumed"],
            at=self._world.now(),
            streaming=self._streaming,
        )
        self._world.evidence.visits.append(visit)
        return visit

    def _heard(self, visit: Visit, frame: dict[str, Any], socket: ClientConnection | None) -> None:
        if frame["op"] == "message":
            self._show(visit, frame)
            if socket is not None:
                self._consider_ack(socket, frame["cursor"])
        elif (answer := self._answers.get(frame.get("ref", ""))) is not None and not answer.done():
            answer.set_result(frame)
        elif frame["op"] == "error":
            self._world.counts[f"late error {frame['code']}"] += 1

    def _show(self, visit: Visit, frame: dict[str, Any]) -> None:
        key, cursor, attempt = frame["body"].get("key", f"?{frame['id']}"), frame["cursor"], frame.get("attempt", 1)
        shown = Shown(
            self._world.now(), key, frame["id"], cursor, attempt, frame.get("conversation", ""), frame.get("seq", 0)
        )
        visit.shown.append(shown)
        self.keys.add(key)
        self._world.counts["shown"] += 1
        self._world.counts["retransmissions"] += attempt > 1
        if not self._last or position(cursor) > position(self._last):
            self._last = cursor

    def _consider_ack(self, socket: ClientConnection, cursor: str) -> None:
        """At once, late, or never."""
        chance = self._world.choice.random()
        if self._world.calm or (chance < 0.7 and time.monotonic() >= self._mute_until):
            self._spawn(self._acknowledge(socket, cursor))
        elif chance < 0.9 and time.monotonic() >= self._mute_until:
            self._spawn(self._acknowledge(socket, cursor, self._world.choice.uniform(0, 1.5)))
        else:
            self._world.counts["acks lost"] += 1

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _acknowledge(self, socket: ClientConnection, cursor: str, after_s: float = 0.0) -> None:
        await asyncio.sleep(after_s)
        self._acked = max(self._acked, cursor, key=position)
        try:
            await socket.send(json.dumps({"op": "ack", "cursor": cursor}))
        except (OSError, WebSocketException):
            self._world.counts["acks lost"] += 1

    # -- Server-Sent Events ------------------------------------------------------------------------------------

    async def _stream(self) -> None:
        choice, worker = self._world.choice, self._world.choice.choice(self._world.cluster.workers)
        since = self._last if self._last and choice.random() < 0.5 else ""
        acked = self._acked
        if since:  # Last-Event-ID acknowledges
            self._acked = max(self._acked, since, key=position)
        port = self._world.cluster.links[f"{worker}.http"].port
        stay = None if self._world.calm else choice.expovariate(1 / 8)
        visit: Visit | None = None
        frames = events(port, f"/v1/stream?device={self.name}", self._token, since)
        try:
            async with asyncio.timeout(stay):
                async for frame in frames:
                    if visit is None:
                        visit = self._visit(frame, worker, since, acked)
                        continue
                    self._heard(visit, frame, None)
                    if choice.random() < 0.05:
                        self._spawn(self._acknowledge_over_http(port, self._last))
        finally:
            await frames.aclose()  # type: ignore[attr-defined]
            if visit is not None:
                visit.ended = "over"

    async def _acknowledge_over_http(self, port: int, cursor: str) -> None:
        self._acked = max(self._acked, cursor, key=position)
        try:
            status, answer = await call("POST", port, f"/v1/ack?device={self.name}", {"cursor": cursor}, self._token)
            if status not in (204, 503):
                self._world.odd.append((f"POST /v1/ack answered {status} {answer}", ""))
        except NoAnswer:
            self._world.counts["acks lost"] += 1


class Stream:
    """Messages of one sender in one order: the next is sent when the last was accepted, which is tried until it is."""

    def __init__(
        self,
        world: World,
        name: str,
        sender: str,
        ways: list[Callable[[Sending, str], Awaitable[Attempt]]],
        describe: Callable[[], dict[str, Any]],
        every_s: float,
    ) -> None:
        self.name = name
        self._world = world
        self._sender = sender
        self._ways = ways
        self._describe = describe
        self._every_s = every_s

    async def run(self) -> None:
        """Until nobody talks any more; the last one is accepted first."""
        world, number = self._world, 0
        while world.talking:
            number += 1
            cid = f"{self.name}-{number}"
            key = f"{self._sender}/{cid}"
            sending = Sending(key=key, sender=self._sender, stream=self.name, number=number, **self._describe())
            world.evidence.sendings[key] = sending
            while not sending.accepted and not world.giving_up:
                tries = 2 if world.choice.random() < 0.03 else 1  # sometimes at the same time
                await asyncio.gather(*(self._try(sending, cid) for _ in range(tries)))
                if not sending.accepted:
                    await asyncio.sleep(world.choice.uniform(0.05, 0.4))
            world.counts["accepted"] += sending.accepted
            world.opened.add(sending.conversation)
            if world.choice.random() < 0.03 and not world.giving_up:  # the answer had been lost
                await self._try(sending, cid)
            await asyncio.sleep(world.choice.expovariate(1 / self._every_s))

    async def _try(self, sending: Sending, cid: str) -> None:
        try:
            attempt = await self._world.choice.choice(self._ways)(sending, cid)
        except NoAnswer as error:
            attempt = Attempt(self._world.now(), "?", f"no answer: {error}")
        sending.attempts.append(attempt)
        self._world.counts["attempts"] += 1


def body_of(world: World, sending: Sending) -> dict[str, Any]:
    """A body that says which message it is, of any length."""
    return {"key": sending.key, "text": "m" * int(world.choice.paretovariate(1.2) * 20 % 4000)}


def by_socket(world: World, devices: list[Device], target: Callable[[], dict[str, Any]]) -> Any:
    """A way to send: op `send` on any connected device of the sender."""

    async def send(sending: Sending, cid: str) -> Attempt:
        able = [device for device in devices if device.connected]
        if not able:
            await asyncio.sleep(0.1)
            raise NoAnswer("no device is connected")
        device = world.choice.choice(able)
        sending.senders.add((device.uid, device.name))
        frame = {"op": "send", "cid": cid, "type": "text", "body": body_of(world, sending), **target()}
        way = f"{device.uid}/{device.name}"
        try:
            answer = await device.request(frame)
        except NoAnswer as error:
            return Attempt(world.now(), way, f"no answer: {error}")
        if answer["op"] == "sent":
            return Attempt(
                world.now(), way, "duplicate" if answer.get("duplicate") else "sent", answer["id"], answer.get("seq", 0)
            )
        _judge(world, answer["code"], answer.get("reason"), sending)
        return Attempt(world.now(), way, answer["code"])

    return send


def by_http(world: World, link: str, path: str, key: str, fields: Callable[[Sending], dict[str, Any]]) -> Any:
    """A way to send: an HTTP call."""

    async def send(sending: Sending, cid: str) -> Attempt:
        port = world.cluster.links[link].port
        body = {"cid": cid, "type": "text", "body": body_of(world, sending), **fields(sending)}
        way = f"POST {path}"
        try:
            status, answer = await call("POST", port, path, body, key, timeout=ANSWER_S)
        except NoAnswer as error:
            return Attempt(world.now(), way, f"no answer: {error}")
        if status == 202:
            return Attempt(world.now(), way, "202", answer["id"], answer.get("seq", 0))
        code = answer.get("code", "?") if isinstance(answer, dict) else "?"
        _judge(world, code, f"{status} {answer}", sending)
        return Attempt(world.now(), way, f"{status} {code}")

    return send


def _judge(world: World, code: str, why: Any, sending: Sending) -> None:
    world.counts[f"answer {code}"] += 1
    waits = code == "not_allowed" and "waits for an agent" in str(why)
    if code not in RETRIABLE and not waits:
        world.odd.append((f"{code}: {why}", sending.key))
