"""Time for survival analyses over sites: a declared axis on which all sites count.

Which times occur is data, and tables over sites need one axis. It is declared: a resolution (one day) and
a horizon, or the times themselves. Where the resolution is the data's own (whole days) nothing is rounded
and results are those of the pooled rows to the last digit; where it is coarser, rounding is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from atoll.algorithms.statistics.glm_design import misfit
from atoll.core.errors import JobError
from atoll.core.layout import Array

__all__ = ["Axis", "Spans", "spans"]

MOST_TIMES = 1_000_000


@dataclass(frozen=True)
class Axis:
    """The times at which sites count.

    Args:
        horizon: the last time, in the unit of the time column; not needed with ``times``.
        resolution: width of one step; times are rounded to the nearest multiple.
        times: the times themselves, rising: an event counts at the first one that is not earlier.

    Raises:
        JobError: an axis that does not rise, or has more than a million times.

    >>> Axis(10.0).codes(np.array([0.0, 3.0, 10.0])).tolist()
    [0, 3, 10]
    """

    horizon: float = 0.0
    resolution: float = 1.0
    times: Sequence[float] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(float(time) for time in self.times))
        if len(self.times):
            if not np.all(np.diff(self.times) > 0):
                raise JobError("times of an axis must rise")
        elif not (self.horizon > 0 and self.resolution > 0):
            raise JobError(
                f"horizon {self.horizon:g}, resolution {self.resolution:g}: both must be positive",
                remedy="give the longest time that can occur, and the unit in which times are known",
            )
        elif self.horizon / self.resolution > MOST_TIMES:
            raise JobError("the axis has more than a million times", remedy="raise the resolution")

    @cached_property
    def points(self) -> Array:
        """All times, ``(M,)``."""
        if len(self.times):
            return np.asarray(self.times, np.float64)
        last = int(np.rint(self.horizon / self.resolution))
        return np.arange(last + 1) * self.resolution

    def codes(self, times: Array) -> Array:
        """Positions of times on the axis; M for what lies beyond its end."""
        if len(self.times):
            return np.searchsorted(self.points, times)
        return np.minimum(np.rint(times / self.resolution), len(self.points)).astype(np.int64)

    def moved(self, times: Array, codes: Array) -> int:
        """How many times are not on the axis."""
        on = np.append(self.points, np.inf)[codes]
        return int(np.count_nonzero(np.abs(times - on) > 1e-9 * np.maximum(1.0, np.abs(times))))


@dataclass(frozen=True)
class Spans:
    """When rows are under observation at one site, as positions on an axis.

    Args:
        enter: last position before the row is at risk; -1 without late entry.
        leave: last position at which it is at risk.
        event: whether it ends in an event, ``(n,)`` bool.
        whole: which rows of the site are complete, ``(all rows,)`` bool.
        moved: how many times were rounded.
    """

    enter: Array
    leave: Array
    event: Array
    whole: Array
    moved: int


def spans(
    axis: Axis, data: Mapping[str, Array], time: str, event: str, entry: str, others: Sequence[str]
) -> Spans:
    """A site's rows on the axis.

    Args:
        axis: the declared times.
        data: a site's columns.
        time: column of the time of event or censoring.
        event: column of 1 for an event and 0 for censoring.
        entry: column of the time of entry, or empty.
        others: further columns that must not be missing.

    Raises:
        DataError: a negative or infinite time, one beyond the horizon, an event that is neither 0 nor 1,
            or an exit before the entry; names the column.
    """
    names = [time, event, *([entry] if entry else []), *others]
    whole = ~np.isnan(np.stack([data[name] for name in names])).any(axis=0)
    stop, happened = data[time][whole], data[event][whole]
    if len(stop) and not (np.isfinite(stop).all() and stop.min() >= 0):
        raise misfit(time, "holds a negative or infinite time")
    odd = (happened != 0) & (happened != 1)
    if odd.any():
        raise misfit(event, f"holds {happened[odd][0]:g}", "1 is an event, 0 is censoring")
    leave = axis.codes(stop)
    late = leave >= len(axis.points)
    if (late & (happened == 1)).any() or (late.any() and not len(axis.times)):
        raise misfit(
            time,
            f"holds {stop[late].max():g}, beyond the axis' end {axis.points[-1]:g}",
            "raise the horizon",
        )
    moved = axis.moved(stop[~late], leave[~late])
    enter = np.full(len(stop), -1)
    if entry:
        begin = data[entry][whole]
        if (begin >= stop).any():
            raise misfit(entry, "holds an entry that is not before the exit")
        enter = np.where(begin > 0, axis.codes(begin), -1)
        moved += axis.moved(begin[begin > 0], enter[begin > 0])
    return Spans(enter, leave, happened == 1, whole, moved)
