"""Receiving over HTTP (contract: Receiving over HTTP)."""

from __future__ import annotations

import http.client
import time
from typing import Any
from urllib.parse import urlencode

import ujson
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from imserver.data.bans import Ban, RedisBans
from imserver.data.redis import Redis
from tests.servers import settings
from tests.worker.stage import ANSWER_S, Stage


class Events:
    """An event stream being read."""

    def __init__(self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> None:
        self.connection = connection
        self.answer = answer

    async def event(self) -> dict[str, str]:
        """The next event, past comments; empty at the end."""

        def read() -> dict[str, str]:
            found: dict[str, str] = {}
            while line := self.answer.readline().decode():
                if line == "\n" and found:
                    return found
                name, _, value = line.rstrip("\n").partition(": ")
                if name:
                    assert name not in found, "two lines of one kind"
                    found[name] = value
            return {}

        found: dict[str, str] = await deferToThread(read)
        return found

    async def frame(self) -> dict[str, Any]:
        """The next event's frame, of which its other lines have to be true."""
        event = await self.event()
        frame: dict[str, Any] = ujson.loads(event["data"])
        assert event["event"] == frame["op"]
        assert event.get("id") == frame.get("cursor")
        return frame

    async def leave(self) -> None:
        """Close it."""
        await deferToThread(self._close)

    def _close(self) -> None:
        self.answer.close()
        self.connection.close()


class StreamTests(Stage):
    """What `stream` and `http` promise."""

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Events:
        """One call; the answer's body is not read yet."""

        def ask() -> Events:
            connection = http.client.HTTPConnection(self.http().removeprefix("http://"), timeout=ANSWER_S)
            data = ujson.dumps(body) if body is not None else None
            if data is not None:
                headers["Content-Type"] = "application/json"
            connection.request(method, path, data, {name.replace("_", "-"): v for name, v in headers.items()})
            return Events(connection, connection.getresponse())

        found: Events = await deferToThread(ask)
        self.addCleanup(found.leave)
        return found

    async def stream(self, uid: str, device: str = "d", ttl_s: int = 3600, **headers: str) -> Events:
        """A stream that was welcomed."""
        query = urlencode({"device": device, "token": self.token(uid, ttl_s=ttl_s)})
        found = await self.call("GET", f"/v1/stream?{query}", **headers)
        self.assertEqual(found.answer.status, 200)
        self.assertEqual((await found.frame())["op"], "welcome")
        return found

    async def acknowledge(self, uid: str, cursor: str, device: str = "d") -> int:
        """The status of `POST /v1/ack`."""
        answer = await self.call(
            "POST", f"/v1/ack?device={device}", {"cursor": cursor}, Authorization=f"Bearer {self.token(uid)}"
        )
        return answer.answer.status

    async def send(self, *numbers: int) -> list[str]:
        """Messages to u; their ids."""
        sender = await self.come("v", since="$")
        return [
            (await sender.ask(op="send", ref=1, cid=f"c{n}", to="u", type="text", body={"n": n}))["id"] for n in numbers
        ]

    async def test_stream(self) -> None:
        """Each event is one frame: the backlog, then what comes; the token may be in the header."""
        before = await self.send(1, 2)
        found = await self.call("GET", "/v1/stream?device=d", Authorization=f"Bearer {self.token('u')}")
        self.assertEqual(found.answer.headers["Content-Type"].partition(";")[0], "text/event-stream")
        welcome = await found.frame()
        self.assertEqual(
            (welcome["op"], welcome["uid"], welcome["device"], welcome["resumed"]), ("welcome", "u", "d", True)
        )
        after = await self.send(3)
        self.assertEqual([(await found.frame())["id"] for _ in range(3)], before + after)

    async def test_one_line(self) -> None:
        """A body that was written on several lines is one line of the event."""
        found, sender = await self.stream("u"), await self.come("v")
        await sender.write(
            '{"op":"send","ref":1,"cid":"c","to":"u","type":"text","body":{\r\n  "a": "x\\ny",\n\n "data: b": 1\r}}'
        )
        self.assertEqual((await found.frame())["body"], {"a": "x\ny", "data: b": 1})

    async def test_last_event_id(self) -> None:
        """`Last-Event-ID` resumes, and acknowledges."""
        ids = await self.send(1, 2, 3)
        found = await self.stream("u")
        frames = [await found.frame() for _ in range(3)]
        await found.leave()
        found = await self.stream("u", Last_Event_ID=frames[1]["cursor"])
        self.assertEqual((await found.frame())["id"], ids[2])
        await found.leave()
        found = await self.stream("u")
        self.assertEqual((await found.frame())["id"], ids[2])

    async def test_acknowledge(self) -> None:
        """`POST /v1/ack` acknowledges at once, never back, never past the end; without it all comes again."""
        ids = await self.send(1, 2, 3)
        found = await self.stream("u")
        frames = [await found.frame() for _ in range(3)]
        self.assertEqual((await (await self.stream("u")).frame())["id"], ids[0])
        self.assertEqual(await self.acknowledge("u", frames[1]["cursor"]), 204)
        self.assertEqual(await self.acknowledge("u", frames[0]["cursor"]), 204)
        self.assertEqual((await (await self.stream("u")).frame())["id"], ids[2])
        self.assertEqual((await (await self.stream("u", "other")).frame())["id"], ids[0])
        self.assertEqual(await self.acknowledge("u", "99999999999999-0"), 204)
        found = await self.stream("u")
        (later,) = await self.send(4)
        self.assertEqual((await found.frame())["id"], later)
        self.assertEqual(await self.acknowledge("nobody", "5-0"), 204)

    async def test_refused(self) -> None:
        """What is missing or wrong has its status."""
        redis = Redis(reactor, settings(redis={"url": self.valkey.url}).redis)
        self.addCleanup(redis.stop)
        bans = RedisBans(redis, settings().suspension)
        await bans.put(Ban("uid", "bad", "demo-direct"), int(time.time() * 1000))
        token = self.token("u")
        for path, status, code in (
            ("/v1/stream?device=d", 401, "not_allowed"),
            ("/v1/stream?device=d&token=x", 401, "not_allowed"),
            (f"/v1/stream?device=d&token={self.token('u', ttl_s=-1)}", 401, "not_allowed"),
            (f"/v1/stream?token={token}", 400, "invalid_frame"),
            (f"/v1/stream?device=%20&token={token}", 400, "invalid_frame"),
            (f"/v1/stream?device=d&token={self.token('bad')}", 403, "not_allowed"),
        ):
            answer = (await self.call("GET", path)).answer
            problem = ujson.loads(answer.read())
            self.assertEqual((answer.status, problem["code"]), (status, code), path)
            self.assertEqual(answer.headers["Content-Type"], "application/problem+json")
            if status == 403:
                self.assertTrue(problem["detail"].endswith("for good"))
        answer = (await self.call("GET", f"/v1/stream?device=d&token={token}", Last_Event_ID="x")).answer
        self.assertEqual(answer.status, 400)
        for cursor in ("x", "99999999999999999999-0", "1-0\n"):
            self.assertEqual(await self.acknowledge("u", cursor), 422)
        self.assertEqual(self.worker._open, set())

    async def test_ends(self) -> None:
        """A stream ends with its token, with a kick, and with its client; nothing of it stays."""
        expiring, kicked, left = await self.stream("u", ttl_s=2), await self.stream("v"), await self.stream("w")
        assert self.worker._near is not None
        hub, wheel = self.worker._near.hub, self.worker._near.wheel
        self.assertEqual(hub.count, 3)
        self.assertEqual(hub.close("v", None, ["demo-direct"], 4409, "why"), 1)
        self.assertEqual(await kicked.event(), {})
        self.assertEqual(await expiring.event(), {})
        await left.leave()
        await self.until(lambda: not self.worker._open)
        self.assertEqual(hub.count, 0)
        self.assertFalse(any(wheel._slots))

    async def test_drain(self) -> None:
        """A stream is told to come back elsewhere, then ended."""
        found = await self.stream("u")
        await self.stop(self.worker)
        self.assertEqual((await found.frame())["op"], "reconnect")
        self.assertEqual(await found.event(), {})
