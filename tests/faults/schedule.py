"""Which faults strike when: a plan made of a seed, so that a run can be repeated. No I/O."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

# kind: how often it is chosen, and for how long it lasts (seconds)
# kill: SIGKILL; stop: SIGSTOP; end: SIGTERM, an orderly restart
PROCESS_FAULTS = {"kill": (5, (0.0, 1.5)), "stop": (3, (0.3, 5.0)), "end": (1, (0.0, 1.0))}
LINK_FAULTS = {"reset": (4, (0.0, 0.0)), "cut": (3, (0.2, 4.0)), "silence": (3, (0.3, 5.0)), "slow": (2, (1.0, 5.0))}
STORE_FAULTS = {"kill": (1, (0.1, 1.5)), "stop": (1, (0.3, 2.5))}


class Fault(msgspec.Struct, frozen=True):
    """At `at` seconds `kind` strikes `target`, and is over `lasts` seconds later."""

    at: float
    kind: str
    target: str
    lasts: float


def plan(
    choice: random.Random, seconds: float, every_s: float, processes: Sequence[str], links: Sequence[str], store: str
) -> list[Fault]:
    """Faults for so many seconds, one in `every_s` on average, some of them at the same time.

    Processes get as many as the links have, the store one in twelve. Two never strike one target at a time.
    """
    found: list[Fault] = []
    free = dict.fromkeys([*processes, *links, store], 0.0)
    at = choice.expovariate(1 / every_s)
    while at < seconds:
        group, kinds = choice.choices(
            [(list(processes), PROCESS_FAULTS), (list(links), LINK_FAULTS), ([store], STORE_FAULTS)], [11, 11, 2]
        )[0]
        target = choice.choice(group)
        kind = choice.choices(list(kinds), [weight for weight, _ in kinds.values()])[0]
        lasts = round(choice.uniform(*kinds[kind][1]), 2)
        if free[target] <= at:
            free[target] = at + lasts + 1.0
            found.append(Fault(round(at, 2), kind, target, lasts))
        at += choice.expovariate(1 / every_s)
    return found
