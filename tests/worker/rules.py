"""What the tests of a connection's rules share: a session with a fake clock, and short ways to say things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import ujson

from imserver.data.interface import Entry, Position
from imserver.protocol.deliveries import Head, Only, decode_head, encode_head
from imserver.protocol.frames import message_frame
from imserver.protocol.syntax import START
from imserver.protocol.tokens import Claims, TokenError
from imserver.worker.actions import Action, Admit, Close, Send
from imserver.worker.session import Rules, Session
from tests.servers import settings

NOW = 1_700_000_000.0


def verify(token: str, now: float) -> Claims:
    """Tokens for tests: JSON of claims, `uid` and `exp` by default; anything else is invalid."""
    if not token:
        raise TokenError("token missing")
    try:
        given = ujson.loads(token)
    except ValueError:
        raise TokenError("token invalid") from None
    claims = {"uid": "u", "role": "customer", "channels": ["demo"], "exp": int(NOW) + 3600, **given}
    if claims["exp"] <= now:
        raise TokenError("token expired")
    return msgspec.convert(claims, Claims)


def rules(**sections: Any) -> Rules:
    """The rules of a configuration."""
    configured = settings(**sections)
    return Rules(configured.connection, configured.delivery, configured.channels, verify, lambda: 0.0)


def cursor(number: int) -> str:
    """The cursor of entry `number`; 0 is the start."""
    return f"{number}-0" if number else START


def entry(number: int, prev: int | None = None, size: int = 0, **head: Any) -> Entry:
    """Entry `number` of an inbox, after `prev` (the number before)."""
    found = Head(f"{number:032x}", **{"channel": "demo", **head})
    tail = b'"id":"%032x","n":%d,"body":"%s"}' % (number, number, b"x" * size)
    return Entry(cursor(number), cursor(number - 1 if prev is None else prev), encode_head(found), tail)


def only(**fields: Any) -> Only:
    """A restriction."""
    return Only(**fields)


def frames_of(actions: Sequence[Action]) -> list[dict[str, Any]]:
    """The frames among actions, decoded."""
    return [ujson.loads(action.frame) for action in actions if isinstance(action, Send)]


def numbers(actions: Sequence[Action]) -> list[int]:
    """The numbers of the messages among actions."""
    return [frame["n"] for frame in frames_of(actions) if frame["op"] == "message"]


def close_of(actions: Sequence[Action]) -> int | None:
    """The close code among actions."""
    return next((action.code for action in actions if isinstance(action, Close)), None)


class Talk:
    """A session and its clock: what a client says, as JSON; what comes back, as actions."""

    def __init__(self, token: dict[str, Any] | None = None, conn: str = "w.1", **sections: Any) -> None:
        self.now = NOW
        self.session = Session(rules(**sections), conn, self.now)
        self.token = ujson.dumps(token or {})

    def say(self, **frame: Any) -> list[Action]:
        """One frame from the client."""
        return self.raw(ujson.dumps(frame).encode())

    def raw(self, text: bytes) -> list[Action]:
        """The same, as bytes."""
        self.session.heard(self.now)
        return self.session.received(text, self.now)

    def hello(self, **fields: Any) -> Admit:
        """Say hello, as far as the shell's part."""
        (admit,) = self.say(op="hello", token=self.token, device="d", **fields)
        assert isinstance(admit, Admit)
        self.session.admitting(admit)
        return admit

    def enter(self, start: int = 0, last: int | None = None, resumed: bool = True, **fields: Any) -> list[Action]:
        """Say hello and be admitted at `start`; the inbox goes up to `last`."""
        self.hello(**fields)
        return self.session.admitted(
            Position(cursor(start), cursor(start if last is None else last), resumed), self.now
        )

    def push(self, *entries: Entry) -> list[Action]:
        """Entries arrive from a dispatcher."""
        found: list[Action] = []
        for item in entries:
            frame = message_frame(item.tail, item.cursor)
            found += self.session.pushed(item, decode_head(item.head), frame, self.now)
        return found

    def page(self, *entries: Entry) -> list[Action]:
        """A page that was asked for."""
        return self.session.page(entries, self.now)

    def wait(self, seconds: float) -> list[Action]:
        """Time passes; what is due then."""
        self.now += seconds
        return self.session.due(self.now)
