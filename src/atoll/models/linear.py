"""Linear, logistic and multinomial regression in plain NumPy, with gradients in closed form.

With rows x_i, weights W, intercept b and z_i = W x_i + b, the mean loss over n rows is

* ``linear``       (1/n) sum (z_i - y_i)^2
* ``logistic``     (1/n) sum log(1 + exp(z_i)) - y_i z_i,  y_i in {0, 1}
* ``multinomial``  (1/n) sum log sum_c exp(z_ic) - z_i,y_i

plus ``(l2 / 2) |W|^2``; the intercept is never penalised. All start at zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from atoll.core.errors import DataError, JobError, suggest
from atoll.core.layout import Array, Entry, Layout
from atoll.core.local import Fit, LocalRule, LocalWork
from atoll.core.metrics import Mean, Metrics
from atoll.core.seeds import Seed
from atoll.models.batches import batches, learning_rate
from atoll.models.optimizers import flat_optimizer
from atoll.models.scores import (
    check_labels,
    classification_scores,
    regression_scores,
    sigmoid,
)

__all__ = ["LinearTrainer"]

_KINDS = ("linear", "logistic", "multinomial")
_PRODUCT = 9000
"""Values of a matrix handed to BLAS at a time. OpenBLAS splits larger products among threads, and
the last bits would then depend on how many there are: serial and worker processes must agree."""


@dataclass(frozen=True, eq=False)
class LinearTrainer:
    """A linear model behind the :class:`~atoll.core.contracts.Trainer` contract, without torch.

    Entries: ``weight``, ``(features,)`` or ``(classes, features)``, and ``intercept``, ``()`` or
    ``(classes,)``. The loss of :meth:`fit` and :meth:`gradient` holds the penalty; that of
    :meth:`evaluate` is of the rows alone, so that it merges over sites.

    Args:
        kind: ``linear``, ``logistic`` (labels 0 and 1, one weight vector) or ``multinomial``.
        features: values per row; rows of another shape are flattened.
        classes: C, for ``multinomial``.
        l2: coefficient of the penalty ``l2 / 2 * |W|^2``.
        intercept: whether there is one.
        dtype: of the vector and the arithmetic, ``float32`` or ``float64``.
        exact_auc: see :func:`atoll.models.scores.classification_scores`.
        personal: patterns of entries that stay at the client.

    >>> from atoll.core.contracts import Examples
    >>> trainer = LinearTrainer("linear", 1, intercept=False)
    >>> rows = Examples(np.array([[1.0], [2.0]]), np.array([2.0, 4.0]))
    >>> trainer.gradient(np.array([1.0]), rows)
    (array([-5.]), 2.5)
    """

    kind: Literal["linear", "logistic", "multinomial"]
    features: int
    classes: int = 2
    l2: float = 0.0
    intercept: bool = True
    dtype: str = "float64"
    exact_auc: bool = True
    personal: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse an unknown kind.

        Raises:
            JobError: naming the nearest known kind.
        """
        if self.kind not in _KINDS:
            raise JobError(
                f"unknown linear model {self.kind!r}", remedy=suggest(str(self.kind), _KINDS)
            )

    @property
    def corrects(self) -> bool:
        """True: local rules are applied."""
        return True

    @cached_property
    def layout(self) -> Layout:
        """``weight`` and, if there is one, ``intercept``."""
        outputs = (self.classes,) if self.kind == "multinomial" else ()
        entries = [Entry("weight", (*outputs, self.features), self.dtype)]
        if self.intercept:
            entries.append(Entry("intercept", outputs, self.dtype))
        return Layout.of(entries, personal=self.personal, dtype=self.dtype)

    def initial(self, seed: Seed) -> Array:
        """Zeros, whatever the seed."""
        return np.zeros(self.layout.size, self.dtype)

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
        """Train from ``parameters``; see :class:`~atoll.core.local.LocalWork` for the steps.

        Each step: gradient of the batch, clipping, the rule's correction, the optimiser.

        Raises:
            DataError: no rows, another number of features, or labels outside the classes.
        """
        self.layout.check(parameters, what="parameters")
        rows, targets = self._examples(data)
        vector, gradient = parameters.copy(), np.zeros(self.layout.size, self.dtype)
        weights, slopes = self.layout.views(vector), self.layout.views(gradient)
        step = flat_optimizer(work.optimizer)
        part = self.layout.shared_trainable
        anchor = None if rule.anchor is None else rule.anchor[part].astype(self.dtype, copy=False)
        shift = None if rule.shift is None else rule.shift[part].astype(self.dtype, copy=False)
        losses, rates = [], []
        with np.errstate(all="ignore"):  # a diverged client is refused by name at the aggregator
            for epoch, index in batches(len(targets), work, seed):
                lr = learning_rate(work, round=round, epoch=epoch)
                losses.append(self._slope(weights, rows[index], targets[index], slopes))
                if work.clip_norm:
                    norm = math.sqrt(float(np.sum(gradient * gradient)))
                    gradient *= min(1.0, work.clip_norm / (norm + 1e-6))
                rule.correct(gradient[part], vector[part], anchor, shift)
                step(vector, gradient, lr)
                rates.append(lr)
        mean = float(np.mean(losses)) if losses else float("nan")
        return Fit(vector, len(losses), sum(rates), len(targets), mean)

    def gradient(self, parameters: Array, data: Any) -> tuple[Array, float]:
        """Gradient of the mean loss over all rows with its penalty, and that loss.

        Raises:
            DataError: as in :meth:`fit`.
        """
        rows, targets = self._examples(data)
        slope = np.zeros(self.layout.size, self.dtype)
        with np.errstate(all="ignore"):
            loss = self._slope(
                self.layout.views(parameters), rows, targets, self.layout.views(slope)
            )
        return slope, loss

    def evaluate(self, parameters: Array, data: Any) -> Metrics:
        """``loss``, and accuracy, confusion and auc, or mse, mae and r2."""
        if len(data) == 0:
            return {"loss": Mean.of(0.0, 0.0)}
        rows, targets = self._examples(data)
        weights = self.layout.views(parameters)
        with np.errstate(all="ignore"):
            parts = [self._outputs(weights, rows[own]) for own in self._blocks(len(targets))]
            outputs = np.concatenate(parts)
            loss = self._residual(outputs.copy(), targets)[0] / len(targets)
            found = (
                regression_scores(targets, outputs)
                if self.kind == "linear"
                else classification_scores(targets, outputs, exact_auc=self.exact_auc)
            )
        return {"loss": Mean.of(loss, len(targets)), **found}

    def _examples(self, data: Any) -> tuple[Array, Array]:
        rows = np.asarray(data.features)
        targets = np.asarray(data.targets)
        if not len(targets):
            raise DataError("the client has no rows", remedy="leave it out of the cohort")
        flat = rows.reshape(len(rows), -1)
        if flat.shape[1] != self.features or len(flat) != len(targets):
            raise DataError(
                f"features of shape {rows.shape} with {len(targets)} targets; "
                f"the model takes {self.features} values per row",
                remedy="check the declared columns",
            )
        if self.kind == "linear":
            return flat, targets.astype(self.dtype, copy=False)
        check_labels(targets, self.classes if self.kind == "multinomial" else 2)
        return flat, targets.astype(np.int64, copy=False)

    def _outputs(self, weights: dict[str, Array], rows: Array) -> Array:
        z: Array = np.asarray(rows.astype(self.dtype, copy=False) @ weights["weight"].T)
        if self.intercept:
            z += weights["intercept"]
        return z

    def _blocks(self, rows: int) -> Iterator[slice]:
        size = max(1, _PRODUCT // max(self.features, self.classes))
        return (slice(start, min(start + size, rows)) for start in range(0, rows, size))

    def _residual(self, z: Array, targets: Array) -> tuple[float, Array]:
        """Sum of the rows' losses without penalty, and its derivative by z; may overwrite ``z``."""
        if self.kind == "linear":
            rest = z - targets
            return float(np.sum(rest * rest)), 2.0 * rest
        if self.kind == "logistic":
            y = targets.astype(z.dtype)
            return float(np.sum(np.logaddexp(0, z) - y * z)), sigmoid(z) - y
        # Ufunc reductions called directly and in place: at ten rows the calls are the cost.
        each = np.arange(len(targets))
        z -= np.maximum.reduce(z, axis=1, keepdims=True)
        own = z[each, targets]
        odds = np.exp(z, out=z)
        total = np.add.reduce(odds, axis=1, keepdims=True)
        odds /= total
        odds[each, targets] -= 1.0
        return float(np.add.reduce(np.log(total[:, 0]) - own)), odds

    def _slope(
        self, weights: dict[str, Array], rows: Array, targets: Array, into: dict[str, Array]
    ) -> float:
        """Write the gradient of the penalised mean loss into ``into``; returns that loss."""
        n, loss, w = len(targets), 0.0, weights["weight"]
        for own in self._blocks(n):
            x = rows[own].astype(self.dtype, copy=False)
            part, rest = self._residual(self._outputs(weights, x), targets[own])
            loss += part / n
            rest /= n
            if own.start == 0:
                np.matmul(rest.T, x, out=into["weight"])
            else:
                into["weight"] += rest.T @ x
            if self.intercept:
                before = into["intercept"] if own.start else 0.0
                into["intercept"][...] = before + np.add.reduce(rest, axis=0)
        if self.l2:
            into["weight"] += self.l2 * w
            loss += 0.5 * self.l2 * float(np.sum(w * w))
        return loss
