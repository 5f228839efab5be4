"""A process full of clients. It counts what arrives, says how long that took, and acknowledges as an app would.

A message's body carries the monotonic time at which it was sent, which all processes of one machine share.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.task import LoopingCall, deferLater

from imserver.bench.figures import Latencies
from imserver.bench.load import looped, paced
from imserver.bench.orders import serve
from imserver.bench.websocket import WebSocket
from imserver.ops.startup import raise_file_limit

OPEN_S = 15.0
"""One connection has to be admitted within so many seconds."""
ANSWER_S = 10.0
ACK_S = 0.1
"""Acknowledgements are cumulative, so one every so often will do."""
_MESSAGE = b'{"op":"message"'
_CURSOR = b'{"op":"message","cursor":"'
_AT = b'"at":'


class Refused(Exception):
    """An op `error`, or a connection that is gone."""


def body(size: int) -> bytes:
    """A message's body of about so many bytes: when it was sent, and padding."""
    return b'{"at":%d,"pad":"%s"}' % (time.monotonic_ns(), b"x" * max(0, size - 36))


class Member:
    """One client."""

    def __init__(self, crowd: Crowd, host: str, hello: bytes | None) -> None:
        self.lost = False
        self._crowd = crowd
        self._hello = hello
        self._admitted: Deferred[None] = Deferred()
        self._asked: dict[int, tuple[int, Deferred[None]]] = {}
        self._numbers = 0
        self.socket = WebSocket(host, self._opened, self._received, self._closed)

    def _opened(self) -> None:
        if self._hello is None:
            self._admitted.callback(None)
        else:
            self.socket.send(self._hello)
            self._hello = None

    async def admitted(self, reactor: Any) -> None:
        """Wait for the handshake, and `welcome` if it says hello."""
        await self._admitted.addTimeout(OPEN_S, reactor)

    def send(self, frame: bytes) -> Deferred[None]:
        """Send `frame`, a JSON object without its end, with a `ref` and a `cid`; wait for its answer."""
        self._numbers = number = self._numbers + 1
        answer: Deferred[None] = Deferred()
        self._asked[number] = (time.monotonic_ns(), answer)
        self.socket.send(b'%s,"ref":%d,"cid":"%d.%d"}' % (frame, number, id(self), number))
        return answer

    def acknowledge(self, cursor: bytes) -> None:
        """Everything up to `cursor` has arrived."""
        if not self.lost:
            self.socket.send(b'{"op":"ack","cursor":"%s"}' % cursor)

    def _received(self, frame: bytes) -> None:
        if frame.startswith(_MESSAGE):
            self._crowd.arrived(self, frame)
        elif frame.startswith((b'{"op":"sent"', b'{"op":"echo"', b'{"op":"error"')):
            self._answered(msgspec.json.decode(frame))
        elif frame.startswith(b'{"op":"welcome"') and not self._admitted.called:
            self._admitted.callback(None)

    def _answered(self, frame: dict[str, Any]) -> None:
        since, answer = self._asked.pop(frame.get("ref") or 0, (0, None))
        if answer is None or answer.called:
            return
        if frame["op"] == "error":
            answer.errback(Refused(frame["code"]))
        else:
            self._crowd.answers.add((time.monotonic_ns() - since) / 1e9)
            answer.callback(None)

    def _closed(self, why: str) -> None:
        self.lost = True
        asked, self._asked = self._asked, {}
        for _, answer in asked.values():
            if not answer.called:
                answer.errback(Refused(why))
        if not self._admitted.called:
            self._admitted.errback(Refused(why))
        else:
            self._crowd.losses[why] += 1


