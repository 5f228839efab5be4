"""Webhooks: a real back office over HTTP is told of everything, signed, at least once."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import Any

import ujson
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.web import resource, server

from tests.business.shop import KEY, ShopCase

SECRETS = ["whsec_" + base64.b64encode(secrets.token_bytes(32)).decode() for _ in range(2)]
QUIET = "quiet-key-0123456789"


class BackOffice(resource.Resource):
    """Hears events; answers with `status`, or not at all with 0; `refuses` some kinds."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.status = 204
        self.refuses: set[str] = set()
        self.posts: list[dict[str, Any]] = []
        self.heard: dict[str, dict[str, Any]] = {}
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []

    def render_POST(self, request: Any) -> Any:
        """One event."""
        body = request.content.read()
        event = ujson.loads(body)
        self.posts.append(event)
        self.bodies.append(body)
        names = ("webhook-id", "webhook-timestamp", "webhook-signature", "content-type")
        self.headers.append({name: request.getHeader(name) for name in names})
        if not self.status:
            return server.NOT_DONE_YET
        status = 500 if event["event"] in self.refuses else self.status
        request.setResponseCode(status)
        if status < 300:
            self.heard[event["id"]] = event
        return b""

    def of(self, event: str) -> list[dict[str, Any]]:
        """What was heard of one kind, by time."""
        return sorted((one for one in self.heard.values() if one["event"] == event), key=lambda one: one["ts"])


class WebhookCase(ShopCase):
    """A business server whose channel `demo` has a back office."""

    async def serve(self, channel: dict[str, Any] | None = None, **sections: Any) -> Any:
        """A business server, and at the first call a back office."""
        if not hasattr(self, "office"):
            self.office = BackOffice()
            port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(server.Site(self.office))
            self.addCleanup(port.stopListening)
            webhook = {"webhook_url": f"http://127.0.0.1:{port.getHost().port}/events", "webhook_secrets": SECRETS}
            sections["channels"] = {
                "demo": {"api_keys": [KEY], **webhook, **(channel or {})},
                "quiet": {"api_keys": [QUIET]},
            }
            sections["webhooks"] = {"retry_first_s": 0.05, "poll_s": 0.05, **sections.get("webhooks", {})}
        return await self.start(**sections)

    async def state(self) -> Any:
        """How the webhook fares."""
        return await self.good("GET", "/v1/webhook")

    async def settled(self) -> None:
        """Wait until nothing waits to be told."""

        async def empty() -> bool:
            return (await self.state())["waiting"] == 0

        await self.until(empty)


