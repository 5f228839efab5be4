"""What a client does, without I/O: frames, losses and time in, actions out (contract: WebSocket).

The JavaScript SDK (``imserver/web/im.js``) follows the same rules. Times are seconds on any clock that only
goes forward, except for what a token says.
"""

from __future__ import annotations

import random as chance
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from imserver.client.actions import (
    Action,
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
from imserver.protocol import codes

Status = Literal["closed", "connecting", "online", "waiting", "stopped"]

_FINAL = frozenset({codes.BAD_FRAMES, codes.BANNED, codes.KICKED})
_TRY_AGAIN = frozenset({"unavailable", "rate_limited"})
_ABNORMAL = 1006
_MAX_FRAME = 65536


class _Call:
    """A frame with a ref, sent again until it is answered: all of them may be repeated without harm."""

    def __init__(self, text: bytes, lane: str) -> None:
        self.text = text
        self.lane = lane
        self.tries = 0
        self.out = False


class Session:
    """One user's conversation with the workers, over as many connections as it takes.

    Call `connect`, then the method for whatever happens, and `tick` at `deadline`; after each of them carry
    out what `take` gives, in order.
    """

    def __init__(
        self,
        device: str,
        *,
        since: str | None = None,
        platform: str = "other",
        limits: Limits | None = None,
        random: Callable[[], float] = chance.random,
    ) -> None:
        self.status: Status = "closed"
        self.device = device
        self.uid = ""
        self.cursor = since
        self._platform = platform
        self._limits = limits or Limits()
        self._random = random
        self._actions: list[Action] = []
        self._deadlines: dict[str, float] = {}
        self._calls: dict[str, _Call] = {}
        self._reads: dict[str, int] = {}
        self._seen: OrderedDict[str, str | None] = OrderedDict()
        self._token = ""
        self._max_frame = _MAX_FRAME
        self._attempt = 0
        self._refusals = 0
        self._unacked = 0
        self._welcomed_at = 0.0
        self._heard_at = 0.0
        self._quiet_s = 60.0
        self._asked_at: float | None = None
        self._move_at: float | None = None
        self._move_to = ""
        self._typed = ("", 0.0)

    # -- What the shell needs ------------------------------------------------------------------------------

    def take(self) -> list[Action]:
        """What is to be done now; each action is given once."""
        taken, self._actions = self._actions, []
        return taken

    @property
    def deadline(self) -> float | None:
        """When `tick` is due next."""
        return min(self._deadlines.values(), default=None)

    def tick(self, now: float) -> None:
        """Do what is due."""
        for name in [name for name, due in self._deadlines.items() if due <= now]:
            if self._deadlines.pop(name, None) is None:
                continue  # what was due before it has taken it back
            kind, _, ref = name.partition(" ")
            if kind == "retry":
                self._open(now)
            elif kind == "open":
                self.lost(_ABNORMAL, "no answer in time", now)
            elif kind == "ack":
                self._acknowledge()
            elif kind == "renew":
                self._actions.append(Renew())
            elif kind == "watch":
                self._watch(now)
            elif kind == "move":
                self._acknowledge()
                self.lost(codes.GOING_AWAY, "the worker is leaving", now)
            elif kind == "call":
                self._try(ref, now)

    # -- Connecting ----------------------------------------------------------------------------------------

    def connect(self, now: float) -> None:
        """Connect and stay connected, until `close` or a close code that forbids it. While waiting: at
        once.
        """
        if self.status in ("connecting", "online"):
            return
        if self.status != "waiting":
            self._attempt = self._refusals = 0
        self._open(now)

    def close(self) -> None:
        """Disconnect. What waits for an answer stays for the next `connect`."""
        self._acknowledge()
        self._release()
        self._become("closed")

    def opened(self, token: str, now: float) -> None:
        """The connection of the last `Open` is there: greet."""
        self._token = token
        frame: Frame = {"op": "hello", "token": token, "device": self.device, "platform": self._platform}
        if self.cursor:
            frame["since"] = self.cursor
        self._write(frame)

    def lost(self, code: int, reason: str, now: float) -> None:
        """The connection is gone, or never came; the close code decides what happens now."""
        if self.status == "online" and now - self._welcomed_at >= self._limits.stable_s:
            self._attempt = 0
        self._release()
        if code == codes.TOKEN:
            self._token = ""
            self._refusals += 1
        if code in _FINAL or self._refusals > self._limits.token_refusals:
            for ref in list(self._calls):
                self._settle(ref, IMError("stopped", reason or f"closed with {code}"), now)
            self._become("stopped", code=code, reason=reason)
            return
        if self._move_at is not None:
            delay = max(self._move_at - now, 0.0)
            self._move_at = None
        else:
            delay = self._backoff(self._attempt)
            self._attempt += 1
        self._become("waiting", code=code, reason=reason, delay_s=delay)
        self._deadlines["retry"] = now + delay

    def renewed(self, token: str, now: float, epoch: float) -> None:
        """A new token for this session; `epoch` is the time since the epoch now."""
        self._token = token
        if self.status == "online":
            self._write({"op": "refresh", "token": token})
            self.plan_renewal(now, epoch)

    def plan_renewal(self, now: float, epoch: float) -> None:
        """Renew the token well before it ends."""
        end = token_end(self._token)
        if end is not None:
            self._deadlines["renew"] = now + max((end - epoch) * 0.8, 5.0)

    def _open(self, now: float) -> None:
        self._deadlines.pop("retry", None)
        self._become("connecting")
        self._deadlines["open"] = now + self._limits.open_timeout_s
        self._actions.append(Open(self._move_to, not self._token))
        self._move_to = ""

    def _release(self) -> None:
        self._deadlines.clear()
        self._unacked = 0
        for call in self._calls.values():
            call.out = False
        self._actions.append(Drop())

    def _backoff(self, attempt: int) -> float:
        """Full jitter: anything between the shortest delay and a ceiling that doubles."""
        lowest = self._limits.delay_min_s
        ceiling = min(self._limits.delay_max_s, lowest * 2 ** min(attempt + 1, 30))
        return float(lowest + self._random() * (ceiling - lowest))

    def _watch(self, now: float) -> None:
        """Notice a connection that died silently: after a quiet while, ask for a sign of life."""
        if self._asked_at is not None and self._heard_at < self._asked_at:
            self.lost(_ABNORMAL, "the server went silent", now)
        elif now - self._heard_at >= self._quiet_s:
            self._asked_at = now
            self._write({"op": "ping"})
            self._deadlines["watch"] = now + self._limits.answer_timeout_s
        else:
            self._asked_at = None
            self._deadlines["watch"] = self._heard_at + self._quiet_s

    # -- Frames in -----------------------------------------------------------------------------------------

    def received(self, text: bytes, now: float) -> None:
        """A text frame from the server."""
        self._heard_at = now
        frame: Frame = msgspec.json.decode(text)
        op, ref = frame.get("op", ""), frame.get("ref")
        if op == "welcome":
            self._welcomed(frame, now)
        elif op == "message":
            self._message(frame, now)
        elif op == "reconnect":
            self._move_at = now + frame["after_ms"] / 1000
            self._move_to = frame.get("url") or ""
            self._deadlines["move"] = self._move_at
        elif isinstance(ref, str) and ref in self._calls:
            self._answered(ref, frame, now)
        elif op not in ("pong", "refreshed") and ref is None:
            self._actions.append(Told(op, frame))

    def _welcomed(self, frame: Frame, now: float) -> None:
        self._deadlines.pop("open", None)
        self._welcomed_at = now
        self._refusals = 0
        self._move_at = None
        self.uid = frame["uid"]
        self._max_frame = frame.get("max_frame") or self._max_frame
        self._quiet_s = float(frame.get("heartbeat_s") or 60)
        self._asked_at = None
        self._deadlines["watch"] = now + self._quiet_s
        self.plan_renewal(now, frame["ts"] / 1000)
        self._become("online", conn=frame["conn"])
        self._actions.append(Told("welcome", frame))
        for conversation, seq in self._reads.items():
            self._write({"op": "read", "conversation": conversation, "seq": seq})
        self._reads.clear()
        self._pump(now)

    def _message(self, frame: Frame, now: float) -> None:
        identity, cursor = frame["id"], frame.get("cursor")
        fresh = identity not in self._seen
        if cursor:
            # frames come in cursor order: a cursor not met before is the latest, one met before was sent
            # again
            if self._seen.get(identity) != cursor:
                self.cursor = cursor
            self._unacked += 1
        self._remember(identity, cursor)
        if fresh:
            cid = frame.get("cid")
            if frame.get("from") == self.uid and cid in self._calls:
                self._settle(cid, frame, now)  # ours, accepted before the answer got lost
            else:
                self._actions.append(Told("message", frame))
        if self._unacked >= self._limits.ack_count:
            self._acknowledge()
        elif self._unacked and "ack" not in self._deadlines:
            self._deadlines["ack"] = now + self._limits.ack_delay_s

    def _acknowledge(self) -> None:
        self._deadlines.pop("ack", None)
        if self._unacked and self.status == "online":
            self._write({"op": "ack", "cursor": self.cursor})
        self._unacked = 0

    def _remember(self, identity: str, cursor: str | None) -> None:
        self._seen[identity] = cursor or self._seen.get(identity)
        if len(self._seen) > self._limits.remembered:
            self._seen.popitem(last=False)

    # -- Frames out ----------------------------------------------------------------------------------------

    def call(self, frame: Frame, now: float, *, ref: str = "", lane: str = "") -> str:
        """Send a frame that has an answer, as soon as possible and as often as needed; its ref.

        Calls of one `lane` go one after the other, so that a retry is never overtaken. Raises `IMError`
        when the frame is too large, too much is waiting, or a call with this ref is.
        """
        ref = ref or new_id()
        if ref in self._calls:
            raise IMError("conflict", "a call with this ref or cid is waiting for its answer")
        text = msgspec.json.encode({**frame, "ref": ref})
        if len(text) > self._max_frame:
            raise IMError("too_large", f"{len(text)} of {self._max_frame} bytes")
        if len(self._calls) >= self._limits.queue:
            raise IMError("queue_full", f"{len(self._calls)} calls are waiting for an answer")
        if self.status == "stopped":
            raise IMError("stopped", "this session has ended; connect again")
        self._calls[ref] = _Call(text, lane)
        self._pump(now)
        return ref

    def send(self, message: Frame, now: float) -> str:
        """Send a message (`cid`, `type`, `body` and where to); the ref of the call, which is its cid."""
        target = str(message.get("conversation") or message.get("shop") or message.get("to") or "")
        return self.call({"op": "send", **message}, now, ref=message["cid"], lane=target)

    def read(self, conversation: str, seq: int) -> None:
        """Say that everything up to `seq` has been read; while offline, as soon as possible."""
        if self.status == "online":
            self._write({"op": "read", "conversation": conversation, "seq": seq})
        elif conversation in self._reads or len(self._reads) < self._limits.queue:
            self._reads[conversation] = max(seq, self._reads.get(conversation, 0))

    def typing(self, conversation: str, now: float) -> None:
        """Say that the user is writing: call it at every key, it leaves every few seconds."""
        last, at = self._typed
        if self.status == "online" and not (last == conversation and now - at < self._limits.typing_every_s):
            self._typed = (conversation, now)
            self._write({"op": "typing", "conversation": conversation})

    def forget(self, ref: str, now: float) -> None:
        """The application no longer wants the answer to a call."""
        if self._calls.pop(ref, None) is not None:
            self._deadlines.pop(f"call {ref}", None)
            self._pump(now)

    def _pump(self, now: float) -> None:
        if self.status != "online":
            return
        busy: set[str] = set()
        for ref, call in list(self._calls.items()):
            if not call.out and call.lane not in busy:
                self._try(ref, now)
            if call.lane:
                busy.add(call.lane)

    def _try(self, ref: str, now: float) -> None:
        call = self._calls[ref]
        call.tries += 1
        if call.tries > self._limits.tries:
            self._settle(ref, IMError("unavailable", "no answer"), now)
            return
        call.out = True
        self._deadlines[f"call {ref}"] = now + self._limits.answer_timeout_s
        self._actions.append(Write(call.text))

    def _answered(self, ref: str, frame: Frame, now: float) -> None:
        if frame["op"] != "error":
            self._settle(ref, frame, now)
        elif frame.get("code") in _TRY_AGAIN:
            self._deadlines[f"call {ref}"] = now + self._backoff(self._calls[ref].tries)
        else:
            self._settle(ref, IMError(frame["code"], frame.get("reason", ""), frame.get("field")), now)

    def _settle(self, ref: str, answer: Frame | IMError, now: float) -> None:
        del self._calls[ref]
        self._deadlines.pop(f"call {ref}", None)
        if isinstance(answer, dict) and answer.get("op") == "sent":
            self._remember(answer["id"], None)  # should a resume bring our own message back
        self._actions.append(Settled(ref, answer))
        self._pump(now)

    def _write(self, frame: Frame) -> None:
        self._actions.append(Write(msgspec.json.encode(frame)))

    def _become(self, status: Status, **detail: Any) -> None:
        self.status = status
        self._actions.append(Told("status", {"status": status, **detail}))
