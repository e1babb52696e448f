"""FedNova: Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization.

J. Wang, Q. Liu, H. Liang, G. Joshi, H. V. Poor. NeurIPS 2020. https://arxiv.org/abs/2007.07481 (eq. 8)

Clients that take more local steps pull FedAvg towards their own optimum. FedNova divides each change by
what its local steps are worth before averaging, and multiplies the mean by the mean worth. The fixed
point then weights clients by w_i alone, whatever their number of steps, momentum or proximal term.

=============================  =============================================================
symbol in the paper            name in the code
=============================  =============================================================
tau_i                          ``fit.steps``
``|a_i|_1``                    ``worth``, from :func:`atoll.algorithms.reach.reach`
eta d_i                        ``-delta / reference_steps``, with ``delta`` as sent
p_i                            ``work.weight`` over the sum of weights
``tau_eff = sum p_i |a_i|_1``  ``reference_steps * (1 + mean("extra_steps"))``
rho, mu, eta                   ``work.local.optimizer.momentum``, ``mu``, ``lr_sum / steps``
=============================  =============================================================

``reference_steps`` sets only the unit: changes are sent as if every client had taken that many plain
steps. It cancels at the server (to rounding), but links that bound what is sent see it.
``extra_steps`` is ``|a_i|_1 / reference_steps - 1``, which is exactly 0 where nothing is to be rescaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atoll.algorithms.averaging import stepped, tell, train
from atoll.algorithms.reach import reach
from atoll.core.contracts import Weighting, Work
from atoll.core.layout import Array, Layout
from atoll.core.local import LocalRule, LocalWork
from atoll.core.ranges import check
from atoll.core.values import Aggregate, Broadcast, Memory, State, Update

__all__ = ["FedNova"]


@dataclass(frozen=True)
class FedNova:
    """FedAvg on changes normalised by the worth of the local steps.

    Args:
        mu: proximal coefficient of local training, >= 0.
        server_lr: factor on the mean change.
        reference_steps: unit of the changes sent, in plain steps, > 0.
    """

    mu: float = 0.0
    server_lr: float = 1.0
    reference_steps: float = 1.0

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        check(self, "algorithm", mu="[0, inf)", server_lr="(0, inf)", reference_steps="(0, inf)")

    @property
    def needs_correction(self) -> bool:
        """The proximal term, when there is one."""
        return self.mu > 0.0

    def faults(self, weighting: Weighting, local: LocalWork) -> Sequence[str]:
        """a_i is known for SGD, with or without momentum, at a constant rate within a round."""
        found = []
        if local.optimizer.name != "sgd":
            found.append(
                f"FedNova knows what steps of sgd are worth, not of {local.optimizer.name!r} "
                "(use sgd, or another algorithm)"
            )
        if local.schedule.kind != "constant" and local.schedule.unit == "epoch":
            found.append(
                "FedNova needs one learning rate per round, and the schedule changes it by epoch "
                '(use schedule.unit = "round")'
            )
        return found

    def init(self, parameters: Array, layout: Layout, population: int) -> State:
        """The model and nothing else."""
        return State.start(parameters, layout, population)

    def broadcast(self, state: State) -> Broadcast:
        """The global model."""
        return tell(state)

    def client(self, broadcast: Broadcast, memory: Memory, work: Work) -> tuple[Update, Memory]:
        """The change per reference step (eq. 5) and what the steps were worth."""
        rule = LocalRule(mu=self.mu, anchor=broadcast.parameters)
        done = train(broadcast, memory, work, rule)
        fit, o = done.fit, work.local.optimizer
        eta = fit.lr_sum / fit.steps if fit.steps else o.lr
        worth = reach(fit.steps, o.momentum, o.nesterov, eta * self.mu) / self.reference_steps
        part = work.layout.shared_trainable
        delta = done.delta
        if worth:  # Without a step there is no change to rescale.
            delta[part] /= worth
        return done.update(work, delta=delta, extra_steps=np.array([worth - 1.0])), done.memory()

    def server(self, state: State, aggregate: Aggregate) -> State:
        """X <- x - tau_eff sum_i p_i eta d_i (eq. 8)."""
        mean = aggregate.mean("delta")
        tau_eff = 1.0 + aggregate.mean("extra_steps")
        return state.next(stepped(state, mean, self.server_lr * tau_eff * mean[state.trained]))

    def staleness(self, tau: int) -> float:
        """The method is synchronous: an update counts fully."""
        return 1.0