class EventTests(WebhookCase):
    """What a back office hears."""

    async def test_story(self) -> None:
        """Every message and every change of hands, each once; a position that only moves up is no event."""
        await self.serve()
        alice = await self.agent("alice", capacity=1)
        first = await self.say(self.token("bob"), "hello", "c1", shop="s1")
        second = await self.say(self.token("carl"), "anybody?", shop="s1")
        third = await self.say(self.token("dora"), "me too", shop="s1")
        await self.say(alice, "welcome", conversation=first["conversation"])
        await self.good("POST", f"/v1/conversations/{first['conversation']}/close", alice)
        await self.until(lambda: len(self.office.of("message")) == 4 and len(self.office.of("assigned")) == 2)
        await self.settled()
        self.assertEqual(
            [(one["event"], one["conversation"]) for one in self.office.of("waiting") + self.office.of("closed")],
            [
                ("waiting", second["conversation"]),
                ("waiting", third["conversation"]),
                ("closed", first["conversation"]),
            ],
        )
        waiting = self.office.of("waiting")[0]
        self.assertEqual(
            {name: waiting[name] for name in ("channel", "shop", "customer", "agent", "previous", "position")},
            {"channel": "demo", "shop": "s1", "customer": "carl", "agent": None, "previous": None, "position": 1},
        )
        assigned = self.office.of("assigned")
        self.assertEqual([(one["customer"], one["agent"]) for one in assigned], [("bob", "alice"), ("carl", "alice")])
        page = await self.good("GET", f"/v1/conversations/{first['conversation']}/messages")
        heard = [one["message"] for one in self.office.of("message")]
        for message in page["messages"]:
            self.assertIn(message, heard)
        self.assertEqual(len(self.office.posts), len(self.office.heard))

    async def test_transfer_and_gone(self) -> None:
        """Who had the conversation before is told; what is handed over is no new message."""
        await self.serve(assignment={"offline_grace_s": 0.1})
        alice = await self.agent("alice")
        conversation = (await self.say(self.token("bob"), shop="s1"))["conversation"]
        await self.agent("carol")
        await self.good("POST", f"/v1/conversations/{conversation}/transfer", alice, {"agent": "carol"})
        await self.disconnect("alice")
        await self.disconnect("carol")
        await self.until(lambda: self.office.of("waiting"))
        self.assertEqual(
            [(one["agent"], one["previous"]) for one in self.office.of("assigned")],
            [("alice", None), ("carol", "alice")],
        )
        (waiting,) = self.office.of("waiting")
        self.assertEqual((waiting["agent"], waiting["previous"]), (None, "carol"))
        await self.settled()
        self.assertEqual([one["message"]["type"] for one in self.office.of("message")], ["text", "system"])

    async def test_signed(self) -> None:
        """Each POST is signed with every secret over its id, its time and its very bytes."""
        await self.serve()
        answer = await self.good("POST", "/v1/webhook/ping")
        await self.until(lambda: self.office.posts)
        headers, body = self.office.headers[0], self.office.bodies[0]
        self.assertEqual(headers["webhook-id"], answer["id"])
        self.assertEqual(headers["content-type"], "application/json")
        text = b".".join((headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body))
        for secret, told in zip(SECRETS, headers["webhook-signature"].split(), strict=True):
            key = base64.b64decode(secret.removeprefix("whsec_"))
            expected = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
            self.assertEqual(told, f"v1,{expected}")

    async def test_only_what_is_wanted(self) -> None:
        """A channel names the events it wants; one without a webhook keeps nothing."""
        await self.serve({"webhook_events": ["closed"]})
        alice = await self.agent("alice")
        conversation = (await self.say(self.token("bob"), shop="s1"))["conversation"]
        await self.good("POST", f"/v1/conversations/{conversation}/close", alice)
        await self.until(lambda: self.office.of("closed"))
        await self.settled()
        self.assertEqual([one["event"] for one in self.office.posts], ["closed"])
        await self.good("PUT", "/v1/agents/alice", QUIET, {"shop": "s1", "status": "online"})
        await self.say(self.token("bob", channel="quiet"), shop="s1")
        state = await self.good("GET", "/v1/webhook", QUIET)
        self.assertEqual((state["url"], state["events"], state["waiting"]), (None, [], 0))
        await self.refused(409, "conflict", "POST", "/v1/webhook/ping", QUIET)
        self.assertEqual(await self.redis.command("KEYS", "im:{w:quiet}*"), [])


