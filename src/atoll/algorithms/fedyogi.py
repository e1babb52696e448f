"""FedYogi: Adaptive Federated Optimization.

S. J. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konečný, S. Kumar, H. B. McMahan. ICLR 2021.
https://arxiv.org/abs/2003.00295 (Algorithm 2)

As FedAdam, but v moves towards the squared mean change by a step whose size does not depend on how far it
is. So v grows as fast as Adam's and shrinks more slowly, which keeps the step small after rare large
changes. The paper found it the steadiest of the three.

===================  ============================================
symbol in the paper  name in the code
===================  ============================================
Delta_t              mean of ``delta``
m_t, v_t             slots ``m`` and ``v``
eta                  ``server_lr``
eta_l                ``work.local.optimizer.lr``
beta_1, beta_2       ``beta1``, ``beta2``
tau                  ``tau``
v_(-1)               ``initial_v``
===================  ============================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atoll.algorithms.adaptive import (
    BIAS_CORRECTIONS,
    adaptive_step,
    bias_corrected,
    correction_faults,
    start,
)
from atoll.algorithms.averaging import average_client, average_cohort, tell
from atoll.core.contracts import Member, Trainer, Weighting, Work
from atoll.core.layout import Array, Layout
from atoll.core.local import LocalWork
from atoll.core.ranges import check
from atoll.core.values import Aggregate, Broadcast, Memory, State, Update

__all__ = ["FedYogi"]


@dataclass(frozen=True)
class FedYogi:
    """Yogi at the server.

    Args:
        server_lr: eta.
        beta1: decay of m in [0, 1).
        beta2: decay of v in [0, 1]; 1 holds v where it starts.
        tau: degree of adaptivity, > 0; small is adaptive, large is FedAvgM.
        initial_v: v before the first round, >= 0; None for tau^2 as in the paper.
        bias_correction: ``none`` (the paper), ``t`` (Kingma & Ba) or ``t+1`` (Flower's exponent).
    """

    server_lr: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    initial_v: float | None = None
    bias_correction: str = "none"

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        check(
            self,
            "algorithm",
            optional=("initial_v",),
            also=correction_faults(self.bias_correction, self.beta2),
            server_lr="(0, inf)",
            beta1="[0, 1)",
            beta2="[0, 1]",
            tau="(0, inf)",
            initial_v="[0, inf)",
            bias_correction=BIAS_CORRECTIONS,
        )

    @property
    def needs_correction(self) -> bool:
        """Plain local training."""
        return False

    def faults(self, weighting: Weighting, local: LocalWork) -> Sequence[str]:
        """Nothing: any weights and any local work fit."""
        return ()

    def init(self, parameters: Array, layout: Layout, population: int) -> State:
        """The model, m = 0 and v = v_(-1)."""
        return start(parameters, layout, population, self.initial_v, self.tau)

    def broadcast(self, state: State) -> Broadcast:
        """The global model."""
        return tell(state)

    def client(self, broadcast: Broadcast, memory: Memory, work: Work) -> tuple[Update, Memory]:
        """Train and send the change."""
        return average_client(broadcast, memory, work)

    def groups(self, trainer: Trainer, local: LocalWork) -> bool:
        """Always: nothing but the sum is wanted."""
        return True

    def cohort(
        self, broadcast: Broadcast, works: Sequence[Member]
    ) -> tuple[Aggregate, Sequence[Memory]]:
        """The sum of :meth:`client` over a group."""
        return average_cohort(broadcast, works)

    def server(self, state: State, aggregate: Aggregate) -> State:
        """Algorithm 2, the lines of FedYogi."""
        return adaptive_step(
            state,
            aggregate,
            self._second,
            lr=self._rate(state.round),
            beta1=self.beta1,
            tau=self.tau,
        )

    def staleness(self, tau: int) -> float:
        """The method is synchronous: an update counts fully."""
        return 1.0

    def _second(self, v: Array, square: Array) -> Array:
        return np.asarray(v - (1.0 - self.beta2) * square * np.sign(v - square))

    def _rate(self, round: int) -> float:
        return bias_corrected(self.server_lr, self.bias_correction, round, self.beta1, self.beta2)
