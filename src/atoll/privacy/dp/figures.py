"""Figures of held-out rows with noise: means over rows whose parts are bounded row by row.

Each row gives a few numbers in [0, 1] (was it right; its loss, cut off at a bound, over that bound) and a one
that counts it. Their sums over a client's rows change by sqrt(k + 1) in L2 at most when a row comes or goes, k
being how many figures there are. The client adds Gaussian noise to all k + 1 sums, in one release, before any
of it leaves; so who adds up the sums of many clients has the noise of all of them in it.

A figure is a sum over a count, both with noise, and told with its standard error: to first order
``sqrt(v_sum + value^2 v_count) / count``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from atoll.core.errors import JobError
from atoll.core.layout import Array
from atoll.core.metrics import Mean, Metrics
from atoll.privacy.dp.events import Gaussian
from atoll.privacy.dp.noise import Source, SystemSource, noised

__all__ = ["NoisedFigures"]

_LOSS = "loss"


@dataclass(frozen=True, eq=False)
class NoisedFigures:
    """How figures are told.

    Args:
        noise_multiplier: z, the standard deviation over the most that a row changes the sums by.
        loss: a row's loss counts as at most this; figures of other names lie in [0, 1].
        source: of random bits.

    Raises:
        JobError: an argument is out of range.
    """

    noise_multiplier: float
    loss: float = 1.0
    source: Source = field(default_factory=SystemSource, repr=False)

    def __post_init__(self) -> None:
        """Refuse what hides nothing."""
        if not (0 < self.noise_multiplier < math.inf and 0 < self.loss < math.inf):
            raise JobError(
                f"figures with noise {self.noise_multiplier} and losses up to {self.loss}"
            )

    def event(self, count: int = 1) -> Gaussian:
        """What so many evaluations cost a row."""
        return Gaussian(self.noise_multiplier, 1.0, count)

    def of(self, rows: Mapping[str, Array]) -> Metrics:
        """The figures of a client's rows, with noise of their own.

        Args:
            rows: for each figure one number a row, ``(n,)``; what is not finite counts as the worst.
        """
        names = sorted(rows)
        sums = [float(self._bounded(name, rows[name]).sum()) for name in names]
        size = len(rows[names[0]]) if names else 0
        bound = math.sqrt(len(names) + 1)
        whole = noised(self.source, np.array([*sums, float(size)]), bound, self.noise_multiplier)
        weight = Fraction(float(whole[-1]))
        return {
            name: Mean(Fraction(float(total)) * Fraction(self._unit(name)), weight)
            for name, total in zip(names, whole, strict=False)
        }

    def errors(self, metrics: Metrics, clients: int) -> dict[str, float]:
        """The standard error of each figure of :meth:`of`, as ``NAME_error``.

        Args:
            metrics: of all clients together.
            clients: how many, each with noise of its own.
        """
        sd = self.noise_multiplier * math.sqrt((len(metrics) + 1) * clients)
        found = {}
        for name, metric in metrics.items():
            if isinstance(metric, Mean):
                count, value = abs(float(metric.weight)), metric.value
                spread = math.hypot(self._unit(name), value) * sd
                found[f"{name}_error"] = spread / count if count else math.inf
        return found

    def _unit(self, name: str) -> float:
        return self.loss if name == _LOSS else 1.0

    def _bounded(self, name: str, values: Array) -> Array:
        """In [0, 1], whatever the rows are."""
        unit = self._unit(name)
        worst = unit if name == _LOSS else 0.0
        flat = np.nan_to_num(values.astype(np.float64), nan=worst, posinf=unit, neginf=0.0)
        return np.asarray(np.clip(flat / unit, 0.0, 1.0))
