"""FedProx: Federated Optimization in Heterogeneous Networks.

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith. MLSys 2020.
https://arxiv.org/abs/1812.06127 (Algorithm 2)

Each client adds a proximal term to its loss that pulls it back to the global model. Clients may then do
different amounts of work without running away to their own optima. With mu = 0 it is FedAvg.

===========================================  ===========================================
symbol in the paper                          name in the code
===========================================  ===========================================
``h_k(w; w^t) = F_k(w) + mu/2 |w - w^t|^2``  the loss trained under ``LocalRule``
w^t                                          ``broadcast.parameters``, the rule's anchor
mu                                           ``mu``
gamma-inexactness                            ``work.local``, which may differ per task
===========================================  ===========================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atoll.algorithms.averaging import average_client, average_cohort, stepped, tell
from atoll.core.contracts import Member, Trainer, Weighting, Work
from atoll.core.layout import Array, Layout
from atoll.core.local import LocalRule, LocalWork
from atoll.core.ranges import check
from atoll.core.values import Aggregate, Broadcast, Memory, State, Update

__all__ = ["FedProx"]


@dataclass(frozen=True)
class FedProx:
    """FedAvg with a proximal term in local training.

    Args:
        mu: proximal coefficient, >= 0.
        server_lr: alpha, factor on the mean change.
    """

    mu: float = 0.01
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        check(self, "algorithm", mu="[0, inf)", server_lr="(0, inf)")

    @property
    def needs_correction(self) -> bool:
        """The proximal term, unless mu is 0."""
        return self.mu > 0.0

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
        """Algorithm 2, line 4: w_k ~ argmin h_k(w; w^t)."""
        rule = LocalRule(mu=self.mu, anchor=broadcast.parameters)
        return average_client(broadcast, memory, work, rule)

    def groups(self, trainer: Trainer, local: LocalWork) -> bool:
        """Always: nothing but the sum is wanted."""
        return True

    def cohort(
        self, broadcast: Broadcast, works: Sequence[Member]
    ) -> tuple[Aggregate, Sequence[Memory]]:
        """The sum of :meth:`client` over a group."""
        rule = LocalRule(mu=self.mu, anchor=broadcast.parameters)
        return average_cohort(broadcast, works, rule)

    def server(self, state: State, aggregate: Aggregate) -> State:
        """theta_g <- theta_g + alpha * mean of (theta_i - theta_g)."""
        mean = aggregate.mean("delta")
        return state.next(stepped(state, mean, self.server_lr * mean[state.trained]))

    def staleness(self, tau: int) -> float:
        """The method is synchronous: an update counts fully."""
        return 1.0
