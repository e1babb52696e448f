"""Tests of groups over sites, as functions."""

from __future__ import annotations

from atoll.algorithms.statistics.comparisons import Anova, ChiSquared, Fisher, TestResult, TTest
from atoll.algorithms.statistics.ranks import MannWhitney
from atoll.stats.federation import Federation

__all__ = ["anova", "chi_squared", "fisher", "mann_whitney", "t_test"]


def t_test(
    federation: Federation, column: str, by: str, *, equal_variances: bool = False
) -> TestResult:
    """Do two groups have the same mean? Welch's test, or Student's."""
    asked = TTest(column, by, federation.groups(by), equal_variances, rule=federation.rule)
    found: TestResult = federation.solve(asked)
    return found


def anova(federation: Federation, column: str, by: str) -> TestResult:
    """Do several groups have the same mean?"""
    found: TestResult = federation.solve(Anova(column, by, federation.groups(by), federation.rule))
    return found


def chi_squared(
    federation: Federation, row: str, column: str, *, correction: bool = True
) -> TestResult:
    """Are two categories independent?"""
    levels = federation.groups(row), federation.groups(column)
    found: TestResult = federation.solve(
        ChiSquared(row, column, *levels, correction, federation.rule)
    )
    return found


def fisher(federation: Federation, row: str, column: str) -> TestResult:
    """Are two categories of two levels independent? Exact; refused where a cell is small."""
    levels = federation.groups(row), federation.groups(column)
    found: TestResult = federation.solve(Fisher(row, column, *levels, federation.rule))
    return found


def mann_whitney(
    federation: Federation, column: str, by: str, *, bins: int = 4096, whole: bool = False
) -> TestResult:
    """Does one group tend to larger values? From binned ranks; its p-value comes with a range."""
    asked = MannWhitney(column, by, federation.groups(by), bins, whole, federation.rule)
    found: TestResult = federation.solve(asked)
    return found
