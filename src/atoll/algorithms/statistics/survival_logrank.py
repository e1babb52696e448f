"""The log-rank test over sites, pooled or stratified, equal to that of the pooled rows.

Pooled, the risk sets are those of all rows together and come from summed histograms. Stratified by site,
each site compares its own rows only and sends what was observed less what was expected (Mantel 1966; Peto
and Peto 1972; weights of Gehan 1965, Tarone and Ware 1977).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from atoll.algorithms.statistics.distributions import chi2_tail
from atoll.algorithms.statistics.survival import at_risk, histograms, positions
from atoll.algorithms.statistics.survival_axis import Axis
from atoll.core.errors import DataError, JobError
from atoll.core.layout import Array

__all__ = ["LogRank", "LogRankResult"]


@dataclass(frozen=True)
class LogRankResult:
    """Do groups differ in survival?

    Args:
        levels: codes of the groups.
        observed: events in each group.
        expected: events to be expected in each group if none differed.
        statistic: chi-squared.
        df: its degrees of freedom: groups with rows at risk, less one.
        p_value: probability of this statistic or a larger one if no group differed.
        rows: complete rows.
        excluded: rows left out for missing values.
        notes: what a reader has to know, in words.
    """

    levels: tuple[float, ...]
    observed: Array
    expected: Array
    statistic: float
    df: int
    p_value: float
    rows: int
    excluded: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class LogRank:
    """The log-rank test and its weighted kin.

    Args:
        time: column of the time of event or censoring.
        event: column of 1 for an event and 0 for censoring.
        group: column of codes of the groups.
        levels: all codes of ``group``, two or more.
        axis: the times at which sites count.
        strata: ``none``; ``site``; or a column of codes.
        strata_levels: all codes of that column.
        entry: column of late entries, or empty.
        weight: ``log-rank``, ``gehan`` (at risk) or ``tarone-ware`` (its square root).
    """

    time: str
    event: str
    group: str
    levels: Sequence[float]
    axis: Axis
    strata: str = "none"
    strata_levels: Sequence[float] = ()
    entry: str = ""
    weight: Literal["log-rank", "gehan", "tarone-ware"] = "log-rank"

    def __post_init__(self) -> None:
        if len(set(self.levels)) < 2:
            raise JobError("a comparison needs two or more groups")
        if (self.strata not in ("none", "site")) != bool(len(self.strata_levels)):
            raise JobError("a column of strata needs its levels")

    def columns(self) -> Sequence[str]:
        """Names of the columns it reads."""
        more = (self.entry, self.strata if len(self.strata_levels) else "")
        return [self.time, self.event, self.group, *(n for n in more if n)]

    def start(self) -> Mapping[str, Array]:
        """Before the only round."""
        return {}

    def ask(self, state: Mapping[str, Array]) -> Mapping[str, Array] | None:
        """One question."""
        return None if state else {"histograms": np.ones(1)}

    def sums(
        self, question: Mapping[str, Array], data: Mapping[str, Array], *, site: int, sites: int
    ) -> Mapping[str, Array]:
        """Histograms of each stratum; by site, only what follows from them."""
        tables = [histograms(self, part) for part in self._parts(data)]
        answer = {n: np.stack([t[n] for t in tables]) for n in ("deaths", "exits", "entries")}
        numbers = np.sum([t["numbers"] for t in tables], axis=0)
        if self.strata == "site":
            return {"numbers": numbers, **self._compared(answer)}
        return {"numbers": numbers, **answer}

    def _parts(self, data: Mapping[str, Array]) -> list[Mapping[str, Array]]:
        if not len(self.strata_levels):
            return [data]
        known = ~np.isnan(data[self.strata])
        where = np.full(len(known), -1)
        where[known] = positions(data[self.strata][known], self.strata_levels, self.strata)
        columns = replace(self, strata="none", strata_levels=()).columns()
        return [
            {name: data[name][where == i] for name in columns}
            for i in range(len(self.strata_levels))
        ]

    def _compared(self, tables: Mapping[str, Array]) -> dict[str, Array]:
        """Observed, expected, weighted difference and its covariance, summed over strata and times."""
        risk = at_risk(tables["exits"], tables["entries"])  # (strata, groups, M)
        deaths = tables["deaths"]
        total, events = risk.sum(axis=1), deaths.sum(axis=1)
        some = (events > 0) & (total > 0)
        share = np.where(some[:, None], risk / np.where(some, total, 1.0)[:, None], 0.0)
        power = {"log-rank": 0.0, "gehan": 1.0, "tarone-ware": 0.5}[self.weight]
        w = np.where(some, np.where(some, total, 1.0) ** power, 0.0)
        expected = events[:, None] * share
        many = np.where(total > 1, total - 1, 1.0)
        factor = w * w * events * np.where(total > 1, (total - events) / many, 0.0)
        spread = np.diag(np.einsum("sm,sgm->g", factor, share))
        spread -= np.einsum("sm,sgm,shm->gh", factor, share, share)
        return {
            "observed": deaths.sum(axis=(0, 2)),
            "expected": expected.sum(axis=(0, 2)),
            "difference": np.einsum("sm,sgm->g", w, deaths - expected),
            "spread": spread,
        }

    def learn(self, state: Mapping[str, Array], totals: Mapping[str, Array]) -> Mapping[str, Array]:
        """The comparison, from the totals."""
        if self.strata == "site":
            return totals
        return {"numbers": totals["numbers"], **self._compared(totals)}

    def result(self, state: Mapping[str, Array]) -> LogRankResult:
        """The test.

        Raises:
            DataError: all rows of all sites are censored, or fewer than two groups were ever at risk.
        """
        rows, excluded, moved = (int(v) for v in state["numbers"])
        if not state["observed"].sum():
            raise DataError("there is no event at any site: nothing can be compared")
        spread = state["spread"]
        live = np.flatnonzero(np.diag(spread) > 1e-12 * np.diag(spread).max(initial=0.0))
        if len(live) < 2:
            raise DataError("fewer than two groups were at risk at the same time")
        notes = [f"{moved} times are not on the axis and were rounded"] if moved else []
        if excluded:
            notes.append(f"{excluded} rows with missing values are left out")
        gone = [f"{self.levels[i]:g}" for i in range(len(self.levels)) if i not in live]
        if gone:
            notes.append(f"groups without rows at risk at an event: {', '.join(gone)}")
        part = live[:-1]
        way = state["difference"][part]
        statistic = float(way @ np.linalg.pinv(spread[np.ix_(part, part)], hermitian=True) @ way)
        return LogRankResult(
            tuple(self.levels),
            state["observed"],
            state["expected"],
            statistic,
            len(part),
            chi2_tail(statistic, len(part)),
            rows,
            excluded,
            tuple(notes),
        )
