"""Exact sums of real numbers as vectors that add up: a fixed-point number cut into limbs.

Column sums over sites must not depend on how rows are spread over them, down to the last bit, and
must hold cents and light years alike. A site therefore sends its sum as a whole number in units of
``2**LOW``, written with :data:`COUNT` signed digits to the base ``2**24``, one float64 each. Digits of
many sites add without rounding (below ``2**53``) and the receiver reads the total as one fraction.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from atoll.core.errors import DataError
from atoll.core.layout import Array

__all__ = ["COUNT", "LOW", "decode", "encode", "exact_sum", "exact_sum_of_squares"]

LOW = -330
"""Binary exponent of the unit; what lies below is cut off each value."""

COUNT = 28
"""Number of digits; totals reach ``2**(24 * 28 - 330) = 2**342``."""

_BASE_BITS = 24
_LARGEST = 2.0**150
_SPLITTER = 134217729.0  # 2^27 + 1, Dekker's constant for float64


def exact_sum(values: Array) -> int:
    """The sum of ``values`` in units of ``2**LOW``, as if computed without rounding.

    Args:
        values: finite, ``(n,)``, below 2^150 in size.

    Raises:
        DataError: a value is too large or not finite.
    """
    _check(values, _LARGEST)
    return _total(values)


def exact_sum_of_squares(values: Array) -> int:
    """The sum of squares of ``values``, like :func:`exact_sum`.

    Each square is first written as three float64 without rounding: with x = h + l,
    x^2 = h^2 + 2 h l + l^2 (Dekker, "A floating-point technique for extending the available
    precision", Numer. Math. 18, 1971).
    """
    _check(values, _LARGEST)
    wide = _SPLITTER * values
    high = wide - (wide - values)
    low = values - high
    return _total(high * high) + _total(2 * high * low) + _total(low * low)


def encode(total: int) -> Array:
    """A whole number in units of ``2**LOW`` as digits, ``(COUNT,)`` float64, lowest first."""
    sign, rest = (-1 if total < 0 else 1), abs(total)
    digits = np.empty(COUNT)
    for i in range(COUNT):
        rest, digit = divmod(rest, 1 << _BASE_BITS)
        digits[i] = sign * digit
    if rest:
        raise DataError("a column's sum of squares is beyond 2^342", remedy="use a larger unit")
    return digits


def decode(digits: Array) -> Fraction:
    """The number that (added) digits stand for, exactly."""
    whole = sum(int(d) << (_BASE_BITS * i) for i, d in enumerate(digits.tolist()))
    return Fraction(whole) * Fraction(2) ** LOW


def _check(values: Array, largest: float) -> None:
    if len(values) and not np.all(np.abs(values) < largest):  # NaN fails the comparison too
        bad = values[int(np.argmax(~(np.abs(values) < largest)))]
        raise DataError(f"value {bad:g} cannot be summed", remedy="values must be below 1e45")


def _total(values: Array) -> int:
    mantissa, exponent = np.frexp(np.asarray(values, np.float64))
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    shift = exponent.astype(np.int64) - 53 - LOW
    total = 0
    for s in np.unique(shift[whole != 0]):
        part = whole[shift == s]
        if s < 0:  # cut value by value, so that the total does not depend on how rows are grouped
            part = np.sign(part) * (np.abs(part) >> min(-int(s), 62))
        high, low = part >> 26, part & ((1 << 26) - 1)
        total += ((int(high.sum()) << 26) + int(low.sum())) << max(int(s), 0)
    return total
