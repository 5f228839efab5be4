"""The external word service, played by a real web server."""

from __future__ import annotations

from typing import Any, BinaryIO, cast

import ujson
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from imserver import config
from imserver.business.hook import HookFailed, ModerationHook
from imserver.business.moderation import Verdict
from imserver.http.client import HttpClient
from tests.servers import free_port

BODY = b'{"text": "so bad", "n": 1.50}'


class WordService(Resource):
    """Answers every question with `answer`; None: not at all."""

    isLeaf = True
    answer: bytes | None = b'{"action": "pass"}'
    status = 200

    def __init__(self) -> None:
        super().__init__()
        self.questions: list[Any] = []

    def render_POST(self, request: Request) -> bytes | int:
        """One question."""
        self.questions.append(ujson.loads(cast(BinaryIO, request.content).read()))
        request.setResponseCode(self.status)
        return NOT_DONE_YET if self.answer is None else self.answer


class HookTests(TestCase):
    """`ModerationHook`."""

    def setUp(self) -> None:
        """A word service and a client."""
        self.service = WordService()
        site = Site(self.service)
        port: Any = reactor.listenTCP(0, site, interface="127.0.0.1")  # type: ignore[arg-type]
        self.addCleanup(port.stopListening)
        self.client = HttpClient(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.client.close()))
        self.url = f"http://127.0.0.1:{port.getHost().port}/check"

    async def ask(self, on_failure: Any = "open", url: str | None = None, timeout_s: float = 5.0) -> Verdict:
        """Its verdict on BODY."""
        place = self.url if url is None else url
        moderation = config.Moderation(url=place, on_failure=on_failure, timeout_s=timeout_s)
        return await ModerationHook(self.client, moderation).moderate("demo", "u1", "text", BODY)

    async def failing(self, says: str, **more: Any) -> None:
        """Open: the message passes; closed: it is refused, with the reason."""
        self.assertEqual(await self.ask("open", **more), Verdict(None, BODY))
        with self.assertRaisesRegex(HookFailed, says):
            await self.ask("closed", **more)

    async def test_verdicts(self) -> None:
        """Its action becomes the verdict, with its body when it masks."""
        for action, expected in (("pass", None), ("block", "block"), ("flag", "flag")):
            self.service.answer = ujson.dumps({"action": action, "reason": "ignored"}).encode()
            self.assertEqual(await self.ask(), Verdict(expected, BODY))  # type: ignore[arg-type]
        self.service.answer = b'{"action": "mask", "body": {"text": "so ***", "n": 1.50}}'
        self.assertEqual(await self.ask(), Verdict("mask", b'{"text": "so ***", "n": 1.50}'))
        self.assertEqual(
            self.service.questions[0],
            {"channel": "demo", "from": "u1", "type": "text", "body": {"text": "so bad", "n": 1.5}},
        )

    async def test_no_service(self) -> None:
        """Without a url nobody is asked."""
        self.assertEqual(await self.ask("closed", url=""), Verdict(None, BODY))
        self.assertEqual(self.service.questions, [])

    async def test_unusable_answers(self) -> None:
        """What is no verdict is a failure."""
        for answer in (
            b"",
            b"oops",
            b"[]",
            b'{"action": "dance"}',
            b'{"action": "mask", "body": {"a": NaN}}',
        ):
            self.service.answer = answer
            await self.failing("no verdict")
        for answer in (b'{"action": "mask"}', b'{"action": "mask", "body": null}'):
            self.service.answer = answer
            await self.failing("no body that is an object")
        self.service.answer = b'{"action": "mask", "body": {"t": "%s"}}' % (b"x" * config.BODY_MAX)
        await self.failing("more than 262144 bytes")
        self.service.status = 500
        await self.failing("status 500")

    async def test_silence(self) -> None:
        """No answer within the deadline, and nobody there, are failures."""
        self.service.answer = None
        await self.failing("no answer in time", timeout_s=0.1)
        await self.failing("refused", url=f"http://127.0.0.1:{free_port()}/")
