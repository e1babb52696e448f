"""Integer noise: what can be added inside a mask, and what has no low bits to tell.

* :func:`discrete_gaussian`, :func:`discrete_laplace`: exact. The samplers of Canonne, Kamath, Steinke,
  *The Discrete Gaussian for Differential Privacy* (NeurIPS 2020, https://arxiv.org/abs/2004.00010),
  Algorithms 2 and 3, for whole arrays. Each coin that falls with probability exp(-gamma) compares 64
  random bits with a float64; where the two are too near to be sure, more bits are drawn and the
  exponential is computed to as many digits as it takes. No rounding is left in the distribution.
* :func:`poisson`, :func:`skellam`: small means by inversion of a table of 64-bit thresholds, within 2^-60
  of the distribution; others by transformed rejection (Hörmann, 1993, algorithm PTRS) with the
  probability in Loader's form (2000), whose relative error is about 1e-13.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from atoll.core.errors import JobError
from atoll.core.layout import Array
from atoll.privacy.dp.noise import Source, words

__all__ = ["discrete_gaussian", "discrete_laplace", "laplace", "poisson", "skellam"]

Whole = np.ndarray[Any, np.dtype[np.int64]]
Words = np.ndarray[Any, np.dtype[np.uint64]]

_BLOCK = 1 << 15
_WIDEST = 2.0**46
"""Largest scale: 45 times as much is still exact in a float64."""

_LARGEST_MEAN = 2.0**51
_TABLE = 12.0
"""Means up to this are drawn from a table."""

_LADDER = 45


def discrete_gaussian(source: Source, size: int, sigma: float) -> Whole:
    """``size`` draws with P(k) ~ exp(-k^2 / (2 sigma^2)), int64.

    Raises:
        JobError: ``sigma`` is not above 0, or beyond 2^46.
    """
    _check("sigma", sigma, _WIDEST)
    t = math.floor(sigma) + 1
    shift = sigma * sigma / t
    square, middle = Fraction(sigma) ** 2, Fraction(sigma) ** 2 / t

    def some(count: int) -> Whole:
        y = _laplace_block(source, count, t)
        off = (np.abs(y) - shift) / sigma

        def exact(i: int) -> Fraction:
            return (abs(int(y[i])) - middle) ** 2 / (2 * square)

        kept: Whole = y[_coins(source, off * off / 2, exact)]
        return kept

    return _gathered(some, size, 1.5)


def discrete_laplace(source: Source, size: int, scale: int) -> Whole:
    """``size`` draws with P(k) ~ exp(-abs(k) / scale), int64: two-sided geometric.

    Raises:
        JobError: ``scale`` is no whole number above 0, or beyond 2^46.
    """
    _check("scale", scale, _WIDEST)
    if scale != int(scale):
        raise JobError(f"scale {scale} is no whole number", remedy="use laplace")
    return _gathered(lambda count: _laplace_block(source, count, int(scale)), size, 1.1)


def laplace(source: Source, size: int, scale: float) -> Array:
    """``size`` Laplace draws on a grid of about 2^-23 of ``scale``, float64; never less noise than that.

    Add them to values on the same grid (:func:`~atoll.privacy.dp.noise.grid_of`), or round afterwards.
    """
    from atoll.privacy.dp.noise import grid_of

    _check("scale", scale, math.inf)
    grid = grid_of(scale)
    return discrete_laplace(source, size, math.ceil(scale / grid)) * grid


def poisson(source: Source, size: int, mean: float) -> Whole:
    """``size`` Poisson draws, int64.

    Raises:
        JobError: ``mean`` is not above 0, or beyond 2^51.
    """
    _check("mean", mean, _LARGEST_MEAN)
    if mean <= _TABLE:
        return np.searchsorted(_poisson_table(mean), words(source, size), side="right")
    return _gathered(lambda count: _rejected(source, count, mean), size, 1.2)


def skellam(source: Source, size: int, variance: float) -> Whole:
    """``size`` draws of the difference of two Poisson variables, with this variance and mean 0.

    Raises:
        JobError: the variance is not above 0, or beyond 2^52.
    """
    _check("variance", variance, 2 * _LARGEST_MEAN)
    return poisson(source, size, variance / 2) - poisson(source, size, variance / 2)


def _check(what: str, value: float, largest: float) -> None:
    if not (0 < value <= largest and math.isfinite(value)):
        raise JobError(
            f"integer noise with {what} {value}",
            remedy=f"it must be above 0 and at most {largest:g}; use a coarser lattice",
        )


def _gathered(some: Callable[[int], Whole], size: int, factor: float) -> Whole:
    """Blocks of draws, of which some are lost, until there are ``size``."""
    out, have = np.empty(size, np.int64), 0
    while have < size:
        part = some(min(_BLOCK, int((size - have) * factor) + 16))[: size - have]
        out[have : have + len(part)] = part
        have += len(part)
    return out


def _laplace_block(source: Source, count: int, t: int) -> Whole:
    """Draws of the discrete Laplace distribution, fewer than ``2 * count``; Algorithm 2."""
    u = _below(source, 2 * count, t)
    u = u[_coins(source, u / t, lambda i: Fraction(int(u[i]), t))]
    x = u + t * _ladder(source, len(u))
    negative = (words(source, len(x)) & np.uint64(1)).astype(bool)
    x[negative] = -x[negative]
    once: Whole = x[~(negative & (x == 0))]  # minus zero is zero a second time
    return once


def _below(source: Source, count: int, t: int) -> Whole:
    """Uniform whole numbers in [0, t), at most ``count`` of them: too large ones are left out."""
    mask = np.uint64((1 << (t - 1).bit_length()) - 1)
    drawn = (words(source, count) & mask).astype(np.int64)
    return drawn[drawn < t]


def _ladder(source: Source, count: int) -> Whole:
    """How often in a row a coin of exp(-1) falls: the whole part of -log U, U uniform."""
    floors = _exponentials()
    w = words(source, count)
    v = (_LADDER - np.searchsorted(floors, w, side="right")).astype(np.int64)
    for i in np.flatnonzero(np.isin(w, floors)):  # too near to be sure: once in 2^58 draws
        v[i] = _whole_log(source, int(w[i]))
    return v


def _whole_log(source: Source, word: int) -> int:
    """The whole part of -log U for a U that begins with ``word``."""
    bits = 64
    while True:
        with localcontext() as context:
            context.prec = bits // 3 + 30
            least = -(Decimal(word + 1) / 2**bits).ln()
            most = -(Decimal(word) / 2**bits).ln() if word else least + 1
        if int(least) == int(most):
            return int(least)
        word = word << 64 | int(words(source, 1)[0])
        bits += 64


@lru_cache(maxsize=1)
def _exponentials() -> Words:
    """2^64 exp(-k) rounded down for k = 45 ... 1: a word below it is surely below the number."""
    with localcontext() as context:
        context.prec = 60
        exact = [Decimal(-k).exp() * 2**64 for k in range(_LADDER, 0, -1)]
    return np.array([int(x) for x in exact], np.uint64)


def _coins(
    source: Source, gamma: Array, exact: Callable[[int], Fraction]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A coin that falls with probability exp(-gamma) for each entry, gamma at least 0.

    Args:
        source: of random bits.
        gamma: to a relative error of 2^-46.
        exact: the same without error, by entry.
    """
    drawn = words(source, len(gamma))
    bar = np.exp(-gamma) * 2.0**64
    real = drawn.astype(np.float64)
    fell = real < bar
    # The error of gamma is one of the bar times gamma; float64 adds one of 2^-53 to each.
    near = np.abs(real - bar) <= (bar * (1.0 + gamma) + real) * 2.0**-44 + 2.0
    for i in np.flatnonzero(near):
        fell[i] = _decided(source, int(drawn[i]), exact(int(i)))
    return fell


