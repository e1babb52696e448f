"""FedDyn: Federated Learning Based on Dynamic Regularization.

D. A. E. Acar, Y. Zhao, R. Matas Navarro, M. Mattina, P. N. Whatmough, V. Saligrama. ICLR 2021.
https://arxiv.org/abs/2111.04263 (Algorithm 1)

Each client's loss gets a linear term, its own last gradient, and a quadratic pull to the global model.
They are chosen so that, as rounds go on, the clients' stationary points become the global one. The server
adds its running estimate h of the mean gradient to the mean model.

=====================================  ===============================================
symbol in the paper                    name in the code
=====================================  ===============================================
theta^(t-1), theta_k^t                 ``broadcast.parameters``, ``fit.parameters``
grad L_k(theta_k^(t-1))                ``memory["gradient"]``
h^t                                    slot ``h``
alpha                                  ``alpha``
m, P_t                                 ``state.population``, ``aggregate.count``
=====================================  ===============================================

The method averages clients equally and its minimum is that of the plain mean of their losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atoll.algorithms.averaging import spread, stepped, tell, train
from atoll.core.contracts import Weighting, Work
from atoll.core.layout import Array, Layout
from atoll.core.local import LocalRule, LocalWork
from atoll.core.ranges import check
from atoll.core.values import Aggregate, Broadcast, Memory, State, Update

__all__ = ["FedDyn"]


@dataclass(frozen=True)
class FedDyn:
    """Dynamic regularisation.

    Args:
        alpha: regularisation coefficient, > 0.
    """

    alpha: float = 0.01

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        check(self, "algorithm", alpha="(0, inf)")

    @property
    def needs_correction(self) -> bool:
        """The quadratic pull and the linear term."""
        return True

    def faults(self, weighting: Weighting, local: LocalWork) -> Sequence[str]:
        """Unequal weights: the server's h is a plain mean over all clients."""
        equal = weighting.kind == "given" and len(set(weighting.given.values())) == 1
        if weighting.kind == "uniform" or equal:
            return []
        return [
            f"FedDyn averages clients equally, and the weights are by {weighting.kind!r} "
            '(use weights = "uniform", or SCAFFOLD)'
        ]

    def init(self, parameters: Array, layout: Layout, population: int) -> State:
        """The model and h = 0."""
        zero = np.zeros_like(parameters[layout.shared])
        return State.start(parameters, layout, population, h=zero)

    def broadcast(self, state: State) -> Broadcast:
        """The global model."""
        return tell(state)

    def client(self, broadcast: Broadcast, memory: Memory, work: Work) -> tuple[Update, Memory]:
        """Lines 5 to 7: argmin ``L_k(theta) - <g_k, theta> + alpha/2 |theta - theta^(t-1)|^2``."""
        theta = broadcast.parameters
        g_k = memory.get("gradient", np.zeros_like(theta))
        shift = -g_k if g_k.any() else None
        done = train(broadcast, memory, work, LocalRule(mu=self.alpha, anchor=theta, shift=shift))
        part = work.layout.shared_trainable
        # grad L_k(theta_k^t) = grad L_k(theta_k^(t-1)) - alpha (theta_k^t - theta^(t-1))
        after = g_k.copy()
        after[part] -= self.alpha * done.delta[part]
        return done.update(work, delta=done.delta), done.memory(gradient=after)

    def settled(self, kept: Memory, meant: Update, sent: Update, work: Work) -> Memory:
        """Where updates are clipped, g_k moves by what arrives: h stays the mean of the g_k."""
        part, after = work.layout.shared_trainable, kept["gradient"].copy()
        after[part] -= self.alpha * (sent.vectors["delta"] - meant.vectors["delta"])[part]
        return {**kept, "gradient": after}

    def server(self, state: State, aggregate: Aggregate) -> State:
        """Lines 9 and 10."""
        mean = aggregate.mean("delta")
        delta = mean[state.trained]
        share = aggregate.count / state.population
        h = state.slots["h"][state.trained].astype(np.float64) - self.alpha * share * delta
        return state.next(stepped(state, mean, delta - h / self.alpha), h=spread(state, h))

    def staleness(self, tau: int) -> float:
        """The method is synchronous: an update counts fully."""
        return 1.0
