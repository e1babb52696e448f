"""Accounting by Renyi divergence, with NumPy alone: a second opinion, and all there is for some events.

Each event has a curve: a bound on the Renyi divergence of order alpha between its outputs on
neighbouring datasets. Curves of events add up, and the sum is turned into (epsilon, delta).

* Gaussian with Poisson sampling: Mironov, Talwar, Zhang, *Renyi Differential Privacy of the Sampled
  Gaussian Mechanism* (2019, https://arxiv.org/abs/1908.10530), the integral evaluated numerically.
* Discrete Gaussian: Canonne, Kamath, Steinke (NeurIPS 2020, https://arxiv.org/abs/2004.00010); sums of
  shares: Kairouz, Liu, Steinke (ICML 2021, https://arxiv.org/abs/2102.06387).
* Skellam: Agarwal, Kairouz, Liu (NeurIPS 2021, https://arxiv.org/abs/2110.04995).
* Sampling of these two: Zhu, Wang, *Poisson Subsampled Renyi Differential Privacy* (ICML 2019).
* Laplace: Mironov (CSF 2017), Proposition 6. Exponential mechanism: epsilon^2 / 8 as a concentration
  bound (Cesar, Rogers, *Bounding, Concentrating, and Truncating*, 2021).
* Conversion: Canonne, Kamath, Steinke, Proposition 12; the older rule of Mironov 2017 is ``classic``.
* What an attack finds: an attack is a guess of yes or no, whose two distributions are no further apart than
  the outputs are (Balle, Barthe, Gaboardi, Hsu, Sato, *Hypothesis Testing Interpretations and Renyi
  Differential Privacy*, AISTATS 2020, https://arxiv.org/abs/1905.09982).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from atoll.core.errors import JobConflict, JobError
from atoll.core.layout import Array
from atoll.privacy.dp.events import (
    DiscreteGaussian,
    Event,
    Gaussian,
    Geometric,
    Laplace,
    MatrixGaussian,
    Neighbouring,
    Selection,
    Skellam,
    Stated,
)

__all__ = ["ORDERS", "convert", "curve", "rdp_epsilon", "rdp_permitted"]

ORDERS = np.array(
    [1 + x / 10 for x in range(1, 100)] + [*range(11, 65), 128, 256, 512, 1024], dtype=np.float64
)
"""Orders alpha at which curves are held."""

_GRID = 40
"""Points of the integral in one standard deviation; the error is below rounding from about 8 on."""

_BLUR = 2.0
"""Smallest share of discrete Gaussian noise: below it a sum of shares is not close to one draw."""


def rdp_epsilon(
    events: Iterable[Event],
    delta: float,
    neighbouring: Neighbouring = "add_or_remove",
    *,
    classic: bool = False,
) -> float:
    """Epsilon of all ``events`` together.

    Args:
        events: what was released from one dataset.
        delta: above 0.
        neighbouring: which datasets are compared.
        classic: convert by Mironov's rule of 2017, as older tables did.

    Raises:
        JobConflict: an event that has no such curve under this relation.
        JobError: delta out of range.
    """
    return convert(_total(events, neighbouring), delta, classic=classic)


def rdp_permitted(
    events: Iterable[Event], fpr: float, neighbouring: Neighbouring = "add_or_remove"
) -> float:
    """Most of the members that an attack finds which takes ``fpr`` of the strangers for members.

    Args:
        events: what was released from one dataset.
        fpr: in (0, 1).
        neighbouring: which datasets are compared.

    Raises:
        JobConflict: an event that has no such curve under this relation.
    """
    total = _total(events, neighbouring)

    def possible(tpr: float) -> bool:
        apart = np.maximum(_binary(tpr, fpr), _binary(fpr, tpr))
        return bool((apart <= total).all())

    low, high = fpr, 1.0
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if possible(middle) else (low, middle)
    return high


def _binary(p: float, q: float) -> Array:
    """Renyi divergences of a coin of p from one of q, both in (0, 1)."""
    yes = ORDERS * math.log(p) + (1 - ORDERS) * math.log(q)
    no = ORDERS * math.log1p(-p) + (1 - ORDERS) * math.log1p(-q)
    return np.asarray(np.logaddexp(yes, no) / (ORDERS - 1))


def _total(events: Iterable[Event], neighbouring: Neighbouring) -> Array:
    total = np.zeros_like(ORDERS)
    for event in events:
        total += event.count * curve(event, neighbouring)
    return total


def convert(rdp: Array, delta: float, *, classic: bool = False) -> float:
    """The smallest epsilon that a curve over :data:`ORDERS` allows at ``delta``.

    Raises:
        JobError: delta out of range.
    """
    if not 0 < delta < 1:
        raise JobError(f"delta {delta} is not in (0, 1)")
    if not rdp.any():
        return 0.0
    a = ORDERS
    bound = rdp - math.log(delta) / (a - 1)
    if not classic:
        bound += np.log1p(-1 / a) - np.log(a) / (a - 1)
    return max(0.0, float(bound.min()))


def curve(event: Event, neighbouring: Neighbouring = "add_or_remove") -> Array:
    """One occurrence's Renyi divergence at each of :data:`ORDERS`.

    Raises:
        JobConflict: none is known for this event under this relation.
    """
    # An exchanged unit moves the sum by up to twice its bound.
    factor = 2.0 if neighbouring == "replace" else 1.0
    rate = getattr(event, "sampling", 1.0)
    if neighbouring == "replace" and rate < 1:
        raise JobConflict(
            f"no Renyi curve of a sampled {type(event).__name__} for exchanged units",
            remedy="account by PLD, or for units added or removed",
        )
    if isinstance(event, Gaussian) and rate < 1:
        return _sampled_gaussian(rate, event.noise_multiplier)
    whole = _unsampled(event, factor)
    return whole if rate == 1 else _sampled(rate, whole)


def _unsampled(event: Event, factor: float) -> Array:
    match event:
        case Gaussian() | MatrixGaussian():
            return ORDERS * (factor / event.noise_multiplier) ** 2 / 2
        case DiscreteGaussian():
            return ORDERS * _concentrated(event, factor) ** 2 / 2
        case Skellam():
            return _skellam(event, factor)
        case Laplace():
            return _laplace(factor / event.noise_multiplier)
        case Geometric():
            return _pure(factor * event.l1 / event.scale)
        case Selection():
            return np.minimum(ORDERS * event.epsilon**2 / 8, event.epsilon)
        case Stated(delta=0.0):
            return _pure(event.epsilon)
        case _:
            raise JobConflict(
                f"a release stated at delta {event.delta:g} has no Renyi curve",
                remedy="account by PLD",
            )


def _pure(epsilon: float) -> Array:
    """Any epsilon-DP mechanism (Bun and Steinke 2016, Proposition 3)."""
    return np.minimum(ORDERS * epsilon**2 / 2, epsilon)


def _concentrated(event: DiscreteGaussian, factor: float) -> float:
    """The epsilon of epsilon^2 / 2 concentrated DP; Kairouz et al. 2021, Theorem 1, second bound."""
    n, sigma = event.shares, event.deviation
    if n > 1 and sigma < _BLUR:
        raise JobConflict(
            f"shares of discrete Gaussian noise with deviation {sigma:g}",
            remedy=f"use a finer lattice: at least {_BLUR:g}, or Skellam noise",
        )
    k = np.arange(1, n)
    tau = 10 * float(np.exp(-2 * (math.pi * sigma) ** 2 * k / (k + 1)).sum())
    return factor * event.l2 / (math.sqrt(n) * sigma) + tau * math.sqrt(event.dimension)


def _skellam(event: Skellam, factor: float) -> Array:
    """Agarwal et al. 2021, Theorem 3.5; a real order is bounded by the whole one above it.

    A whole vector's L1 norm is at most the square of its L2 norm.
    """
    a, mu = np.ceil(ORDERS), event.variance
    l2 = factor * event.l2
    l1 = min(math.sqrt(event.dimension) * l2, l2**2)
    rest = np.minimum((2 * a * l2**2 + 6 * l1) / (4 * mu**2), 3 * l1 / (2 * mu))
    return a * l2**2 / (2 * mu) + rest


def _laplace(epsilon: float) -> Array:
    """Two exponentials, weighted; in logarithms because they overflow."""
    a = ORDERS
    near = np.log(a / (2 * a - 1)) + (a - 1) * epsilon
    far = np.log((a - 1) / (2 * a - 1)) - a * epsilon
    return np.asarray(np.logaddexp(near, far) / (a - 1))


def _sampled_gaussian(rate: float, z: float) -> Array:
    """Order alpha of (1-q) N(0, z^2) + q N(1, z^2) against N(0, z^2), which is the larger direction.

    The trapezoidal rule on a smooth integrand that dies out at both ends is exact to rounding.
    """
    out = np.empty_like(ORDERS)
    for i, alpha in enumerate(ORDERS):
        x = np.arange(-40 * z, alpha + 40 * z, z / _GRID)  # the mass lies between 0 and alpha
        ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * z * z))
        terms = alpha * ratio - x * x / (2 * z * z)
        top = float(terms.max())
        density = math.log(z / _GRID) - math.log(z * math.sqrt(2 * math.pi))
        out[i] = (top + math.log(float(np.exp(terms - top).sum())) + density) / (alpha - 1)
    return np.maximum(out, 0.0)


def _sampled(rate: float, whole: Array) -> Array:
    """Zhu and Wang 2019, Theorem 6, at whole orders; a real order takes the next whole one's."""
    top = 65
    whole_orders = np.arange(2, top)
    known = np.interp(whole_orders, ORDERS, whole)
    found = [_sampled_at(int(a), rate, known) for a in whole_orders]
    out = np.full_like(ORDERS, np.inf)
    for i, alpha in enumerate(ORDERS):
        if alpha <= whole_orders[-1]:
            out[i] = found[max(2, math.ceil(alpha)) - 2]
    return out


def _sampled_at(order: int, q: float, rdp: Array) -> float:
    """One whole order; ``rdp[l - 2]`` is the curve at order l."""
    keep = math.log1p(-q)
    terms = [(order - 1) * keep + math.log(order * q - q + 1)]
    for m in range(2, order + 1):
        choose = math.lgamma(order + 1) - math.lgamma(m + 1) - math.lgamma(order - m + 1)
        term = choose + (order - m) * keep + m * math.log(q) + (m - 1) * float(rdp[m - 2])
        terms.append(term + (math.log(3) if m > 2 else 0.0))
    return float(np.logaddexp.reduce(terms)) / (order - 1)
