"""Ridge, lasso and elastic net: the step to the maximum of a penalised quadratic, exactly.

The penalty on coefficient j is ``l1_j |b_j| + l2_j b_j^2 / 2``, subtracted from the log-likelihood. As in
statsmodels and glmnet the whole is scaled by the number of rows: ``n * alpha * (ratio |b| + (1 - ratio)
b^2 / 2)``. Without an absolute value the step is one linear system. With it, coordinate descent
(Friedman, Hastie, Tibshirani, J. Stat. Software 33, 2010) finds which coefficients are zero, and one
linear system over the others gives the rest to the last digit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atoll.algorithms.statistics.glm_newton import solve_kept
from atoll.core.errors import JobError
from atoll.core.layout import Array

__all__ = ["Penalty", "lasso_point"]

MOST_SWEEPS = 10_000


@dataclass(frozen=True)
class Penalty:
    """How strongly coefficients are held near zero.

    Args:
        alpha: strength per row, from 0; 0 is no penalty.
        ratio: share of the absolute value: 0 is ridge, 1 is lasso.

    Raises:
        JobError: a value outside its range.
    """

    alpha: float = 0.0
    ratio: float = 0.0

    def __post_init__(self) -> None:
        if not (self.alpha >= 0 and 0 <= self.ratio <= 1):
            raise JobError(
                f"penalty alpha {self.alpha:g}, ratio {self.ratio:g}: alpha is from 0, ratio in 0..1"
            )

    def weights(self, rows: float, scale: Array, free: Array) -> tuple[Array, Array]:
        """``l1`` and ``l2`` for coefficients of columns that were divided by ``scale``.

        Args:
            rows: number (or total weight) of rows.
            scale: ``(k,)``.
            free: mask of coefficients that are not penalised.
        """
        full = np.where(free > 0, 0.0, self.alpha * rows)
        return full * self.ratio / scale, full * (1 - self.ratio) / (scale * scale)


def value(point: Array, l1: Array, l2: Array) -> float:
    """The penalty at ``point``."""
    return float(l1 @ np.abs(point) + 0.5 * (l2 * point) @ point)


def stride(
    point: Array, gradient: Array, hessian: Array, kept: Array, l1: Array, l2: Array
) -> Array:
    """The step to the maximum of ``g'd - d'Hd/2`` less the penalty at ``point + d``."""
    full = hessian + np.diag(l2)
    if not l1.any():
        return solve_kept(full, (gradient - l2 * point) * kept, kept)
    linear = gradient + hessian @ point
    best = lasso_point(full, linear, l1, point * kept, kept)
    step: Array = best - point * kept
    return step


def lasso_point(quadratic: Array, linear: Array, l1: Array, start: Array, kept: Array) -> Array:
    """The maximum of ``linear'b - b'Qb/2 - l1'|b|`` over kept coefficients.

    Args:
        quadratic: Q, ``(k, k)``.
        linear: ``(k,)``.
        l1: weights of the absolute values, from 0.
        start: where the descent begins.
        kept: mask of coefficients that may differ from zero.
    """
    index = np.flatnonzero(kept)
    q, b = quadratic[np.ix_(index, index)], start[index].copy()
    c, weight = linear[index], l1[index]
    rest = c - q @ b
    for _ in range(MOST_SWEEPS):
        moved = 0.0
        for j in range(len(index)):
            curve = q[j, j]
            if curve <= 0:
                continue
            want = rest[j] + curve * b[j]
            new = np.sign(want) * max(abs(want) - weight[j], 0.0) / curve
            change = new - b[j]
            if change:
                rest -= q[:, j] * change
                b[j] = new
                moved = max(moved, change * change * curve)
        if moved <= 1e-24 * max(float(np.abs(c @ b)), 1e-300):
            break
    polished = _polish(q, c, weight, b)
    result = np.zeros(len(start))
    result[index] = b if polished is None else polished
    return result


def _polish(q: Array, c: Array, weight: Array, b: Array) -> Array | None:
    """Solve for the coefficients that are not zero, their signs given; None if a sign would change."""
    live = np.flatnonzero((b != 0) | (weight == 0))
    sign = np.sign(b)
    new = np.zeros(len(b))
    right = np.zeros(len(b))
    right[live] = c[live] - weight[live] * sign[live]
    mask = np.zeros(len(b))
    mask[live] = 1.0
    new = solve_kept(q, right, mask)
    wrong = (np.sign(new) != sign) & (weight > 0) & (b != 0)
    return None if wrong.any() else new
