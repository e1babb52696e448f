"""Kaplan-Meier curves and the log-rank test over sites.

A curve that steps at every death tells when each patient died. Under disclosure control it steps only
after so many exits as the minimum; at its steps it has the values of the full curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from atoll.algorithms.statistics.survival_axis import Axis
from atoll.algorithms.statistics.survival_logrank import LogRankResult
from atoll.job.inquiries import survival
from atoll.job.inquiries.survival import FittedCurves
from atoll.stats.federation import Answers

__all__ = ["FittedCurves", "KaplanMeier", "log_rank"]


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

    def fit(self, federation: Answers, **run: Any) -> FittedCurves:
        """Ask all sites.

        Raises:
            Forbidden: a group has too few rows, or disclosure control refuses otherwise.
        """
        axis = self.axis
        asked = survival.SurvivalCurves(
            self.time,
            self.event,
            axis.horizon,
            self.by,
            axis.resolution,
            tuple(axis.times),
            self.level,
        )
        found: Any = federation.ask(asked, **run)
        fitted: FittedCurves = found
        return fitted


def log_rank(
    federation: Answers, time: str, event: str, by: str, axis: Axis, *, strata: str = "none"
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
    asked = survival.LogRank(
        time, event, by, axis.horizon, strata, axis.resolution, tuple(axis.times)
    )
    found: LogRankResult = federation.ask(asked).result
    return found