def _decided(source: Source, word: int, gamma: Fraction) -> bool:
    """Whether a uniform number that begins with ``word`` lies below exp(-gamma)."""
    if not gamma:
        return True
    bits = 64
    while True:
        digits = bits // 3 + 30
        with localcontext() as context:
            context.prec = digits
            power = (Decimal(-gamma.numerator) / Decimal(gamma.denominator)).exp()
            scaled = power * 2**bits
            slack = scaled * (1 + abs(int(gamma))) * Decimal(10) ** (4 - digits)
            if word + 1 <= scaled - slack:
                return True
            if word >= scaled + slack:
                return False
        word = word << 64 | int(words(source, 1)[0])
        bits += 64


@lru_cache(maxsize=16)
def _poisson_table(mean: float) -> Words:
    """Entry k: 2^64 P(X <= k); a word in front of it and not of the one before means k."""
    table, k = list[int](), 0
    with localcontext() as context:
        context.prec = 60
        term = (-Decimal(mean)).exp()
        total = term
        while ((cell := int(total * 2**64)) < 2**64 - 1 and term > Decimal(2) ** -80) or k < mean:
            table.append(min(cell, 2**64 - 1))
            k += 1
            term *= Decimal(mean) / k
            total += term
    return np.array(table, np.uint64)


def _rejected(source: Source, count: int, mean: float) -> Whole:
    """Hörmann's PTRS; fewer draws than ``count``."""
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    invalpha = 1.1239 + 1.1328 / (b - 3.4)
    u = words(source, count).view(np.int64) * 2.0**-64
    v = (words(source, count).astype(np.float64) + 0.5) * 2.0**-64
    us = np.maximum(0.5 - np.abs(u), 2.0**-64)
    k = np.floor((2 * a / us + b) * u + mean + 0.43)
    kept = (us >= 0.07) & (v <= 0.9277 - 3.6224 / (b - 2))
    open_ = ~kept & (k >= 0) & ~((us < 0.013) & (v > us)) & (k < 2.0**53)
    at = np.flatnonzero(open_)
    height = np.log(v[at]) + math.log(invalpha) - np.log(a / us[at] ** 2 + b)
    kept[at] = height <= _log_poisson(k[at], mean)
    drawn: Whole = k[kept].astype(np.int64)
    return drawn


def _log_poisson(k: Array, mean: float) -> Array:
    """Log of the probability in Loader's form: a deviance and a small correction, no large terms."""
    d = (k - mean) / mean
    near = np.abs(d) < 0.1
    small = np.where(near, d, 0.0)
    series = np.zeros_like(d)
    for j in range(18, 1, -1):
        series = series * small + (-1) ** j / (j * (j - 1))
    series *= small * small
    away = np.where(near, 0.5, d)
    with np.errstate(divide="ignore", invalid="ignore"):
        direct = (1 + away) * np.log1p(np.maximum(away, -1.0)) - away
    deviance = mean * np.where(near, series, direct)
    n = np.maximum(k, 1.0)
    out = -deviance - _stirling(n) - 0.5 * np.log(2 * math.pi * n)
    return np.asarray(np.where(k == 0, -mean, out))


def _stirling(n: Array) -> Array:
    """Log n! less Stirling's formula, n at least 1."""
    inverse = 1.0 / n
    s = inverse * inverse
    out = inverse * (1 / 12 - s * (1 / 360 - s * (1 / 1260 - s * (1 / 1680 - s / 1188))))
    for i in np.flatnonzero(n < 16):
        m = float(n[i])
        out[i] = math.lgamma(m + 1) - ((m + 0.5) * math.log(m) - m + 0.5 * math.log(2 * math.pi))
    return out
