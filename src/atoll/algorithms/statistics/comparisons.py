"""Tests that compare groups: t, Welch, analysis of variance, chi-squared, Fisher.

They need no sums of their own: moments by group and cross tables hold all there is to know. A test is
refused where the numbers it is made of would be suppressed: with the margins, it would give them away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from atoll.algorithms.statistics.analysis import Question
from atoll.algorithms.statistics.columns import varies
from atoll.algorithms.statistics.distributions import (
    chi2_tail,
    f_tail,
    fisher_p,
    t_quantile,
    t_tail,
)
from atoll.algorithms.statistics.moments import Moments
from atoll.algorithms.statistics.tables import CrossTable
from atoll.algorithms.statistics.together import Derived
from atoll.core.errors import DataError, Forbidden
from atoll.core.layout import Array
from atoll.data.disclosure import Disclosure

__all__ = ["Anova", "ChiSquared", "Fisher", "TTest", "TestResult"]


@dataclass(frozen=True)
class TestResult:
    """What a test says.

    Args:
        test: its name.
        statistic: its value; NaN for an exact test without one.
        df: degrees of freedom.
        p: two-sided p-value.
        estimate: difference of means, odds ratio, ...; NaN where there is none.
        interval: confidence interval of the estimate.
        confidence: its level.
        p_range: where the p-value lies when it is known with an error only; else twice NaN.
        notes: what to know when reading it.
    """

    __test__ = False  # not a class of tests to be collected

    test: str
    statistic: float
    df: tuple[float, ...]
    p: float
    estimate: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    confidence: float = 0.95
    p_range: tuple[float, float] = (math.nan, math.nan)
    notes: tuple[str, ...] = ()

    def records(self) -> list[dict[str, object]]:
        """One record."""
        return [
            {
                "test": self.test,
                "statistic": self.statistic,
                "df": ", ".join(f"{d:g}" for d in self.df),
                "p": self.p,
                "estimate": self.estimate,
                "low": self.interval[0],
                "high": self.interval[1],
            }
        ]


def _zero_one(test: TTest | Anova) -> frozenset[str]:
    return frozenset([test.name] if test.binary else ())


def _moments(found: Moments, state: Question) -> tuple[Array, Array, Array]:
    """Counts, means and variances by group, ``(groups,)`` each.

    Raises:
        Forbidden: a group has too few persons.
        DataError: a group has fewer than two values.
    """
    count, mean, square = state["count"][0], state["mean"][0], state["square"][0]
    square = np.where(varies(square, count, mean), square, 0.0)
    persons = state["persons"][0]
    if (persons < found.rule.minimum).any() and found.rule.minimum > 1:
        raise Forbidden(
            f"a group of {found.by!r} has fewer than {found.rule.minimum} persons",
            remedy="join groups, or leave the small one out",
        )
    if found.few(state).any():
        raise Forbidden(
            f"in a group of {found.by!r} few persons have one of the two values of {found.names[0]!r}, and "
            "means would tell how many",
            remedy="join groups",
        )
    if (count < 2).any():
        name = found.groups[int(np.argmin(count))]
        raise DataError(f"group {name!r} of {found.by!r} has fewer than two values")
    return count, mean, square / (count - 1)


@dataclass(frozen=True)
class TTest(Derived):
    """Do two groups have the same mean? Welch's test, or Student's with equal variances.

    Args:
        name: the column that is compared.
        by: column of the group codes 0 and 1.
        groups: names of the two groups.
        equal_variances: Student's test with pooled variance.
        confidence: of the interval of the difference, first minus second.
        rule: disclosure control.
    """

    name: str
    by: str
    groups: tuple[str, ...] = ("0", "1")
    equal_variances: bool = False
    confidence: float = 0.95
    rule: Disclosure = field(default_factory=Disclosure)
    binary: bool = False

    def __post_init__(self) -> None:
        if len(self.groups) != 2:
            raise DataError(
                f"a t test compares two groups, {self.by!r} has {len(self.groups)}",
                remedy="use an analysis of variance",
            )

    @property
    def inner(self) -> Moments:
        """Moments by group."""
        return Moments((self.name,), self.by, self.groups, self.rule, _zero_one(self))

    def read(self, state: Question) -> TestResult:
        """The test."""
        n, mean, variance = _moments(self.inner, state)
        if self.equal_variances:
            df = float(n.sum() - 2)
            error = math.sqrt(float(((n - 1) * variance).sum()) / df * float((1 / n).sum()))
        else:
            parts = variance / n
            error = math.sqrt(float(parts.sum()))
            below = float((parts**2 / (n - 1)).sum())
            df = float(parts.sum()) ** 2 / below if below else math.nan
        if not error > 0:
            raise DataError(f"column {self.name!r} is constant in both groups")
        difference = float(mean[0] - mean[1])
        half = t_quantile(0.5 + self.confidence / 2, df) * error
        return TestResult(
            "Student's t" if self.equal_variances else "Welch's t",
            difference / error,
            (df,),
            2 * t_tail(abs(difference / error), df),
            difference,
            (difference - half, difference + half),
            self.confidence,
        )


@dataclass(frozen=True)
class Anova(Derived):
    """Do several groups have the same mean? One-way analysis of variance.

    Args:
        name: the column that is compared.
        by: column of group codes.
        groups: names of the groups.
        rule: disclosure control.
    """

    name: str
    by: str
    groups: tuple[str, ...]
    rule: Disclosure = field(default_factory=Disclosure)
    binary: bool = False

    @property
    def inner(self) -> Moments:
        """Moments by group."""
        return Moments((self.name,), self.by, self.groups, self.rule, _zero_one(self))

    def read(self, state: Question) -> TestResult:
        """The F test."""
        n, mean, variance = _moments(self.inner, state)
        centre = float((n * mean).sum() / n.sum())
        between, within = float((n * (mean - centre) ** 2).sum()), float(((n - 1) * variance).sum())
        df = float(len(n) - 1), float(n.sum() - len(n))
        if not (within > 0 and df[0] > 0):
            raise DataError(f"column {self.name!r} does not vary inside the groups of {self.by!r}")
        f = (between / df[0]) / (within / df[1])
        share = between / (between + within)
        note = f"eta squared {share:.6g}"
        return TestResult("one-way analysis of variance", f, df, f_tail(f, *df), notes=(note,))


def _table(found: CrossTable, state: Question) -> Array:
    """The cross table, where nothing in it is hidden.

    Raises:
        Forbidden: something is.
        DataError: a level that no row has.
    """
    if found.result(state).counts.hidden.any():
        raise Forbidden(
            f"the table of {found.row!r} by {found.column!r} has cells below "
            f"{found.rule.minimum} persons",
            remedy="join levels until every cell is 0 or large enough",
        )
    counts = state["rows"]
    for axis, levels, name in ((1, found.rows, found.row), (0, found.levels, found.column)):
        empty = np.flatnonzero(counts.sum(axis=axis) == 0)
        if empty.size:
            raise DataError(f"level {levels[int(empty[0])]!r} of {name!r} has no row")
    return counts


@dataclass(frozen=True)
class ChiSquared(Derived):
    """Are two categories independent? Pearson's chi-squared test.

    Args:
        row, column: columns of codes.
        rows, levels: names of their levels.
        correction: Yates' correction of a table of two by two.
        rule: disclosure control.
    """

    row: str
    column: str
    rows: tuple[str, ...]
    levels: tuple[str, ...]
    correction: bool = True
    rule: Disclosure = field(default_factory=Disclosure)

    @property
    def inner(self) -> CrossTable:
        """The cross table."""
        return CrossTable(self.row, self.column, self.rows, self.levels, self.rule)

    def read(self, state: Question) -> TestResult:
        """The test."""
        counts = _table(self.inner, state)
        expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
        df = float((counts.shape[0] - 1) * (counts.shape[1] - 1))
        apart = np.abs(counts - expected)
        if self.correction and df == 1:
            apart -= np.minimum(0.5, apart)
        statistic = float((apart**2 / expected).sum())
        few = int((expected < 5).sum())
        notes = (f"{few} expected counts are below 5",) if few else ()
        return TestResult(
            "Pearson's chi-squared", statistic, (df,), chi2_tail(statistic, df), notes=notes
        )


@dataclass(frozen=True)
class Fisher(Derived):
    """Are two categories of two levels independent? Fisher's exact test, where counts allow.

    Args:
        row, column: columns of codes 0 and 1.
        rows, levels: names of their levels.
        rule: disclosure control.
    """

    row: str
    column: str
    rows: tuple[str, ...] = ("0", "1")
    levels: tuple[str, ...] = ("0", "1")
    rule: Disclosure = field(default_factory=Disclosure)

    def __post_init__(self) -> None:
        if len(self.rows) != 2 or len(self.levels) != 2:
            raise DataError("Fisher's test is for two by two levels", remedy="use chi-squared")

    @property
    def inner(self) -> CrossTable:
        """The cross table."""
        return CrossTable(self.row, self.column, self.rows, self.levels, self.rule)

    def read(self, state: Question) -> TestResult:
        """The test, with the sample's odds ratio."""
        a, b, c, d = (int(x) for x in _table(self.inner, state).ravel())
        ratio = (a * d) / (b * c) if b * c else (math.inf if a * d else math.nan)
        return TestResult("Fisher's exact", math.nan, (), fisher_p(a, b, c, d), ratio)
