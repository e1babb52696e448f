"""Bounds on what one unit may contribute, and how they follow the data.

A contribution is clipped to an L2 norm of at most C, exactly: the norm of the float result, computed in
float64, is never above C (identity 12). The adaptive bound follows a quantile of the norms (Andrew,
Thakkar, McMahan, Ramaswamy, *Differentially Private Learning with Adaptive Clipping*, NeurIPS 2021,
https://arxiv.org/abs/1905.03871):

=============  =====================================  ==========================
in the paper   in the code                            meaning
=============  =====================================  ==========================
C^t            ``AdaptiveClip.bound``                 the bound of round t
gamma          ``quantile``                           share of norms below it
eta_C          ``rate``                               step of the logarithm
b_i^t          :func:`indicator`                      whether unit i was below
sigma_b        ``count_deviation``                    noise on the sum of b_i
z_Delta        :func:`noise_for_vectors`              noise left to the vectors
=============  =====================================  ==========================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from atoll.core.errors import JobConflict, JobError, UpdateRefused
from atoll.core.layout import Array

__all__ = [
    "AdaptiveClip",
    "clip",
    "clip_layers",
    "indicator",
    "layer_bounds",
    "noise_for_vectors",
    "norm",
]


def norm(vector: Array) -> float:
    """L2 norm in float64, without overflow; rounded up by more than the sum can be off.

    Raises:
        UpdateRefused: a value is not finite.
    """
    top = float(np.abs(vector).max(initial=0.0))
    if not math.isfinite(top):
        raise UpdateRefused("the vector holds a value that is not finite")
    if top == 0.0:
        return 0.0
    unit = math.ldexp(1.0, math.frexp(top)[1])  # a power of two: scaling is exact
    scaled = np.asarray(vector, np.float64).reshape(-1) / unit
    return math.sqrt(float(scaled @ scaled) * (1.0 + (scaled.size + 8) * 2.0**-52)) * unit


def clip(vector: Array, bound: float) -> Array:
    """The vector, shortened to an L2 norm of at most ``bound``; in its own dtype.

    A vector that is short enough comes back as it is, not copied.

    Raises:
        JobError: the bound is not a finite number above 0.
        UpdateRefused: a value is not finite.

    >>> clip(np.array([3.0, 4.0]), 10.0).tolist()
    [3.0, 4.0]
    """
    if not 0 < bound < math.inf:
        raise JobError(f"clipping bound {bound} is not a finite number above 0")
    length = norm(vector)
    if length <= bound:
        return vector
    # float32 rounds each value by up to 2^-24 of itself, so the first try may be that much too long.
    for shrink in (0.0, 2.0**-22, 2.0**-20, 2.0**-10):
        factor = bound / length * (1.0 - shrink)
        short = np.multiply(vector, factor, dtype=np.float64).astype(vector.dtype)
        if norm(short) <= bound:
            return np.asarray(short)
    # Values so small that rounding moves them by half of themselves: cut towards zero.
    return np.zeros_like(vector)


def layer_bounds(bound: float, layers: int) -> tuple[float, ...]:
    """Equal bounds for layers whose whole has an L2 norm of at most ``bound``.

    >>> layer_bounds(1.0, 4)
    (0.5, 0.5, 0.5, 0.5)
    """
    each = bound / math.sqrt(layers)
    while math.fsum([each * each] * layers) > bound * bound:
        each = math.nextafter(each, 0.0)
    return (each,) * layers


def clip_layers(vector: Array, parts: Sequence[slice], bounds: Sequence[float]) -> Array:
    """Each part of the vector clipped by itself; the whole is bounded by the root of their squares.

    Raises:
        JobError: the parts do not tile the vector, or are not as many as the bounds.
    """
    ends = [0, *(part.stop for part in parts)]
    starts = [*(part.start for part in parts), vector.size]
    if ends != starts or len(parts) != len(bounds):
        raise JobError(f"{len(parts)} layers with {len(bounds)} bounds do not tile the vector")
    done = [clip(vector[p], b) for p, b in zip(parts, bounds, strict=True)]
    return np.concatenate(done) if done else vector


def indicator(vector: Array, bound: float) -> float:
    """b_i less one half: +1/2 where the norm is at most ``bound``, else -1/2.

    Centred, so that one unit moves the sum by 1/2 and not by 1 (Andrew et al. 2021, section 2.2).
    """
    return 0.5 if norm(vector) <= bound else -0.5


@dataclass(frozen=True)
class AdaptiveClip:
    """A bound that follows a quantile of the norms.

    Args:
        bound: C of the present round.
        quantile: gamma in [0, 1].
        rate: eta_C; 0.2 in the paper.
        count_deviation: sigma_b, standard deviation of the noise on the sum of :func:`indicator`.
        least: the bound never falls below this.
        most: nor rises above that.
    """

    bound: float
    quantile: float = 0.5
    rate: float = 0.2
    count_deviation: float = 0.0
    least: float = 1e-9
    most: float = 1e9

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            JobError: with the values.
        """
        if not (0 < self.least <= self.bound <= self.most < math.inf):
            raise JobError(f"bound {self.bound} is not within {self.least} to {self.most}")
        if not (0 <= self.quantile <= 1 and self.rate > 0 and self.count_deviation >= 0):
            raise JobError(
                f"quantile {self.quantile}, rate {self.rate}, deviation {self.count_deviation}"
            )

    def after(self, total: float, units: float) -> AdaptiveClip:
        """The next round's bound, from the (noised) sum of indicators.

        C <- C exp(-eta_C (b - gamma)), b the share of norms below C (Andrew et al. 2021, Algorithm 1).

        Args:
            total: sum of :func:`indicator` with its noise.
            units: how many were in it; under Poisson sampling the expected number.
        """
        share = min(max(total / units + 0.5, 0.0), 1.0) if units > 0 else self.quantile
        moved = self.bound * math.exp(-self.rate * (share - self.quantile))
        return replace(self, bound=min(max(moved, self.least), self.most))


def noise_for_vectors(noise_multiplier: float, count_deviation: float) -> float:
    """z_Delta: what the vectors need so that both releases together cost one of ``noise_multiplier``.

    z_Delta = (z^-2 - (2 sigma_b)^-2)^-1/2 (Andrew et al. 2021, Theorem 1).

    Raises:
        JobConflict: the count alone costs as much, or more.

    >>> round(noise_for_vectors(1.0, 10.0), 6)
    1.001252
    """
    rest = noise_multiplier**-2 - (2.0 * count_deviation) ** -2 if count_deviation > 0 else 0.0
    if rest <= 0:
        raise JobConflict(
            f"noise of {count_deviation:g} on the count leaves nothing of multiplier "
            f"{noise_multiplier:g}",
            remedy=f"more than {noise_multiplier / 2:g}; a twentieth of the cohort is usual",
        )
    return float(rest**-0.5)
