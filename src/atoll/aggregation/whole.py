"""Sums of integers: they are exact as they are, as long as they stay inside 64 bits.

Quantised updates add up here, with the interface of :class:`~atoll.aggregation.exact.ExactSum`, so that
workers, trays and slabs need not know which of the two they hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from atoll.core.errors import UpdateRefused
from atoll.core.layout import Array

__all__ = ["INTEGERS", "WholeSum"]

INTEGERS = ("int32", "int64")
"""Dtypes that add up as integers."""

_LIMIT = 1 << 63


class WholeSum:
    """Running sum of integer vectors of one length.

    Args:
        size: length of the vectors.
        dtype: ``int32`` or ``int64``, the dtype of what is added; sums are int64.
        limbs: ``(2, size)`` int64 zeros to sum in (the first row stays 0); None for fresh ones.

    >>> whole = WholeSum(1, "int32")
    >>> for value in (2**31 - 1, 2**31 - 1):
    ...     whole.add(np.array([value], np.int32))
    >>> int(whole.total()[0]) == 2**32 - 2
    True
    """

    def __init__(self, size: int, dtype: str = "int64", limbs: Array | None = None) -> None:
        if dtype not in INTEGERS:
            raise UpdateRefused(f"vectors of dtype {dtype} are no integers that add up")
        self.dtype = dtype
        self._kind = np.dtype(dtype)
        self.reach = 0
        """Upper bound on any total so far."""
        self._limbs = np.zeros((2, size), np.int64) if limbs is None else limbs

    @property
    def limit(self) -> int:
        """Totals stay below this."""
        return _LIMIT

    @property
    def size(self) -> int:
        """Length of the vectors; 0 for a shell."""
        return int(self._limbs.shape[1])

    @property
    def bins(self) -> Array:
        """Zeros and the sum, ``(2, size)`` int64."""
        return self._limbs

    def check(self, vector: Array, factor: float) -> int:
        """The reach of ``factor * vector``.

        Raises:
            UpdateRefused: another shape or dtype, or a factor that is not a whole number.
        """
        size = self._limbs.shape[1]
        if vector.shape != (size,) or vector.dtype != self._kind:
            raise UpdateRefused(
                f"vector of shape {vector.shape} and dtype {vector.dtype} "
                f"where ({size},) {self.dtype} is expected"
            )
        if not float(factor).is_integer():
            raise UpdateRefused(f"a factor of {factor:g}: integers count a whole number of times")
        high, low = int(vector.max(initial=0)), int(vector.min(initial=0))
        return max(high, -low) * abs(int(factor))

    def spare(self, reach: int) -> None:
        """Refuse what would bring the sum out of 64 bits.

        Raises:
            UpdateRefused: the reach so far and ``reach`` together exceed the limit.
        """
        if self.reach + reach >= self.limit:
            raise UpdateRefused("the sum leaves 64 bits", remedy="declare fewer clients or levels")

    def add(self, vector: Array, factor: float = 1.0) -> None:
        """Add ``factor * vector``.

        Raises:
            UpdateRefused: see :meth:`check` and :meth:`spare`; the sum is then unchanged.
        """
        reach = self.check(vector, factor)
        self.spare(reach)
        self.take(vector, factor, reach)

    def take(self, vector: Array, factor: float, reach: int) -> None:
        """Add what :meth:`check` gave ``reach`` for and :meth:`spare` let pass."""
        self.reach += reach
        total = self._limbs[1]
        if factor == 1.0:
            np.add(total, vector, out=total)
        else:
            total += vector * np.int64(factor)

    def merge(self, other: Any) -> None:
        """Add another running sum of the same length and dtype, which stays as it is.

        Raises:
            UpdateRefused: another kind, length or dtype, or the range is exceeded.
        """
        mine, theirs = self.bins, other.bins
        if mine.shape != theirs.shape or self.dtype != other.dtype:
            raise UpdateRefused(
                f"sums of ({theirs.shape[1]},) {other.dtype} and ({mine.shape[1]},) {self.dtype}"
            )
        self.spare(other.reach)
        self.reach += other.reach
        mine[1] += theirs[1]

    def detach(self) -> Array:
        """The limbs; the sum is a shell until :meth:`attach`."""
        limbs, self._limbs = self._limbs, np.zeros((2, 0), np.int64)
        return limbs

    def attach(self, limbs: Array) -> None:
        """Take back what :meth:`detach` gave, or a copy of it."""
        self._limbs = limbs

    def total(self) -> Array:
        """The sum, ``(size,)`` int64."""
        return np.array(self._limbs[1])
