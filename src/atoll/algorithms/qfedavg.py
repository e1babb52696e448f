"""q-FedAvg: Fair Resource Allocation in Federated Learning.

T. Li, M. Sanjabi, A. Beirami, V. Smith. ICLR 2020. https://arxiv.org/abs/1905.10497 (Algorithm 2)

The objective sum_k p_k F_k^(q+1) / (q+1) gives clients with a high loss more say, so losses become more
even as q grows. Each change is multiplied by F_k^q, and the step is divided by an upper estimate of the
curvature, so that no new learning rate has to be tuned. With q = 0 it is FedAvg.

========================================  ============================================
symbol in the paper                       name in the code
========================================  ============================================
w^t, wbar_k^(t+1)                         ``broadcast.parameters``, ``fit.parameters``
F_k(w^t)                                  ``loss``
L (Lipschitz constant)                    ``1 / work.local.optimizer.lr``
Delta_k = F_k^q L (w^t - wbar_k)          ``-delta * L * scale^q``
``h_k = q F_k^(q-1) |Dw_k|^2 + L F_k^q``  ``curvature * L * scale^q``
========================================  ============================================

Numerator and denominator may be divided by the same number, so they travel in units of L and of the
last round's mean loss to the power q (``scale``, 1 in the first round): F^5 of a small loss would vanish
in a sum of float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atoll.algorithms.averaging import stepped, tell, train
from atoll.core.contracts import Weighting, Work
from atoll.core.layout import Array, Layout
from atoll.core.local import LocalWork
from atoll.core.ranges import check
from atoll.core.values import Aggregate, Broadcast, Memory, State, Update

__all__ = ["QFedAvg"]

_TINY = 1e-10
"""Losses count as at least this, so that powers below 1 of a loss of 0 stay finite."""


@dataclass(frozen=True)
class QFedAvg:
    """FedAvg that favours clients with a high loss.

    Args:
        q: how much fairness, >= 0; 0 is FedAvg.
        server_lr: factor on the step; 1 in the paper.
    """

    q: float = 1.0
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        check(self, "algorithm", q="[0, inf)", server_lr="(0, inf)")

    @property
    def needs_correction(self) -> bool:
        """Plain local training."""
        return False

    @property
    def beside_training(self) -> str:
        """F_k."""
        return "the mean loss of its rows"

    def faults(self, weighting: Weighting, local: LocalWork) -> Sequence[str]:
        """A learning rate of 0, of which L is one over."""
        if local.optimizer.lr > 0:
            return ()
        return ["q-FedAvg takes 1 / lr for the curvature, and lr is 0 (give one above 0)"]

    def init(self, parameters: Array, layout: Layout, population: int) -> State:
        """The unit of losses is 1 until a mean loss is known."""
        return State.start(parameters, layout, population, scale=np.ones(1))

    def broadcast(self, state: State) -> Broadcast:
        """The global model and the unit of losses."""
        return tell(state, "scale")

    def client(self, broadcast: Broadcast, memory: Memory, work: Work) -> tuple[Update, Memory]:
        """Algorithm 2, lines 5 to 7."""
        start = work.full(broadcast.parameters, memory)
        loss = work.trainer.evaluate(start, work.data)["loss"].value if work.examples else 0.0
        done = train(broadcast, memory, work)
        part = work.layout.shared_trainable
        delta = done.delta
        lipschitz = 1.0 / work.local.optimizer.lr
        square = float(np.sum(np.square(delta[part], dtype=np.float64)))
        floor = max(loss, _TINY)
        power = (floor / float(broadcast.vectors["scale"][0])) ** self.q
        # h_k / L: with |Dw_k|^2 = L^2 |delta|^2, the first term is q F^(q-1) L |delta|^2.
        curvature = power * (1.0 + self.q * lipschitz * square / floor)
        delta[part] *= power
        lanes = {"curvature": np.array([curvature]), "loss": np.array([loss])}
        return done.update(work, delta=delta, **lanes), done.memory()

    def server(self, state: State, aggregate: Aggregate) -> State:
        """w^(t+1) = w^t - sum_k Delta_k / sum_k h_k."""
        mean = aggregate.mean("delta")
        # With q = 0 every h_k is L: dividing by a mean of ones would only add rounding.
        h = aggregate.mean("curvature") if self.q else np.ones(1)
        scale = np.maximum(aggregate.mean("loss"), _TINY)
        step = self.server_lr * mean[state.trained] / h
        return state.next(stepped(state, mean, step), scale=scale)

    def staleness(self, tau: int) -> float:
        """The method is synchronous: an update counts fully."""
        return 1.0
