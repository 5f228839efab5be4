"""The rules of a shop's desk in plain Python, to hold the Lua script against (design: Agents)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Agent:
    """An agent, with when it last got a customer."""

    capacity: int
    skills: frozenset[str]
    status: str
    served: int = 0


@dataclass
class DeskModel:
    """One desk; the operations are those of `shop_desk.lua`."""

    strategy: str = "least_loaded"
    sticky: bool = True
    agents: dict[str, Agent] = field(default_factory=dict)
    online: set[str] = field(default_factory=set)
    assigned: dict[str, str] = field(default_factory=dict)
    queue: list[str] = field(default_factory=list)
    skill: dict[str, str] = field(default_factory=dict)
    last: dict[str, str] = field(default_factory=dict)
    turn: int = 0
    now: int = 0
    unanswered: dict[str, int] = field(default_factory=dict)
    gone: dict[str, int] = field(default_factory=dict)

    def load(self, uid: str) -> int:
        """How many customers an agent has."""
        return sum(agent == uid for agent in self.assigned.values())

    def free(self, uid: str) -> bool:
        """Whether an agent can take a customer."""
        agent = self.agents[uid]
        return agent.status == "online" and uid in self.online and self.load(uid) < agent.capacity

    def candidates(self, conversation: str, but: str = "") -> list[str]:
        """Who could take this customer, the best first, `but` not this one."""
        skill = self.skill.get(conversation, "")
        if skill and not any(skill in agent.skills for agent in self.agents.values()):
            skill = ""
        fit = [
            uid
            for uid, agent in self.agents.items()
            if uid != but and self.free(uid) and (not skill or skill in agent.skills)
        ]
        last = self.last.get(conversation)
        return sorted(
            fit,
            key=lambda uid: (
                not (self.sticky and uid == last),
                self.load(uid) if self.strategy == "least_loaded" else 0,
                self.agents[uid].served,
                uid,
            ),
        )

    def give(self, conversation: str, uid: str) -> None:
        """Assign."""
        self.assigned[conversation] = self.last[conversation] = uid
        self.turn += 1
        self.agents[uid].served = self.turn
        if conversation in self.unanswered:
            self.unanswered[conversation] = self.now

    def serve(self) -> None:
        """Whoever waits and can be served is, in order."""
        for conversation in list(self.queue):
            found = self.candidates(conversation)
            if found:
                self.queue.remove(conversation)
                self.give(conversation, found[0])

    def put(self, uid: str, capacity: int, skills: frozenset[str], status: str) -> None:
        """Add or change an agent."""
        served = self.agents[uid].served if uid in self.agents else 0
        self.agents[uid] = Agent(capacity, skills, status, served)
        self.serve()

    def start(self, conversation: str, skill: str) -> str:
        """Open a conversation."""
        if conversation not in self.assigned and conversation not in self.queue:
            if not self.agents:
                return "no_agent"
            self.skill[conversation] = skill
            self.queue.append(conversation)
            self.serve()
        self.unanswered.setdefault(conversation, self.now)
        return "ok"

    def answer(self, conversation: str) -> None:
        """The agent answers."""
        if conversation in self.assigned:
            self.unanswered.pop(conversation, None)

    def sweep(self, grace: int, timeout: int) -> None:
        """Take unanswered customers from agents who have been gone for `grace`, or silent for `timeout` (0: never)."""
        for uid in self.agents:
            if uid in self.online or not self.load(uid):
                self.gone.pop(uid, None)
            else:
                self.gone.setdefault(uid, self.now)
        gone = {uid for uid, since in self.gone.items() if self.now - since >= grace}
        back = []
        for conversation, since in sorted(self.unanswered.items(), key=lambda item: (item[1], item[0])):
            holder = self.assigned.get(conversation, "")
            if holder in gone:
                back.append(conversation)
            elif holder and timeout and self.now - since >= timeout:
                others = self.candidates(conversation, holder)
                if others:
                    self.give(conversation, others[0])
        for conversation in reversed(back):
            del self.assigned[conversation]
            self.queue.insert(0, conversation)
        self.serve()

    def close(self, conversation: str) -> None:
        """Close it."""
        if conversation in self.assigned or conversation in self.queue:
            self.assigned.pop(conversation, None)
            if conversation in self.queue:
                self.queue.remove(conversation)
            self.skill.pop(conversation, None)
            self.unanswered.pop(conversation, None)
            self.serve()

    def transfer(self, conversation: str, uid: str) -> str:
        """Give it to another agent."""
        holder = self.assigned.get(conversation, "")
        if not holder and conversation not in self.queue:
            return "closed"
        if holder == uid:
            return "same"
        if uid not in self.agents:
            return "stranger"
        if self.agents[uid].status != "online" or uid not in self.online:
            return "offline"
        if not self.free(uid):
            return "full"
        if conversation in self.queue:
            self.queue.remove(conversation)
        self.give(conversation, uid)
        self.serve()
        return "ok"
