"""Numbers as integers of a ring, and sums of such integers as numbers again.

A value x in [-bound, bound] becomes q(x) = floor(x * scale + u), at most ``levels`` either way,
u uniform in [0, 1): rounding that is right on average. ``levels`` is chosen so that the
sum over the whole cohort stays below half the ring: it cannot wrap around. With a declared step the values
are whole multiples of it, and nothing is drawn.

Vectors are weighted before they are rounded: a site sends w * x and w, with w = min(n, cap) / cap in
[0, 1], so that neither its number of examples nor its own mean is ever seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from atoll.core.errors import UpdateRefused
from atoll.core.layout import Array
from atoll.privacy.secagg.terms import Lane

__all__ = [
    "BLOCK",
    "WEIGHT",
    "Rounding",
    "averages",
    "check_reach",
    "quantised",
    "signed_values",
    "weighted",
]

BLOCK = 32_768
"""Values that are rounded at a time."""

WEIGHT = "weight"
"""Name of the lane that carries the weight."""


class Rounding:
    """Rounds values to integers a block at a time, in memory of its own that stays in a core's cache.

    Memory that is new costs more than all of the arithmetic, so nothing as long as the input is made. An
    object serves one thread.
    """

    def __init__(self) -> None:
        self._exact, self._drawn = np.empty(BLOCK), np.empty(BLOCK)

    def put(
        self,
        lane: Lane,
        sites: int,
        values: Array,
        draws: np.ndarray[Any, Any] | None,
        into: Array,
        factor: float | None = None,
    ) -> None:
        """Write ``values``, as signed integers of the lane's ring, to ``into``.

        Args:
            lane: what the values are.
            sites: size of the cohort.
            values: real numbers, any float or integer dtype.
            draws: as many uniform ``uint32``, for rounding; None rounds to the nearest.
            into: as many integers of the ring's size.
            factor: the values are multiplied by it first, in float64.

        Raises:
            UpdateRefused: a value is not finite, or beyond a bound that refuses. What is in ``into``
                means nothing then.
        """
        for start in range(0, values.size, BLOCK):
            block = slice(start, min(start + BLOCK, values.size))
            part = None if draws is None else draws[block]
            with np.errstate(over="ignore", invalid="ignore"):
                exact = self._exact[: block.stop - start]
                np.copyto(exact, values[block], casting="same_kind")
                if factor is not None:
                    exact *= factor
                ends = _ends(lane, exact)
                if lane.step is not None:
                    exact /= (by := lane.step)
                    ends = ends[0] / by, ends[1] / by
                else:
                    exact *= (by := lane.scale(sites))
                    ends = ends[0] * by, ends[1] * by
            self._round(lane, sites, exact, ends, part)
            np.copyto(into[block], exact, casting="unsafe")

    def _round(
        self,
        lane: Lane,
        sites: int,
        exact: Array,
        ends: tuple[float, float],
        draws: np.ndarray[Any, Any] | None,
    ) -> None:
        levels = lane.levels(sites)
        near_the_end = ends[0] < -levels or ends[1] > levels - 1
        if near_the_end:
            np.clip(exact, -levels, levels, out=exact)
        if lane.step is not None or draws is None:
            np.rint(exact, out=exact)
        else:
            drawn = self._drawn[: exact.size]
            np.copyto(drawn, draws)
            drawn *= 2.0**-32
            exact += drawn
            np.floor(exact, out=exact)
        if near_the_end:  # levels + 0.999... is levels + 1 in float64
            np.minimum(exact, levels, out=exact)


def _ends(lane: Lane, values: Array) -> tuple[float, float]:
    """The smallest and the largest of ``values``, if they may be sent."""
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        wrong = values[np.flatnonzero(~np.isfinite(values))[0]]
        raise UpdateRefused(f"lane {lane.name!r} holds {wrong}: this site drops out")
    if lane.excess == "refuse" and (worst := max(-low, high)) > lane.bound:
        raise UpdateRefused(f"lane {lane.name!r} holds {worst:g}, declared were {lane.bound:g}")
    return low, high


def quantised(lane: Lane, sites: int, values: Array, draws: np.ndarray[Any, Any] | None) -> Array:
    """``values`` of one lane as signed integers of its ring; see :meth:`Rounding.put`.

    Raises:
        UpdateRefused: a value is not finite, or beyond a bound that refuses.
    """
    integers = np.empty(values.shape, np.int32 if lane.bits == 32 else np.int64)
    Rounding().put(lane, sites, values.reshape(-1), draws, integers.reshape(-1))
    return integers


def check_reach(lane: Lane, sites: int, present: int, total: Array) -> None:
    """See :func:`signed_values`.

    Raises:
        UpdateRefused: the sum is beyond what so many sites can reach; one of them did not keep to
            the range, or a mask is left.
    """
    reach = present * lane.levels(sites)
    if total.size and (int(total.max()) > reach or int(total.min()) < -reach):
        raise UpdateRefused(f"the sum of lane {lane.name!r} is beyond {present} sites' range")


def signed_values(lane: Lane, sites: int, present: int, total: Array) -> Array:
    """The sum of ``present`` sites' values, float64.

    Args:
        lane: what the values are.
        sites: size of the cohort, which fixed the scale.
        present: how many sites are in the sum.
        total: signed integers of the ring.

    Raises:
        UpdateRefused: the sum is beyond what so many sites can reach; one of them did not keep to
            the range, or a mask is left.
    """
    check_reach(lane, sites, present, total)
    if lane.step is not None:
        return total * np.float64(lane.step)
    return total / np.float64(lane.scale(sites))


def weighted(
    values: Mapping[str, Array],
    examples: float,
    cap: float,
    sums: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """The lanes of a weighted mean.

    Args:
        values: vectors to be averaged, by lane.
        examples: this site's count.
        cap: declared largest count; more count as many.
        sums: vectors to be added as they are.

    Raises:
        UpdateRefused: the count is no finite number above 0.

    >>> weighted({"w": np.array([4.0])}, examples=50, cap=200)
    {'w': array([1.]), 'weight': array([0.25])}
    """
    if not (np.isfinite(examples) and examples > 0):
        raise UpdateRefused(f"a weight of {examples} examples; it must be above 0")
    share = min(examples, cap) / cap
    lanes = {name: vector * share for name, vector in values.items()}
    return {**lanes, WEIGHT: np.array([share]), **(sums or {})}


def averages(totals: Mapping[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
    """The weighted means of the lanes called ``names``, from sums that hold the weight's lane.

    Raises:
        UpdateRefused: the weights add up to nothing.
    """
    weight = float(totals[WEIGHT][0])
    if weight <= 0.0:
        raise UpdateRefused(f"the weights add up to {weight:g}")
    return {name: totals[name] / weight for name in names}
