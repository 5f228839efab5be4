"""The word policy and the external word service in force: on every server, in inboxes and in the history."""

from __future__ import annotations

import secrets
from typing import Any
from urllib.parse import quote

import ujson
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.web import resource, server

from tests.business.shop import KEY, ShopCase

MASKED = "m\u00e9chant"


class WordService(resource.Resource):
    """Answers with `answer`; None: not at all."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.answer: dict[str, Any] | None = {"action": "pass"}
        self.questions: list[dict[str, Any]] = []

    def render_POST(self, request: Any) -> Any:
        """One question."""
        self.questions.append(ujson.loads(request.content.read()))
        return server.NOT_DONE_YET if self.answer is None else ujson.dumps(self.answer).encode()


class PolicyTests(ShopCase):
    """`block`, `mask`, `flag`."""

    async def word(self, word: str, action: str, key: str = KEY) -> Any:
        """Put a word into the channel's policy."""
        return await self.good("PUT", f"/v1/words/{quote(word, safe='')}", key, {"action": action})

    async def texts(self, conversation: str) -> list[str]:
        """The history."""
        page = await self.good("GET", f"/v1/conversations/{conversation}/messages")
        return [message["body"]["text"] for message in page["messages"]]

    async def test_actions(self) -> None:
        """What is blocked is nowhere, what is masked is masked everywhere, what is flagged is listed."""
        await self.start()
        await self.agent("alice")
        bob = self.token("bob")
        for word, action in (("forbidden", "block"), (MASKED, "mask"), ("refund", "flag")):
            self.assertEqual((await self.word(word, action))["action"], action)
        conversation = (await self.say(bob, "hello", shop="s1"))["conversation"]
        bad = {"cid": "c1", "type": "text", "body": {"text": "so F o r-b.i\u200bdden"}, "conversation": conversation}
        problem = await self.refused(422, "blocked_content", "POST", "/v1/messages", bob, bad)
        self.assertEqual(problem["field"], "body")
        await self.say(bob, "allowed", "c1", conversation=conversation)  # the same cid was never accepted
        await self.say(bob, "un m\u00c9CHANT, mechante; me chant!", conversation=conversation)
        flagged = await self.say(bob, "a Refund please", conversation=conversation)
        expected = ["hello", "allowed", "un *******, mechante; ********!", "a Refund please"]
        self.assertEqual(await self.texts(conversation), expected)
        await self.until(lambda: len(self.inbox("alice")) == 4)
        self.assertEqual([m["body"]["text"] for m in self.inbox("alice")], expected)
        await self.archived()
        self.assertEqual(await self.texts(conversation), expected)
        (listed,) = (await self.good("GET", "/v1/flagged"))["flagged"]
        self.assertEqual(
            {name: listed[name] for name in ("id", "from", "conversation", "words")},
            {"id": flagged["id"], "from": "bob", "conversation": conversation, "words": ["refund"]},
        )
        await self.word("refund", "block")
        body = {"cid": "c2", "type": "card", "body": {"a": [{"deep": "REFUND"}]}, "conversation": conversation}
        await self.refused(422, "blocked_content", "POST", "/v1/messages", bob, body)
        await self.good("DELETE", "/v1/words/refund")
        await self.good("POST", "/v1/messages", bob, body)

    async def test_everywhere(self) -> None:
        """A change on one server is soon in force on the other, without a restart, and only in its policy."""
        channels = {
            "demo": {"api_keys": [KEY]},
            "twin": {"api_keys": ["twin-key-0123456789"], "words": "demo"},
            "other": {"api_keys": ["other-key-0123456789"]},
        }
        await self.start(channels=channels)
        first = self.url
        await self.start()

        async def blocked(channel: str = "demo") -> bool:
            body = {"to": "carl", "cid": secrets.token_hex(4), "type": "text", "body": {"text": "one hidden word"}}
            return (await self.call("POST", "/v1/messages", self.token("bob", channel=channel), body))[0] == 422

        self.assertFalse(await blocked("other"))
        second, self.url = self.url, first
        await self.word("hidden", "block")
        self.assertTrue(await blocked("twin"), "at once where it was put")
        self.url = second
        await self.until(blocked)
        self.assertFalse(await blocked("other"))
        self.assertEqual((await self.good("GET", "/v1/words", "twin-key-0123456789"))["words"][0]["word"], "hidden")
        self.assertEqual((await self.good("GET", "/v1/words", "other-key-0123456789"))["words"], [])

    async def service(self, **settings: Any) -> WordService:
        """A server that asks an external word service."""
        found = WordService()
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(server.Site(found))
        self.addCleanup(port.stopListening)
        url = f"http://127.0.0.1:{port.getHost().port}/"
        await self.start(moderation={"url": url, "timeout_s": 0.2, **settings})
        await self.agent("alice")
        return found

    async def test_external(self) -> None:
        """The service sees what the word list left of a message; its verdict counts."""
        service = await self.service()
        bob = self.token("bob")
        await self.word("darn", "mask")
        conversation = (await self.say(bob, "darn it", shop="s1"))["conversation"]
        asked = {"channel": "demo", "from": "bob", "type": "text", "body": {"text": "**** it"}}
        self.assertEqual(service.questions, [asked])
        service.answer = {"action": "mask", "body": {"text": "gone"}}
        await self.say(bob, "something", conversation=conversation)
        service.answer = {"action": "flag"}
        flagged = await self.say(bob, "doubtful", conversation=conversation)
        service.answer = {"action": "block"}
        body = {"cid": "c", "type": "text", "body": {"text": "no"}, "conversation": conversation}
        await self.refused(422, "blocked_content", "POST", "/v1/messages", bob, body)
        self.assertEqual(await self.texts(conversation), ["**** it", "gone", "doubtful"])
        (listed,) = (await self.good("GET", "/v1/flagged"))["flagged"]
        self.assertEqual((listed["id"], listed["words"]), (flagged["id"], ["*"]))
        recall = {"cid": "r", "type": "recall", "body": {"seq": 1}, "conversation": conversation}
        await self.good("POST", "/v1/messages", bob, recall)

    async def test_fail_open(self) -> None:
        """A service that does not answer in time lets messages pass, if that is the setting."""
        service = await self.service(on_failure="open")
        service.answer = None
        await self.say(self.token("bob"), shop="s1")

    async def test_fail_closed(self) -> None:
        """... or holds them up: 503, and the same cid may be tried again."""
        service = await self.service(on_failure="closed")
        service.answer = None
        bob = self.token("bob")
        body = {"cid": "c", "type": "text", "body": {"text": "x"}, "shop": "s1"}
        await self.refused(503, "unavailable", "POST", "/v1/messages", bob, body)
        service.answer = {"action": "pass"}
        sent = await self.good("POST", "/v1/messages", bob, body)
        self.assertNotIn("duplicate", sent)
