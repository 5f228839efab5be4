"""The routes that every server has, and the document that describes all of them."""

from __future__ import annotations

import re
from typing import Any

import ujson
from openapi_spec_validator import OpenAPIV31SpecValidator
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from imserver.http import openapi
from imserver.http.client import Answer, HttpClient
from imserver.http.problems import Problem
from imserver.http.standard import ready
from tests.http.sample import Away, Sample


class Standard(TestCase):
    """All of them without a key."""

    def setUp(self) -> None:
        """Start the server and a client."""
        self.sample = Sample()
        self.client = HttpClient(reactor)

    async def tearDown(self) -> None:
        """Stop both."""
        await self.client.close()
        await self.sample.stop()

    async def get(self, path: str) -> Answer:
        """A GET without a key."""
        return await self.client.call("GET", self.sample.address + path)

    async def test_health(self) -> None:
        """The process is up."""
        answer = await self.get("/healthz")
        self.assertEqual((answer.status, answer.body), (200, b'{"status":"ok"}'))

    async def test_ready(self) -> None:
        """All parts are there; then one is not, and the answer says which."""

        async def fine() -> None:
            return None

        async def away() -> None:
            raise Away("10.0.0.1 refused")

        self.sample.checks["redis"] = fine
        answer = await self.get("/readyz")
        self.assertEqual(answer.status, 200)
        self.assertEqual(ujson.loads(answer.body), {"status": "ready", "parts": {"redis": "ok"}})
        self.sample.checks["database"] = away
        answer = await self.get("/readyz")
        self.assertEqual((answer.status, answer.headers["retry-after"]), (503, "2"))
        document = ujson.loads(answer.body)
        self.assertEqual((document["code"], document["detail"]), ("unavailable", "Away: database."))
        self.assertEqual(document["parts"], {"redis": "ok", "database": "away"})
        self.assertNotIn(b"10.0.0.1", answer.body)

    def test_deadline(self) -> None:
        """A part that does not answer within 2 s is away."""

        async def never() -> None:
            await Deferred()

        clock = Clock()
        readiness = Deferred.fromCoroutine(ready({"worker": never}, clock))
        clock.advance(1.9)
        self.assertNoResult(readiness)
        clock.advance(0.2)
        problem: Any = self.failureResultOf(readiness, Problem).value
        self.assertEqual((problem.status, problem.parts), (503, {"worker": "away"}))

    async def test_metrics(self) -> None:
        """What Prometheus reads."""
        answer = await self.get("/metrics")
        self.assertEqual(answer.status, 200)
        self.assertTrue(answer.headers["content-type"].startswith("text/plain"))
        self.assertIn(b"calls_total 1.0", answer.body)

    async def test_document(self) -> None:
        """It is valid OpenAPI 3.1 and has every route, its parameters, bodies, answers and keys."""
        answer = await self.get("/openapi.json")
        self.assertEqual((answer.status, answer.headers["content-type"]), (200, "application/json"))
        document = ujson.loads(answer.body)
        OpenAPIV31SpecValidator(document).validate()
        self.assertEqual(document["info"], {"title": "Sample", "version": "1"})
        shown = {(route.path, route.method.lower()) for route in self.sample.routes if not route.hidden}
        self.assertEqual({(path, method) for path, place in document["paths"].items() for method in place}, shown)
        push = document["paths"]["/v1/push"]["post"]
        self.assertEqual(push["security"], [{"key": []}])
        self.assertEqual(
            push["requestBody"]["content"]["application/json"]["schema"],
            {"$ref": "#/components/schemas/Push"},
        )
        self.assertEqual(sorted(push["responses"]), ["202", "400", "401", "403", "413", "415", "422", "429", "503"])
        schema = document["components"]["schemas"]["Push"]
        self.assertEqual(schema["properties"]["body"], {"type": "object"})
        self.assertEqual((schema["additionalProperties"], schema["required"]), (False, ["to", "type", "body"]))
        batch = document["paths"]["/v1/push/batch"]["post"]
        self.assertEqual(batch["security"], [{"key": []}, {"token": []}])
        self.assertIn("application/x-ndjson", batch["requestBody"]["content"])
        parameters = document["paths"]["/v1/page"]["get"]["parameters"]
        self.assertEqual([one["name"] for one in parameters], ["limit", "wait_s", "state"])
        self.assertEqual(parameters[0]["schema"], {"type": "integer", "minimum": 1, "maximum": 200, "default": 50})
        self.assertEqual(document["paths"]["/v1/ack"]["post"]["responses"]["204"], {"description": "No Content"})
        self.assertEqual(document["paths"]["/healthz"]["get"]["security"], [])

    def test_deterministic(self) -> None:
        """The same routes give the same document."""
        one, other = (ujson.dumps(openapi.document(self.sample.routes, title="Sample", version="1")) for _ in range(2))
        self.assertEqual(one, other)

    async def test_page(self) -> None:
        """The page for people comes with all its parts, from here only."""
        page = await self.get("/docs")
        self.assertEqual((page.status, page.headers["content-type"]), (200, "text/html; charset=utf-8"))
        self.assertIn("default-src 'self'", page.headers["content-security-policy"])
        self.assertNotIn("unsafe", page.headers["content-security-policy"])
        self.assertNotRegex(page.body.decode(), r"<style|<script>|style=|\son\w+=|https?:")
        parts = re.findall(r'(?:src|href)="([^"]+)"', page.body.decode())
        self.assertGreaterEqual(len(parts), 4)
        for part in parts:
            answer = await self.get("/" + part)
            self.assertEqual(answer.status, 200, part)
            self.assertNotIn("text/html", answer.headers["content-type"])
