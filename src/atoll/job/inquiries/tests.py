"""Tests of groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from atoll.algorithms.statistics import comparisons
from atoll.algorithms.statistics.analysis import Analysis
from atoll.algorithms.statistics.ranks import MannWhitney
from atoll.job.inquiries.book import Codebook
from atoll.job.inquiries.inquiry import Checked
from atoll.job.inquiries.tables import Sheet, numbers_of

__all__ = ["Anova", "ChiSquared", "Fisher", "RankTest", "TTest"]


@dataclass(frozen=True)
class TTest(Checked):
    """Do two groups have the same mean? Welch's test, or Student's.

    Args:
        column: of numbers.
        by: column of two groups.
        equal_variances: Student's test.
    """

    column: str
    by: str
    equal_variances: bool = False

    def named(self) -> tuple[str, ...]:
        """Both columns."""
        return (self.column, self.by)

    def analysis(self, book: Codebook) -> Analysis:
        """The test."""
        numbers_of(book, [self.column])
        groups, binary = book.groups(self.by), self.column in book.binary
        return comparisons.TTest(
            self.column, self.by, groups, self.equal_variances, rule=book.rule, binary=binary
        )

    def finding(self, book: Codebook, found: Any) -> Sheet:
        """One line."""
        return _tested(found)


@dataclass(frozen=True)
class Anova(Checked):
    """Do several groups have the same mean?

    Args:
        column: of numbers.
        by: column of groups.
    """

    column: str
    by: str

    def named(self) -> tuple[str, ...]:
        """Both columns."""
        return (self.column, self.by)

    def analysis(self, book: Codebook) -> Analysis:
        """The test."""
        numbers_of(book, [self.column])
        groups, binary = book.groups(self.by), self.column in book.binary
        return comparisons.Anova(self.column, self.by, groups, book.rule, binary)

    def finding(self, book: Codebook, found: Any) -> Sheet:
        """One line."""
        return _tested(found)


@dataclass(frozen=True)
class ChiSquared(Checked):
    """Are two categories independent?

    Args:
        row, column: columns of categories.
        correction: Yates's, for two by two.
    """

    row: str
    column: str
    correction: bool = True

    def named(self) -> tuple[str, ...]:
        """Both columns."""
        return (self.row, self.column)

    def analysis(self, book: Codebook) -> Analysis:
        """The test."""
        levels = book.groups(self.row), book.groups(self.column)
        return comparisons.ChiSquared(self.row, self.column, *levels, self.correction, book.rule)

    def finding(self, book: Codebook, found: Any) -> Sheet:
        """One line."""
        return _tested(found)


@dataclass(frozen=True)
class Fisher(Checked):
    """Are two categories of two levels independent? Exact; refused where a cell is small.

    Args:
        row, column: columns of categories.
    """

    row: str
    column: str

    def named(self) -> tuple[str, ...]:
        """Both columns."""
        return (self.row, self.column)

    def analysis(self, book: Codebook) -> Analysis:
        """The test."""
        levels = book.groups(self.row), book.groups(self.column)
        return comparisons.Fisher(self.row, self.column, *levels, book.rule)

    def finding(self, book: Codebook, found: Any) -> Sheet:
        """One line."""
        return _tested(found)


@dataclass(frozen=True)
class RankTest(Checked):
    """Does one group tend to larger values? From binned ranks; its p-value comes with a range.

    Args:
        column: of numbers.
        by: column of two groups.
        bins: of ranks.
        whole: whether the numbers are whole; the test is then exact.
    """

    column: str
    by: str
    bins: int = 4096
    whole: bool = False

    def named(self) -> tuple[str, ...]:
        """Both columns."""
        return (self.column, self.by)

    def analysis(self, book: Codebook) -> Analysis:
        """The test."""
        numbers_of(book, [self.column])
        groups = book.groups(self.by)
        return MannWhitney(self.column, self.by, groups, self.bins, self.whole, book.rule)

    def finding(self, book: Codebook, found: Any) -> Sheet:
        """One line."""
        return _tested(found)


def _tested(found: comparisons.TestResult) -> Sheet:
    return Sheet(found, found.records(), notes=tuple(found.notes))
