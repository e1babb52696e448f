"""The Mann-Whitney test from binned ranks, with a bound of its error.

Ranks of pooled rows are not sums; counts per bin and group are. Values that share a bin count as ties, so U is
off by at most half the pairs of the two groups that fall into one bin. Bins of whole numbers hold one
value each: there the test is exact.

H. B. Mann and D. R. Whitney, Ann. Math. Stat. 18 (1947), doi:10.1214/aoms/1177730491; tie correction and
continuity correction as SciPy's asymptotic method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from atoll.algorithms.statistics.analysis import Columns, Question
from atoll.algorithms.statistics.columns import groups_of, large_enough, numbers, reading, tallied
from atoll.algorithms.statistics.comparisons import TestResult
from atoll.algorithms.statistics.distributions import normal_tail
from atoll.core.errors import DataError, Forbidden
from atoll.core.layout import Array
from atoll.data.disclosure import Disclosure
from atoll.data.query_log import Released

__all__ = ["MannWhitney"]


@dataclass(frozen=True)
class MannWhitney:
    """Does one group tend to larger values than the other?

    Args:
        name: the column that is compared.
        by: column of the group codes 0 and 1.
        groups: names of the two groups.
        bins: how many, over eight standard deviations to either side of the mean.
        whole: values are whole numbers: bins are one wide then, unless they lie too far apart for ``bins``.
        rule: disclosure control.
    """

    name: str
    by: str
    groups: tuple[str, ...] = ("0", "1")
    bins: int = 4096
    whole: bool = False
    rule: Disclosure = field(default_factory=Disclosure)

    def __post_init__(self) -> None:
        if len(self.groups) != 2:
            raise DataError(f"{self.by!r} has {len(self.groups)} groups, not two")

    def columns(self) -> Sequence[str]:
        """The column, and those of the groups and persons."""
        return reading(self.rule, self.name, self.by)

    def start(self) -> Question:
        """Before the first round."""
        return {"round": np.zeros(1)}

    def ask(self, state: Question) -> Question | None:
        """Nothing first, then the mean, then the cut points."""
        step = int(state["round"][0])
        if step in (0, 3):
            return None if step else {}
        name = "mean" if step == 1 else "edges"
        return {name: state[name]}

    def sums(self, question: Question, data: Columns, *, site: int, sites: int) -> Question:
        """Counts and the sum; squares around the mean; counts per group and bin.

        Raises:
            DataError: a value is not whole where all should be.
        """
        values, code = numbers(data, self.name), groups_of(data, self.by, 2)
        there = ~np.isnan(values) & (code >= 0)
        known, group = values[there], code[there]
        if self.whole and not (known == np.rint(known)).all():
            raise DataError(f"column {self.name!r} holds a value that is not whole")
        if "edges" in question:
            edges = question["edges"]
            cell = group * (len(edges) + 1) + np.searchsorted(edges, known, side="right")
            counts = np.bincount(cell, minlength=2 * (len(edges) + 1))
            return {"counts": counts.reshape(2, -1).astype(np.float64)}
        if "mean" in question:
            squares = np.array([((known - question["mean"]) ** 2).sum()])
            large_enough(self.name, squares, len(known), question["mean"])
            return {"squares": squares}
        count, persons = tallied(np.where(there, code, -1), 2, data, self.rule)
        return {"count": count, "persons": persons, "sum": np.array([known.sum()])}

    def learn(self, state: Question, totals: Question) -> Question:
        """The mean; then the cut points; then the counts."""
        if "counts" in totals:
            return {**state, "round": np.full(1, 3.0), "counts": totals["counts"]}
        if "sum" in totals:
            size = np.maximum(1.0, totals["count"].sum(keepdims=True))
            known = {"size": size, "mean": totals["sum"] / size, "persons": totals["persons"]}
            return {"round": np.ones(1), **known}
        mean = float(state["mean"][0])
        sd = math.sqrt(float(totals["squares"][0] / state["size"][0]))
        half = math.ceil(8 * sd) + 1
        if self.whole and half <= self.bins // 2:
            edges = np.rint(mean) + np.arange(-half, half + 1) - 0.5
        else:
            width = sd or max(1.0, abs(float(mean)))
            edges = mean + width * np.linspace(-8, 8, self.bins + 1)
        return {**state, "round": np.full(1, 2.0), "edges": edges}

    def result(self, state: Question) -> TestResult:
        """U of the first group, its p-value and the range it lies in.

        Raises:
            Forbidden: a group has too few persons.
            DataError: a group is empty, or all values are tied.
        """
        counts: Array = state["counts"]
        n1, n2 = (float(n) for n in counts.sum(axis=1))
        if self.rule.minimum > 1 and (state["persons"] < self.rule.minimum).any():
            raise Forbidden(f"a group of {self.by!r} has fewer than {self.rule.minimum} persons")
        if not n1 * n2:
            raise DataError(f"a group of {self.by!r} has no value")
        first, second = counts
        u = float((first * (np.cumsum(second) - second / 2)).sum())
        blurred = first * second
        ties = counts.sum(axis=0)
        if self.whole and float(state["edges"][1] - state["edges"][0]) == 1.0:
            blurred, loose = blurred[[0, -1]], np.where(_inner(ties), ties, 0.0)
        else:
            loose = np.zeros_like(ties)
        bound = float(blurred.sum()) / 2
        narrow, wide = _spread(n1, n2, ties), _spread(n1, n2, loose)
        if not narrow:
            raise DataError(f"all values of {self.name!r} share one bin", remedy="use more bins")
        far, near = abs(u - n1 * n2 / 2) + bound, max(0.0, abs(u - n1 * n2 / 2) - bound)
        p_range = (_p(far, narrow), _p(near, wide))
        note = (
            f"U is known within {bound:g} of {n1 * n2:g} pairs, "
            f"and p lies between {p_range[0]:.3g} and {p_range[1]:.3g}"
        )
        return TestResult(
            "Mann-Whitney U",
            u,
            (),
            _p(abs(u - n1 * n2 / 2), narrow),
            u / (n1 * n2),
            p_range=p_range,
            notes=(note,),
        )

    def released(self, data: Columns) -> Sequence[Released]:
        """The rows with a value, and each group's."""
        rows = ~np.isnan(data[self.name]) & ~np.isnan(data[self.by])
        cells = [
            Released((self.name,), rows & (data[self.by] == g), f"by {self.by}") for g in (0, 1)
        ]
        return [Released((self.name,), rows), *cells]


def _inner(ties: Array) -> Array:
    inside = np.ones(len(ties), bool)
    inside[[0, -1]] = False
    return inside


def _spread(n1: float, n2: float, ties: Array) -> float:
    """Standard deviation of U under the hypothesis, corrected for ties."""
    n = n1 + n2
    correction = float((ties**3 - ties).sum()) / (n * (n - 1))
    return math.sqrt(max(0.0, n1 * n2 / 12 * (n + 1 - correction)))


def _p(apart: float, spread: float) -> float:
    return min(1.0, 2 * normal_tail((apart - 0.5) / spread))
