"""Descriptive tables. A suppressed number is NaN; a count of zero is 0."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from atoll.job.inquiries import tables
from atoll.job.inquiries.inquiry import Answers

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
        tolerance: relative, of a quantile; 0 is exact. A warning names columns of which that is too coarse.
    """
    found = federation.ask(tables.Describe(_named(columns), quantiles, tolerance))
    for note in found.notes:
        warnings.warn(note, stacklevel=2)
    return found.table


def table_one(federation: Answers, by: str = "", columns: Sequence[str] | None = None) -> Any:
    """The first table of a paper: every variable by group, in text.

    Numbers as mean (sd), categories and 0/1 columns as count (percent of the group). What is suppressed
    says so.

    Args:
        federation: who is asked.
        by: column of groups; empty for none.
        columns: which; None for all but ``by``.
    """
    return federation.ask(tables.TableOne(by, _named(columns))).table


def histogram(federation: Answers, column: str, edges: Sequence[float]) -> Any:
    """Counts between cut points, one line a bin; a bin holds its lower edge."""
    return federation.ask(tables.Bins(column, tuple(float(e) for e in edges))).table


def cross_table(federation: Answers, row: str, column: str) -> Any:
    """Counts by two categories with margins."""
    return federation.ask(tables.Crossed(row, column)).table


def correlation(federation: Answers, columns: Sequence[str] | None = None) -> Any:
    """Correlations over the rows complete in all columns."""
    return federation.ask(tables.Correlation(_named(columns))).table


def principal_components(
    federation: Answers, columns: Sequence[str] | None = None, *, standardise: bool = True
) -> Any:
    """Variances and loadings of principal components, one line a component."""
    return federation.ask(tables.PrincipalComponents(_named(columns), standardise)).table


def frequent(federation: Answers, column: str, least: int = 11, *, bits: int = 32) -> Any:
    """The whole numbers that at least so many persons have, the most frequent first."""
    return federation.ask(tables.Frequent(column, least, bits)).table


def _named(columns: Sequence[str] | None) -> Sequence[str]:
    return () if columns is None else columns
