"""The likelihood of a random-intercept model as a function of one number, from sums over groups.

With ``lambda = tau^2 / sigma^2`` the inverse covariance of a group of n rows is ``(I - gamma 11') / sigma^2``,
``gamma = lambda / (1 + n lambda)``. So for given lambda a site adds up its groups, and

=====  =======================================================================
M      ``sum_i W_i'W_i - gamma_i s_i s_i'`` for W = [columns, outcome], s its sums
L      ``sum_i log(1 + n_i lambda)``
=====  =======================================================================

with their first and second derivatives by lambda are all that the profile likelihood needs (Laird and Ware,
Biometrics 38, 1982; Lindstrom and Bates, JASA 83, 1988).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from atoll.algorithms.statistics.glm_newton import solve_kept
from atoll.core.layout import Array

__all__ = ["Profile", "group_sums", "profile"]


def group_sums(wide: Array, group: Array, ratio: float) -> tuple[Array, Array]:
    """A site's M and L at one lambda, and their derivatives.

    Args:
        wide: columns and outcome, ``(p + 1, n)``.
        group: position of each row's group, ``(n,)``.
        ratio: lambda, from 0.

    Returns:
        ``(3, p + 1, p + 1)`` and ``(3,)``.
    """
    size = np.bincount(group).astype(np.float64)
    sums = np.stack([np.bincount(group, row, len(size)) for row in wide])
    open_ = 1.0 + size * ratio
    gamma = (ratio / open_, 1.0 / open_**2, -2.0 * size / open_**3)
    parts = [-(sums * g) @ sums.T for g in gamma]
    parts[0] = wide @ wide.T + parts[0]
    logs = [np.log(open_).sum(), (size / open_).sum(), -((size / open_) ** 2).sum()]
    return np.stack(parts), np.array(logs)


@dataclass(frozen=True)
class Profile:
    """The profile log-likelihood at one lambda.

    Args:
        value: without effects of the parametrisation, all constants included.
        slope: by lambda.
        curve: second derivative.
        step: change of the coefficients from those that residuals were taken of.
        inverse: ``(X'V^-1 X)^-1`` sigma-free, ``(p, p)``.
        variance: sigma^2.
        mixed: minus the mixed derivative by coefficients and lambda, times sigma^2, ``(p,)``.
    """

    value: float
    slope: float
    curve: float
    step: Array
    inverse: Array
    variance: float
    mixed: Array


def profile(sums: Array, logs: Array, rows: float, kept: Array, reml: bool) -> Profile:
    """The profile log-likelihood from totals of :func:`group_sums`."""
    inner, first, second = (m[:-1, :-1] for m in sums)
    inverse = solve_kept(inner, np.diag(kept), kept)
    step = inverse @ sums[0][:-1, -1]
    freedom = rows - float(kept.sum()) if reml else rows
    v = np.append(-step, 1.0)
    rss, slope = float(v @ sums[0] @ v), float(v @ sums[1] @ v)
    bent = (sums[1] @ v)[:-1]
    curve = float(v @ sums[2] @ v) - 2 * float(bent @ inverse @ bent)
    rss = max(rss, 1e-300)
    value = freedom * (math.log(2 * math.pi * rss / freedom) + 1) + logs[0]
    d1 = freedom * slope / rss + logs[1]
    d2 = freedom * (curve / rss - (slope / rss) ** 2) + logs[2]
    if reml:
        index = np.flatnonzero(kept)
        value += float(np.linalg.slogdet(inner[np.ix_(index, index)])[1])
        one = inverse @ first
        d1 += float(np.trace(one))
        d2 += float(np.trace(inverse @ second) - np.trace(one @ one))
    return Profile(-0.5 * value, -0.5 * d1, -0.5 * d2, step, inverse, rss / freedom, -bent)
