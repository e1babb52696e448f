"""Local optimisers on a stack of clients: every lane moves by its own numbers.

The arithmetic is that of ``torch.optim``; sources in :mod:`atoll.models.optimizers`. Slots start at 0 in a
lane that gets a new client. What depends on a lane's step (its learning rate, Adam's bias corrections)
comes from a table, so that lanes at different steps move together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from atoll.core.layout import Array
from atoll.core.local import Optimizer

__all__ = ["MOVES", "Numbers"]


class Numbers:
    """What an optimiser is told of each lane's step, as columns ``(lanes, 1)``.

    Args:
        rows: a row of each lane's :meth:`table`, ``(lanes, 4)``.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rate, self.root, self.keep, self.share = torch.split(rows, 1, dim=1)

    @staticmethod
    def table(o: Optimizer, rates: Array, shares: Array) -> Array:
        """One client's numbers, ``(steps, 4)``.

        Minus the step size, Adam's root of the second correction, what decoupled weight decay leaves,
        and what the step's loss counts.

        Args:
            o: the optimiser.
            rates: learning rate of each step, ``(steps,)``.
            shares: what each step's loss counts, ``(steps,)``.
        """
        t = np.arange(1, len(rates) + 1)
        adam = o.name in ("adam", "adamw")
        sizes = rates / (1.0 - o.betas[0] ** t) if adam else rates
        roots = np.sqrt(1.0 - o.betas[1] ** t) if adam else np.ones_like(rates)
        return np.stack([-sizes, roots, 1.0 - rates * o.weight_decay, shares], axis=1)


Move = Callable[[Optimizer, Tensor, Tensor, Sequence[Tensor], Numbers], object]
"""``move(optimizer, weights, gradient, slots, numbers)``: all lanes one step; the gradient may change."""


def _decay(o: Optimizer, weights: Tensor, gradient: Tensor) -> None:
    if o.weight_decay:
        gradient.add_(weights, alpha=o.weight_decay)


def _sgd(o: Optimizer, w: Tensor, g: Tensor, slots: Sequence[Tensor], n: Numbers) -> None:
    _decay(o, w, g)
    way = g
    if o.momentum:
        velocity = slots[0].mul_(o.momentum).add_(g)  # from 0, as if it began as the gradient
        way = g.add_(velocity, alpha=o.momentum) if o.nesterov else velocity
    w.addcmul_(way, n.rate)


def _adam(o: Optimizer, w: Tensor, g: Tensor, slots: Sequence[Tensor], n: Numbers) -> None:
    if o.name == "adamw":
        w.mul_(n.keep)
    else:
        _decay(o, w, g)
    first = slots[0].lerp_(g, 1.0 - o.betas[0])
    second = slots[1].mul_(o.betas[1]).addcmul_(g, g, value=1.0 - o.betas[1])
    w.addcmul_(first / second.sqrt().div_(n.root).add_(o.eps), n.rate)


def _adagrad(o: Optimizer, w: Tensor, g: Tensor, slots: Sequence[Tensor], n: Numbers) -> None:
    _decay(o, w, g)
    total = slots[0].addcmul_(g, g)
    w.addcmul_(g / total.sqrt().add_(o.eps), n.rate)


def _rmsprop(o: Optimizer, w: Tensor, g: Tensor, slots: Sequence[Tensor], n: Numbers) -> None:
    _decay(o, w, g)
    square = slots[0].mul_(0.99).addcmul_(g, g, value=0.01)  # torch's alpha, which no job can set
    way = g / square.sqrt().add_(o.eps)
    if o.momentum:
        way = slots[1].mul_(o.momentum).add_(way)
    w.addcmul_(way, n.rate)


MOVES: dict[str, tuple[Move, int]] = {
    "sgd": (_sgd, 1),
    "adam": (_adam, 2),
    "adamw": (_adam, 2),
    "adagrad": (_adagrad, 1),
    "rmsprop": (_rmsprop, 2),
}
"""Optimisers by name: the move of all lanes, and how many slots a lane has."""
