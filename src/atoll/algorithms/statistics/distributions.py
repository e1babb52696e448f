"""Tails of the distributions that tests need, in plain Python: normal, t, chi-squared, F, hypergeometric.

Series and continued fractions after W. H. Press et al., "Numerical Recipes", 3rd ed., 2007, sections 6.2
and 6.4, iterated to the last bits: relative errors stay below 1e-10 for the arguments of tests, except where
a tail is smaller than 1e-300.
"""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = [
    "chi2_tail",
    "f_tail",
    "fisher_p",
    "normal_quantile",
    "normal_tail",
    "t_quantile",
    "t_tail",
]

_TINY = 1e-300
_EPS = 1e-16
_MOST = 100_000


def normal_tail(z: float) -> float:
    """P(Z > z) of a standard normal Z.

    >>> round(normal_tail(1.959963984540054), 12)
    0.025
    """
    return 0.5 * math.erfc(z / math.sqrt(2.0))


def normal_quantile(p: float) -> float:
    """The z with P(Z <= z) = p, p in (0, 1): bisection and Newton steps on :func:`normal_tail`."""
    return _inverse(normal_tail, p)


def t_quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p of Student's t with ``df`` degrees of freedom, p in (0, 1).

    >>> round(t_quantile(0.975, 10), 10)
    2.228138852
    """
    return _inverse(lambda x: t_tail(x, df), p)


def _inverse(tail: Callable[[float], float], p: float) -> float:
    """Bisection on the upper tail of a symmetric distribution."""
    if not 0.0 < p < 1.0:
        return math.nan
    if p < 0.5:
        return -_inverse(tail, 1.0 - p)
    wanted, low, high = 1.0 - p, 0.0, 1.0
    while tail(high) > wanted:
        high *= 2.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if tail(middle) > wanted:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def t_tail(t: float, df: float) -> float:
    """P(T > t) of Student's t with ``df`` degrees of freedom; infinite ``df`` is the normal."""
    if math.isnan(t) or math.isnan(df) or df <= 0:
        return math.nan
    if math.isinf(df):
        return normal_tail(t)
    inner, outer = t * t / (df + t * t), df / (df + t * t)
    if t * t < min(df, 1.0):  # near the middle the tail is one half less something small
        upper = 0.5 - 0.5 * _beta(inner, outer, 0.5, 0.5 * df)
    else:
        upper = 0.5 * _beta(outer, inner, 0.5 * df, 0.5)
    return upper if t >= 0 else 1.0 - upper


def f_tail(f: float, df1: float, df2: float) -> float:
    """P(F > f) of the F distribution."""
    if math.isnan(f) or min(df1, df2) <= 0:
        return math.nan
    whole = df2 + df1 * f
    return 1.0 if f <= 0 else _beta(df2 / whole, df1 * f / whole, 0.5 * df2, 0.5 * df1)


def chi2_tail(x: float, df: float) -> float:
    """P(X > x) of the chi-squared distribution.

    >>> round(chi2_tail(3.841458820694124, 1), 12)
    0.05
    """
    if math.isnan(x) or df <= 0:
        return math.nan
    a, half = 0.5 * df, 0.5 * x
    if half <= 0:
        return 1.0
    front = a * math.log(half) - half - math.lgamma(a)
    return 1.0 - _lower_series(a, half, front) if half < a + 1 else _upper_fraction(a, half, front)


def _lower_series(a: float, x: float, front: float) -> float:
    term = total = 1.0 / a
    n = a
    for _ in range(_MOST):
        n += 1.0
        term *= x / n
        total += term
        if term < total * _EPS:
            break
    return total * math.exp(front)


def _upper_fraction(a: float, x: float, front: float) -> float:
    b = x + 1.0 - a
    c, d = 1.0 / _TINY, 1.0 / b
    h = d
    for i in range(1, _MOST):
        an = -i * (i - a)
        b += 2.0
        d = 1.0 / (_nonzero(an * d + b))
        c = _nonzero(b + an / c)
        h *= d * c
        if abs(d * c - 1.0) < _EPS * 8:
            break
    return math.exp(front) * h


def _nonzero(x: float) -> float:
    return _TINY if abs(x) < _TINY else x


def _beta(x: float, y: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b); ``y`` is 1 - x, to its own last bit."""
    if x <= 0.0 or y <= 0.0:
        return 0.0 if x <= 0.0 else 1.0
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front += a * math.log(x) + b * math.log(y)
    if x < (a + 1.0) / (a + b + 2.0):
        return math.exp(front) * _beta_fraction(x, a, b) / a
    return 1.0 - math.exp(front) * _beta_fraction(y, b, a) / b


def _beta_fraction(x: float, a: float, b: float) -> float:
    c, d = 1.0, 1.0 / _nonzero(1.0 - (a + b) * x / (a + 1.0))
    h = d
    for m in range(1, _MOST):
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / _nonzero(1.0 + factor * d)
            c = _nonzero(1.0 + factor / c)
            h *= d * c
        if abs(d * c - 1.0) < _EPS * 8:
            break
    return h


def fisher_p(a: int, b: int, c: int, d: int) -> float:
    """Two-sided p of Fisher's exact test of the table ((a, b), (c, d)).

    Tables with the same margins and no greater probability count, with a relative slack of 1e-7.

    >>> round(fisher_p(3, 1, 1, 3), 10)
    0.4857142857
    """
    first, column, total = a + b, a + c, a + b + c + d
    low, high = max(0, first + column - total), min(first, column)

    def log_p(k: int) -> float:
        return _log_choose(column, k) + _log_choose(total - column, first - k)

    base = _log_choose(total, first)
    seen = log_p(a)
    terms = [
        math.exp(log_p(k) - base)
        for k in range(low, high + 1)
        if log_p(k) <= seen + math.log1p(1e-7)
    ]
    return min(1.0, math.fsum(terms))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
