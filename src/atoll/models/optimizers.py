"""Local optimisers on one flat NumPy vector, in place.

The arithmetic is that of ``torch.optim`` (same order of weight decay, momentum and bias correction),
so a NumPy trainer and a torch trainer walk the same path. Sources: Sutskever et al. 2013 (momentum,
Nesterov), Kingma and Ba 2015 (Adam), Loshchilov and Hutter 2019 (AdamW), Duchi et al. 2011
(Adagrad), Tieleman and Hinton 2012 (RMSprop).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from atoll.core.errors import JobError, suggest
from atoll.core.layout import Array
from atoll.core.local import Optimizer

__all__ = ["OPTIMIZERS", "Step", "flat_optimizer"]

Step = Callable[[Array, Array, float], None]
"""``step(weights, gradient, lr)``: move ``weights`` in place; ``gradient`` may be overwritten."""

_RMS_DECAY = 0.99
"""Decay of RMSprop's squared average: torch's ``alpha``, which a job cannot set."""


def flat_optimizer(optimizer: Optimizer) -> Step:
    """A fresh optimiser (zero moments) for one fit.

    Raises:
        JobError: a name this module does not offer.

    >>> w, g = np.array([1.0]), np.array([0.5])
    >>> flat_optimizer(Optimizer("sgd"))(w, g, 0.1)
    >>> w.tolist()
    [0.95]
    """
    if optimizer.name not in OPTIMIZERS:
        raise JobError(
            f"unknown local optimiser {optimizer.name!r}",
            remedy=suggest(optimizer.name, OPTIMIZERS),
        )
    return OPTIMIZERS[optimizer.name](optimizer)


def _decay(optimizer: Optimizer, weights: Array, gradient: Array) -> None:
    if optimizer.weight_decay:
        gradient += optimizer.weight_decay * weights


def _sgd(o: Optimizer) -> Step:
    decay, velocity = o.weight_decay, list[Array]()

    def plain(weights: Array, gradient: Array, lr: float) -> None:
        if decay:  # as _decay, without a call: for small models calls are the cost
            gradient += decay * weights
        gradient *= lr
        weights -= gradient

    def heavy(weights: Array, gradient: Array, lr: float) -> None:
        _decay(o, weights, gradient)
        if not velocity:
            velocity.append(gradient.copy())
        else:
            velocity[0] *= o.momentum
            velocity[0] += gradient
        direction = gradient + o.momentum * velocity[0] if o.nesterov else velocity[0]
        weights -= lr * direction

    return heavy if o.momentum else plain


def _adam(o: Optimizer, *, decoupled: bool = False) -> Step:
    moments: list[Array] = []
    b1, b2 = o.betas
    count = 0

    def step(weights: Array, gradient: Array, lr: float) -> None:
        nonlocal count
        if not moments:
            moments.extend((np.zeros_like(weights), np.zeros_like(weights)))
        if decoupled:
            weights *= 1.0 - lr * o.weight_decay
        else:
            _decay(o, weights, gradient)
        count += 1
        first, second = moments
        first += (1.0 - b1) * (gradient - first)
        second *= b2
        second += (1.0 - b2) * gradient * gradient
        root = np.sqrt(second) / (1.0 - b2**count) ** 0.5 + o.eps
        weights -= lr / (1.0 - b1**count) * (first / root)

    return step


def _adamw(o: Optimizer) -> Step:
    return _adam(o, decoupled=True)


def _adagrad(o: Optimizer) -> Step:
    total: list[Array] = []

    def step(weights: Array, gradient: Array, lr: float) -> None:
        _decay(o, weights, gradient)
        if not total:
            total.append(np.zeros_like(weights))
        total[0] += gradient * gradient
        weights -= lr * (gradient / (np.sqrt(total[0]) + o.eps))

    return step


def _rmsprop(o: Optimizer) -> Step:
    slots: list[Array] = []

    def step(weights: Array, gradient: Array, lr: float) -> None:
        _decay(o, weights, gradient)
        if not slots:
            slots.extend((np.zeros_like(weights), np.zeros_like(weights)))
        square, velocity = slots
        square *= _RMS_DECAY
        square += (1.0 - _RMS_DECAY) * gradient * gradient
        direction = gradient / (np.sqrt(square) + o.eps)
        if o.momentum:
            velocity *= o.momentum
            velocity += direction
            direction = velocity
        weights -= lr * direction

    return step


OPTIMIZERS: dict[str, Callable[[Optimizer], Step]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
    "adagrad": _adagrad,
    "rmsprop": _rmsprop,
}
"""Optimisers by name."""
