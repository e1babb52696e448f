"""From a goal back to the least noise that keeps it: one search, whatever the goal is in.

A goal is an epsilon at delta, or what an attack may find: calibrating to the second directly takes less
noise than by way of an epsilon that promises the same (Kulynych et al., *Attack-Aware Noise Calibration for
Differential Privacy*, NeurIPS 2024, https://arxiv.org/abs/2407.02191).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from atoll.core.errors import JobConflict, JobError
from atoll.privacy.dp.accounting import Method, epsilon, permitted
from atoll.privacy.dp.events import Event, Gaussian, Neighbouring

__all__ = ["Goal", "calibrate"]

_LARGEST = 1e6
"""No noise multiplier is looked for beyond this."""

_LEAST = 1e-3
"""Nor below this: so little noise keeps only goals that any noise keeps."""


@dataclass(frozen=True)
class Goal:
    """What releases may cost, all together: an epsilon, or what an attack finds; neither for no limit.

    Args:
        epsilon: at ``delta``; 0 for none.
        delta: at which epsilon is meant and stated, in (0, 1).
        found: most of the members that any attack may find; 0 for none.
        fpr: while it takes this share of the strangers for members, in (0, 1).

    >>> print(Goal(3.0), "|", Goal(found=0.03))
    epsilon 3 | 3 % found at 1 % false positives
    >>> bool(Goal(delta=1e-6))
    False
    """

    epsilon: float = 0.0
    delta: float = 1e-5
    found: float = 0.0
    fpr: float = 0.01

    def __bool__(self) -> bool:
        """Whether anything is limited."""
        return self.epsilon > 0 or self.found > 0

    def __str__(self) -> str:
        """For people."""
        if self.found:
            return f"{100 * self.found:g} % found at {100 * self.fpr:g} % false positives"
        return f"epsilon {self.epsilon:g}"

    @property
    def most(self) -> float:
        """What :meth:`spent` may come to: epsilon, or what an attack may find beyond what guessing does."""
        return self.found - self.fpr if self.found else self.epsilon

    def spent(
        self,
        events: Iterable[Event],
        neighbouring: Neighbouring = "add_or_remove",
        method: Method = "best",
    ) -> float:
        """What events cost, in the measure of :attr:`most`.

        Raises:
            JobConflict, JobError, MissingExtra: as :func:`atoll.privacy.dp.accounting.epsilon`.
        """
        if self.found:
            return permitted(events, self.fpr, neighbouring, method) - self.fpr
        return epsilon(events, self.delta, neighbouring, method)


def calibrate(
    goal: Goal,
    rounds: int,
    q: float = 1.0,
    *,
    neighbouring: Neighbouring = "add_or_remove",
    others: Sequence[Event] = (),
    shape: Callable[[float], Event] | None = None,
    share: float = 1.0,
    method: Method = "best",
    tolerance: float = 1e-3,
) -> float:
    """The smallest noise multiplier that keeps ``goal`` over the planned rounds.

    Args:
        goal: at the end, all rounds and ``others`` together.
        rounds: planned releases (steps, for DP-SGD).
        q: probability with which each unit takes part in one of them.
        neighbouring: which datasets are compared.
        others: what else is released from the same data: metrics, selections, earlier jobs.
        shape: makes the event of *all* rounds from a noise multiplier; by default sampled Gaussian
            noise ``rounds`` times.
        share: part of the goal that may be taken.
        method: of accounting.
        tolerance: relative; the result is on the safe side of it.

    Raises:
        JobConflict: ``others`` alone cost the goal or more.
        JobError: values out of range.
        MissingExtra: dp-accounting is not installed.
    """
    most, said = share * goal.most, f"{100 * share:g} % of {goal}" if share < 1 else f"{goal}"
    if not most > 0:
        raise JobError(
            f"no goal for noise: {goal}", remedy="more than 0, and more than guessing finds"
        )
    make = shape or (lambda z: Gaussian(z, q, rounds))
    if others and goal.spent(others, neighbouring, method) >= most:
        raise JobConflict(
            f"what else is released costs {said} or more by itself",
            remedy="release fewer metrics or selections, or ask for less privacy",
        )

    def cost(z: float, method: Method = method) -> float:
        return goal.spent([*others, make(z)], neighbouring, method)

    high = _by_renyi(lambda z: cost(z, "rdp"), most)
    above = cost(high)
    while above > most:
        high *= 2
        if high > _LARGEST:
            raise JobConflict(
                f"no noise below {_LARGEST:g} times the clip keeps {said}",
                remedy="ask for less privacy, fewer rounds or a smaller sampling rate",
            )
        above = cost(high)
    low, below = 0.85 * high, cost(0.85 * high)
    while below <= most:
        if low < _LEAST:
            return high
        low, high, above = 0.7 * low, low, below
        below = cost(low)
    return _narrowed(cost, (low, below), (high, above), most, tolerance)


def _by_renyi(cost: Callable[[float], float], most: float) -> float:
    """A multiplier to start from, on the safe side where the Renyi bound applies; 1 where not."""
    low, high = 1e-3, 1.0
    try:
        while cost(high) > most and high < _LARGEST:
            low, high = high, 2 * high
        while high / low > 1.01:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if cost(middle) <= most else (middle, high)
    except JobConflict:
        return 1.0
    return high


def _narrowed(
    cost: Callable[[float], float],
    low: tuple[float, float],
    high: tuple[float, float],
    target: float,
    tolerance: float,
) -> float:
    """Close in on the target from both sides: the logarithm of a cost is nearly straight in log z."""
    side = 1.0
    while high[0] / low[0] > 1 + tolerance:
        bend = math.log(low[1] / target) / max(math.log(low[1] / max(high[1], 1e-300)), 1e-12)
        guess = low[0] * (high[0] / low[0]) ** min(max(bend, 0.0), 1.0)
        guess *= 1 + side * tolerance / 3
        if not low[0] * (1 + tolerance / 4) < guess < high[0] / (1 + tolerance / 4):
            guess = math.sqrt(low[0] * high[0])
        found = (guess, cost(guess))
        # A guess that fell on the same side again would creep: the next one leans to the other.
        low, high = (found, high) if found[1] > target else (low, found)
        side = 1.0 if found[1] > target else -1.0
    return high[0]
