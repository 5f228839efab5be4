"""A channel's word policy applied to a message: the word list first, then the external service, if there is one."""

from __future__ import annotations

import msgspec
from twisted.logger import Logger

from imserver import config
from imserver.business.conversations import Draft
from imserver.business.hook import HookFailed, ModerationHook
from imserver.business.words import Words
from imserver.data.interface import Unavailable
from imserver.http.problems import invalid, unavailable

log = Logger()
BY_SERVICE = "*"
"""The word under which a message is listed that the external service flagged."""


class Policy:
    """The policies of all channels."""

    def __init__(self, settings: config.Config, words: Words, hook: ModerationHook) -> None:
        self._settings = settings
        self._words = words
        self._hook = hook

    async def moderate(self, draft: Draft) -> tuple[Draft, tuple[str, ...]]:
        """The draft as it may be sent, and the words to be flagged; 422 if it may not be sent, 503 if nobody knows."""
        if draft.type in ("system", "recall"):
            return draft, ()
        policy = self._settings.channels[draft.channel].words or draft.channel
        verdict = self._words.filter_for(policy).moderate(draft.body)
        if verdict.action == "block":
            raise invalid("The message has a word that is blocked here.", "body", "blocked_content")
        try:
            opinion = await self._hook.moderate(draft.channel, draft.sender, draft.type, verdict.body)
        except HookFailed:
            raise unavailable("The word service is away; try again.") from None
        if opinion.action == "block":
            raise invalid("The message is not acceptable here.", "body", "blocked_content")
        flagged = verdict.flagged or ((BY_SERVICE,) if opinion.action == "flag" else ())
        return msgspec.structs.replace(draft, body=opinion.body), flagged

    async def flag(self, draft: Draft, conversation: str | None, words: tuple[str, ...]) -> None:
        """List an accepted message under these words, if there are any."""
        if not words:
            return
        try:
            await self._words.record_flag(
                draft.channel, id=draft.id, sender=draft.sender, conversation=conversation, words=words
            )
        except Unavailable as error:  # it is accepted
            log.warn("flagged message {id} is not in the list: {error}", id=draft.id, error=error)
