"""What the methods share: train from the broadcast, return the change, move by a mean change.

Gradient steps change only the *trained* part of the shared region. What lies outside it (BatchNorm
statistics, counters, frozen parameters) is no direction to accelerate or to correct, so every server
here moves it by the plain mean change, whatever it does to the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atoll.core.contracts import Lane, Member, Together, Work
from atoll.core.errors import JobConflict
from atoll.core.layout import Array
from atoll.core.local import Fit, LocalRule
from atoll.core.metrics import Mean
from atoll.core.values import Aggregate, Broadcast, Memory, State, Update, moved

__all__ = [
    "Training",
    "average_client",
    "average_cohort",
    "joined",
    "spread",
    "stepped",
    "tell",
    "train",
]


_PLAIN = LocalRule()
"""Training as it is."""


@dataclass(frozen=True, eq=False)
class Training:
    """One client's local training, seen from the shared region.

    Args:
        fit: what the trainer returned.
        delta: theta_i - theta_g on the shared region, ``(d,)`` in the layout's dtype.
        personal: the client's own part of the model afterwards, under the name ``personal``; empty
            when the whole model is shared.
    """

    fit: Fit
    delta: Array
    personal: Memory

    def update(self, work: Work, **vectors: Array) -> Update:
        """``vectors`` with this client's weight and ``train_loss`` (if it took a step)."""
        fit = self.fit
        metrics = {"train_loss": Mean.of(fit.loss, fit.examples)} if fit.steps else {}
        return Update(vectors, work.weight, fit.examples, metrics)

    def memory(self, **own: Array) -> Memory:
        """The personal part together with the method's own vectors."""
        return {**self.personal, **own}


def tell(state: State, *slots: str) -> Broadcast:
    """The global parameters and the named slots."""
    vectors = {"parameters": state.parameters, **{name: state.slots[name] for name in slots}}
    return Broadcast(state.round, vectors)


def train(
    broadcast: Broadcast, memory: Memory, work: Work, rule: LocalRule | None = None
) -> Training:
    """Train from the broadcast model, completed by the client's personal part, under ``rule``."""
    layout = work.layout
    fit = work.fit(work.full(broadcast.parameters, memory), rule)
    # The copy keeps a client's memory from holding on to the whole trained vector.
    own = fit.parameters[layout.personal].copy()
    personal = {"personal": own} if own.size else {}
    return Training(fit, fit.parameters[layout.shared] - broadcast.parameters, personal)


def average_client(
    broadcast: Broadcast, memory: Memory, work: Work, rule: LocalRule | None = None
) -> tuple[Update, Memory]:
    """FedAvg's client half, which many methods keep: train and send ``delta``."""
    done = train(broadcast, memory, work, rule)
    return done.update(work, delta=done.delta), done.memory()


def average_cohort(
    broadcast: Broadcast, works: Sequence[Member], rule: LocalRule | None = None
) -> tuple[Aggregate, Sequence[Memory]]:
    """What :func:`average_client` gives for each of ``works``, summed, without any single model.

    Args:
        broadcast: what all start from; the whole model is shared.
        works: the group; nobody has a memory.
        rule: the local rule, the same for all.

    Raises:
        AtollError: the trainer cannot take this group in one go.
    """
    first = works[0][0]
    fit_together = getattr(first.trainer, "fit_together", None)
    if fit_together is None:
        raise JobConflict("this trainer takes one client at a time")
    rule = rule or _PLAIN
    lanes = [
        Lane(work.data, work.local, rule, work.seed / "fit", scale * work.weight)
        for work, scale, _ in works
    ]
    done: Together = fit_together(broadcast.parameters, lanes, round=first.round)
    return joined(works, done, delta=done.change), [{} for _ in works]


def joined(works: Sequence[Member], done: Together, **sums: Array) -> Aggregate:
    """The aggregate of a group that trained together, with ``train_loss`` of who took a step."""
    rows = [work.examples for work, _, _ in works]
    trained = zip(rows, done.losses, done.steps, strict=True)
    losses = [(loss, n) for n, loss, steps in trained if steps]
    return Aggregate(
        sums=sums,
        weight=sum(work.weight for work, _, _ in works),
        scaled_weight=sum(scale * work.weight for work, scale, _ in works),
        count=len(works),
        examples=sum(rows),
        metrics={"train_loss": Mean.over(losses)} if losses else {},
    )


def stepped(state: State, mean: Array, step: Array) -> Array:
    """The next parameters: ``step`` on the trained part, the ``mean`` change elsewhere.

    Args:
        state: the state to move from.
        mean: mean change of the shared region, ``(d,)`` in float64.
        step: change of the trained part, ``(t,)`` in float64.
    """
    if step.shape == mean.shape:  # all is trained
        return moved(state.parameters, step)
    change = mean.copy()
    change[state.trained] = step
    return moved(state.parameters, change)


def spread(state: State, values: Array) -> Array:
    """A slot ``(d,)`` in the parameters' dtype: ``values`` ``(t,)`` on the trained part, else 0."""
    slot = np.zeros_like(state.parameters)
    slot[state.trained] = values
    return slot
