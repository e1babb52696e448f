"""Sums of floats that do not depend on order, to the last bit.

Each value is split on fixed grids: the part on grid ``2**e1`` goes to the first bin, what is left to
the next, finer bin. Parts on one grid are whole multiples of it, so float64 adds them without
rounding as long as the bin's total stays below ``2**(53 + e1)``, and exact addition commutes. The
split is Rump's extraction by adding and subtracting a big constant; binned sums are treated by
Demmel and Nguyen, "Parallel Reproducible Summation", IEEE Trans. Computers 64 (2015),
doi:10.1109/TC.2014.2345391. What lies below the finest grid is rounded to it once per value.

============  ===============  ==================  =====================
input dtype   grids            finest step         largest total
============  ===============  ==================  =====================
float32       2^-12, 2^-43     2^-43 = 1.1e-13     2^39 = 5.5e11
float64       1, 2^-27, 2^-54  2^-54 = 5.6e-17     2^51 = 2.3e15
============  ===============  ==================  =====================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from atoll.core.errors import UpdateRefused
from atoll.core.layout import Array
from atoll.core.metrics import Metric, merge_metrics
from atoll.core.values import Aggregate, Update

__all__ = ["ExactSum", "Fold"]

_GRIDS = {"float32": (-12, -43), "float64": (0, -27, -54)}
_BLOCK = 1 << 13
"""Values handled at a time: the temporaries of one block stay in the first-level cache."""


class ExactSum:
    """Running sum of vectors of one length; adding and merging commute exactly.

    Args:
        size: length of the vectors.
        dtype: ``float32`` or ``float64``, the dtype of what is added; chooses the grids.
    """

    def __init__(self, size: int, dtype: str = "float32") -> None:
        self.dtype = dtype
        self._grids = _GRIDS[dtype]
        self.bins = np.zeros((len(self._grids), size))
        self.reach = 0
        """Upper bound on any total so far, as a whole number."""

    @property
    def limit(self) -> int:
        """Totals must stay below this to be exact."""
        return 1 << (51 + self._grids[0])

    def check(self, vector: Array, factor: float) -> int:
        """The reach of ``factor * vector``.

        Raises:
            UpdateRefused: it has a value that is not finite or is too large to add exactly.
        """
        size = self.bins.shape[1]
        if vector.shape != (size,):
            raise UpdateRefused(f"vector of shape {vector.shape} where ({size},) is expected")
        top = max(float(vector.max()), -float(vector.min())) if size else 0.0
        if not math.isfinite(top) or not math.isfinite(factor):
            bad = int(np.count_nonzero(~np.isfinite(vector)))
            raise UpdateRefused(f"{bad} of {size} values are not finite (weight {factor:g})")
        reach = math.ceil(Fraction(top) * Fraction(abs(factor))) + 1
        if reach >= self.limit:
            raise UpdateRefused(f"value {top * factor:.3g} is beyond the range {self.limit:.3g}")
        return reach

    def add(self, vector: Array, factor: float = 1.0) -> None:
        """Add ``factor * vector``.

        Raises:
            UpdateRefused: see :meth:`check`, or the total would leave the exact range; the sum is
                then unchanged.
        """
        reach = self.check(vector, factor)
        if self.reach + reach >= self.limit:
            raise UpdateRefused(f"the sum leaves the exact range {self.limit:.3g}")
        self.reach += reach
        size = len(vector)
        work = np.empty((2, min(size, _BLOCK)))
        for start in range(0, size, _BLOCK):
            stop = min(start + _BLOCK, size)
            rest, part = work[0, : stop - start], work[1, : stop - start]
            np.multiply(vector[start:stop], factor, out=rest, dtype=np.float64)
            for row, exponent in enumerate(self._grids):
                big = 1.5 * 2.0 ** (52 + exponent)
                np.add(rest, big, out=part)
                part -= big
                self.bins[row, start:stop] += part
                if row + 1 < len(self._grids):
                    rest -= part

    def merge(self, other: ExactSum) -> None:
        """Add another running sum of the same length and dtype."""
        if self.reach + other.reach >= self.limit:
            raise UpdateRefused(f"the sum leaves the exact range {self.limit:.3g}")
        self.reach += other.reach
        self.bins += other.bins

    def total(self) -> Array:
        """The sum in float64, rounded by one fixed sequence of additions."""
        result: Array = self.bins[-1].copy()
        for row in self.bins[-2::-1]:
            result += row
        return result


class Fold:
    """Folds updates one by one into an :class:`~atoll.core.values.Aggregate`; memory O(model).

    An update is validated whole before any of it is added, so a refused one leaves no trace.
    """

    def __init__(self) -> None:
        self.sums: dict[str, ExactSum] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._weight = Fraction(0)
        self._scaled = Fraction(0)
        self._count = 0
        self._examples = 0
        self._metrics: Mapping[str, Metric] = {}

    def add(self, update: Update, scale: float = 1.0) -> None:
        """Fold one update whose vectors count ``scale * update.weight`` times.

        Raises:
            UpdateRefused: not finite, out of range, a negative weight, or other names or shapes
                than the updates before it.
        """
        if not (math.isfinite(update.weight) and update.weight >= 0):
            raise UpdateRefused(f"weight {update.weight!r} is not a finite number >= 0")
        if self._count and set(update.vectors) != set(self.sums):
            raise UpdateRefused(f"vectors {sorted(update.vectors)}, not {sorted(self.sums)}")
        factor = scale * update.weight
        fresh = {
            name: self.sums.get(name) or ExactSum(v.size, _dtype_name(name, v))
            for name, v in update.vectors.items()
        }
        for name, into in fresh.items():
            v = update.vectors[name]
            if self._shapes.get(name, v.shape) != v.shape:
                raise UpdateRefused(f"{name!r} has shape {v.shape}, not {self._shapes[name]}")
            if into.reach + into.check(v.ravel(), factor) >= into.limit:
                raise UpdateRefused(f"the sum of {name!r} leaves the exact range")
        for name, into in fresh.items():
            self.sums[name] = into
            self._shapes[name] = update.vectors[name].shape
            into.add(update.vectors[name].ravel(), factor)
        self._weight += Fraction(update.weight)
        self._scaled += Fraction(factor)
        self._count += 1
        self._examples += update.examples
        self._metrics = merge_metrics(self._metrics, update.metrics)

    def merge(self, other: Fold) -> None:
        """Fold in everything another fold holds."""
        for name, theirs in other.sums.items():
            if name in self.sums:
                self.sums[name].merge(theirs)
            else:
                self.sums[name] = theirs
                self._shapes[name] = other._shapes[name]
        self._weight += other._weight
        self._scaled += other._scaled
        self._count += other._count
        self._examples += other._examples
        self._metrics = merge_metrics(self._metrics, other._metrics)

    def aggregate(self) -> Aggregate:
        """What has been folded so far."""
        return Aggregate(
            sums={n: s.total().reshape(self._shapes[n]) for n, s in self.sums.items()},
            weight=float(self._weight),
            scaled_weight=float(self._scaled),
            count=self._count,
            examples=self._examples,
            metrics=self._metrics,
        )


def _dtype_name(name: str, vector: Array) -> str:
    if vector.dtype.name not in _GRIDS:
        raise UpdateRefused(f"{name!r} has dtype {vector.dtype}, not float32 or float64")
    return str(vector.dtype.name)
