"""What the desk of a shop is about: agents, who has whom, and what changed. No I/O.

The rules themselves run as one Lua script, `data/lua/shop_desk.lua`, so that any number of business servers share them;
the tests hold them against a model in Python.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Status = Literal["online", "busy", "away"]
State = Literal["waiting", "assigned", "closed"]
Capacity = Annotated[int, Meta(ge=0, le=10000, description="customers at a time")]


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is set about an agent."""

    capacity: int
    skills: tuple[str, ...] = ()
    status: Status = "online"


class Standing(msgspec.Struct, frozen=True):
    """Where a conversation stands: its state, its agent (of a closed one: the last), its position in the queue.

    Of two standings the one with the larger `epoch` is the later.
    """

    state: State = "closed"
    agent: str = ""
    position: int = 0
    epoch: int = 0


class Change(msgspec.Struct, frozen=True):
    """One conversation's new standing; `before` is the agent it had, if that is what changed."""

    conversation: str
    customer: str
    standing: Standing
    before: str = ""

    @property
    def moves(self) -> bool:
        """Whether it went to an agent or lost one; else only its position in the queue is new."""
        return self.standing.state == "assigned" or bool(self.before)


class Outcome(msgspec.Struct, frozen=True):
    """What an operation on a desk gave: `ok` or why not, the agent concerned, and the changes."""

    result: str
    agent: str
    changes: tuple[Change, ...] = ()

    def standing_of(self, conversation: str) -> Standing | None:
        """The last standing of a conversation among the changes."""
        found = [change.standing for change in self.changes if change.conversation == conversation]
        return found[-1] if found else None


def outcome(answer: Any) -> Outcome:
    """The script's answer."""
    result, agent, changes = answer
    return Outcome(result.decode(), agent.decode(), tuple(_change(change) for change in changes))


def standing(answer: Any) -> Standing:
    """The answer to `look`."""
    state, agent, position, epoch = answer
    return Standing(state.decode(), agent.decode(), position, epoch)


def _change(fields: Any) -> Change:
    conversation, customer, agent, state, position, epoch, before = fields
    return Change(
        conversation.decode(),
        customer.decode(),
        Standing(state.decode(), agent.decode(), position, epoch),
        before.decode(),
    )
