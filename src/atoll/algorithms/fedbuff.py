"""FedBuff: Federated Learning with Buffered Asynchronous Aggregation.

J. Nguyen, K. Malik, H. Zhan, A. Yousefpour, M. Rabbat, M. Malek, D. Huba. AISTATS 2022.
https://arxiv.org/abs/2106.06639 (Algorithm 1)

Clients work at their own pace, and the server takes one step whenever K changes lie in its buffer. A change
that started tau versions ago counts (1 + tau)^-1/2. Because only a sum leaves the buffer, it combines
with masked aggregation, which FedAsync cannot.

===================  =====================================================================
symbol in the paper  name in the code
===================  =====================================================================
Delta_i              minus ``delta``
K                    the runtime's schedule decides when the buffer is full
eta_g                ``server_lr``
s(tau)               :meth:`FedBuff.staleness`
===================  =====================================================================

As in the paper the sum of scaled changes is divided by K (here: by the unscaled weights), so old changes
make a shorter step and not only a smaller share of it.
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

__all__ = ["FedBuff"]


@dataclass(frozen=True)
class FedBuff:
    """FedAvg on a buffer of changes of different age.

    Args:
        server_lr: eta_g.
        exponent: of (1 + tau) in the staleness factor, >= 0; 0 counts every change fully.
    """

    server_lr: float = 1.0
    exponent: float = 0.5

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        check(self, "algorithm", server_lr="(0, inf)", exponent="[0, inf)")

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
        """FL-client: train from the version at hand, send the change."""
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
        """W <- w - eta_g (sum of the buffer) / K."""
        mean = aggregate.mean("delta")
        return state.next(stepped(state, mean, self.server_lr * mean[state.trained]))

    def staleness(self, tau: int) -> float:
        """(1 + tau)^-exponent; section 4 has 1/2."""
        return float((1.0 + tau) ** -self.exponent)
