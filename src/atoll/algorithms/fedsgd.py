"""FedSGD: Communication-Efficient Learning of Deep Networks from Decentralized Data.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas. AISTATS 2017.
https://arxiv.org/abs/1602.05629 (section 2)

Each client computes one gradient over all its rows, and the server takes one step along their weighted
mean. With weights n_k/n that is exactly one step of gradient descent on the pooled rows. It is the
yardstick against which FedAvg's many local steps save communication.

======================  =============================================
symbol in the paper     name in the code
======================  =============================================
w_t                     ``state.parameters``
g_k = grad F_k(w_t)     ``gradient``
eta                     ``work.local.optimizer.lr``
n_k                     ``work.weight`` (with weights by examples)
======================  =============================================

The server learning rate alpha (``server_lr``) is ours; 1 is the paper's method. A personal region is
moved by the client's own gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atoll.algorithms.averaging import stepped, tell
from atoll.core.contracts import Weighting, Work
from atoll.core.layout import Array, Layout
from atoll.core.local import LocalWork
from atoll.core.metrics import Mean
from atoll.core.ranges import check
from atoll.core.values import Aggregate, Broadcast, Memory, State, Update

__all__ = ["FedSGD"]


@dataclass(frozen=True)
class FedSGD:
    """One gradient of all rows per client and round.

    Args:
        server_lr: alpha, factor on the mean step.
    """

    server_lr: float = 1.0

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        check(self, "algorithm", server_lr="(0, inf)")

    @property
    def needs_correction(self) -> bool:
        """Plain local training."""
        return False

    @property
    def beside_training(self) -> str:
        """A gradient: nothing is trained."""
        return "a gradient over all of its rows"

    def faults(self, weighting: Weighting, local: LocalWork) -> Sequence[str]:
        """Local work that is not one plain step at a constant rate, which FedSGD would ignore."""
        o = local.optimizer
        wrong = {
            f"optimizer {o.name!r}": o.name != "sgd",
            f"momentum {o.momentum}": o.momentum != 0.0,
            f"weight decay {o.weight_decay}": o.weight_decay != 0.0,
            f"steps = {local.steps}": local.steps not in (None, 1),
            f"epochs = {local.epochs}": local.steps is None and local.epochs != 1,
            f"a {local.schedule.kind} schedule": local.schedule.kind != "constant",
            f"clip_norm {local.clip_norm}": local.clip_norm != 0.0,
        }
        return [
            f"FedSGD takes one plain gradient step over all rows; it cannot use {what} "
            "(use fedavg, or take the setting out)"
            for what, found in wrong.items()
            if found
        ]

    def init(self, parameters: Array, layout: Layout, population: int) -> State:
        """The model and nothing else."""
        return State.start(parameters, layout, population)

    def broadcast(self, state: State) -> Broadcast:
        """The global model."""
        return tell(state)

    def client(self, broadcast: Broadcast, memory: Memory, work: Work) -> tuple[Update, Memory]:
        """Send -eta * g_k; ``w_t - eta * sum_k n_k/n g_k`` is then FedAvg's server step."""
        layout = work.layout
        whole = work.full(broadcast.parameters, memory)
        gradient, loss = work.gradient(whole)
        step = (-work.local.optimizer.lr * gradient).astype(layout.dtype)
        own = whole[layout.personal] + step[layout.personal]
        metrics = {"train_loss": Mean.of(loss, work.examples)} if work.examples else {}
        update = Update({"delta": step[layout.shared]}, work.weight, work.examples, metrics)
        return update, {"personal": own} if own.size else {}

    def server(self, state: State, aggregate: Aggregate) -> State:
        """w_(t+1) <- w_t - alpha * eta * sum_k n_k/n g_k."""
        mean = aggregate.mean("delta")
        return state.next(stepped(state, mean, self.server_lr * mean[state.trained]))

    def staleness(self, tau: int) -> float:
        """The method is synchronous: an update counts fully."""
        return 1.0
