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


_AT_ONCE = 1 << 25
"""Values whose halves of 26 bits have a sum below 2^53."""


def decode(digits: Array) -> Fraction:
    """The number that (added) digits stand for, exactly."""
    whole = sum(int(d) << (_BASE_BITS * i) for i, d in enumerate(digits.tolist()))
    return Fraction(whole) * Fraction(2) ** LOW


def _check(values: Array, largest: float) -> None:
    if len(values) and not np.all(np.abs(values) < largest):  # NaN fails the comparison too
        bad = values[int(np.argmax(~(np.abs(values) < largest)))]
        raise DataError(f"value {bad:g} cannot be summed", remedy="values must be below 1e45")


def _total(values: Array) -> int:
    if len(values) > _AT_ONCE:
        return _total(values[:_AT_ONCE]) + _total(values[_AT_ONCE:])
    if not len(values):
        return 0
    mantissa, exponent = np.frexp(np.asarray(values, np.float64))
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    shift = exponent.astype(np.int64) - 53 - LOW
    # Cut value by value, so that the total does not depend on how rows are grouped.
    kept: Array = np.sign(whole) * (np.abs(whole) >> np.clip(-shift, 0, 62))
    least = max(int(shift.min()), 0)
    place = np.maximum(shift, 0) - least
    # Halves of 26 bits, added up by exponent: each of these sums is exact in float64.
    halves = (np.bincount(place, half).tolist() for half in (kept >> 26, kept & ((1 << 26) - 1)))
    parts = enumerate(zip(*halves, strict=True), least)
    return sum(((int(high) << 26) + int(low)) << s for s, (high, low) in parts if high or low)
