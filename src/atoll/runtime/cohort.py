"""Who is invited: the cohort rules, drawn from named seeds."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import numpy as np

from atoll.core.errors import JobError
from atoll.core.ranges import check
from atoll.core.seeds import Seed
from atoll.core.values import ClientId

__all__ = ["Cohort", "part_of"]


def part_of(number: int, share: float) -> int:
    """``share`` of ``number``, rounded up: of the decimal that was written, not of the float next to it.

    >>> part_of(100, 0.55), math.ceil(100 * 0.55)
    (55, 56)
    """
    return math.ceil(Fraction(repr(float(share))) * number)


@dataclass(frozen=True)
class Cohort:
    """The rule by which clients are chosen for a round.

    Args:
        kind: ``all``; ``uniform`` (``size`` clients without replacement); ``poisson`` (each client
            independently with probability ``rate``); ``weighted`` (``size`` clients without
            replacement, successive draws proportional to ``weights``).
        separation: s, rounds from one invitation of a client to the next, at least. Who was invited rests
            for s - 1 rounds, whatever became of them.
        size: m, clients per round.
        rate: inclusion probability of ``poisson``, in (0, 1].
        weights: by client, > 0; missing ones count as 0 and are never drawn.
    """

    kind: Literal["all", "uniform", "poisson", "weighted"] = "all"
    size: int = 0
    rate: float = 1.0
    weights: Mapping[ClientId, float] = field(default_factory=dict)
    separation: int = 1

    def __post_init__(self) -> None:
        """Refuse a kind that is not known, and options out of range."""
        check(
            self,
            "rounds",
            names={"kind": "cohort", "weights": "cohort_weights"},
            kind=("all", "uniform", "poisson", "weighted"),
            size="whole [0, inf)",
            rate="(0, 1]",
            weights="each [0, inf)",
            separation="whole [1, inf)",
        )

    def faults(self, population: int) -> list[str]:
        """What is impossible in a federation of ``population`` clients."""
        if self.separation > 1 and self.kind not in ("uniform", "weighted"):
            return [f"separation needs a cohort of fixed size, not {self.kind!r}"]
        if self.kind in ("uniform", "weighted") and not 1 <= self.size <= population:
            return [f"a cohort of {self.size} from a federation of {population} clients"]
        if self.kind == "weighted":
            positive = sum(1 for w in self.weights.values() if w > 0)
            if positive < self.size:
                return [f"only {positive} clients have a weight > 0, fewer than {self.size}"]
        return []

    def invited(self, extra: float = 0.0) -> int:
        """Clients of fixed ``size`` that are asked, with over-selection."""
        return self.size + part_of(self.size, extra)

    def crowd(self, population: int, extra: float = 0.0) -> list[str]:
        """Why there are too few who have rested in some round; empty where there are always enough.

        Args:
            population: clients of the federation.
            extra: see :meth:`draw`.
        """
        if self.separation == 1:
            return []
        if self.kind == "weighted":
            population = sum(1 for w in self.weights.values() if w > 0)
        asked = self.invited(extra)
        if population >= asked * self.separation:
            return []
        return [
            f"{asked} clients a round, each at most once in {self.separation} rounds, take "
            f"{asked * self.separation} clients, and there are {population}"
        ]

    def target(self, population: int) -> int:
        """Number of updates a round hopes for."""
        if self.kind == "all":
            return population
        return part_of(population, self.rate) if self.kind == "poisson" else self.size

    def draw(
        self,
        clients: Sequence[ClientId],
        seed: Seed,
        *,
        extra: float = 0.0,
        resting: Collection[ClientId] = (),
    ) -> tuple[ClientId, ...]:
        """The invited, in the federation's order.

        Costs what the cohort costs, not what the population does, for ``uniform`` and ``poisson``.

        Args:
            clients: all clients, in a fixed order.
            seed: the round's stream.
            extra: over-selection: invite ``ceil(size * (1 + extra))``, at most all.
            resting: who is not asked; for cohorts of fixed size.

        Raises:
            JobError: too few clients are left to ask.
        """
        n = len(clients)
        if self.kind == "all":
            return tuple(clients)
        rng = (seed / "cohort").generator()
        if resting:
            return self._rested(clients, rng, self.invited(extra), frozenset(resting))
        size = min(n, self.invited(extra))
        if self.kind == "poisson":
            # n independent coins are a binomial number of heads at uniformly drawn places.
            size = int(rng.binomial(n, self.rate))
        if self.kind in ("uniform", "poisson"):
            chosen = rng.choice(n, size, replace=False, shuffle=False)
        else:
            p = np.array([self.weights.get(c, 0.0) for c in clients])
            if not p.sum() > 0:
                raise JobError("all cohort weights are 0")
            size = min(size, int(np.count_nonzero(p)))
            chosen = rng.choice(n, size, replace=False, p=p / p.sum(), shuffle=False)
        return tuple(clients[i] for i in sorted(int(i) for i in chosen))

    def after(
        self, resting: Sequence[tuple[ClientId, ...]], invited: tuple[ClientId, ...]
    ) -> tuple[tuple[ClientId, ...], ...]:
        """Who rests in the next round: the cohorts of the last s - 1."""
        most = self.separation - 1
        return (*resting, invited)[-most:] if most else ()

    def _rested(
        self,
        clients: Sequence[ClientId],
        rng: np.random.Generator,
        size: int,
        resting: frozenset[ClientId],
    ) -> tuple[ClientId, ...]:
        """The first to be drawn who do not rest: so many more are drawn that there are enough of them."""
        if self.kind == "weighted":
            p = np.array([0.0 if c in resting else self.weights.get(c, 0.0) for c in clients])
            count, p = min(size, int(np.count_nonzero(p))), p / (p.sum() or 1.0)
        else:
            count, p = min(len(clients), size + len(resting)), None
        drawn = rng.choice(len(clients), count, replace=False, p=p) if count else np.zeros(0, int)
        free = [i for i in map(int, drawn) if clients[i] not in resting][:size]
        if len(free) < size:
            raise JobError(
                f"{len(free)} clients have rested for {self.separation - 1} rounds, and a round asks {size}",
                remedy="lower rounds.separation or rounds.size",
            )
        return tuple(clients[i] for i in sorted(free))
