"""Metrics that merge: the merge of two sites' metrics is the metric of their rows together.

Each metric is a small immutable record with ``merge`` and ``value``. All but :class:`RankedScores` are
additive arrays of numbers, so they can travel inside a masked sum. Sums of real numbers are kept as
exact fractions, so merging does not depend on order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import Protocol, TypeVar

import numpy as np

from atoll.core.errors import DataError
from atoll.core.layout import Array

__all__ = [
    "BinnedAUC",
    "Confusion",
    "Count",
    "Mean",
    "Metric",
    "Metrics",
    "RankedScores",
    "Regression",
    "higher_is_better",
    "merge_all",
    "merge_metrics",
    "values",
]


class Metric(Protocol):
    """A mergeable metric."""

    def merge(self, other: Metric, /) -> Metric:
        """The metric of both sets of rows together; raises TypeError for another kind."""
        ...

    @property
    def value(self) -> float:
        """The number to show; NaN where it is undefined."""
        ...


Metrics = Mapping[str, Metric]
"""Metrics by name."""


_M = TypeVar("_M")


def _alike(mine: _M, other: object) -> _M:
    if type(other) is not type(mine):
        raise TypeError(f"cannot merge {type(mine).__name__} with {type(other).__name__}")
    return other


def _exact(x: float) -> Fraction:
    return Fraction(float(x)) if math.isfinite(x) else Fraction(0)


def _exact_sum(terms: list[float]) -> Fraction:
    """Sum of finite numbers without any rounding: what one pass rounds off, the next one finds."""
    total = Fraction(0)
    while part := math.fsum(terms):
        total += Fraction(part)
        terms.append(-part)
    return total


def _squares(x: Array) -> list[float]:
    """Numbers whose exact sum is the sum of ``x**2``: halves of 26 bits multiply without rounding.

    Source: Dekker, "A floating-point technique for extending the available precision", 1971.
    """
    wide = x * (2.0**27 + 1)
    high = wide - (wide - x)
    low = x - high
    return [float(p) for part in (high * high, 2 * high * low, low * low) for p in part]


def _two_classes(truth: Array) -> Array:
    labels = np.asarray(truth)
    positive: Array = labels == 1
    wrong = labels[~positive & (labels != 0)]
    if len(wrong):
        raise DataError(
            f"label {wrong[0]} where 0 or 1 is expected",
            remedy="encode the two classes as 0 and 1",
        )
    return positive


@dataclass(frozen=True)
class Mean:
    """Weighted mean: ``total / weight``.

    Args:
        total: sum of w * x, exact.
        weight: sum of w, exact; an integer where it is one: those add several times faster.
        finite: False once a non-finite value went in; the value is then NaN.

    >>> Mean.of(2.0, 3).merge(Mean.of(4.0, 1)).value
    2.5
    """

    total: Fraction
    weight: Fraction | int
    finite: bool = True

    @classmethod
    def of(cls, mean: float, weight: float) -> Mean:
        """The mean of one client's rows and their weight (usually their number)."""
        if not (math.isfinite(mean) and math.isfinite(weight)):
            return cls(_exact(mean) * _exact(weight), _exact(weight), False)
        (m, p), (w, q) = float(mean).as_integer_ratio(), float(weight).as_integer_ratio()
        return cls(Fraction(m * w, p * q), w if q == 1 else Fraction(w, q))

    @classmethod
    def over(cls, parts: Iterable[tuple[float, float]]) -> Mean:
        """:meth:`of` each (mean, weight), merged: the same number for less.

        >>> Mean.over([(2.0, 3), (4.0, 1)]) == Mean.of(2.0, 3).merge(Mean.of(4.0, 1))
        True
        """
        pairs, terms, bottom = list(parts), list[tuple[int, int]](), 1
        held: Fraction | int = 0
        for mean, weight in pairs:
            if not (math.isfinite(mean) and math.isfinite(weight)):
                return reduce(cls.merge, (cls.of(*pair) for pair in pairs))
            (m, p), (w, q) = float(mean).as_integer_ratio(), float(weight).as_integer_ratio()
            terms.append((m * w, p * q))
            bottom = max(
                bottom, p * q
            )  # denominators are powers of two: the largest one serves all
            held += w if q == 1 else Fraction(w, q)
        return cls(Fraction(sum(m * (bottom // q) for m, q in terms), bottom), held)

    def merge(self, other: Metric) -> Mean:
        """Mean over both."""
        o = _alike(self, other)
        return Mean(self.total + o.total, self.weight + o.weight, self.finite and o.finite)

    @property
    def value(self) -> float:
        """The mean; NaN without weight."""
        total, weight = self.total, self.weight
        if not weight or not self.finite:
            return math.nan
        # Of whole numbers the quotient is rounded once.
        return (total.numerator * weight.denominator) / (total.denominator * weight.numerator)


@dataclass(frozen=True)
class Count:
    """A whole number that adds up."""

    count: int

    def merge(self, other: Metric) -> Count:
        """Sum of both."""
        return Count(self.count + _alike(self, other).count)

    @property
    def value(self) -> float:
        """The count."""
        return float(self.count)


@dataclass(frozen=True)
class Confusion:
    """Confusion matrix; its value is accuracy.

    Args:
        table: counts as nested tuples, rows are true classes, columns predicted ones, (C, C).
    """

    table: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, truth: Array, predicted: Array, classes: int) -> Confusion:
        """Count pairs of true and predicted class indices, each ``(n,)`` in [0, classes).

        Raises:
            DataError: an index is not a whole number in [0, classes).
        """
        pairs = []
        for what, given in (("true", truth), ("predicted", predicted)):
            index = np.asarray(given)
            wrong = index[~((index >= 0) & (index < classes) & (index == np.floor(index)))]
            if len(wrong):
                raise DataError(f"{what} class {wrong[0]} is not a whole number in [0, {classes})")
            pairs.append(index.astype(np.int64))
        flat = np.bincount(pairs[0] * classes + pairs[1], minlength=classes**2)
        return cls(tuple(tuple(int(c) for c in row) for row in flat.reshape(classes, classes)))

    def merge(self, other: Metric) -> Confusion:
        """Cell by cell; both must have the same number of classes."""
        o = _alike(self, other)
        if len(o.table) != len(self.table):
            raise ValueError(f"confusion matrices of {len(self.table)} and {len(o.table)} classes")
        return Confusion(
            tuple(
                tuple(a + b for a, b in zip(mine, theirs, strict=True))
                for mine, theirs in zip(self.table, o.table, strict=True)
            )
        )

    @property
    def value(self) -> float:
        """Accuracy; NaN without rows."""
        total = sum(map(sum, self.table))
        return sum(row[i] for i, row in enumerate(self.table)) / total if total else math.nan


_LARGEST = 1e140
"""Beyond it (and for NaN and infinity) sums of squares may leave float64; R-squared is then NaN."""


@dataclass(frozen=True)
class Regression:
    """R-squared of predictions, from exact sums over rows.

    Args:
        n: rows.
        y, yy: sum of y and of y squared.
        rr: sum of squared residuals, each residual rounded once.
        finite: False once a non-finite value went in; the value is then NaN.
    """

    n: int
    y: Fraction
    yy: Fraction
    rr: Fraction
    finite: bool = True

    @classmethod
    def of(cls, truth: Array, predicted: Array) -> Regression:
        """From targets and predictions, each ``(n,)``."""
        t = np.asarray(truth, np.float64)
        p = np.asarray(predicted, np.float64)
        if (np.abs(t) < _LARGEST).all() and (np.abs(p) < _LARGEST).all():
            y, yy, rr = map(_exact_sum, (t.tolist(), _squares(t), _squares(t - p)))
            return cls(len(t), y, yy, rr)
        return cls(len(t), Fraction(0), Fraction(0), Fraction(0), finite=False)

    def merge(self, other: Metric) -> Regression:
        """Over the rows of both."""
        o = _alike(self, other)
        return Regression(
            self.n + o.n, self.y + o.y, self.yy + o.yy, self.rr + o.rr, self.finite and o.finite
        )

    @property
    def value(self) -> float:
        """R squared = 1 - residual / total sum of squares; NaN where y is constant."""
        spread = self.yy - self.y * self.y / self.n if self.n else Fraction(0)
        if not (spread > 0 and self.finite):
            return math.nan
        r_squared = 1 - self.rr / spread
        return float(r_squared) if r_squared > -_LARGEST else -math.inf


@dataclass(frozen=True)
class RankedScores:
    """Exact area under the ROC curve; merging keeps every score, so it never leaves a site.

    Use it where the scores lie together anyway (a central test set, one site's own rows, a
    simulation); across sites use :class:`BinnedAUC`.

    Args:
        positives, negatives: sorted scores of either class.
    """

    positives: tuple[float, ...]
    negatives: tuple[float, ...]

    @classmethod
    def of(cls, truth: Array, scores: Array) -> RankedScores:
        """From 0/1 labels and real scores, each ``(n,)``.

        Raises:
            DataError: a label is neither 0 nor 1.
        """
        positive = _two_classes(truth)
        order = np.sort(scores[positive]), np.sort(scores[~positive])
        return cls(*(tuple(map(float, s)) for s in order))

    def merge(self, other: Metric) -> RankedScores:
        """All scores of both."""
        o = _alike(self, other)
        return RankedScores(
            tuple(sorted(self.positives + o.positives)), tuple(sorted(self.negatives + o.negatives))
        )

    @property
    def value(self) -> float:
        """P(score of a positive > score of a negative) + half of P(equal); NaN for one class."""
        p, n = np.array(self.positives), np.array(self.negatives)
        if not len(p) or not len(n) or not (np.isfinite(p).all() and np.isfinite(n).all()):
            return math.nan
        below = np.searchsorted(n, p, "left").sum()
        not_above = np.searchsorted(n, p, "right").sum()
        return float(int(below) + int(not_above)) / (2.0 * len(p) * len(n))


@dataclass(frozen=True, eq=False)
class BinnedAUC:
    """Area under the ROC curve from histograms of scores in [0, 1]: additive, approximate.

    Scores that share a bin count as ties, so the error is at most :attr:`error_bound`, half the
    share of positive-negative pairs that fall into one bin.

    Args:
        counts: rows per bin of equal width, negatives first, ``(2, bins)`` int64.
        undefined: rows whose score was NaN; the value is NaN if there are any.
    """

    counts: Array
    undefined: int = 0

    @classmethod
    def of(cls, truth: Array, scores: Array, bins: int = 1000) -> BinnedAUC:
        """From 0/1 labels and probabilities, each ``(n,)``; scores outside [0, 1] join the end bins.

        Raises:
            DataError: a label is neither 0 nor 1.
        """
        positive, known = _two_classes(truth), ~np.isnan(scores)
        inside = np.clip(scores[known], 0.0, 1.0)
        cell = np.minimum((inside * bins).astype(np.int64), bins - 1)
        flat = np.bincount(cell + bins * positive[known], minlength=2 * bins)
        return cls(flat.reshape(2, bins), len(scores) - len(cell))

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same counts."""
        return (
            isinstance(other, BinnedAUC)
            and self.undefined == other.undefined
            and np.array_equal(self.counts, other.counts)
        )

    def __hash__(self) -> int:
        """Equal for equal counts."""
        return hash((self.counts.tobytes(), self.undefined))

    def merge(self, other: Metric) -> BinnedAUC:
        """Bin by bin; both must have the same number of bins."""
        o = _alike(self, other)
        if o.counts.shape != self.counts.shape:
            raise ValueError(f"histograms of {self.counts.shape[1]} and {o.counts.shape[1]} bins")
        return BinnedAUC(self.counts + o.counts, self.undefined + o.undefined)

    def _tally(self) -> tuple[Array, Array, int]:
        """Negatives and positives per bin, and the number of pairs; wide enough to multiply."""
        pairs = math.prod(int(n) for n in self.counts.sum(1))
        negatives, positives = self.counts.astype(object if pairs >= 2**61 else np.int64)
        return negatives, positives, pairs

    @property
    def value(self) -> float:
        """The area with ties inside a bin counted one half; NaN for one class or a NaN score."""
        n, p, pairs = self._tally()
        if not pairs or self.undefined:
            return math.nan
        return int((p * (2 * n.cumsum() - n)).sum()) / (2 * pairs)

    @property
    def error_bound(self) -> float:
        """Largest possible distance from the exact area."""
        n, p, pairs = self._tally()
        return int((p * n).sum()) / (2 * pairs) if pairs and not self.undefined else math.nan


def merge_metrics(a: Metrics, b: Metrics) -> dict[str, Metric]:
    """Merge by name; a name only one side has is kept."""
    merged = dict(a)
    for name, metric in b.items():
        merged[name] = merged[name].merge(metric) if name in merged else metric
    return merged


def merge_all(many: Iterable[Metrics]) -> dict[str, Metric]:
    """Merge any number of metric sets; the result does not depend on their order."""
    level = [dict(metrics) for metrics in many]
    while len(level) > 1:  # by pairs: merging that copies would else take quadratic time
        pairs = zip(level[::2], level[1::2], strict=False)
        level = [merge_metrics(a, b) for a, b in pairs] + level[len(level) & ~1 :]
    return level[0] if level else {}


def values(metrics: Metrics) -> dict[str, float]:
    """The numbers to show."""
    return {name: metric.value for name, metric in metrics.items()}


_LESS_IS_BETTER = (
    *("brier", "deviance", "entropy", "error", "loss", "mae", "mape", "mse"),
    *("nll", "perplexity", "rmsle"),
)


def higher_is_better(name: str) -> bool:
    """Whether more of a metric is better, judged by its name: of losses and errors less is.

    The one place that decides it: which model of a run is kept as the best, and what a report calls a gain.

    >>> [higher_is_better(name) for name in ("auc", "log_loss", "worst_error")]
    [True, False, False]
    """
    return not any(word in name.lower() for word in _LESS_IS_BETTER)
