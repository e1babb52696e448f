"""Softmax regression under DP-SGD by Atoll's own private trainer, and the same steps without noise.

What is under test is the sampling, the clipping, the noise and the account.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atoll.core.contracts import Examples
from atoll.core.layout import Array
from atoll.core.local import LocalRule, LocalWork, Optimizer
from atoll.core.seeds import Seed
from atoll.models.linear import LinearTrainer
from atoll.models.linear_private import PrivateLinearTrainer
from atoll.models.private import RecordPrivacy
from atoll.privacy.dp.accounting import epsilon
from atoll.privacy.dp.events import Gaussian
from atoll.privacy.dp.noise import Draws, SystemSource, chosen

__all__ = ["DELTA", "Setting", "probabilities", "trained"]

DELTA = 1e-5


@dataclass(frozen=True)
class Setting:
    """How a model is trained.

    Args:
        noise_multiplier: z; 0 for no noise.
        steps: T.
        rate: q, the chance of each row to be in a step.
        clip: C, most L2 norm of one row's gradient.
        lr: of the mean gradient.
    """

    noise_multiplier: float
    steps: int = 100
    rate: float = 0.25
    clip: float = 1.0
    lr: float = 2.0

    @property
    def epsilon(self) -> float:
        """What is reported for one row, added or removed; infinite without noise."""
        if not self.noise_multiplier:
            return float("inf")
        return epsilon([Gaussian(self.noise_multiplier, self.rate, self.steps)], DELTA)


def trained(x: Array, y: Array, classes: int, setting: Setting) -> Array:
    """The model ``(classes, features + 1)`` after DP-SGD from zero."""
    if not setting.noise_multiplier:
        return _open(x, y, classes, setting)
    trainer = PrivateLinearTrainer(
        LinearTrainer("multinomial", x.shape[1], classes),
        RecordPrivacy(setting.clip, setting.noise_multiplier),
        Draws,
    )
    batch = int(setting.rate * len(x))  # never more than the rate that is accounted for
    work = LocalWork(steps=setting.steps, batch_size=batch, optimizer=Optimizer(lr=setting.lr))
    start = trainer.initial(Seed(0))
    rows = Examples(x, y)
    fit = trainer.fit(start, rows, work=work, rule=LocalRule(), seed=Seed(0), round=0)
    views = trainer.layout.views(fit.parameters)
    return np.column_stack([views["weight"], views["intercept"]])


def _open(x: Array, y: Array, classes: int, setting: Setting) -> Array:
    """The same sampled and clipped steps with the noise left out, which no private trainer does."""
    source, rows = SystemSource(), np.column_stack([x, np.ones(len(x))])
    lengths = np.linalg.norm(rows, axis=1)
    model = np.zeros((classes, rows.shape[1]))
    for _ in range(setting.steps):
        batch = chosen(source, len(rows), setting.rate)
        slope = probabilities(model, rows[batch])
        slope[np.arange(len(batch)), y[batch]] -= 1.0
        norms = np.linalg.norm(slope, axis=1) * lengths[batch]
        slope *= np.minimum(1.0, setting.clip / np.maximum(norms, 1e-30))[:, None]
        model -= setting.lr / (setting.rate * len(rows)) * (slope.T @ rows[batch])
    return model


def probabilities(model: Array, rows: Array) -> Array:
    """Softmax of the outputs for rows with their one at the end, ``(n, classes)``."""
    z = rows @ model.T
    z -= z.max(axis=1, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(axis=1, keepdims=True)
    return np.asarray(z)
