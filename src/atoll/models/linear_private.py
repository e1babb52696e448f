"""DP-SGD for linear models in NumPy; the steps are those of :mod:`atoll.models.private`.

A row's gradient is an outer product of its residual and its features, so its norm is a product of
two norms and no gradient is ever formed (ghost clipping; Goodfellow 2015, https://arxiv.org/abs/1510.01799).
The penalty is no data: its gradient is added after the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from atoll.core.errors import DataError
from atoll.core.layout import Array, Layout
from atoll.core.local import Fit, LocalRule, LocalWork
from atoll.core.metrics import Metrics
from atoll.core.seeds import Seed
from atoll.models.batches import plan
from atoll.models.linear import LinearTrainer, one_a_row
from atoll.models.linear_stack import residual
from atoll.models.optimizers import OPTIMIZERS, flat_optimizer
from atoll.models.private import (
    TINY,
    Randomness,
    RecordPrivacy,
    Releases,
    factors,
    pieces,
    releases,
    steps,
)
from atoll.models.scores import check_labels

__all__ = ["PrivateLinearTrainer"]

_VALUES = 1 << 20
"""Values of a micro-batch where its size is not given."""


@dataclass(frozen=True, eq=False)
class PrivateLinearTrainer:
    """A linear model whose training hides single rows.

    Two things that other trainers tell are not told here, because they would cost privacy of their own:
    the training loss (NaN), and a gradient without noise. :meth:`evaluate` is as it was: whoever
    releases its metrics must account for them.

    Args:
        trainer: the model.
        privacy: bound and noise.
        randomness: makes a source of sampling and noise, once in each process.
    """

    trainer: LinearTrainer
    privacy: RecordPrivacy
    randomness: Callable[[], Randomness] = field(repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process needs: it draws from a source of its own."""
        return {k: v for k, v in self.__dict__.items() if k != "_draws"}

    @cached_property
    def _draws(self) -> Randomness:
        return self.randomness()

    @property
    def layout(self) -> Layout:
        """Layout of the model."""
        return self.trainer.layout

    @property
    def corrects(self) -> bool:
        """True: local rules are applied, after the noise."""
        return True

    @property
    def optimizers(self) -> Collection[str]:
        """Names of the local optimisers that there are."""
        return OPTIMIZERS

    def initial(self, seed: Seed) -> Array:
        """Zeros, whatever the seed."""
        return self.trainer.initial(seed)

    def releases(self, rows: int, work: LocalWork) -> Releases:
        """What one :meth:`fit` on ``rows`` rows costs."""
        return releases(self.privacy, rows, work)

    def fit(
        self,
        parameters: Array,
        data: Any,
        *,
        work: LocalWork,
        rule: LocalRule,
        seed: Seed,
        round: int,
    ) -> Fit:
        """Train from ``parameters`` with clipped and noised steps; the loss in the result is NaN.

        Raises:
            DataError: as without privacy.
            JobConflict: ``work`` clips batches as well.
        """
        self.layout.check(parameters, what="parameters")
        x, y = self._examples(data)
        cut = plan(len(y), work)
        vector, rates = parameters.copy(), list[float]()
        optimise = flat_optimizer(work.optimizer)
        part = self.layout.shared_trainable
        anchor, shift = (
            None if a is None else a[part].astype(vector.dtype, copy=False)
            for a in (rule.anchor, rule.shift)
        )
        for lr in steps(len(y), work, round):
            chosen = self._draws.chosen(len(y), cut.size / len(y))
            gradient = self._noised(vector, x, y, chosen, cut.size)
            if not rule.trivial:
                rule.correct(gradient[part], vector[part], anchor, shift)
            optimise(vector, gradient, lr)
            rates.append(lr)
        return Fit(vector, len(rates), sum(rates), len(y), math.nan)

    def gradient(self, parameters: Array, data: Any) -> tuple[Array, float]:
        """The mean of all rows' clipped gradients with noise (one release, no sampling), and NaN.

        Raises:
            DataError: as in :meth:`fit`.
        """
        x, y = self._examples(data)
        return self._noised(parameters, x, y, np.arange(len(y)), len(y)), math.nan

    def evaluate(self, parameters: Array, data: Any) -> Metrics:
        """As without privacy: not protected."""
        return self.trainer.evaluate(parameters, data)

    def per_row(self, parameters: Array, data: Any) -> dict[str, Array]:
        """Likewise, row by row; for who adds noise to their sums."""
        return self.trainer.per_row(parameters, data)

    def clipped_sum(self, parameters: Array, data: Any, chosen: Array) -> Array:
        """Sum of the clipped gradients of the rows ``chosen``, ``(layout.size,)``: not protected.

        Raises:
            DataError: as in :meth:`fit`.
        """
        x, y = self._examples(data)
        return self._clipped(parameters, x, y, chosen)

    def _noised(self, vector: Array, x: Array, y: Array, chosen: Array, expected: int) -> Array:
        p = self.privacy
        total = self._clipped(vector, x, y, chosen)
        out = self._draws.noised(total, p.bound, p.noise_multiplier)
        out /= expected
        if self.trainer.l2:
            views = self.layout.views(out)
            views["weight"] += self.trainer.l2 * self.layout.views(vector)["weight"]
        return out

    def _clipped(self, vector: Array, x: Array, y: Array, chosen: Array) -> Array:
        total = np.zeros(self.layout.size, self.trainer.dtype)
        slopes, views = self.layout.views(total), self.layout.views(vector)
        features = self.trainer.features
        weight = views["weight"].reshape(-1, features)
        largest = self.privacy.micro_batch or max(1, _VALUES // features)
        # What an intercept sees beside the features.
        seen = total.dtype.type(1.0 if "intercept" in views else TINY)
        with np.errstate(all="ignore"):  # what is not finite counts as absent
            for own in pieces(chosen, largest):
                rows = x[own].astype(total.dtype, copy=False)
                z = weight @ rows.T
                if "intercept" in views:
                    z += views["intercept"].reshape(-1, 1)
                residual(self.trainer.kind, z, self._targets(y[own], z.dtype))
                inputs = np.hypot(np.sqrt(np.einsum("ij,ij->i", rows, rows)), seen)
                outputs = np.sqrt(np.einsum("ij,ij->j", z, z)) + z.dtype.type(TINY)
                scale = factors(inputs * outputs, self.privacy.clip)
                keep = scale > 0
                z = z[:, keep] * scale[keep]
                slopes["weight"] += (z @ rows[keep]).reshape(slopes["weight"].shape)
                if "intercept" in slopes:
                    slopes["intercept"] += z.sum(axis=1).reshape(slopes["intercept"].shape)
        return total

    def _targets(self, y: Array, dtype: Any) -> Array:
        if self.trainer.kind != "multinomial":
            return y.astype(dtype, copy=False)[None]
        hot = np.zeros((self.trainer.classes, len(y)), dtype)
        hot[y, np.arange(len(y))] = 1.0
        return hot

    def _examples(self, data: Any) -> tuple[Array, Array]:
        x, y = np.asarray(data.features), one_a_row(data.targets)
        flat = x.reshape(len(x), -1)
        if flat.shape[1] != self.trainer.features or len(flat) != len(y):
            raise DataError(
                f"features of shape {x.shape} with {len(y)} targets; "
                f"the model takes {self.trainer.features} values per row",
                remedy="check the declared columns",
            )
        if self.trainer.kind == "linear":
            return flat, y
        check_labels(y, self.trainer.classes if self.trainer.kind == "multinomial" else 2)
        return flat, y.astype(np.int64, copy=False)
