"""Real numbers as digits that add up without rounding, for whole arrays at once.

A site's sums are real numbers of any size: counts, squares of incomes, products of probabilities. What is
added must neither depend on the order of sites nor lose anything, and must pass through a ring of
integers where aggregation is masked. So every number is cut into :data:`COUNT` signed digits to the base
``2**32``, in units of ``2**LOW``. Digits of up to 2^19 sites add exactly, as float64 or as integers.
"""

from __future__ import annotations

import numpy as np

from atoll.core.errors import UpdateRefused
from atoll.core.layout import Array

__all__ = ["COUNT", "LARGEST", "LOW", "decode", "encode"]

LOW = -112
"""Binary exponent of the unit, 1.9e-34; what lies below is cut off, towards zero."""

COUNT = 7
"""Number of digits, lowest first."""

BITS = 32
LARGEST = 2.0 ** (LOW + BITS * COUNT)
"""Numbers must be smaller than this in size: 2^112, 5.2e33."""


def encode(values: Array) -> Array:
    """Digits of finite numbers, each a whole number below 2^32 in size.

    Args:
        values: ``(k,)`` float64.

    Returns:
        ``(COUNT, k)`` float64.

    Raises:
        UpdateRefused: a value is not finite, or too large.

    >>> encode(np.array([3.0]))[:, 0].astype(int).tolist()
    [0, 0, 0, 196608, 0, 0, 0]
    """
    rest = np.array(values, np.float64)
    bad = rest[~(np.abs(rest) < LARGEST)]
    if bad.size:
        raise UpdateRefused(
            f"{bad.size} of {rest.size} sums cannot be added up exactly, the first is {bad[0]:g}",
            remedy="use larger units for very large columns, and look for values that overflow",
        )
    digits = np.empty((COUNT, rest.size))
    for i in reversed(range(COUNT)):
        unit = 2.0 ** (LOW + BITS * i)
        digits[i] = np.trunc(rest / unit)
        rest -= digits[i] * unit  # exact: what is taken off are the leading bits
    return digits


def decode(digits: Array) -> Array:
    """The numbers that added digits stand for, ``(k,)`` float64, within one unit in the last place.

    Equal totals give equal bits, however they came about.
    """
    whole = np.rint(digits).astype(np.int64)
    plain = _carried(whole)
    negative = plain[-1] < 0
    size = np.where(negative, _carried(-whole), plain).astype(np.float64)
    total = np.zeros(size.shape[1])
    for i in range(COUNT):  # from the lowest: nothing of the same sign cancels
        total += size[i] * 2.0 ** (LOW + BITS * i)
    return np.where(negative, -total, total)


def _carried(whole: Array) -> Array:
    """The same totals with all digits but the highest in [0, 2^32)."""
    out = whole.copy()
    for i in range(COUNT - 1):
        out[i + 1] += out[i] >> BITS
        out[i] &= (1 << BITS) - 1
    return out
