"""From events to epsilon, and from a target back to the noise that keeps it.

Privacy loss distributions are composed by dp-accounting (extra ``privacy``; Doroshenko et al., *Connect
the Dots*, PETS 2022, https://arxiv.org/abs/2207.04380), to an upper bound that is tight to three or four
digits. Events without such a distribution are taken by Renyi divergence (:mod:`atoll.privacy.dp.rdp`).
Both are upper bounds, so the smaller of the two holds.

The library takes a second or two to import, which happens at the first question and not before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Literal

from atoll.core.errors import JobConflict, JobError, MissingExtra
from atoll.privacy.dp.events import (
    DiscreteGaussian,
    Event,
    Gaussian,
    Geometric,
    Guarantee,
    Laplace,
    MatrixGaussian,
    Neighbouring,
    Selection,
    Skellam,
    Stated,
    Unit,
)
from atoll.privacy.dp.rdp import rdp_epsilon

__all__ = [
    "Account",
    "account",
    "calibrate",
    "epsilon",
    "fits",
    "gaussian_delta",
    "gaussian_epsilon",
    "guarantee",
]

Method = Literal["best", "pld", "rdp"]

_FINEST, _COARSEST = 1e-4, 1e-3
"""Discretisation of privacy losses."""

_LARGEST = 1e6
"""No noise multiplier is looked for beyond this."""


@dataclass(frozen=True)
class Account:
    """What events cost, by each method.

    Args:
        pld: by privacy loss distributions; None where an event has none.
        rdp: by Renyi divergence; None where an event has no curve.
        delta: at which both hold.
    """

    pld: float | None
    rdp: float | None
    delta: float

    @property
    def epsilon(self) -> float:
        """The smaller one: both are upper bounds."""
        return min(value for value in (self.pld, self.rdp) if value is not None)


def epsilon(
    events: Iterable[Event],
    delta: float,
    neighbouring: Neighbouring = "add_or_remove",
    method: Method = "best",
) -> float:
    """Epsilon of all ``events`` on one dataset, whatever jobs they came from.

    Args:
        events: what was released.
        delta: in (0, 1).
        neighbouring: which datasets are compared.
        method: ``pld``, ``rdp``, or the smaller of those that apply.

    Raises:
        JobConflict: no method reads all of these events together.
        JobError: delta out of range.
        MissingExtra: dp-accounting is not installed.
    """
    listed = _merged(events)
    if method == "rdp":
        return rdp_epsilon(listed, delta, neighbouring)
    if method == "pld":
        return _pld(tuple(listed), delta, neighbouring)
    if all(_has_pld(event) for event in listed) and not any(
        isinstance(event, Selection) for event in listed
    ):
        return _pld(tuple(listed), delta, neighbouring)
    return account(listed, delta, neighbouring).epsilon


def account(
    events: Iterable[Event], delta: float, neighbouring: Neighbouring = "add_or_remove"
) -> Account:
    """The cost by every method that applies, for reports and for checking one against the other.

    Raises:
        JobConflict: none applies.
        JobError: delta out of range.
        MissingExtra: dp-accounting is not installed.
    """
    listed = _merged(events)
    pld = _or_none(lambda: _pld(tuple(listed), delta, neighbouring))
    rdp = _or_none(lambda: rdp_epsilon(listed, delta, neighbouring))
    if pld is None and rdp is None:
        kinds = sorted({type(event).__name__ for event in listed})
        raise JobConflict(
            f"these cannot be accounted for together: {', '.join(kinds)} ({neighbouring})",
            remedy="give discrete noise no sampling, or no release that is only stated beside it",
        )
    return Account(pld, rdp, delta)


def _or_none(ask: Callable[[], float]) -> float | None:
    try:
        return ask()
    except JobConflict:
        return None


def guarantee(
    events: Iterable[Event],
    delta: float,
    unit: Unit,
    neighbouring: Neighbouring = "add_or_remove",
) -> Guarantee:
    """The statement that may be made about ``events``.

    Raises:
        JobConflict, JobError, MissingExtra: as :func:`epsilon`.
    """
    return Guarantee(epsilon(events, delta, neighbouring), delta, unit, neighbouring)


def fits(
    target: Guarantee,
    event: Event,
    spent: Sequence[Event] = (),
    limit: int = 1_000_000,
) -> int:
    """How many more times ``event`` may happen after ``spent`` before ``target`` is passed.

    Args:
        target: what must hold in the end.
        event: the next release; its own count is one go.
        spent: what was released already.
        limit: most that is asked for.

    Raises:
        JobConflict, JobError, MissingExtra: as :func:`epsilon`.
    """

    def kept(times: int) -> bool:
        more = [replace(event, count=event.count * times)] if times else []
        return epsilon([*spent, *more], target.delta, target.neighbouring) <= target.epsilon

    if not kept(1):
        return 0
    low, high = 1, 2
    while high <= limit and kept(high):
        low, high = high, 2 * high
    if high > limit and kept(limit):
        return limit
    high = min(high, limit)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if kept(middle) else (low, middle)
    return low


def calibrate(
    target_epsilon: float,
    delta: float,
    rounds: int,
    q: float = 1.0,
    *,
    neighbouring: Neighbouring = "add_or_remove",
    others: Sequence[Event] = (),
    shape: Callable[[float], Event] | None = None,
    tolerance: float = 1e-3,
) -> float:
    """The smallest noise multiplier that keeps ``target_epsilon`` over the planned rounds.

    Args:
        target_epsilon: at the end, all rounds and ``others`` together.
        delta: in (0, 1).
        rounds: planned releases (steps, for DP-SGD).
        q: probability with which each unit takes part in one of them.
        neighbouring: which datasets are compared.
        others: what else is released from the same data: metrics, selections, earlier jobs.
        shape: makes the event of *all* rounds from a noise multiplier; by default sampled Gaussian
            noise ``rounds`` times.
        tolerance: relative; the result is on the safe side of it.

    Raises:
        JobConflict: ``others`` alone cost the target or more.
        JobError: values out of range.
        MissingExtra: dp-accounting is not installed.
    """
    if not target_epsilon > 0:
        raise JobError(f"epsilon {target_epsilon} is not above 0")
    make = shape or (lambda z: Gaussian(z, q, rounds))
    if others and epsilon(others, delta, neighbouring) >= target_epsilon:
        raise JobConflict(
            f"what else is released costs epsilon {target_epsilon:g} or more by itself",
            remedy="release fewer metrics or selections, or ask for a larger epsilon",
        )

    def cost(z: float) -> float:
        return epsilon([*others, make(z)], delta, neighbouring)

    high = _by_renyi(lambda z: [*others, make(z)], target_epsilon, delta, neighbouring)
    above = cost(high)
    while above > target_epsilon:
        high *= 2
        if high > _LARGEST:
            raise JobConflict(
                f"no noise below {_LARGEST:g} times the clip keeps epsilon {target_epsilon:g}",
                remedy="ask for a larger epsilon, fewer rounds or a smaller sampling rate",
            )
        above = cost(high)
    low, below = 0.85 * high, cost(0.85 * high)
    while below <= target_epsilon:
        if low < 1e-3:  # so little noise that any multiplier keeps so large an epsilon
            return high
        low, high, above = 0.7 * low, low, below
        below = cost(low)
    return _narrowed(cost, (low, below), (high, above), target_epsilon, tolerance)


def _by_renyi(
    events: Callable[[float], list[Event]],
    target: float,
    delta: float,
    neighbouring: Neighbouring,
) -> float:
    """A multiplier to start from, on the safe side where the Renyi bound applies; 1 where not."""
    low, high = 1e-3, 1.0
    try:
        while rdp_epsilon(events(high), delta, neighbouring) > target and high < _LARGEST:
            low, high = high, 2 * high
        while high / low > 1.01:
            middle = math.sqrt(low * high)
            safe = rdp_epsilon(events(middle), delta, neighbouring) <= target
            low, high = (low, middle) if safe else (middle, high)
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
    """Close in on the target from both sides: log epsilon is nearly straight in log z."""
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


def gaussian_delta(noise_multiplier: float, epsilon: float) -> float:
    """Delta of one Gaussian release at ``epsilon``, in closed form.

    Balle and Wang, *Improving the Gaussian Mechanism for Differential Privacy* (ICML 2018,
    https://arxiv.org/abs/1805.06530), Theorem 8 with sensitivity 1.

    >>> round(gaussian_delta(1.0, 4.37718), 9)
    1e-05
    """
    z, cdf = noise_multiplier, NormalDist().cdf
    near, far = 0.5 / z - epsilon * z, -0.5 / z - epsilon * z
    tail = cdf(far)
    # The tail underflows before exp(epsilon) overflows in their product.
    return cdf(near) - (math.exp(epsilon + math.log(tail)) if tail > 0 else 0.0)


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Epsilon of one Gaussian release at ``delta``: the inverse of :func:`gaussian_delta`.

    Raises:
        JobError: values out of range.

    >>> round(gaussian_epsilon(1.0, 1e-5), 5)
    4.37718
    """
    if not (noise_multiplier > 0 and 0 < delta < 1):
        raise JobError(f"no Gaussian release: z {noise_multiplier}, delta {delta}")
    if gaussian_delta(noise_multiplier, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(noise_multiplier, high) > delta:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        if gaussian_delta(noise_multiplier, middle) > delta:
            low = middle
        else:
            high = middle
    return high


def _merged(events: Iterable[Event]) -> list[Event]:
    """Like events together: a ledger of a thousand rounds is one composition."""
    counts: dict[Event, int] = {}
    for event in events:
        one = replace(event, count=1)
        counts[one] = counts.get(one, 0) + event.count
    return [replace(event, count=count) for event, count in counts.items()]


def _has_pld(event: Event) -> bool:
    return not isinstance(event, DiscreteGaussian | Skellam)


@lru_cache(maxsize=256)
def _pld(events: tuple[Event, ...], delta: float, neighbouring: Neighbouring) -> float:
    if not 0 < delta < 1:
        raise JobError(f"delta {delta} is not in (0, 1)")
    for event in events:
        if not _has_pld(event):
            raise JobConflict(
                f"no privacy loss distribution of {type(event).__name__} in many dimensions",
                remedy="account by Renyi divergence",
            )
    plain, rest = _joined(events, neighbouring)
    if not rest:
        return gaussian_epsilon(plain, delta) if plain else 0.0
    step = _step(rest, _size(events, delta, neighbouring))
    parts = [_library().from_gaussian_mechanism(plain, **_grid(step))] if plain else []
    for event in rest:
        part = _distribution(replace(event, count=1), neighbouring, step)
        parts.append(part.self_compose(event.count) if event.count > 1 else part)
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.compose(part)
    return max(0.0, float(whole.get_epsilon_for_delta(delta)))


def _joined(
    events: Iterable[Event], neighbouring: Neighbouring
) -> tuple[float | None, list[Event]]:
    """All Gaussian noise without sampling as one release, which is exact, and the other events."""
    factor = 2.0 if neighbouring == "replace" else 1.0
    squares, rest = 0.0, list[Event]()
    for event in events:
        if isinstance(event, MatrixGaussian) or (
            isinstance(event, Gaussian) and event.sampling == 1
        ):
            squares += event.count * (factor / event.noise_multiplier) ** 2
        else:
            rest.append(event)
    return (squares**-0.5 if squares else None), rest


def _step(events: Iterable[Event], size: float) -> float:
    """A discretisation that costs epsilon no more than about a part in a thousand.

    What it adds grows with the number of compositions and the square of the step; large losses would
    take too many fine cells.
    """
    times = sum(event.count for event in events)
    fine = math.sqrt(1e-4 * size / times)
    return min(max(fine, _FINEST), _COARSEST) * max(1.0, size / 10)


def _size(events: Iterable[Event], delta: float, neighbouring: Neighbouring) -> float:
    """About how large epsilon will be: where it is large, cells of 1e-4 are too many and not needed."""
    known = [e for e in events if not isinstance(e, Stated) or e.delta == 0]
    rough = rdp_epsilon(known, delta)
    return 2 * rough if neighbouring == "replace" else rough


def _grid(step: float) -> dict[str, Any]:
    return {"value_discretization_interval": step}


@lru_cache(maxsize=64)
def _distribution(event: Event, neighbouring: Neighbouring, step: float) -> Any:
    """The privacy loss of one occurrence."""
    factor = 2.0 if neighbouring == "replace" else 1.0
    library, grid = _library(), _grid(step)
    match event:
        case Gaussian(z, rate):
            relation = _relations()[neighbouring]
            return library.from_gaussian_mechanism(
                z, sampling_prob=rate, neighboring_relation=relation, **grid
            )
        case Laplace(z, rate):
            if rate < 1 and neighbouring == "replace":
                raise JobConflict(
                    "sampled Laplace noise is not accounted for under exchanged units",
                    remedy="account for units added or removed",
                )
            return library.from_laplace_mechanism(z / factor, sampling_prob=rate, **grid)
        case Geometric(scale, l1):
            own = round(factor) * l1
            return library.from_discrete_laplace_mechanism(1 / scale, sensitivity=own, **grid)
        case Selection(cost):
            return _stated(cost, 0.0, step)
        case Stated(cost, delta):
            return _stated(cost, delta, step)
        case _:
            raise JobConflict(f"no privacy loss distribution of {type(event).__name__}")


def _stated(cost: float, delta: float, step: float) -> Any:
    from dp_accounting.pld.common import DifferentialPrivacyParameters

    stated = DifferentialPrivacyParameters(cost, delta)
    return _library().from_privacy_parameters(stated, **_grid(step))


def _relations() -> dict[str, Any]:
    from dp_accounting.privacy_accountant import NeighboringRelation

    return {
        "add_or_remove": NeighboringRelation.ADD_OR_REMOVE_ONE,
        "replace": NeighboringRelation.REPLACE_ONE,
    }


def _library() -> Any:
    try:
        from dp_accounting.pld import privacy_loss_distribution
    except ImportError as missing:
        raise MissingExtra(
            "dp-accounting is not installed", remedy="pip install 'atoll[privacy]'"
        ) from missing
    return privacy_loss_distribution
