"""Tests of groups over sites, as functions."""

from __future__ import annotations

from atoll.algorithms.statistics.comparisons import TestResult
from atoll.algorithms.statistics.survival_axis import Axis
from atoll.algorithms.statistics.survival_logrank import LogRankResult
from atoll.job.inquiries import survival, tests
from atoll.job.inquiries.inquiry import Answers, Inquiry

__all__ = ["anova", "chi_squared", "fisher", "log_rank", "mann_whitney", "t_test"]


def t_test(
    federation: Answers, column: str, by: str, *, equal_variances: bool = False
) -> TestResult:
    """Do two groups have the same mean? Welch's test, or Student's."""
    return _tested(federation, tests.TTest(column, by, equal_variances))


def anova(federation: Answers, column: str, by: str) -> TestResult:
    """Do several groups have the same mean?"""
    return _tested(federation, tests.Anova(column, by))


def chi_squared(
    federation: Answers, row: str, column: str, *, correction: bool = True
) -> TestResult:
    """Are two categories independent?"""
    return _tested(federation, tests.ChiSquared(row, column, correction))


def fisher(federation: Answers, row: str, column: str) -> TestResult:
    """Are two categories of two levels independent? Exact; refused where a cell is small."""
    return _tested(federation, tests.Fisher(row, column))


def mann_whitney(
    federation: Answers, column: str, by: str, *, bins: int = 4096, whole: bool = False
) -> TestResult:
    """Does one group tend to larger values? From binned ranks; its p-value comes with a range."""
    return _tested(federation, tests.RankTest(column, by, bins, whole))


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
    found: LogRankResult = federation.ask(survival.LogRank(time, event, by, axis, strata)).result
    return found


def _tested(federation: Answers, asked: Inquiry) -> TestResult:
    found: TestResult = federation.ask(asked).result
    return found
