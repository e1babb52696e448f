"""Metrics as vectors that add up: so they travel inside a sum of integers, never in the clear.

Each kind of metric becomes few named parts, each with the range its lane needs. Sums of real numbers lose
what lies below their lane's grid (about 1e-9 of a unit with five clients); counts lose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from atoll.core.chain import Range
from atoll.core.layout import Array
from atoll.core.metrics import BinnedAUC, Confusion, Count, Mean, Metric, Regression

__all__ = ["additive", "joined", "split"]

_COUNTS = Range(2.0**40, 1.0)
_SUMS = Range(2.0**32)
_WEIGHTS = Range(2.0**40, 2.0**-10)

Parts = Mapping[str, tuple[Array, Range]]


def additive(metric: Metric) -> bool:
    """Whether this metric can travel as a sum."""
    return isinstance(metric, Mean | Count | Confusion | Regression | BinnedAUC)


def split(metric: Metric) -> Parts:
    """The parts of a metric, each ``(n,)`` float64, with their ranges.

    Raises:
        TypeError: it does not add up; see :func:`additive`.
    """
    if isinstance(metric, Mean):
        return {
            "total": (_one(metric.total), _SUMS),
            "weight": (_one(metric.weight), _WEIGHTS),
            "wrong": (_one(not metric.finite), _COUNTS),
        }
    if isinstance(metric, Count):
        return {"count": (_one(metric.count), _COUNTS)}
    if isinstance(metric, Confusion):
        return {"table": (np.array(metric.table, np.float64).reshape(-1), _COUNTS)}
    if isinstance(metric, Regression):
        sums = {name: (_one(getattr(metric, name)), _SUMS) for name in ("y", "yy", "rr")}
        wrong = (_one(not metric.finite), _COUNTS)
        return {"n": (_one(metric.n), _COUNTS), **sums, "wrong": wrong}
    if isinstance(metric, BinnedAUC):
        counts = np.asarray(metric.counts, np.float64).reshape(-1)
        return {"counts": (counts, _COUNTS), "undefined": (_one(metric.undefined), _COUNTS)}
    raise TypeError(f"{type(metric).__name__} holds single rows: it does not travel as a sum")


def joined(kind: type, parts: Mapping[str, Array]) -> Metric | None:
    """The metric of this kind whose parts add up to ``parts``; None where nobody sent one."""
    if not any(part.any() for part in parts.values()):
        return None
    if kind is Mean:
        total, weight = _fraction(parts["total"]), _fraction(parts["weight"])
        whole = weight.numerator if weight.denominator == 1 else weight
        return Mean(total, whole, not parts["wrong"].any())
    if kind is Count:
        return Count(_whole(parts["count"]))
    if kind is Confusion:
        table = np.rint(parts["table"]).astype(np.int64)
        side = round(table.size**0.5)
        return Confusion(tuple(tuple(int(c) for c in row) for row in table.reshape(side, side)))
    if kind is Regression:
        y, yy, rr = (_fraction(parts[name]) for name in ("y", "yy", "rr"))
        return Regression(_whole(parts["n"]), y, yy, rr, not parts["wrong"].any())
    counts = np.rint(parts["counts"]).astype(np.int64).reshape(2, -1)
    return BinnedAUC(counts, _whole(parts["undefined"]))


def _one(value: Fraction | int | bool) -> Array:
    return np.array([float(value)])


def _fraction(value: Array) -> Fraction:
    return Fraction(float(value[0]))


def _whole(value: Array) -> int:
    return round(float(value[0]))
