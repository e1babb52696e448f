"""Who is invited: the cohort rules, drawn from named seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from atoll.core.errors import JobError
from atoll.core.seeds import Seed
from atoll.core.values import ClientId

__all__ = ["Cohort"]


@dataclass(frozen=True)
class Cohort:
    """The rule by which clients are chosen for a round.

    Args:
        kind: ``all``; ``uniform`` (``size`` clients without replacement); ``poisson`` (each client
            independently with probability ``rate``); ``weighted`` (``size`` clients without
            replacement, successive draws proportional to ``weights``).
        size: m, clients per round.
        rate: inclusion probability of ``poisson``, in (0, 1].
        weights: by client, > 0; missing ones count as 0 and are never drawn.
    """

    kind: Literal["all", "uniform", "poisson", "weighted"] = "all"
    size: int = 0
    rate: float = 1.0
    weights: Mapping[ClientId, float] = field(default_factory=dict)

    def faults(self, population: int) -> list[str]:
        """What is impossible in a federation of ``population`` clients."""
        if self.kind in ("uniform", "weighted") and not 1 <= self.size <= population:
            return [f"a cohort of {self.size} from a federation of {population} clients"]
        if self.kind == "poisson" and not 0 < self.rate <= 1:
            return [f"rate {self.rate!r} is not in (0, 1]"]
        if self.kind == "weighted":
            positive = sum(1 for w in self.weights.values() if w > 0)
            if positive < self.size:
                return [f"only {positive} clients have a weight > 0, fewer than {self.size}"]
        return []

    def target(self, population: int) -> int:
        """Number of updates a round hopes for."""
        if self.kind == "all":
            return population
        return math.ceil(self.rate * population) if self.kind == "poisson" else self.size

    def draw(
        self, clients: Sequence[ClientId], seed: Seed, *, extra: float = 0.0
    ) -> tuple[ClientId, ...]:
        """The invited, in the federation's order.

        Costs what the cohort costs, not what the population does, for ``uniform`` and ``poisson``.

        Args:
            clients: all clients, in a fixed order.
            seed: the round's stream.
            extra: over-selection: invite ``ceil(size * (1 + extra))``, at most all.
        """
        n = len(clients)
        if self.kind == "all":
            return tuple(clients)
        rng = (seed / "cohort").generator()
        if self.kind == "poisson":
            # n independent coins are a binomial number of heads at uniformly drawn places.
            size = int(rng.binomial(n, self.rate))
        else:
            size = min(n, math.ceil(self.size * (1 + extra)))
        if self.kind in ("uniform", "poisson"):
            chosen = rng.choice(n, size, replace=False, shuffle=False)
        else:
            p = np.array([self.weights.get(c, 0.0) for c in clients])
            if not p.sum() > 0:
                raise JobError("all cohort weights are 0")
            size = min(size, int(np.count_nonzero(p)))
            chosen = rng.choice(n, size, replace=False, p=p / p.sum(), shuffle=False)
        return tuple(clients[i] for i in sorted(int(i) for i in chosen))
