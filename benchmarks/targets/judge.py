"""The rule by which a stochastic target is judged, and small statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Published", "deviation", "mean", "verdict"]


@dataclass(frozen=True)
class Published:
    """A published mean, its standard deviation and the number of runs behind it."""

    mean: float
    sd: float
    runs: int


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for one value."""
    if len(values) < 2:
        return 0.0
    centre = mean(values)
    return math.sqrt(sum((v - centre) ** 2 for v in values) / (len(values) - 1))


def verdict(own: Sequence[float], theirs: Published, floor: float = 0.0) -> tuple[bool, float]:
    """Whether ``|own mean - published| <= max(floor, 2.5 sqrt(sd_p^2/n_p + sd_o^2/n_o))``.

    Returns:
        The verdict and the allowed distance.
    """
    spread = math.sqrt(theirs.sd**2 / theirs.runs + deviation(own) ** 2 / len(own))
    allowed = max(floor, 2.5 * spread)
    return abs(mean(own) - theirs.mean) <= allowed, allowed
