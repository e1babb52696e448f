"""Descriptive tables. A suppressed number is NaN; a count of zero is 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atoll.job.inquiries import tables
from atoll.job.inquiries.frames import frame
from atoll.stats.federation import Answers

__all__ = [
    "correlation",
    "cross_table",
    "describe",
    "frequent",
    "histogram",
    "principal_components",
    "table_one",
]


def describe(
    federation: Answers,
    columns: Sequence[str] | None = None,
    *,
    quantiles: Sequence[float] = (0.25, 0.5, 0.75),
    tolerance: float = 1e-9,
) -> Any:
    """Count, missing, mean, standard deviation and quantiles of numbers, one line a column.

    Args:
        federation: who is asked.
        columns: which; None for all that hold numbers.
        quantiles: levels in [0, 1]; 0 and 1 only where the rule allows extremes.
        tolerance: relative, of a quantile; 0 is exact.
    """
    asked = tables.Describe(tuple(columns or ()), tuple(quantiles), tolerance)
    return _frame(federation, asked)


def table_one(federation: Answers, by: str = "", columns: Sequence[str] | None = None) -> Any:
    """The first table of a paper: every variable by group, in text.

    Numbers as mean (sd), categories as count (percent of the group). What is suppressed says so.

    Args:
        federation: who is asked.
        by: column of groups; empty for none.
        columns: which; None for all but ``by``.
    """
    return _frame(federation, tables.TableOne(by, tuple(columns or ())))


def histogram(federation: Answers, column: str, edges: Sequence[float]) -> Any:
    """Counts between cut points, one line a bin; a bin holds its lower edge."""
    return _frame(federation, tables.Bins(column, tuple(float(e) for e in edges)))


def cross_table(federation: Answers, row: str, column: str) -> Any:
    """Counts by two categories with margins."""
    return _frame(federation, tables.Crossed(row, column))


def correlation(federation: Answers, columns: Sequence[str] | None = None) -> Any:
    """Correlations over the rows complete in all columns."""
    return _frame(federation, tables.Correlation(tuple(columns or ())))


def principal_components(
    federation: Answers, columns: Sequence[str] | None = None, *, standardise: bool = True
) -> Any:
    """Variances and loadings of principal components, one line a component."""
    return _frame(federation, tables.PrincipalComponents(tuple(columns or ()), standardise))


def frequent(federation: Answers, column: str, least: int = 11, *, bits: int = 32) -> Any:
    """The whole numbers that at least so many persons have, the most frequent first."""
    return _frame(federation, tables.Frequent(column, least, bits))


def _frame(federation: Answers, asked: Any) -> Any:
    found = federation.ask(asked)
    return frame(found.records(), found.index)
