"""The demo's web site."""

from __future__ import annotations

from typing import Any

import treq
from twisted.internet import reactor
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent, HTTPConnectionPool

from imserver.demo.page import site


class Site(TestCase):
    """Over a real socket."""

    def setUp(self) -> None:
        """Listen."""
        self.port: Any = reactor.listenTCP(0, site(lambda: {"shop": "demo-shop"}), interface="127.0.0.1")  # type: ignore[attr-defined]
        self.pool = HTTPConnectionPool(reactor, persistent=False)  # type: ignore[arg-type]
        self.http = treq.client.HTTPClient(Agent(reactor, pool=self.pool))

    async def tearDown(self) -> None:
        """Close."""
        await self.pool.closeCachedConnections()
        await self.port.stopListening()

    async def get(self, path: str, method: str = "GET", host: str = "localhost") -> tuple[int, Any, bytes]:
        """Status, headers, body."""
        url = f"http://127.0.0.1:{self.port.getHost().port}{path}"
        response = await self.http.request(method, url, headers={"Host": host})
        return response.code, response.headers, await response.content()

    async def test_session(self) -> None:
        """The page's session is made anew at each request."""
        status, headers, body = await self.get("/session.json")
        self.assertEqual((status, body), (200, b'{"shop":"demo-shop"}'))
        self.assertEqual(headers.getRawHeaders("content-type"), ["application/json"])
        self.assertEqual(headers.getRawHeaders("cache-control"), ["no-store"])

    async def test_other_names(self) -> None:
        """Under another name nothing is served: it hands out tokens."""
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80"):
            status, _, _ = await self.get("/session.json", host=host)
            self.assertEqual(status, 403)
        for host in ("127.0.0.1:9", "LOCALHOST"):
            status, _, _ = await self.get("/session.json", host=host)
            self.assertEqual(status, 200)

    async def test_files(self) -> None:
        """Files come with their type and a strict policy."""
        status, headers, body = await self.get("/im.js")
        self.assertEqual((status, headers.getRawHeaders("content-type")), (200, ["text/javascript; charset=utf-8"]))
        self.assertIn(b"IMClient", body)
        self.assertIn("default-src 'self'", headers.getRawHeaders("content-security-policy")[0])
        status, headers, body = await self.get("/im.js", "HEAD")
        self.assertEqual((status, body), (200, b""))

    async def test_no_other_files(self) -> None:
        """Nothing outside the page's folder, no code of ours."""
        for path in ("/../config.py", "/%2e%2e/config.py", "/__init__.py", "/..", "/x/im.js", "/none.js"):
            status, _, _ = await self.get(path)
            self.assertEqual(status, 404, path)

    async def test_methods(self) -> None:
        """It is there to be read."""
        status, headers, _ = await self.get("/", "POST")
        self.assertEqual((status, headers.getRawHeaders("allow")), (405, ["GET, HEAD"]))
