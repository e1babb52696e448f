"""A lower bound on epsilon from one training run.

Each of m canaries is trained on or not, by a fair coin. The auditor sees the result, orders the
canaries by how likely they were in, and guesses "in" for the first, "out" for the last, and nothing
for those between. A mechanism that is (epsilon, delta)-DP does not let many of r guesses be right:

    P[W >= v] <= f(v) + 2 m delta max_{1 <= i <= m} (f(v - i) - f(v)) / i,
    f(v) = P[Binomial(r, e^eps / (1 + e^eps)) >= v]

so v right guesses refute every epsilon for which that probability is below 1 - confidence.

Reference: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023,
https://arxiv.org/abs/2305.08846, theorem 5.2.

=====================  =================
symbol in the paper    name here
=====================  =================
m                      ``canaries``
r                      ``guesses``
v                      ``right``
beta (p-value)         ``p_value``
=====================  =================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atoll.core.errors import DataError
from atoll.core.layout import Array

__all__ = ["Bound", "audit", "lower_bound", "p_value"]

_FAR = 60.0
"""An epsilon that no number of guesses refutes."""


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The largest chance of ``right`` or more right guesses under (epsilon, delta)-DP.

    Args:
        canaries: m.
        guesses: r, at most m.
        right: v, at most r.
        epsilon: to be refuted, >= 0.
        delta: in [0, 1].

    Raises:
        DataError: the numbers do not fit together.

    >>> p_value(10, 10, 10, 0.0, 0.0) == 0.5**10
    True
    """
    if not 0 <= right <= guesses <= canaries:
        raise DataError(f"{right} right of {guesses} guesses on {canaries} canaries")
    tail = _tail(guesses, epsilon)
    if delta <= 0 or right == 0:
        return float(min(1.0, tail[right]))
    back = np.arange(1, right + 1)  # beyond v, f(v - i) is 1 and only the divisor grows
    excess = float(np.max((tail[right - back] - tail[right]) / back))
    return float(min(1.0, tail[right] + 2 * canaries * delta * excess))


def _tail(guesses: int, epsilon: float) -> Array:
    """f(0) to f(r): P[Binomial(r, e^eps / (1 + e^eps)) >= k], ``(r + 1,)``."""
    log_right, log_wrong = (
        -math.log1p(math.exp(-epsilon)),
        -epsilon - math.log1p(math.exp(-epsilon)),
    )
    k = np.arange(guesses + 1)
    logs = np.array([math.lgamma(i + 1) for i in range(guesses + 1)])
    mass = np.exp(logs[guesses] - logs - logs[::-1] + k * log_right + k[::-1] * log_wrong)
    tail = np.minimum(1.0, np.cumsum(mass[::-1])[::-1])  # smallest first: no digits are lost
    tail[0] = 1.0
    return np.asarray(tail)


def lower_bound(
    canaries: int, guesses: int, right: int, delta: float, confidence: float = 0.95
) -> float:
    """The largest epsilon that ``right`` right guesses refute; 0 where they refute none.

    Args:
        canaries: m.
        guesses: r.
        right: v.
        delta: of the statement that is tested.
        confidence: of the bound.

    >>> round(lower_bound(1000, 1000, 1000, 0.0), 2)
    5.81
    """
    wrong = 1.0 - confidence
    if p_value(canaries, guesses, right, 0.0, delta) >= wrong:
        return 0.0
    low, high = 0.0, _FAR
    if p_value(canaries, guesses, right, high, delta) < wrong:
        return high
    for _ in range(50):
        middle = (low + high) / 2
        if p_value(canaries, guesses, right, middle, delta) < wrong:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class Bound:
    """What one run proves.

    Args:
        epsilon: the lower bound.
        delta: of the statement.
        confidence: of the bound.
        canaries: m.
        guesses: r of the best of the tried numbers of guesses.
        right: v.
    """

    epsilon: float
    delta: float
    confidence: float
    canaries: int
    guesses: int
    right: int


def audit(
    scores: Array,
    included: Array,
    delta: float = 0.0,
    confidence: float = 0.95,
    shares: Sequence[float] = (0.05, 0.2, 0.6, 1.0),
) -> Bound:
    """The best bound over some numbers of guesses, corrected for having tried them all.

    Args:
        scores: higher for "trained on", ``(m,)``; made without looking at ``included``.
        included: the fair coins, bool, ``(m,)``.
        delta: of the statement that is tested.
        confidence: of the bound as a whole; each number of guesses gets an equal part of the rest.
        shares: parts of the canaries that are guessed, half as "in" and half as "out".

    Raises:
        DataError: no canary, or lengths that differ.
    """
    m = len(scores)
    if not m or scores.shape != included.shape:
        raise DataError(f"{scores.shape} scores for {included.shape} canaries")
    order = np.argsort(-scores, kind="stable")
    each = 1.0 - (1.0 - confidence) / len(shares)
    found = []
    for share in shares:
        half = max(1, min(m // 2, round(m * share / 2)))
        right = int(included[order[:half]].sum() + (~included[order[-half:]]).sum())
        r = min(2 * half, m)
        right = min(right, r)
        found.append(Bound(lower_bound(m, r, right, delta, each), delta, confidence, m, r, right))
    return max(found, key=lambda bound: bound.epsilon)
