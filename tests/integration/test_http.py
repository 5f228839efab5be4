"""HTTP of all three servers, as the contract's table says (contract: HTTP), by raw sockets and urllib."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.stack import shared_demo


class EveryServerTests(SynchronousTestCase):
    """What the dispatcher, the business server and the workers share."""

    def setUp(self) -> None:
        """The demo's servers, each with a call that takes a body and what authorises it."""
        self.demo = shared_demo()
        ready = self.demo.ready
        token = self.demo.token("http-user")
        self.servers: list[tuple[str, str, str]] = [
            (ready["dispatcher"], "/v1/push", ready["api_key"]),
            (ready["business"], "/v1/messages", token),
            (ready["worker_http"][0], "/v1/ack?device=d", token),
        ]

    def refused(
        self, status: int, code: str, method: str, url: str, body: Any = None, key: str = "", **headers: str
    ) -> Any:
        """A call that is refused with this status and code, as a problem."""
        got, problem, found = self.demo.call(method, url, body, key, **headers)
        self.assertEqual((got, problem.get("code")), (status, code), f"{method} {url}: {problem}")
        self.assertTrue(found["Content-Type"].startswith("application/problem+json"))
        self.assertEqual(problem["status"], status)
        self.assertTrue({"type", "title", "detail"} <= set(problem))
        return problem, found

    def test_standard(self) -> None:
        """Health, readiness, metrics, description and page, without a key."""
        for base, _, _ in self.servers:
            for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"):
                status, body, headers = self.demo.call("GET", base + path, key="")
                self.assertEqual(status, 200, base + path)
                self.assertTrue(body)
            self.assertIn("openapi", self.demo.call("GET", base + "/openapi.json", key="")[1])

    def test_refusals(self) -> None:
        """Every status of the table that does not need a part to be away."""
        for base, path, key in self.servers:
            url = base + path
            self.refused(404, "not_found", "GET", base + "/v1/nothing", key=key)
            _, headers = self.refused(405, "not_allowed", "DELETE", url, key=key)
            self.assertIn("POST", headers["Allow"])
            for wrong in ("", "wrong-key-0123456789"):
                _, headers = self.refused(401, "not_allowed", "POST", url, {}, key=wrong)
                self.assertIn("WWW-Authenticate", headers)
            self.refused(415, "invalid_frame", "POST", url, b"{}", key, Content_Type="text/plain")
            for bad in (b"{", b'{"a": NaN}', b'{"a": Infinity}', b"\xff{}", b'{"a": "\xff"}', b"[" * 100000):
                self.refused(400, "invalid_json", "POST", url, bad, key)
            self.refused(422, "invalid_frame", "POST", url, {}, key)
            self.refused(422, "invalid_frame", "POST", url, {"no_such_field": 1}, key)
            self.refused(422, "invalid_frame", "POST", url, [], key)
            self.refused(413, "too_large", "POST", url, b" " * (1024 * 1024 + 1), key)

    def test_too_large_while_it_arrives(self) -> None:
        """A chunked body over the limit is refused as soon as it is over it."""
        for base, path, key in self.servers:
            parts = urlsplit(base)
            with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
                head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
                head += "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
                connection.sendall(head.encode())
                try:
                    for _ in range(20):
                        connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
                except OSError:
                    pass  # it has hung up already; the answer is there to be read
                self.assertIn(b" 413 ", connection.recv(1000).split(b"\r\n")[0])

    def test_one_invalid_uid_among_many(self) -> None:
        """422 names it, and nothing was sent to the others."""
        base, path, key = self.servers[0]
        body = {"to": ["http-1", "http-2", "not valid!", "http-3"], "type": "t", "body": {}}
        problem, _ = self.refused(422, "invalid_frame", "POST", base + path, body, key)
        self.assertEqual(problem["field"], "to[2]")
        self.assertEqual(self.demo.dispatcher("GET", "/v1/users/http-1")[1]["inbox"]["length"], 0)

    def test_presence_of_a_user(self) -> None:
        """One never seen is offline; one connected shows where."""
        status, nobody = self.demo.dispatcher("GET", "/v1/users/never-seen")
        expected = {"uid": "never-seen", "online": False, "connections": [], "inbox": {"length": 0, "last": None}}
        self.assertEqual((status, nobody), (200, expected))
        client = self.demo.client("http-online", platform="ios")
        self.addCleanup(client.close)
        _, user = self.demo.dispatcher("GET", "/v1/users/http-online")
        (connection,) = user["connections"]
        self.assertEqual(connection["conn"], client.welcome["conn"])
        self.assertEqual((connection["platform"], connection["device"], connection["channel"]), ("ios", "d1", "demo"))
        _, presence = self.demo.dispatcher("POST", "/v1/presence", {"uids": ["http-online", "never-seen"]})
        self.assertEqual(presence["http-online"], {"online": True, "platforms": ["ios"]})
        self.assertEqual(self.demo.dispatcher("DELETE", "/v1/users/http-online/connections")[1], {"closed": 1})
        self.assertEqual(client.closed()[0], 4409)

    def test_blacklist(self) -> None:
        """A banned uid is closed within a second and refused until it is lifted; others are not."""
        client = self.demo.client("http-banned")
        status, entry = self.demo.dispatcher("PUT", "/v1/blacklist/uid/http-banned", {"ttl_s": 600, "reason": "spam"})
        self.assertEqual((status, entry["kind"], entry["value"], entry["reason"]), (200, "uid", "http-banned", "spam"))
        code, reason = client.closed(1.0)
        self.assertEqual(code, 4403)
        self.assertRegex(reason or "", r"until \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
        refused = type(client)(self.demo.ready["workers"][0])
        refused.send(op="hello", token=self.demo.token("http-banned"), device="d")
        self.assertEqual(refused.closed()[0], 4403)
        stream = f"{self.demo.ready['worker_http'][0]}/v1/stream?device=d&token={self.demo.token('http-banned')}"
        self.assertEqual(self.demo.call("GET", stream, key="")[0], 403)
        status, problem = self.demo.business("GET", "/v1/conversations", key=self.demo.token("http-banned"))
        self.assertEqual((status, problem["code"]), (403, "not_allowed"))
        self.assertEqual(self.demo.dispatcher("DELETE", "/v1/blacklist/uid/http-banned")[0], 200)
        self.assertEqual(self.demo.dispatcher("GET", "/v1/blacklist/uid/http-banned")[0], 404)
        self.demo.client("http-banned").close()

    def test_batch(self) -> None:
        """One bad message stops no other, as JSON and as NDJSON."""
        good = {"to": "http-batch", "type": "t", "body": {}}
        status, answer = self.demo.dispatcher("POST", "/v1/push/batch", {"messages": [good, {"to": "x y"}, good]})
        self.assertEqual(status, 202)
        self.assertEqual(["error" in result for result in answer["results"]], [False, True, False])
        lines = "\n".join([json.dumps(good), "nonsense", json.dumps(good)]).encode()
        url = self.demo.ready["dispatcher"] + "/v1/push/batch"
        status, answer, _ = self.demo.call("POST", url, lines, Content_Type="application/x-ndjson")
        self.assertEqual((status, ["error" in result for result in answer["results"]]), (202, [False, True, False]))

    def test_channels_are_apart(self) -> None:
        """One channel's key sees and closes nothing of another's."""
        client = self.demo.client("http-apart")
        self.addCleanup(client.close)
        other = self.demo.ready["channels"]["demo-direct"]["api_key"]
        _, user = self.demo.dispatcher("GET", "/v1/users/http-apart", key=other)
        self.assertEqual((user["online"], user["connections"]), (False, []))
        self.assertEqual(
            self.demo.dispatcher("DELETE", "/v1/users/http-apart/connections", key=other)[1], {"closed": 0}
        )
        self.assertEqual(self.demo.dispatcher("GET", "/v1/journal", key=other)[0], 404)

    def test_uplinks(self) -> None:
        """`direct` goes from worker to worker; `journal` is read by a back office."""
        sender, receiver = (
            self.demo.client(uid, channel="demo-direct", worker=n) for n, uid in enumerate(("hd1", "hd2"))
        )
        sent = sender.ask("sent", op="send", cid="1", to="hd2", type="t", body={"n": 1})
        self.assertEqual(receiver.message()["id"], sent["id"])
        writer = self.demo.client("hj1", channel="demo-journal")
        sent = writer.ask("sent", op="send", cid="1", type="log", body={"n": 2})
        key = self.demo.ready["channels"]["demo-journal"]["api_key"]
        _, journal = self.demo.dispatcher("GET", "/v1/journal?limit=1000", key=key)
        self.assertIn((sent["cursor"], sent["id"]), [(entry["cursor"], entry["id"]) for entry in journal["entries"]])
        refused = writer.ask("sent", op="send", cid="2", to="x", type="log", body={})
        self.assertEqual(refused["code"], "not_allowed")
        for client in (sender, receiver, writer):
            client.close()

    def test_direct_to_agents_only(self) -> None:
        """A direct channel may let clients write to agents alone; an agent is one of this very channel."""
        key = self.demo.ready["channels"]["picky"]["api_key"]
        self.assertEqual(self.demo.business("PUT", "/v1/agents/picky-agent", {"shop": "picky-shop"}, key)[0], 200)
        self.demo.agent("other-agent", "other-shop")
        client = self.demo.client("picky-customer", channel="picky")
        self.addCleanup(client.close)
        for to, op in (("picky-agent", "sent"), ("other-agent", "error"), ("somebody", "error")):
            answer = client.ask("sent", op="send", cid=to, to=to, type="t", body={})
            self.assertEqual((answer["op"], answer.get("code")), (op, None if op == "sent" else "not_allowed"), to)
