"""SCAFFOLD: Stochastic Controlled Averaging for Federated Learning.

S. P. Karimireddy, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh. ICML 2020.
https://arxiv.org/abs/1910.06378 (Algorithm 1)

Client drift comes from each client following its own gradient. A control variate c_i estimates that
gradient and c the mean of all; every local step is corrected by c - c_i, so clients walk as if they saw
the global gradient. The fixed point is the true optimum for any number of local steps.

====================  ================================================
symbol in the paper   name in the code
====================  ================================================
x, y_i                ``broadcast.parameters``, ``fit.parameters``
c                     slot and broadcast vector ``control``
c_i, c_i^+            ``memory["control"]`` before and after, or its parts
Delta y_i, Delta c_i  update vectors ``delta`` and ``control``
K eta_l               ``lr_sum``, times reach / K under local momentum
eta_g                 ``server_lr``
``|S| / N``           ``aggregate.count / state.population``
====================  ================================================

The paper weights clients equally; here both means carry the weights w_i, so the fixed point is the
weighted optimum. With unequal weights and partial cohorts c equals the weighted mean of the c_i in
expectation only; with equal weights or full cohorts always. Under local momentum (not in the paper)
option II divides by what the steps are worth (:mod:`atoll.algorithms.reach`), so that c_i^+ stays a mean
of gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from atoll.algorithms.averaging import joined, stepped, tell, train
from atoll.algorithms.reach import reach
from atoll.core.contracts import ControlTrainer, Lane, Member, Trainer, Weighting, Work
from atoll.core.errors import Fault, JobConflict
from atoll.core.layout import Array, Layout
from atoll.core.local import Fit, LocalRule, LocalWork
from atoll.core.ranges import check
from atoll.core.values import Aggregate, Broadcast, Memory, State, Update, moved

__all__ = ["Scaffold"]


@dataclass(frozen=True)
class Scaffold:
    """Local steps corrected by control variates.

    Args:
        option: 1 for c_i^+ = the full gradient at x (one more pass), 2 for the mean local gradient.
        server_lr: eta_g.
    """

    option: int = 2
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        wrong = [Fault("algorithm.option", f"{self.option!r} is neither 1 nor 2")]
        known = self.option in (1, 2) and not isinstance(self.option, bool)
        check(self, "algorithm", also=[] if known else wrong, server_lr="(0, inf)")

    @property
    def needs_correction(self) -> bool:
        """The shift c - c_i."""
        return True

    @property
    def beside_training(self) -> str:
        """Under option I the gradient at x."""
        return "a gradient over all of its rows (option 1)" if self.option == 1 else ""

    def faults(self, weighting: Weighting, local: LocalWork) -> Sequence[str]:
        """Option II reads gradients off the distance travelled, so it must know the steps' size."""
        if self.option == 2 and local.optimizer.name != "sgd":
            return [
                f"SCAFFOLD option 2 needs local SGD, not {local.optimizer.name!r}, to estimate "
                "gradients from the distance travelled (use option 1, or sgd)"
            ]
        return []

    def init(self, parameters: Array, layout: Layout, population: int) -> State:
        """The model and c = 0."""
        zero = np.zeros_like(parameters[layout.shared])
        return State.start(parameters, layout, population, control=zero)

    def broadcast(self, state: State) -> Broadcast:
        """(x, c), line 3."""
        return tell(state, "control")

    def client(self, broadcast: Broadcast, memory: Memory, work: Work) -> tuple[Update, Memory]:
        """Lines 6 to 14."""
        x, c = broadcast.parameters, broadcast.vectors["control"]
        c_i = _control(memory, work, c)
        shift = c - c_i
        # Line 10: y_i <- y_i - eta_l (g_i(y_i) - c_i + c). Nothing to add in a client's first round.
        done = train(broadcast, memory, work, LocalRule(shift=shift if shift.any() else None))
        change = np.zeros_like(c)
        part = work.layout.shared_trainable
        if self.option == 1:  # Line 12, (i): c_i^+ <- g_i(x)
            gradient, _ = work.gradient(work.full(x, memory))
            change[part] = gradient[part] - c_i[part]
        elif done.fit.lr_sum > 0:  # Line 12, (ii): c_i^+ <- c_i - c + (x - y_i) / (K eta_l)
            change[part] = -c[part] - done.delta[part] / _travelled(done.fit, work.local)
        update = done.update(work, delta=done.delta, control=change)
        return update, done.memory(control=c_i + change)

    def settled(self, kept: Memory, meant: Update, sent: Update, work: Work) -> Memory:
        """Where updates are clipped, c_i moves by what arrives: c stays the mean of the c_i."""
        missing = sent.vectors["control"] - meant.vectors["control"]
        return {**kept, "control": kept["control"] + missing}

    def groups(self, trainer: Trainer, local: LocalWork) -> bool:
        """Where c_i can be kept in terms of rows: option II, and no decay in the distance travelled."""
        able = isinstance(trainer, ControlTrainer) and self.option == 2
        return able and not local.optimizer.weight_decay

    def cohort(
        self, broadcast: Broadcast, works: Sequence[Member]
    ) -> tuple[Aggregate, Sequence[Memory]]:
        """The sum of :meth:`client` over a group, each c_i^+ kept in terms of its client's rows.

        Under option II c_i^+ is the mean of the local gradients, lines 10 and 12 (ii) taken together.

        Raises:
            JobConflict: a group that cannot be trained so.
        """
        first, trainer = works[0][0], works[0][0].trainer
        possible = self.groups(trainer, first.local)
        possible = possible and not any("control" in memory for _, _, memory in works)
        if not possible or not isinstance(trainer, ControlTrainer):
            raise JobConflict("control variates of this group are not kept in terms of rows")
        lanes = [
            Lane(w.data, w.local, LocalRule(), w.seed / "fit", scale * w.weight, _compact(memory))
            for w, scale, memory in works
        ]
        c = broadcast.vectors["control"]
        done = trainer.fit_controlled(broadcast.parameters, lanes, c, round=first.round)
        total = joined(works, done.together, delta=done.together.change, control=done.control)
        return total, [{f"{_OWN}{k}": v for k, v in mean.items()} for mean in done.means]

    def server(self, state: State, aggregate: Aggregate) -> State:
        """Lines 16 and 17."""
        mean = aggregate.mean("delta")
        after = stepped(state, mean, self.server_lr * mean[state.trained])
        share = aggregate.count / state.population
        control = moved(state.slots["control"], share * aggregate.mean("control"))
        return state.next(after, control=control)

    def staleness(self, tau: int) -> float:
        """The method is synchronous: an update counts fully."""
        return 1.0


_OWN = "control."
"""Before the names of a control variate's parts, where it is kept in terms of rows."""


def _compact(memory: Memory) -> Mapping[str, Array]:
    return {k.removeprefix(_OWN): v for k, v in memory.items() if k.startswith(_OWN)}


def _control(memory: Memory, work: Work, like: Array) -> Array:
    """c_i, in whatever form it is kept; zero before the client's first round."""
    if "control" in memory:
        return memory["control"]
    own, trainer = _compact(memory), work.trainer
    if not own:
        return np.zeros_like(like)
    if not isinstance(trainer, ControlTrainer):
        raise JobConflict(
            "this trainer cannot read the control variate that another one kept",
            remedy="continue the run with the trainer it was begun with",
        )
    return trainer.dense(own, work.data)


def _travelled(fit: Fit, local: LocalWork) -> float:
    """K eta_l, in plain steps: exactly ``lr_sum`` without momentum."""
    o = local.optimizer
    return fit.lr_sum * (reach(fit.steps, o.momentum, o.nesterov) / fit.steps)