class FailureTests(WebhookCase):
    """What happens when a back office does not hear."""

    async def test_tried_again(self) -> None:
        """While it answers with errors nothing is lost; when it is well again it hears everything."""
        await self.serve()
        self.office.status = 500
        await self.agent("alice")
        for number in range(30):
            await self.say(self.token("bob"), str(number), shop="s1")

        async def failing() -> bool:
            state = await self.state()
            return bool(state["waiting"] == 31 and state["retrying"] and state["error"] == "it answered 500")

        await self.until(failing)
        self.office.status = 200
        await self.until(lambda: len(self.office.of("message")) == 30)
        await self.settled()
        state = await self.state()
        self.assertEqual((state["waiting"], state["retrying"], state["dead"]), (0, 0, 0))
        response = await self.http.get(f"{self.url}/metrics")
        self.assertIn(b'im_webhook_posts_total{channel="demo",outcome="failed"}', await response.content())

        async def measured() -> bool:
            response = await self.http.get(f"{self.url}/metrics")
            return b'im_webhook_waiting{channel="demo"} 0.0' in await response.content()

        await self.until(measured)

    async def test_one_bad_event(self) -> None:
        """An event that is never taken does not hold up the others; in the end it dies, and can be told after all."""
        await self.serve(webhooks={"give_up_s": 0.5})
        self.office.refuses = {"assigned"}
        await self.agent("alice")
        for number in range(5):
            await self.say(self.token(f"bob{number}"), shop="s1")
        await self.until(lambda: len(self.office.of("message")) == 5)

        async def died() -> bool:
            return bool((await self.state())["dead"] == 5)

        await self.until(died)
        dead = (await self.good("GET", "/v1/webhook/dead?limit=2"))["dead"]
        self.assertEqual([one["event"] for one in dead], ["assigned", "assigned"])
        self.assertEqual(dead[0]["body"]["agent"], "alice")
        self.assertEqual(dead[0]["error"], "it answered 500")
        page = await self.good("GET", f"/v1/webhook/dead?after={dead[1]['cursor']}")
        self.assertEqual(len(page["dead"]), 3)
        self.office.refuses = set()
        body = {"cursors": [one["cursor"] for one in dead]}
        self.assertEqual(await self.good("POST", "/v1/webhook/dead/retry", body=body), {"moved": 2})
        self.assertEqual(await self.good("POST", "/v1/webhook/dead/retry", body=body), {"moved": 0})
        await self.until(lambda: len(self.office.of("assigned")) == 2)
        self.assertEqual({one["id"] for one in self.office.of("assigned")}, {one["id"] for one in dead})
        self.assertEqual(await self.good("POST", "/v1/webhook/dead/drop", body={}), {"moved": 3})
        self.assertEqual((await self.good("GET", "/v1/webhook/dead"))["dead"], [])
        await self.refused(400, "invalid_frame", "GET", "/v1/webhook/dead?after=99999999999999999999-1")
        none = {"cursors": ["99999999999999999999-1"]}
        for what in ("retry", "drop"):
            await self.refused(422, "invalid_frame", "POST", f"/v1/webhook/dead/{what}", body=none)

    async def test_server_dies(self) -> None:
        """What a server had taken when it ended is told by another."""
        first = await self.serve(webhooks={"timeout_s": 0.2})
        self.office.status = 0
        await self.agent("alice")
        await self.say(self.token("bob"), shop="s1")
        await self.until(lambda: self.office.posts)
        await first.stop()
        self.office.status = 204
        await self.serve()
        await self.until(lambda: len(self.office.of("message")) == 1 and len(self.office.of("assigned")) == 1)

    async def test_change_of_a_dead_server(self) -> None:
        """What a server died over before it was passed on is told by the sweeper of another."""
        first = await self.serve()
        await self.agent("alice")
        await self.say(self.token("bob"), shop="s1")
        await self.until(lambda: self.office.of("assigned"))
        await first.stop()
        fields = ("event", "closed", "conversation", "c", "customer", "bob", "agent", "", "position", 0)
        await self.redis.command("XADD", "im:{s:demo/s1}:events", "*", *fields, "epoch", 9, "previous", "", "ts", 1)
        await self.serve()
        await self.until(lambda: self.office.of("closed"))
        await self.settled()
        self.assertEqual(await self.redis.command("XLEN", "im:{s:demo/s1}:events"), 0)

    async def test_too_many_wait(self) -> None:
        """What waits is bounded; the oldest die where they can be seen."""
        await self.serve(webhooks={"length": 10, "dead_length": 3, "retry_first_s": 60.0})
        self.office.status = 500
        for _ in range(15):
            await self.good("POST", "/v1/webhook/ping")
        state = await self.state()
        self.assertEqual((state["waiting"], state["dead"]), (10, 3))
        dead = (await self.good("GET", "/v1/webhook/dead"))["dead"]
        self.assertEqual({one["error"] for one in dead}, {"too many events are waiting"})

    async def test_left_alone(self) -> None:
        """A receiver that fails is asked by one event at a time, after a pause, not by all that wait."""
        await self.serve(webhooks={"retry_first_s": 0.3, "poll_s": 0.02, "in_flight": 4})
        self.office.status = 503
        for _ in range(40):
            await self.good("POST", "/v1/webhook/ping")
        await self.until(lambda: len(self.office.posts) >= 6)
        self.assertLess(len(self.office.posts), 10)
