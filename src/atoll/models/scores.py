"""Mergeable metrics from a model's outputs: the same for every trainer.

Outputs of a classifier are logits, ``(n,)`` or ``(n, 1)`` for two classes (the log-odds of class 1)
or ``(n, C)``; those of a regression are predictions of the targets' shape.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from atoll.core.errors import DataError, LayoutError
from atoll.core.layout import Array
from atoll.core.metrics import (
    BinnedAUC,
    Confusion,
    Mean,
    Metric,
    RankedScores,
    Regression,
)

__all__ = ["check_labels", "classification_scores", "hits", "regression_scores", "sigmoid"]


def sigmoid(logits: Array) -> Array:
    """1 / (1 + exp(-logits)), written so that nothing overflows.

    >>> sigmoid(np.array([-1e4, 0.0, 1e4])).tolist()
    [0.0, 0.5, 1.0]
    """
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))


def check_labels(labels: Array, classes: int) -> None:
    """Refuse class indices outside ``[0, classes)``, and numbers between two classes.

    Raises:
        DataError: with the first offending value and its row.
    """
    if not len(labels):
        return
    whole = labels.dtype.kind != "f" or bool((labels == np.floor(labels)).all())
    if not (whole and labels.min() >= 0 and labels.max() < classes):
        right = (labels >= 0) & (labels < classes) & (labels == np.floor(labels))
        bad = np.flatnonzero(~right.reshape(len(labels), -1).all(1))
        value = np.asarray(labels[bad[0]]).ravel()[0]
        raise DataError(
            f"target {value} in row {bad[0]} is not a class in 0..{classes - 1} "
            f"({len(bad)} such rows)",
            remedy="number the classes from 0, or declare more classes",
        )


def classification_scores(
    truth: Array, logits: Array, classes: int | None = None, *, exact_auc: bool = True
) -> dict[str, Metric]:
    """Accuracy and confusion matrix, and for two classes the area under the ROC curve.

    Args:
        truth: class indices, ``(n,)``.
        logits: ``(n,)``, ``(n, 1)`` or ``(n, C)``.
        classes: C where it is declared; else taken from the logits.
        exact_auc: keep every score (exact; see :class:`~atoll.core.metrics.RankedScores` for when
            that is proper) or histograms of log-odds (additive, approximate).

    Raises:
        DataError: a label outside the classes.
        LayoutError: the model gives another number of classes than declared.
    """
    z = logits[:, 0] if logits.ndim == truth.ndim + 1 and logits.shape[1] == 1 else logits
    single = z.ndim == truth.ndim
    width = 2 if single else z.shape[1]
    if classes is not None and classes != width:
        raise LayoutError(
            f"the model gives {width} classes, the job declares {classes}",
            remedy="give the last layer one output per class (or one in all for two classes)",
        )
    check_labels(truth, width)
    found = (z > 0).astype(np.int64) if single else z.argmax(1)
    flat = truth.astype(np.int64).ravel()
    table = Confusion.of(flat, found.ravel(), width)
    correct = sum(row[i] for i, row in enumerate(table.table))
    metrics: dict[str, Metric] = {
        "accuracy": Mean(Fraction(correct), Fraction(len(flat))),
        "confusion": table,
    }
    if width == 2:
        # The difference of the logits orders rows as the probability does and never saturates.
        odds = (z if single else z[:, 1] - z[:, 0]).astype(np.float64).ravel()
        metrics["auc"] = (
            RankedScores.of(flat, odds) if exact_auc else BinnedAUC.of(flat, _spread(odds))
        )
    return metrics


def _spread(odds: Array) -> Array:
    """Log-odds z as ½ + ½ z / (4 + |z|): in the order of probabilities, in [0, 1], and apart where those crowd.

    Rows with chances of one in a thousand would share a few bins of equal width of the probability, and so
    would all rows of a network that is too sure of itself. Of 1000 bins of this one none is wider than 1 in z
    before |z| = 40.
    """
    spread: Array = 0.5 + np.copysign(0.5 - 2.0 / (4.0 + np.abs(odds)), odds)
    return spread


def hits(truth: Array, logits: Array) -> Array:
    """For each row whether the class with the largest logit is its own, ``(n,)``; a part where it has several.

    Args:
        truth: class indices, ``(n,)`` or ``(n, steps)``.
        logits: as for :func:`classification_scores`.
    """
    z = logits[:, 0] if logits.ndim == truth.ndim + 1 and logits.shape[1] == 1 else logits
    found = (z > 0) if z.ndim == truth.ndim else z.argmax(1)
    same = (found.astype(np.int64) == truth.astype(np.int64)).reshape(len(truth), -1)
    return np.asarray(same.mean(axis=1))


def regression_scores(truth: Array, predicted: Array) -> dict[str, Metric]:
    """Mean squared and mean absolute error per row, and R squared.

    Args:
        truth: ``(n,)`` (or ``(n, k)``, scored over all n * k values).
        predicted: as many values in the same order.
    """
    t = truth.astype(np.float64).ravel()
    p = predicted.astype(np.float64).ravel()
    n = Fraction(len(truth))
    rest = p - t
    with np.errstate(over="ignore"):  # what is beyond float64 makes a figure that is not defined
        squares = rest * rest
    return {
        "mse": _mean(squares, n),
        "mae": _mean(np.abs(rest), n),
        "r2": Regression.of(t, p),
    }


def _mean(values: Array, rows: Fraction) -> Mean:
    return Mean.of(float(values.mean()) if len(values) else 0.0, float(rows))