class Crowd:
    """All clients of this process, and the orders that it takes."""

    def __init__(self) -> None:
        from twisted.internet import reactor

        raise_file_limit()
        self.answers = Latencies()
        self.losses: Counter[str] = Counter()
        self._reactor: Any = reactor
        self._members: list[Member] = []
        self._ways = Latencies()
        self._ids: set[bytes] = set()
        self._repeats = 0
        self._unacknowledged: dict[Member, bytes] = {}
        self._closing = False
        self._acknowledging = LoopingCall(self._acknowledge)
        self._acknowledging.start(ACK_S, now=False)

    def arrived(self, member: Member, frame: bytes) -> None:
        """A message."""
        at = frame.find(_AT) + len(_AT)
        if frame.startswith(_CURSOR):
            end = frame.index(b'"', len(_CURSOR))
            self._unacknowledged[member] = frame[len(_CURSOR) : end]
        start = frame.index(b'"id":"') + 6
        key = frame[start : start + 32]
        if key in self._ids:
            self._repeats += 1
            return
        self._ids.add(key)
        self._ways.add((time.monotonic_ns() - int(frame[at : frame.index(b",", at)])) / 1e9)

    def _acknowledge(self) -> None:
        waiting, self._unacknowledged = self._unacknowledged, {}
        for member, cursor in waiting.items():
            member.acknowledge(cursor)

    # -- orders ------------------------------------------------------------------------------------------------

    async def do_open(self, host: str, port: int, tokens: list[str | None], at_once: int) -> dict[str, Any]:
        """Connect one client for each token (None: without hello), so many at a time; how long that took."""
        slots = DeferredSemaphore(at_once)
        endpoint = TCP4ClientEndpoint(self._reactor, host, port, timeout=OPEN_S)
        start = self._reactor.seconds()

        async def one(token: str | None) -> Member:
            async with slots:
                hello = None
                if token is not None:
                    hello = msgspec.json.encode({"op": "hello", "token": token, "device": "bench"})
                member = Member(self, f"{host}:{port}", hello)
                await connectProtocol(endpoint, member.socket)
                await member.admitted(self._reactor)
                return member

        members = await gatherResults([Deferred.fromCoroutine(one(token)) for token in tokens], consumeErrors=True)
        self._members += members
        return {"seconds": self._reactor.seconds() - start}

    async def do_send(
        self, frames: list[str], size: int, rate: float | None, seconds: float, first: int = 0
    ) -> dict[str, Any]:
        """The member `first` + i sends `frames[i]` (JSON, with a body added) again and again.

        At a `rate` in all, in turns, or without one each as soon as the one before is answered.
        """
        members = self._members[first : first + len(frames)]
        heads = [frame.encode()[:-1] for frame in frames]
        errors: Counter[str] = Counter()
        self.answers = Latencies()

        async def one(number: int) -> None:
            try:
                await members[number].send(b'%s,"body":%s' % (heads[number], body(size)))
            except Refused as error:
                errors[str(error)] += 1

        started = self._reactor.seconds()
        late = 0.0
        if rate is None:
            await looped(self._reactor, len(frames), seconds, one)
        else:
            sent: list[Deferred[None]] = []
            late = await paced(
                self._reactor, rate, seconds, lambda i: sent.append(Deferred.fromCoroutine(one(i % len(frames))))
            )
            await gatherResults(sent).addTimeout(ANSWER_S, self._reactor)
        return {
            "accepted": len(self.answers),
            "errors": dict(errors),
            "seconds": self._reactor.seconds() - started,
            "answers": self.answers.counts,
            "late_s": late,
        }

    async def do_tally(self, expect: int, wait_s: float) -> dict[str, Any]:
        """What has arrived since the last tally, as soon as so much has; at the latest after `wait_s` seconds."""
        deadline = self._reactor.seconds() + wait_s
        while len(self._ids) < expect and self._reactor.seconds() < deadline:
            await deferLater(self._reactor, 0.02)
        found = {
            "delivered": len(self._ids),
            "repeats": self._repeats,
            "ways": self._ways.counts,
            "losses": dict(self.losses),
        }
        self._ids, self._repeats, self._ways = set(), 0, Latencies()
        self.losses.clear()
        return found

    async def do_close(self) -> None:
        """Close every connection."""
        members, self._members = self._members, []
        for member in members:
            member.socket.close()
        while not all(member.lost for member in members):
            await deferLater(self._reactor, 0.02)
        self.losses.clear()


if __name__ == "__main__":
    serve(Crowd())
