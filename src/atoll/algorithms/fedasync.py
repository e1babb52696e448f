"""FedAsync: Asynchronous Federated Optimization.

C. Xie, O. Koyejo, I. Gupta. OPT 2020. https://arxiv.org/abs/1903.03934 (Algorithm 1)

The server never waits: as soon as one client is done, its model is mixed into the global one. The older
the version the client started from, the smaller its share. A proximal term may keep slow clients near
where they started.

======================  ====================================================================
symbol in the paper     name in the code
======================  ====================================================================
x_t, x_new              ``state.parameters``, update vector ``model``
alpha                   ``alpha``
s(t - tau)              :meth:`FedAsync.staleness`
alpha_t                 ``alpha * aggregate.scaled_weight / aggregate.weight``
a, b                    ``a``, ``b``
rho                     ``rho``
======================  ====================================================================

What is not trained is mixed like the rest: one stale client must not replace the statistics of all.
Several updates in one step mix in their weighted mean; ``alpha_t`` is then alpha times the mean of s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atoll.algorithms.averaging import tell, train
from atoll.core.contracts import Weighting, Work
from atoll.core.layout import Array, Layout
from atoll.core.local import LocalRule, LocalWork
from atoll.core.ranges import check
from atoll.core.values import Aggregate, Broadcast, Memory, State, Update, moved

__all__ = ["FedAsync"]


@dataclass(frozen=True)
class FedAsync:
    """Mix models in as they come.

    Args:
        alpha: share of a fresh model, in (0, 1].
        decay: how staleness lowers it: ``constant``, ``hinge`` or ``polynomial`` (section 5.2).
        a: rate of the decay, >= 0.
        b: staleness up to which ``hinge`` stays 1, >= 0.
        rho: coefficient of the local proximal term, >= 0.
    """

    alpha: float = 0.6
    decay: str = "polynomial"
    a: float = 0.5
    b: float = 4.0
    rho: float = 0.0

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        check(
            self,
            "algorithm",
            alpha="(0, 1]",
            decay=("constant", "hinge", "polynomial"),
            a="[0, inf)",
            b="[0, inf)",
            rho="[0, inf)",
        )

    @property
    def changes(self) -> bool:
        """Whole models are sent."""
        return False

    @property
    def needs_correction(self) -> bool:
        """The proximal term, when there is one."""
        return self.rho > 0.0

    def faults(self, weighting: Weighting, local: LocalWork) -> Sequence[str]:
        """Nothing: any weights and any local work fit."""
        return ()

    def init(self, parameters: Array, layout: Layout, population: int) -> State:
        """The model and nothing else."""
        return State.start(parameters, layout, population)

    def broadcast(self, state: State) -> Broadcast:
        """The global model."""
        return tell(state)

    def client(self, broadcast: Broadcast, memory: Memory, work: Work) -> tuple[Update, Memory]:
        """Process Worker: train ``F + rho/2 |x - x_t|^2`` from x_t and send the model."""
        rule = LocalRule(mu=self.rho, anchor=broadcast.parameters)
        done = train(broadcast, memory, work, rule)
        return done.update(work, model=done.fit.parameters[work.layout.shared]), done.memory()

    def server(self, state: State, aggregate: Aggregate) -> State:
        """Process Updater: x_t <- (1 - alpha_t) x_(t-1) + alpha_t x_new."""
        # mean("model") is already scaled by s, so the same share of the old model makes room for it.
        share = aggregate.scaled_weight / aggregate.weight if aggregate.weight else 0.0
        old = state.parameters.astype(np.float64)
        return state.next(
            moved(state.parameters, self.alpha * (aggregate.mean("model") - share * old))
        )

    def staleness(self, tau: int) -> float:
        """s(tau) of section 5.2."""
        if self.decay == "polynomial":
            return float((tau + 1.0) ** -self.a)
        if self.decay == "hinge" and tau > self.b:
            return 1.0 / (self.a * (tau - self.b) + 1.0)
        return 1.0
