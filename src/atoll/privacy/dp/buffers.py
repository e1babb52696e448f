"""Which buffers a buffered linear Toeplitz mechanism (BLT) has: the best for a plan of rounds.

C's coefficients are sums of falling powers, c_0 = 1 and c_i = omega_1 theta_1^(i-1) + ... , so that C y = w
is solved round by round with one vector for each theta, however many bands C has.

Dvijotham, McMahan, Pillutla, Steinke, Thakurta: *Efficient and Near-Optimal Noise Generation for Streaming
Differential Privacy* (FOCS 2024, https://arxiv.org/abs/2404.16706); McMahan, Xu, Zhang: *A Hassle-free
Algorithm for Private Learning in Practice: Don't Use Tree Aggregation, Use BLTs* (EMNLP industry 2024,
https://arxiv.org/abs/2408.08868), which optimises the parameters for units that come back.

=============  =========================================
in the papers  here
=============  =========================================
theta          ``decays``
omega          ``scales``
d              number of buffers
n, k, b        ``rounds``, ``participations``, ``separation``
=============  =========================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from atoll.core.layout import Array

__all__ = ["coefficients", "inverse", "root_mean_square", "tuned", "unit_change"]

_WORTH = 1e-3
"""Share of the error for which no more buffers are kept."""

_DIGITS = 6
"""Of the parameters: what two machines differ by is cut off, and the sensitivity is that of what is left."""


def coefficients(decays: Array, scales: Array, rounds: int) -> Array:
    """First column of C, ``(rounds,)``.

    >>> coefficients(np.array([0.5]), np.array([0.4]), 4).tolist()
    [1.0, 0.4, 0.2, 0.1]
    """
    return _series(decays, scales, rounds)


def inverse(decays: Array, scales: Array, rounds: int) -> Array:
    """First column of C^-1, ``(rounds,)``.

    C is 1 + x u'(1 - x D)^-1 u with D the decays and u the roots of the scales, so its inverse is
    1 - x u'(1 - x (D - u u'))^-1 u: powers of the eigenvalues of a symmetric matrix.
    """
    root = np.sqrt(scales)
    values, vectors = np.linalg.eigh(np.diag(decays) - np.outer(root, root))
    return _series(values, -((root @ vectors) ** 2), rounds)


def _series(decays: Array, scales: Array, rounds: int) -> Array:
    out = np.ones(rounds)
    out[1:] = decays[None, :] ** np.arange(rounds - 1)[:, None] @ scales
    return out


def unit_change(column: Array, rounds: int, participations: int, separation: int) -> float:
    """Most that contributions of L2 norm 1 change C x by, for a Toeplitz C with this first column.

    Its coefficients fall and are at least 0: the worst is to come early and often (Kalinin and Lampert 2024,
    Theorem 2): in rounds 0, s, 2s, ...

    Args:
        column: the first coefficients, at most ``rounds``; the others are 0.
        rounds: T.
        participations: k; those that do not fit into the rounds are not counted.
        separation: s.
    """
    table = np.zeros((-(-rounds // separation), separation))
    table.reshape(-1)[: len(column)] = column
    seen = np.cumsum(table, axis=0)  # by all participations so far, and below by k at most
    if participations < len(seen):
        seen[participations:] -= seen[:-participations].copy()
    row = seen.reshape(-1)[:rounds]
    return math.sqrt(float(row @ row))


def root_mean_square(column: Array) -> float:
    """Of the noise in the sums of 1, 2, ... T rounds, where C^-1 has this first column, ``(T,)``."""
    rounds, each = len(column), np.cumsum(column)
    return math.sqrt(float(np.arange(rounds, 0, -1) @ each**2) / rounds)


@lru_cache(maxsize=32)
def tuned(
    rounds: int, participations: int, separation: int, most: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Decays and scales that leave the least noise in the sums, for the same privacy.

    As few buffers as come within a thousandth of what more would bring.

    Args:
        rounds: T.
        participations: k, of one unit.
        separation: fewest rounds between two of them.
        most: buffers, at least 1.
    """
    plan = rounds, participations, separation
    found = [_searched(count, *plan) for count in range(1, most + 1)]
    enough = min(error for _, _, error in found) * (1 + _WORTH)
    decays, scales, _ = next(each for each in found if each[2] <= enough)
    return tuple(decays.tolist()), tuple(scales.tolist())


def _searched(count: int, *plan: int) -> tuple[Array, Array, float]:
    """The best found with so many buffers, rounded and without idle ones, and its error."""
    far = np.geomspace(1 / max(plan[0], 4), 0.5, count)  # of the decays from 1, at the start
    scales = 0.5 * np.sqrt(far) / np.sqrt(far).sum()
    start = np.concatenate([np.log((1 - far) / far), np.log(scales)])
    decays, scales, _ = _read(_descended(lambda at: _error(at, *plan), start))
    decays = np.clip(np.round(decays, _DIGITS), 10**-_DIGITS, 1 - 10**-_DIGITS)
    # A little less in all, so that what is rounded up cannot bring them above 1.
    scales = np.maximum(np.floor(scales * (1 - 1e-5) * 10**_DIGITS), 1) / 10**_DIGITS
    heard = scales > 1e-4 * scales.max()
    decays, scales = decays[heard], scales[heard]
    return decays, scales, _spread(decays, scales, *plan)


def _read(at: Array) -> tuple[Array, Array, float]:
    """Parameters in range from any numbers, and by how much the scales were too much for one."""
    half = len(at) // 2
    scales = np.exp(np.minimum(at[half:], 1.0))
    total = float(scales.sum())
    return 1 / (1 + np.exp(-np.clip(at[:half], -30, 30))), scales / max(1.0, total), total - 1


def _error(at: Array, *plan: int) -> float:
    decays, scales, over = _read(at)
    return math.log(_spread(decays, scales, *plan)) + 10 * max(0.0, over) ** 2


def _spread(
    decays: Array, scales: Array, rounds: int, participations: int, separation: int
) -> float:
    """Noise in the sums, root mean square over rounds, for a unit's contribution of 1 at multiplier 1."""
    change = unit_change(coefficients(decays, scales, rounds), rounds, participations, separation)
    return change * root_mean_square(inverse(decays, scales, rounds))


def _descended(cost: Callable[[Array], float], start: Array, most: int = 200) -> Array:
    """Where ``cost`` is least near ``start``: BFGS (Nocedal and Wright 2006, algorithm 6.1)."""
    at, low, slope = start, cost(start), _slope(cost, start)
    bend = np.eye(len(at))
    for _ in range(most):
        way = -bend @ slope
        if slope @ way >= 0:  # no way down any more by this model of the valley
            bend, way = np.eye(len(at)), -slope
        length, fall = min(1.0, 2.0 / float(np.abs(way).max() or 1.0)), float(slope @ way)
        while (here := cost(at + length * way)) > low + 1e-4 * length * fall and length > 1e-8:
            length /= 2
        if not low - here > 1e-10:
            return at
        moved, turned = length * way, _slope(cost, at + length * way) - slope
        at, low, slope = at + moved, here, slope + turned
        if (steep := float(moved @ turned)) > 1e-12:
            left = np.eye(len(at)) - np.outer(moved, turned) / steep
            bend = left @ bend @ left.T + np.outer(moved, moved) / steep
    return at


def _slope(cost: Callable[[Array], float], at: Array) -> Array:
    """By central differences."""
    steps = 1e-5 * np.eye(len(at))
    return np.array([(cost(at + step) - cost(at - step)) / 2e-5 for step in steps])
