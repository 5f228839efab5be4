"""The contract's table of statuses, over real sockets."""

from __future__ import annotations

from typing import Any

import ujson
from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from imserver.http.client import Answer, HttpClient
from tests.http.sample import Away, Sample, connect

GOOD = b'{"to":"u1","type":"text","body":{"a":1}}'


class Calls(TestCase):
    """What each kind of call is answered with."""

    settings: dict[str, Any] = {}

    def setUp(self) -> None:
        """Start the server and a client."""
        self.sample = Sample(**self.settings)
        self.client = HttpClient(reactor)

    async def tearDown(self) -> None:
        """Stop both."""
        await self.client.close()
        await self.sample.stop()

    async def call(self, method: str, path: str, body: bytes | None = None, **more: Any) -> Answer:
        """A call to the sample server."""
        return await self.client.call(method, self.sample.address + path, body=body, **more)

    async def push(self, body: bytes, path: str = "/v1/push", **more: Any) -> Answer:
        """A POST with the good key."""
        return await self.call("POST", path, body, token="good", **more)

    def check(
        self,
        answer: Answer,
        status: int,
        code: str,
        field: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Check that the answer is this problem."""
        self.assertEqual(answer.status, status, answer.body)
        self.assertEqual(answer.headers["content-type"], "application/problem+json")
        document = ujson.loads(answer.body)
        self.assertEqual((document["code"], document.get("field")), (code, field), document)
        self.assertEqual((document["status"], document["type"]), (status, "about:blank"))
        self.assertTrue(document["title"] and document["detail"])
        for name, value in (headers or {}).items():
            self.assertEqual(answer.headers[name], value)
        return document

    async def test_success(self) -> None:
        """202 with what the function gave, never cached, never sniffed, without a version."""
        answer = await self.push(GOOD)
        self.assertEqual(answer.status, 202)
        self.assertEqual(ujson.loads(answer.body)["what"], {"to": "u1", "body": {"a": 1}, "identity": "channel"})
        self.assertEqual(answer.headers["content-type"], "application/json")
        self.assertEqual(answer.headers["cache-control"], "no-store")
        self.assertEqual(answer.headers["x-content-type-options"], "nosniff")
        self.assertEqual(answer.headers["server"], "imserver")

    async def test_no_content(self) -> None:
        """204 has no body and no content type."""
        answer = await self.call("POST", "/v1/ack")
        self.assertEqual((answer.status, answer.body), (204, b""))
        self.assertNotIn("content-type", answer.headers)
        self.assertNotIn("content-length", answer.headers)

    async def test_nothing_is_an_object(self) -> None:
        """None is an empty object where there is a body; literal paths win over parameters."""
        answer = await self.call("GET", "/v1/users/me")
        self.assertEqual((answer.status, answer.body), (200, b"{}"))

    async def test_not_json(self) -> None:
        """400 invalid_json for everything that is not JSON or not UTF-8, also within a body nobody
        decodes."""
        for body in (
            b"",
            b"{",
            b"[" * 100_000,
            b'{"to":"u1","type":"text","body":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b'{"to":"u1","type":"text","body":{"a":NaN}}',
            b'{"to":"u1","type":"text","body":{"a":-Infinity}}',
            b'{"to":1,"type":"text","body":{"a":NaN}}',
            b'{"to":"u1","type":"text","body":{"a":"\xff"}}',
            b'{"to":"u1","type":"text","body":{"a":"\xed\xa0\x80"}}',
            b'{"to":"u1","type":"text","body":{"a":"\\ud800"}}',
            b'{"to":"u1","type":"text","body":{"a":"\\udc00 and more"}}',
            b'{"to":1,"type":"text","body":{"a":"\\ud800"}}',
            b'{"to":"u1","type":"text","body":{"a":1,"a":2}}',
            b'{"to":"u1","to":"u2","type":"text","body":{}}',
            GOOD + b"x",
            b"\xef\xbb\xbf" + GOOD,
        ):
            self.check(await self.push(body), 400, "invalid_json")

    async def test_paths_of_fields(self) -> None:
        """422 invalid_frame says which field, as in `messages[3].to`."""
        for body, field in (
            (b'{"messages":[%s,%s,%s,{"to":1}]}' % (GOOD, GOOD, GOOD), "messages[3].to"),
            (b'{"messages":[{"to":"u","body":{}}]}', "messages[0].type"),
            (b'{"messages":[{"to":"u","type":"t","body":{},"x":1}]}', "messages[0].x"),
            (b'{"messages":[{"to":"u","type":"t","body":{},"from":""}]}', "messages[0].from"),
            (b'{"messages":[{"to":"u","type":"t","body":{},"ttl_s":1001}]}', "messages[0].ttl_s"),
            (b'{"messages":[{"to":"u","type":"t","body":{},"ttl_s":1e999}]}', "messages[0].ttl_s"),
            (b'{"messages":[1]}', "messages[0]"),
            (b'{"messages":{}}', "messages"),
            (b"{}", "messages"),
            (b'{"messages":[],"extra":1}', "extra"),
            (b"[]", None),
            (b'{"messages":[{"to":"u","type":"t","body":1e999}]}', None),
            (b'{"messages":[{"to":"u","type":"t","body":%s}]}' % (b"9" * 5000), None),
        ):
            self.check(await self.call("POST", "/v1/typed", body), 422, "invalid_frame", field)

    async def test_queries(self) -> None:
        """400 invalid_frame for a broken query; the last of a repeated parameter wins, unknown ones are
        ignored."""
        for query, field in (
            ("limit=x", "limit"),
            ("limit=0", "limit"),
            ("limit=", "limit"),
            ("wait_s=nan", "wait_s"),
            ("state=%ff", None),
            ("state=%zz", None),
        ):
            self.check(await self.call("GET", f"/v1/page?{query}"), 400, "invalid_frame", field)
        answer = await self.call("GET", "/v1/page?limit=0&limit=7&what=1&state=a%20b+c")
        self.assertEqual(ujson.loads(answer.body)["what"], {"limit": 7, "wait_s": 0.0, "state": "a b c"})

    async def test_paths(self) -> None:
        """A parameter of a path is decoded after splitting; 422 when it is not what it should be."""
        self.assertEqual(ujson.loads((await self.call("GET", "/v1/users/a%40b")).body)["what"], "a@b")
        for path in ("/v1/users/a%20b", "/v1/users/a%2Fb", "/v1/users/" + "x" * 129, "/v1/users/%ff"):
            self.check(await self.call("GET", path), 422, "invalid_frame", "uid")
        for path in ("/v1/users/", "/v1/users", "/v1/users/a/b", "/", "/v2"):
            self.check(await self.call("GET", path), 404, "not_found")

    async def test_identity(self) -> None:
        """401 with WWW-Authenticate without a key, 403 for one that may not; before anything is read."""
        for token in (None, "bad"):
            answer = await self.call("POST", "/v1/push", b"{", token=token)
            self.check(answer, 401, "not_allowed", headers={"www-authenticate": "Bearer"})
        self.check(await self.call("POST", "/v1/push", b"{", token="poor"), 403, "not_allowed")

    async def test_methods(self) -> None:
        """405 with Allow; HEAD is GET without the body."""
        answer = await self.call("PUT", "/v1/users/u1")
        self.check(answer, 405, "not_allowed", headers={"allow": "GET, HEAD, DELETE, OPTIONS"})
        self.check(await self.call("BREW", "/v1/push"), 405, "not_allowed", headers={"allow": "POST, OPTIONS"})
        self.check(await self.call("PUT", "/nowhere"), 404, "not_found")
        answer = await self.call("HEAD", "/v1/users/u1")
        self.assertEqual((answer.status, answer.body, answer.headers["content-length"]), (200, b"", "13"))
        self.assertEqual((await self.call("HEAD", "/v1/stream")).status, 405)

    async def test_states(self) -> None:
        """409, 429 and 503 with Retry-After, 500 without a secret."""
        self.check(await self.call("GET", "/v1/taken"), 409, "no_agent")
        self.check(await self.call("GET", "/v1/busy"), 429, "rate_limited", headers={"retry-after": "7"})
        self.check(await self.call("GET", "/v1/away"), 503, "unavailable", headers={"retry-after": "1"})
        self.assertEqual(self.flushLoggedErrors(Away), [])
        answer = await self.call("GET", "/v1/broken")
        self.check(answer, 500, "internal")
        self.assertNotIn(b"secret", answer.body)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    async def test_content_types(self) -> None:
        """415 for another content type; parameters, case and NDJSON where it is taken are fine."""
        for media in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            "application/x-ndjson",
        ):
            self.check(await self.push(GOOD, headers={"Content-Type": media}), 415, "invalid_frame")
        answer = await self.push(GOOD, headers={"Content-Type": "Application/JSON; charset=utf-8"})
        self.assertEqual(answer.status, 202)
        answer = await self.push(GOOD, headers={"Content-Encoding": "gzip"})
        self.check(answer, 415, "invalid_frame")

    async def test_optional_body(self) -> None:
        """No body, and no content type, where all fields are optional; else it is not JSON."""
        answer = await self.call("DELETE", "/v1/users/u1")
        self.assertEqual(ujson.loads(answer.body)["what"], "none")
        answer = await self.call("DELETE", "/v1/users/u1", b'{"reason":"x"}')
        self.assertEqual(ujson.loads(answer.body)["what"], "x")
        self.check(await self.call("DELETE", "/v1/users/u1", b'{"other":1}'), 422, "invalid_frame", "other")
        self.check(await self.call("POST", "/v1/typed"), 400, "invalid_json")

    async def test_batches(self) -> None:
        """One bad message stops no other, in JSON as in NDJSON."""
        answer = await self.push(b'{"messages":[%s,{"to":1},%s]}' % (GOOD, GOOD), "/v1/push/batch")
        results = ujson.loads(answer.body)["results"]
        self.assertEqual((results[0], results[1]["error"]["field"], results[2]), ("u1", "messages[1].to", "u1"))
        lines = GOOD + b"\r\n\n{\n" + GOOD.replace(b"text", b"\xff") + b"\n" + GOOD
        answer = await self.push(lines, "/v1/push/batch", headers={"Content-Type": "application/x-ndjson"})
        results = ujson.loads(answer.body)["results"]
        self.assertEqual((results[0], results[3]), ("u1", "u1"))
        self.assertEqual([one["error"]["code"] for one in results[1:3]], ["invalid_json"] * 2)

    async def test_stream(self) -> None:
        """A function may take the request over; what all answers have, this has too."""
        answer = await self.call("GET", "/v1/stream")
        self.assertEqual((answer.status, answer.body), (200, b"data: 1\n\n"))
        self.assertEqual(answer.headers["cache-control"], "no-store")

    async def test_counted(self) -> None:
        """Every request is counted by its template, with bounded names."""
        await self.call("GET", "/v1/users/u1")
        await self.call("BREW", "/v1/users/u1")
        await self.call("GET", "/nowhere/at/all")
        self.assertEqual(
            self.sample.seen,
            [("/v1/users/{uid}", "GET", 200), ("/v1/users/{uid}", "other", 405), ("unmatched", "GET", 404)],
        )

    async def test_cancelled(self) -> None:
        """A client that goes away cancels what its call waits for; nothing is logged or written."""
        wire = await connect(self.sample.number)
        wire.transport.write(b"GET /v1/wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await self.sample.waiting
        wire.transport.abortConnection()
        await self.sample.cancelled
        await wire.ended
        self.assertEqual(self.sample.seen, [("/v1/wait", "GET", 499)])

    async def test_no_origins(self) -> None:
        """Without allowed origins no page of another one may read anything."""
        answer = await self.call("GET", "/v1/users/u1", headers={"Origin": "https://shop.example"})
        self.assertNotIn("access-control-allow-origin", answer.headers)


class Origins(Calls):
    """The same with pages of another origin allowed, which changes nothing else."""

    settings = {"allowed_origins": ["https://shop.example"]}

    async def test_no_origins(self) -> None:
        """The allowed origin may, another may not; caches are told that it depends."""
        for origin, allowed in (
            ("https://shop.example", "https://shop.example"),
            ("https://evil.example", None),
        ):
            answer = await self.call("GET", "/v1/busy", headers={"Origin": origin})
            self.assertEqual(answer.headers.get("access-control-allow-origin"), allowed)
            self.assertEqual(answer.headers["vary"], "Origin")
        answer = await self.call("GET", "/v1/busy", headers={"Origin": "https://shop.example"})
        self.assertEqual(answer.headers["access-control-expose-headers"], "Retry-After, WWW-Authenticate")
        self.assertNotIn("access-control-allow-credentials", answer.headers)

    async def test_preflight(self) -> None:
        """OPTIONS needs no key: 204 with the methods and the headers that may be sent."""
        asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
        answer = await self.call("OPTIONS", "/v1/push", headers=asked)
        self.assertEqual(answer.status, 204)
        self.assertEqual(answer.headers["access-control-allow-origin"], "https://shop.example")
        self.assertEqual(answer.headers["access-control-allow-methods"], "POST, OPTIONS")
        self.assertEqual(answer.headers["access-control-allow-headers"], "Authorization, Content-Type, Last-Event-ID")
        answer = await self.call("OPTIONS", "/v1/push", headers={**asked, "Origin": "https://evil.example"})
        self.assertEqual(answer.status, 204)
        self.assertNotIn("access-control-allow-methods", answer.headers)
        self.assertEqual((await self.call("OPTIONS", "/nowhere", headers=asked)).status, 404)
