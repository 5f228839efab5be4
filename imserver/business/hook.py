"""The external word service: asked about every message by those who have their own ([moderation] url).

`POST url` with {`channel`, `from`, `type`, `body`}; it answers 200 with {`action`: `pass`, `block`, `mask` or
`flag`}, and for `mask` also the `body` to send on.  Anything else, or nothing in time, is a failure: then
[moderation] `on_failure` decides.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec
from msgspec import Raw, field
from twisted.logger import Logger

from imserver import config
from imserver.business.moderation import Verdict
from imserver.http.client import Answer, Unreachable
from imserver.http.inputs import read_json
from imserver.http.problems import Problem
from imserver.protocol.syntax import json_object

log = Logger()


class HookFailed(Exception):
    """No usable answer, and `on_failure` is `closed`: refuse the message as `unavailable`, to be retried."""


class Caller(Protocol):
    """What is needed of `imserver.http.client.HttpClient`."""

    async def call(self, method: str, url: str, *, body: bytes | None, timeout: float) -> Answer:
        """One call and its answer; raises `Unreachable`."""


class _Question(msgspec.Struct, frozen=True):
    channel: str
    sender: str = field(name="from")
    type: str
    body: Raw


class _Opinion(msgspec.Struct, frozen=True):
    action: Literal["pass", "block", "mask", "flag"]
    body: Raw = Raw()


class ModerationHook:
    """Asks the service of [moderation]; of none when its `url` is empty."""

    def __init__(self, client: Caller, settings: config.Moderation) -> None:
        self._client = client
        self._settings = settings

    async def moderate(self, channel: str, sender: str, type: str, body: bytes) -> Verdict:
        """The service's verdict on a message, without words; `HookFailed` as the settings want it."""
        if not self._settings.url:
            return Verdict(None, body)
        question = msgspec.json.encode(_Question(channel, sender, type, Raw(body)))
        try:
            opinion = await self._ask(question)
        except (Unreachable, _Unusable) as error:
            log.warn("the word service failed ({policy}): {error}", policy=self._settings.on_failure, error=error)
            if self._settings.on_failure == "closed":
                raise HookFailed(str(error)) from error
            return Verdict(None, body)
        if opinion.action == "mask":
            return Verdict("mask", bytes(opinion.body))
        return Verdict(None if opinion.action == "pass" else opinion.action, body)

    async def _ask(self, question: bytes) -> _Opinion:
        settings = self._settings
        answer = await self._client.call("POST", settings.url, body=question, timeout=settings.timeout_s)
        if answer.status != 200:
            raise _Unusable(f"it answered with status {answer.status}")
        try:
            opinion: _Opinion = read_json(answer.body, _Opinion)
        except Problem as problem:
            raise _Unusable(f"it answered what is no verdict: {problem}") from None
        if opinion.action == "mask" and not json_object(opinion.body):
            raise _Unusable("it masked, but gave no body that is an object")
        if len(bytes(opinion.body)) > config.BODY_MAX:
            raise _Unusable(f"it masked with a body of more than {config.BODY_MAX} bytes")
        return opinion


class _Unusable(Exception):
    """An answer that is none."""
