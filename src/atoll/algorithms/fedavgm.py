"""FedAvgM: Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification.

T.-M. H. Hsu, H. Qi, M. Brown. 2019. https://arxiv.org/abs/1909.06335 (section 4.3)

The server treats the mean change of a round as a gradient and gives it momentum. Changes that agree over
rounds add up and the noise of skewed cohorts cancels. Nesterov's form looks one momentum step ahead.

===================  ==============================================
symbol in the paper  name in the code
===================  ==============================================
Delta w              minus the mean of ``delta``
v                    minus the slot ``momentum``
beta                 ``momentum``
gamma (server rate)  ``server_lr``
===================  ==============================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atoll.algorithms.averaging import average_client, average_cohort, spread, stepped, tell
from atoll.core.contracts import Member, Trainer, Weighting, Work
from atoll.core.layout import Array, Layout
from atoll.core.local import LocalWork
from atoll.core.ranges import check
from atoll.core.values import Aggregate, Broadcast, Memory, State, Update

__all__ = ["FedAvgM"]


@dataclass(frozen=True)
class FedAvgM:
    """FedAvg with momentum at the server.

    Args:
        server_lr: gamma, factor on each server step.
        momentum: beta in [0, 1).
        nesterov: Nesterov's form instead of the heavy ball.
    """

    server_lr: float = 1.0
    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        check(self, "algorithm", server_lr="(0, inf)", momentum="[0, 1)", nesterov="bool")

    @property
    def needs_correction(self) -> bool:
        """Plain local training."""
        return False

    def faults(self, weighting: Weighting, local: LocalWork) -> Sequence[str]:
        """Nothing: any weights and any local work fit."""
        return ()

    def init(self, parameters: Array, layout: Layout, population: int) -> State:
        """Momentum starts at 0."""
        zero = np.zeros_like(parameters[layout.shared])
        return State.start(parameters, layout, population, momentum=zero)

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
        """V <- beta v + Delta w; w <- w - gamma v, or w - gamma (Delta w + beta v) for Nesterov."""
        mean = aggregate.mean("delta")
        delta = mean[state.trained]
        v = self.momentum * state.slots["momentum"][state.trained].astype(np.float64) + delta
        step = delta + self.momentum * v if self.nesterov else v
        after = stepped(state, mean, self.server_lr * step)
        return state.next(after, momentum=spread(state, v))

    def staleness(self, tau: int) -> float:
        """The method is synchronous: an update counts fully."""
        return 1.0
