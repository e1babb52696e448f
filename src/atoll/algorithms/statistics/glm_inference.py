"""From estimates and their covariance to the lines of a table: errors, tests, intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from atoll.algorithms.statistics.distributions import normal_quantile, t_quantile, t_tail
from atoll.core.layout import Array

__all__ = ["Estimates", "estimates"]


@dataclass(frozen=True)
class Estimates:
    """Coefficients as a table: one line for each name. NaN stands for what could not be estimated.

    Args:
        names: of the coefficients.
        values: ``(p,)``.
        standard_errors: ``(p,)``.
        statistics: values over standard errors.
        p_values: two-sided, of the normal or Student's distribution.
        lower: lower ends of the intervals.
        upper: upper ends.
        covariance: ``(p, p)``.
        level: coverage of the intervals.
    """

    names: tuple[str, ...]
    values: Array
    standard_errors: Array
    statistics: Array
    p_values: Array
    lower: Array
    upper: Array
    covariance: Array
    level: float

    def __getitem__(self, name: str) -> float:
        """The coefficient called ``name``."""
        return float(self.values[self.names.index(name)])


def estimates(
    names: tuple[str, ...],
    values: Array,
    covariance: Array,
    level: float = 0.95,
    df: float | None = None,
) -> Estimates:
    """The table of ``values`` with their covariance.

    Args:
        names: of the coefficients.
        values: ``(p,)``, NaN where there is none.
        covariance: ``(p, p)``, NaN where there is none.
        level: coverage of the intervals, in (0, 1).
        df: degrees of freedom of Student's distribution; None for the normal one.
    """
    variance = np.diag(covariance)
    error = np.sqrt(np.where(variance >= 0, variance, np.nan))
    usable = np.isfinite(values) & (error > 0)
    ratio = np.divide(values, error, out=np.full(len(values), np.nan), where=usable)
    freedom = math.inf if df is None else df
    p = np.array([2 * t_tail(abs(t), freedom) if np.isfinite(t) else np.nan for t in ratio])
    ends = 0.5 + level / 2
    factor = normal_quantile(ends) if df is None else t_quantile(ends, df)
    reach = factor * error
    return Estimates(
        names, values, error, ratio, p, values - reach, values + reach, covariance, level
    )
