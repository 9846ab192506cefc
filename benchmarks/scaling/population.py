"""Whom an instance delivers to, and what it sends: made from a seed, the same on every machine.

The shapes are assumptions, named here so that they can be changed: how quickly hosts answer (log-normal),
which are dead, slow or limit us, how popular they are (a power law by rank), and to how many hosts an
activity goes (a bounded Pareto distribution).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import Final

#: median of the hosts' median times to answer, seconds, and the spread of its logarithm
ANSWER_S: Final = 0.15
ANSWER_SIGMA: Final = 0.9
#: spread of the logarithm from one answer of a host to the next
JITTER_SIGMA: Final = 0.3
#: seconds that a slow host takes
SLOW_S: Final = (3.0, 8.0)
#: deliveries a second that a host takes which limits us
LIMIT: Final = 5.0
#: shares of the hosts; the dead are among the less popular half
DEAD, SLOW, LIMITED = 0.05, 0.03, 0.02
#: exponent by which popularity falls with rank
POPULARITY: Final = 0.7
#: exponent of the Pareto distribution of recipients
RECIPIENTS: Final = 1.0


class Manner(StrEnum):
    WELL = "well"
    SLOW = "slow"
    LIMITS = "limits"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    manner: Manner
    #: median seconds to an answer
    answer_s: float


class Population:
    def __init__(self, hosts: int, seed: int, *, well: bool = False) -> None:
        """`well`: none is dead, slow or limits us."""
        chosen = random.Random(f"population {seed}")
        self.hosts: list[Host] = []
        for rank in range(hosts):
            draw, manner = chosen.random(), Manner.WELL
            dead = 2 * DEAD if rank >= hosts // 2 else 0.0
            if not well:
                if draw < dead:
                    manner = Manner.DEAD
                elif draw < dead + SLOW:
                    manner = Manner.SLOW
                elif draw < dead + SLOW + LIMITED:
                    manner = Manner.LIMITS
            answer = min(10.0, ANSWER_S * chosen.lognormvariate(0.0, ANSWER_SIGMA))
            if manner is Manner.SLOW:
                answer = chosen.uniform(*SLOW_S)
            self.hosts.append(Host(f"host-{rank}.example", manner, answer))
        self._weights = list(accumulate((rank + 1) ** -POPULARITY for rank in range(hosts)))

    def recipients(self, draw: random.Random) -> list[int]:
        """Indexes of the hosts that one activity goes to."""
        hosts = len(self.hosts)
        count = min(hosts, int(draw.paretovariate(RECIPIENTS)))
        if count > hosts // 20:
            return draw.sample(range(hosts), count)
        found = set(draw.choices(range(hosts), cum_weights=self._weights, k=count))
        while len(found) < count:
            found.update(draw.choices(range(hosts), cum_weights=self._weights, k=count - len(found)))
        return sorted(found)


def jitter(draw: random.Random) -> float:
    """Factor from a host's median to one of its answers."""
    return draw.lognormvariate(0.0, JITTER_SIGMA)


def schedule(
    population: Population, per_second: float, seconds: float, seed: int
) -> list[tuple[float, list[int]]]:
    """When activities come (seconds from the start, by a Poisson process) and whom each goes to."""
    draw = random.Random(f"schedule {seed}")
    at, found = draw.expovariate(per_second), []
    while at < seconds:
        found.append((at, population.recipients(draw)))
        at += draw.expovariate(per_second)
    return found
