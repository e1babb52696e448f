"""What events let out together: their privacy loss, composed once and then asked in several ways.

The distributions are composed by dp-accounting (extra ``privacy``; Doroshenko et al., *Connect the Dots*,
PETS 2022, https://arxiv.org/abs/2207.04380), to an upper bound that is tight to three or four digits.
Gaussian noise without sampling is one Gaussian release, however often, and has closed forms.

One composition has an epsilon for every delta. All these together bound how many members an attack finds:
with an epsilon at delta, who takes a share a of the strangers for members finds at most ``e^epsilon a +
delta`` of the members, and at most ``1 - (1 - a - delta) / e^epsilon`` (Kairouz, Oh, Viswanath, *The
Composition Theorem for Differential Privacy*, ICML 2015, https://arxiv.org/abs/1311.0776). The least of
these over all epsilons is a point of the trade-off curve (Dong, Roth, Su, *Gaussian Differential Privacy*,
JRSS B 2022; read from composed losses by Kulynych et al., *Attack-Aware Noise Calibration for Differential
Privacy*, NeurIPS 2024, https://arxiv.org/abs/2407.02191).

The library takes a second or two to import, which happens at the first question and not before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

from atoll.core.errors import JobConflict, JobError, MissingExtra
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
from atoll.privacy.dp.rdp import rdp_epsilon

__all__ = ["Losses", "gaussian_delta", "gaussian_epsilon", "has_losses", "losses"]

_FINEST, _COARSEST = 1e-4, 1e-3
"""Discretisation of privacy losses."""

_NORMAL = NormalDist()
_POINTS = 400
"""Epsilons that are looked at in one go for the least bound; any of them is one."""


@dataclass(frozen=True, eq=False)
class Losses:
    """The privacy loss of some events, all together.

    Args:
        plain: multiplier of the one Gaussian release that they come to; None where ``whole`` says it.
        whole: the library's distribution; None where ``plain`` says it. Neither: nothing was released.
    """

    plain: float | None = None
    whole: Any = None

    def epsilon(self, delta: float) -> float:
        """The least epsilon at ``delta``."""
        if self.whole is not None:
            return max(0.0, float(self.whole.get_epsilon_for_delta(delta)))
        return 0.0 if self.plain is None else gaussian_epsilon(self.plain, delta)

    def permitted(self, fpr: float) -> float:
        """Most of the members that an attack finds which takes ``fpr`` of the strangers for members."""
        if self.whole is None:
            if self.plain is None:
                return fpr
            # Dong, Roth, Su, equation 6: the best test between N(0, z^2) and N(1, z^2).
            return _NORMAL.cdf(_NORMAL.inv_cdf(fpr) + 1.0 / self.plain)
        far = max(20.0, -math.log(fpr))
        first = np.linspace(0.0, far, _POINTS)
        bounds = self._bounds(first, fpr)
        best, apart = first[int(bounds.argmin())], first[1]
        near = np.linspace(max(0.0, best - apart), best + apart, _POINTS)
        return float(max(fpr, min(1.0, bounds.min(), self._bounds(near, fpr).min())))

    def _bounds(self, epsilons: Array, fpr: float) -> Array:
        deltas, grown = np.asarray(self.whole.get_delta_for_epsilon(epsilons)), np.exp(epsilons)
        return np.asarray(np.minimum(grown * fpr + deltas, 1.0 - (1.0 - fpr - deltas) / grown))


def has_losses(event: Event) -> bool:
    """Whether the distribution of an event's privacy loss is known."""
    return not isinstance(event, DiscreteGaussian | Skellam)


def losses(events: tuple[Event, ...], delta: float, neighbouring: Neighbouring) -> Losses:
    """Events composed.

    Args:
        events: what was released, like events in one with their count.
        delta: that will be of interest: where epsilon is large there, coarse cells will do.
        neighbouring: which datasets are compared.

    Raises:
        JobConflict: an event has no known distribution.
        MissingExtra: dp-accounting is not installed.
    """
    for event in events:
        if not has_losses(event):
            raise JobConflict(
                f"no privacy loss distribution of {type(event).__name__} in many dimensions",
                remedy="account by Renyi divergence",
            )
    plain, rest = _joined(events, neighbouring)
    if not rest:
        return Losses(plain)
    return _composed(plain, rest, _step(events, rest, delta, neighbouring), neighbouring)


@lru_cache(maxsize=8)
def _composed(
    plain: float | None, rest: tuple[Event, ...], step: float, neighbouring: Neighbouring
) -> Losses:
    parts = [_library().from_gaussian_mechanism(plain, **_grid(step))] if plain else []
    for event in rest:
        part = _distribution(replace(event, count=1), neighbouring, step)
        parts.append(part.self_compose(event.count) if event.count > 1 else part)
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.compose(part)
    return Losses(whole=whole)


