"""Survival: Kaplan-Meier curves, the log-rank test, Cox regression.

A curve that steps at every death tells when each patient died. Under disclosure control it steps only
after so many exits as the minimum; at its steps it has the values of the full curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from atoll.algorithms.statistics import survival as curves
from atoll.algorithms.statistics.analysis import Analysis
from atoll.algorithms.statistics.cox import Cox
from atoll.algorithms.statistics.survival_axis import Axis
from atoll.algorithms.statistics.survival_logrank import LogRank as LogRankAnalysis
from atoll.core.errors import Forbidden
from atoll.core.layout import Array
from atoll.job.inquiries.book import Codebook
from atoll.job.inquiries.inquiry import Checked, Estimator, Finding
from atoll.job.inquiries.models import Fitted, fitted, guarded
from atoll.job.inquiries.tables import Sheet, numbers_of

__all__ = ["CoxRegression", "FittedCurves", "KaplanMeier", "LogRank"]


@dataclass(frozen=True, eq=False)
class FittedCurves(Finding):
    """Survival of each group; the table has one line a step.

    Args:
        result: the analysis' own.
        groups: their names.
        curves: one for each, as they may be shown.
        notes: what a reader has to know.
    """

    result: Any
    groups: tuple[str, ...]
    curves: tuple[curves.Curve, ...]
    notes: tuple[str, ...]

    title = ""

    def records(self) -> list[dict[str, Any]]:
        """One line a step."""
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

    def facts(self) -> dict[str, Any]:
        """Median survival of each group."""
        pairs = zip(self.groups, self.curves, strict=True)
        return {f"median of {group}": float(curve.median) for group, curve in pairs}


@dataclass(frozen=True)
class KaplanMeier(Estimator):
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

    def named(self) -> tuple[str, ...]:
        """All columns."""
        return tuple(name for name in (self.time, self.event, self.by) if name)

    def _groups(self, book: Codebook) -> tuple[str, ...]:
        return book.groups(self.by) if self.by else ("all",)

    def analysis(self, book: Codebook) -> Analysis:
        """The curves."""
        book.check(*self.named())
        numbers_of(book, [self.time])
        book.event(self.event)
        levels = book.codes(self.by) if self.by else ()
        return curves.KaplanMeier(
            self.time, self.event, self.axis, self.by, levels, level=self.level
        )

    def finding(self, book: Codebook, found: Any) -> FittedCurves:
        """The curves, with steps after so many exits as the minimum."""
        names, least = self._groups(book), book.rule.minimum
        kept = tuple(_coarse(curve, least) for curve in found.curves)
        for name, curve in zip(names, kept, strict=True):
            if not len(curve.times) and least > 1:
                raise Forbidden(
                    f"group {name!r} has fewer than {least} exits", remedy="join groups"
                )
        places = {f"group {i}": f"{self.by}={name}" for i, name in enumerate(names)}
        told = (note.partition(": ") for note in found.notes)
        notes = book.event(self.event)
        notes += tuple(f"{places.get(head, head)}{colon}{rest}" for head, colon, rest in told)
        if least > 1:
            notes += (f"curves step only after {least} or more exits",)
        endless = [
            name
            for name, curve in zip(names, kept, strict=True)
            if len(curve.times) and np.isinf(curve.median)
        ]
        if endless:
            notes += (f"the median is not reached, as more than half stay: {', '.join(endless)}",)
        return FittedCurves(found, names, kept, notes)


def _coarse(curve: curves.Curve, least: int) -> curves.Curve:
    """The curve at times with ``least`` or more exits since the one before."""
    if least <= 1:
        return curve
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


@dataclass(frozen=True)
class LogRank(Checked):
    """Do groups differ in survival?

    Args:
        time: column of the time of event or censoring.
        event: column of 1 for an event and 0 for censoring.
        by: column of groups.
        axis: the times at which sites count.
        strata: ``none``, ``site``, or a column of categories.
    """

    time: str
    event: str
    by: str
    axis: Axis
    strata: str = "none"

    def named(self) -> tuple[str, ...]:
        """All columns."""
        return (self.time, self.event, self.by, *_column(self.strata))

    def analysis(self, book: Codebook) -> Analysis:
        """The test."""
        book.check(*self.named())
        numbers_of(book, [self.time])
        book.event(self.event)
        strata = book.codes(self.strata) if _column(self.strata) else ()
        levels = book.codes(self.by)
        return LogRankAnalysis(
            self.time, self.event, self.by, levels, self.axis, self.strata, strata
        )

    def finding(self, book: Codebook, found: Any) -> Sheet:
        """One line a group, each with the test of all of them."""
        least = book.rule.minimum
        if least > 1 and (found.observed < least).any():
            raise Forbidden(f"a group has fewer than {least} events", remedy="join groups")
        test = {"chi-squared": found.statistic, "df": found.df, "p": found.p_value}
        groups = zip(book.groups(self.by), found.observed, found.expected, strict=True)
        lines = [
            {"group": name, "observed": float(seen), "expected": float(due), **test}
            for name, seen, due in groups
        ]
        told = replace(found, notes=(*book.event(self.event), *found.notes))
        return Sheet(told, lines, "group", told.notes)


def _column(strata: str) -> tuple[str, ...]:
    return () if strata in ("none", "site") else (strata,)


@dataclass(frozen=True)
class CoxRegression(Estimator):
    """Cox's proportional hazards model.

    Args:
        time: column of the time of event or censoring.
        event: column of 1 for an event and 0 for censoring.
        features: columns that explain.
        axis: the times at which sites count.
        ties: ``efron`` or ``breslow``.
        strata: ``none``, ``site``, or a column of categories.
        level: of confidence intervals.
    """

    time: str
    event: str
    features: Sequence[str]
    axis: Axis
    ties: Literal["efron", "breslow"] = "efron"
    strata: str = "none"
    level: float = 0.95

    def named(self) -> tuple[str, ...]:
        """All columns."""
        return (self.time, self.event, *self.features, *_column(self.strata))

    def analysis(self, book: Codebook) -> Analysis:
        """The model."""
        book.check(*self.named())
        numbers_of(book, [self.time])
        book.event(self.event)
        model = Cox(
            self.time,
            self.event,
            self.features,
            self.axis,
            book.categories(self.features),
            self.ties,
            self.strata,
            book.codes(self.strata) if _column(self.strata) else (),
            level=self.level,
        )
        return guarded(model, book)

    def finding(self, book: Codebook, found: Any) -> Fitted:
        """The coefficients."""
        if 0 < found.events < book.rule.minimum:
            raise Forbidden(
                f"there are fewer than {book.rule.minimum} events", remedy="widen the selection"
            )
        title = f"Cox regression of {self.time} over sites"
        return fitted(book, found, title, "hazard ratio", book.event(self.event))
