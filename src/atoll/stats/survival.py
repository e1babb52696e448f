"""Kaplan-Meier curves and the log-rank test over sites.

A curve that steps at every death tells when each patient died. Under disclosure control it steps only
after so many exits as the minimum; at its steps it has the values of the full curve.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from atoll.algorithms.statistics import survival as curves
from atoll.algorithms.statistics.survival_axis import Axis
from atoll.algorithms.statistics.survival_logrank import LogRank, LogRankResult
from atoll.core.errors import Forbidden
from atoll.core.layout import Array
from atoll.stats.federation import Federation
from atoll.stats.frames import frame

__all__ = ["FittedCurves", "KaplanMeier", "log_rank"]


@dataclass(frozen=True, eq=False)
class FittedCurves:
    """Survival of each group.

    Args:
        groups: their names.
        curves: one for each.
        notes: what a reader has to know.
    """

    groups: tuple[str, ...]
    curves: tuple[curves.Curve, ...]
    notes: tuple[str, ...]

    @property
    def table(self) -> Any:
        """One line a step, as a pandas frame."""
        return frame(self.records())

    def records(self) -> list[dict[str, Any]]:
        """The same as plain records."""
        return [
            {
                "group": group,
                "time": c.times[i],
                "at risk": c.at_risk[i],
                "events": c.events[i],
                "censored": c.censored[i],
                "survival": c.survival[i],
                "low": c.lower[i],
                "high": c.upper[i],
            }
            for group, c in zip(self.groups, self.curves, strict=True)
            for i in range(len(c.times))
        ]


@dataclass(frozen=True)
class KaplanMeier:
    """Kaplan-Meier curves, with one for each group.

    Args:
        time: column of the time of event or censoring.
        event: column of 1 for an event and 0 for censoring.
        axis: the times at which sites count.
        by: column of groups; empty for none.
        level: of the bands.
    """

    time: str
    event: str
    axis: Axis
    by: str = ""
    level: float = 0.95

    def fit(self, federation: Federation, **run: Any) -> FittedCurves:
        """Ask all sites.

        Raises:
            Forbidden: a group has too few rows, or disclosure control refuses otherwise.
        """
        names = federation.groups(self.by) if self.by else ("all",)
        levels = tuple(float(i) for i in range(len(names))) if self.by else ()
        asked = curves.KaplanMeier(
            self.time, self.event, self.axis, self.by, levels, level=self.level
        )
        found = federation.solve(asked, **run)
        least = federation.rule.minimum
        kept = tuple(_coarse(curve, least) for curve in found.curves)
        for name, curve in zip(names, kept, strict=True):
            if not len(curve.times) and least > 1:
                raise Forbidden(
                    f"group {name!r} has fewer than {least} exits", remedy="join groups"
                )
        notes = tuple(found.notes)
        if least > 1:
            notes += (f"curves step only after {least} or more exits",)
        return FittedCurves(names, kept, notes)


def _coarse(curve: curves.Curve, least: int) -> curves.Curve:
    """The curve at times with ``least`` or more exits since the one before."""
    exits = curve.events + curve.censored
    steps, waiting = list[int](), 0.0
    for i, leaving in enumerate(exits.tolist()):
        waiting += leaving
        remaining = float(curve.at_risk[i]) - leaving
        if waiting >= least and (remaining >= least or remaining == 0):
            steps.append(i)
            waiting = 0.0
    ends = np.array(steps, np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)[: len(ends)]

    def total(counts: Array) -> Array:
        return np.array([counts[a : b + 1].sum() for a, b in zip(starts, ends, strict=True)])

    if least <= 1:
        return curve
    median = (
        float(curve.median) if np.isin(curve.median, curve.times[ends]) else _median(curve, ends)
    )
    return replace(
        curve,
        times=curve.times[ends],
        at_risk=curve.at_risk[starts] if len(starts) else curve.at_risk[:0],
        events=total(curve.events),
        censored=total(curve.censored),
        survival=curve.survival[ends],
        standard_errors=curve.standard_errors[ends],
        lower=curve.lower[ends],
        upper=curve.upper[ends],
        cumulative_hazard=curve.cumulative_hazard[ends],
        hazard_errors=curve.hazard_errors[ends],
        median=median,
    )


def _median(curve: curves.Curve, ends: Array) -> float:
    """The first shown time at which half or fewer survive."""
    below = np.flatnonzero(curve.survival[ends] <= 0.5)
    return float(curve.times[ends][below[0]]) if below.size else float("inf")


def log_rank(
    federation: Federation, time: str, event: str, by: str, axis: Axis, *, strata: str = "none"
) -> LogRankResult:
    """Do groups differ in survival?

    Args:
        federation: who is asked.
        time: column of the time of event or censoring.
        event: column of 1 for an event and 0 for censoring.
        by: column of groups.
        axis: the times at which sites count.
        strata: ``none``, ``site``, or a column of categories.
    """
    levels = tuple(float(i) for i in range(len(federation.groups(by))))
    column = strata not in ("none", "site")
    codes = range(len(federation.groups(strata))) if column else range(0)
    asked = LogRank(time, event, by, levels, axis, strata, tuple(float(i) for i in codes))
    found: LogRankResult = federation.solve(asked)
    least = federation.rule.minimum
    if least > 1 and (found.observed < least).any():
        raise Forbidden(f"a group has fewer than {least} events", remedy="join groups")
    return found