def gaussian_delta(noise_multiplier: float, epsilon: float) -> float:
    """Delta of one Gaussian release at ``epsilon``, in closed form.

    Balle and Wang, *Improving the Gaussian Mechanism for Differential Privacy* (ICML 2018,
    https://arxiv.org/abs/1805.06530), Theorem 8 with sensitivity 1.

    >>> round(gaussian_delta(1.0, 4.37718), 9)
    1e-05
    """
    z, cdf = noise_multiplier, NormalDist().cdf
    near, far = 0.5 / z - epsilon * z, -0.5 / z - epsilon * z
    tail = cdf(far)
    # The tail underflows before exp(epsilon) overflows in their product.
    return cdf(near) - (math.exp(epsilon + math.log(tail)) if tail > 0 else 0.0)


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Epsilon of one Gaussian release at ``delta``: the inverse of :func:`gaussian_delta`.

    Raises:
        JobError: values out of range.

    >>> round(gaussian_epsilon(1.0, 1e-5), 5)
    4.37718
    """
    if not (noise_multiplier > 0 and 0 < delta < 1):
        raise JobError(f"no Gaussian release: z {noise_multiplier}, delta {delta}")
    if gaussian_delta(noise_multiplier, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(noise_multiplier, high) > delta:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        if gaussian_delta(noise_multiplier, middle) > delta:
            low = middle
        else:
            high = middle
    return high


def _joined(
    events: Iterable[Event], neighbouring: Neighbouring
) -> tuple[float | None, tuple[Event, ...]]:
    """All Gaussian noise without sampling as one release, which is exact, and the other events."""
    factor = 2.0 if neighbouring == "replace" else 1.0
    squares, rest = 0.0, list[Event]()
    for event in events:
        if isinstance(event, MatrixGaussian) or (
            isinstance(event, Gaussian) and event.sampling == 1
        ):
            squares += event.count * (factor / event.noise_multiplier) ** 2
        else:
            rest.append(event)
    return (squares**-0.5 if squares else None), tuple(rest)


@lru_cache(maxsize=256)
def _step(
    events: tuple[Event, ...], rest: tuple[Event, ...], delta: float, neighbouring: Neighbouring
) -> float:
    """A discretisation that costs epsilon no more than about a part in a thousand.

    What it adds grows with the number of compositions of ``rest`` and the square of the step; large losses
    would take too many fine cells.
    """
    size, times = _size(events, delta, neighbouring), sum(event.count for event in rest)
    fine = math.sqrt(1e-4 * size / times)
    return min(max(fine, _FINEST), _COARSEST) * max(1.0, size / 10)


def _size(events: Iterable[Event], delta: float, neighbouring: Neighbouring) -> float:
    """About how large epsilon will be: where it is large, cells of 1e-4 are too many and not needed."""
    known = [e for e in events if not isinstance(e, Stated) or e.delta == 0]
    rough = rdp_epsilon(known, delta)
    return 2 * rough if neighbouring == "replace" else rough


def _grid(step: float) -> dict[str, Any]:
    return {"value_discretization_interval": step}


@lru_cache(maxsize=64)
def _distribution(event: Event, neighbouring: Neighbouring, step: float) -> Any:
    """The privacy loss of one occurrence."""
    factor = 2.0 if neighbouring == "replace" else 1.0
    library, grid = _library(), _grid(step)
    match event:
        case Gaussian(z, rate):
            relation = _relations()[neighbouring]
            return library.from_gaussian_mechanism(
                z, sampling_prob=rate, neighboring_relation=relation, **grid
            )
        case Laplace(z, rate):
            if rate < 1 and neighbouring == "replace":
                raise JobConflict(
                    "sampled Laplace noise is not accounted for under exchanged units",
                    remedy="account for units added or removed",
                )
            return library.from_laplace_mechanism(z / factor, sampling_prob=rate, **grid)
        case Geometric(scale, l1):
            own = round(factor) * l1
            return library.from_discrete_laplace_mechanism(1 / scale, sensitivity=own, **grid)
        case Selection(cost):
            return _stated(cost, 0.0, step)
        case Stated(cost, delta):
            return _stated(cost, delta, step)
        case _:
            raise JobConflict(f"no privacy loss distribution of {type(event).__name__}")


def _stated(cost: float, delta: float, step: float) -> Any:
    from dp_accounting.pld.common import DifferentialPrivacyParameters

    stated = DifferentialPrivacyParameters(cost, delta)
    return _library().from_privacy_parameters(stated, **_grid(step))


def _relations() -> dict[str, Any]:
    from dp_accounting.privacy_accountant import NeighboringRelation

    return {
        "add_or_remove": NeighboringRelation.ADD_OR_REMOVE_ONE,
        "replace": NeighboringRelation.REPLACE_ONE,
    }


def _library() -> Any:
    try:
        from dp_accounting.pld import privacy_loss_distribution
    except ImportError as missing:
        raise MissingExtra(
            "dp-accounting is not installed", remedy="pip install 'atoll[privacy]'"
        ) from missing
    return privacy_loss_distribution
