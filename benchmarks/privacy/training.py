"""Softmax regression under DP-SGD, a dozen plain lines on the mechanisms of ``atoll.privacy.dp``.

Per-example gradients of such a model are outer products, so their norms cost nothing; what is under test
is the sampling, the clipping, the noise and the account.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atoll.core.layout import Array
from atoll.privacy.dp.accounting import epsilon
from atoll.privacy.dp.events import Gaussian
from atoll.privacy.dp.noise import SystemSource, chosen, noised

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
    source, rows = SystemSource(), np.column_stack([x, np.ones(len(x))])
    lengths = np.linalg.norm(rows, axis=1)
    model = np.zeros((classes, rows.shape[1]))
    for _ in range(setting.steps):
        batch = chosen(source, len(rows), setting.rate)
        slope = probabilities(model, rows[batch])
        slope[np.arange(len(batch)), y[batch]] -= 1.0
        norms = np.linalg.norm(slope, axis=1) * lengths[batch]
        slope *= np.minimum(1.0, setting.clip / np.maximum(norms, 1e-30))[:, None]
        total = slope.T @ rows[batch]
        if setting.noise_multiplier:
            total = noised(source, total, setting.clip, setting.noise_multiplier)
        model -= setting.lr / (setting.rate * len(rows)) * total
    return model


def probabilities(model: Array, rows: Array) -> Array:
    """Softmax of the outputs for rows with their one at the end, ``(n, classes)``."""
    z = rows @ model.T
    z -= z.max(axis=1, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(axis=1, keepdims=True)
    return np.asarray(z)
