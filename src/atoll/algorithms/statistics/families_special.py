"""Gamma, digamma and trigamma functions of whole arrays, in plain NumPy.

Arguments below 12 are moved up by the recurrence, then Stirling's series is summed; relative errors stay
near 1e-15 (Abramowitz and Stegun, Handbook of Mathematical Functions, 6.1.41, 6.3.18, 6.4.12).
"""

from __future__ import annotations

import math

import numpy as np

from atoll.core.layout import Array

__all__ = ["digamma", "gammaln", "trigamma", "xlogy"]

_UP = 12
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)


def gammaln(x: Array) -> Array:
    """Logarithm of the gamma function of positive ``x``, any shape.

    >>> math.isclose(float(gammaln(np.array([5.0]))[0]), math.log(24), rel_tol=1e-13)
    True
    """
    x = np.asarray(x, np.float64)
    product = np.ones_like(x)
    for _ in range(_UP):
        small = x < _UP
        product = np.where(small, product * x, product)
        x = np.where(small, x + 1.0, x)
    series = np.zeros_like(x)
    for n, b in reversed(list(enumerate(_BERNOULLI, 1))):
        series = series / (x * x) + b / (2 * n * (2 * n - 1))
    result: Array = (x - 0.5) * np.log(x) - x + 0.5 * math.log(2 * math.pi) + series / x
    return result - np.log(product)


def digamma(x: Array) -> Array:
    """Derivative of :func:`gammaln` at positive ``x``."""
    x = np.asarray(x, np.float64)
    shift = np.zeros_like(x)
    for _ in range(_UP):
        small = x < _UP
        shift = np.where(small, shift + 1.0 / x, shift)
        x = np.where(small, x + 1.0, x)
    series = np.zeros_like(x)
    for n, b in reversed(list(enumerate(_BERNOULLI, 1))):
        series = series / (x * x) + b / (2 * n)
    result: Array = np.log(x) - 0.5 / x - series / (x * x)
    return result - shift


def trigamma(x: Array) -> Array:
    """Second derivative of :func:`gammaln` at positive ``x``."""
    x = np.asarray(x, np.float64)
    shift = np.zeros_like(x)
    for _ in range(_UP):
        small = x < _UP
        shift = np.where(small, shift + 1.0 / (x * x), shift)
        x = np.where(small, x + 1.0, x)
    series = np.zeros_like(x)
    for b in reversed(_BERNOULLI):
        series = series / (x * x) + b
    result: Array = 1.0 / x + 0.5 / (x * x) + series / (x * x * x)
    return result + shift


def xlogy(x: Array, y: Array) -> Array:
    """``x * log(y)``, and 0 where ``x`` is 0."""
    result: Array = x * np.log(np.where(x > 0, y, 1.0))
    return result
