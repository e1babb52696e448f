"""FedAvg: Communication-Efficient Learning of Deep Networks from Decentralized Data.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas. AISTATS 2017.
https://arxiv.org/abs/1602.05629 (Algorithm 1)

Each client of the cohort trains the global model on its own rows for some epochs. The server moves to
the weighted mean of the trained models. Many local steps per round cost computation, which is cheap, and
save communication, which is not.

============================  ========================================================
symbol in the paper           name in the code
============================  ========================================================
w_t                           ``broadcast.parameters``, theta_g
w^k_(t+1)                     ``fit.parameters``, theta_i
n_k / n                       ``work.weight`` over the sum of weights
E, B, eta                     ``work.local``: epochs, batch_size, optimizer.lr
============================  ========================================================

The server learning rate alpha is a common extension; 1 is the paper's method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atoll.algorithms.averaging import average_client, average_cohort, stepped, tell
from atoll.core.contracts import Member, Trainer, Weighting, Work
from atoll.core.layout import Array, Layout
from atoll.core.local import LocalWork
from atoll.core.ranges import check
from atoll.core.values import Aggregate, Broadcast, Memory, State, Update

__all__ = ["FedAvg"]


@dataclass(frozen=True)
class FedAvg:
    """Weighted mean of locally trained models.

    Args:
        server_lr: alpha, factor on the mean change.
    """

    server_lr: float = 1.0

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        check(self, "algorithm", server_lr="(0, inf)")

    @property
    def needs_correction(self) -> bool:
        """Plain local training."""
        return False

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
        """ClientUpdate(k, w) of Algorithm 1, sending the change instead of the model."""
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
        """theta_g <- theta_g + alpha * mean of (theta_i - theta_g)."""
        mean = aggregate.mean("delta")
        return state.next(stepped(state, mean, self.server_lr * mean[state.trained]))

    def staleness(self, tau: int) -> float:
        """The method is synchronous: an update counts fully."""
        return 1.0
