"""What events cost: an epsilon at delta, or what any attack may find.

Two accountants answer, by privacy loss distributions (:mod:`atoll.privacy.dp.losses`) and by Renyi
divergence (:mod:`atoll.privacy.dp.rdp`). Both give upper bounds, so the smaller of the two holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from atoll.core.errors import JobConflict, JobError
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
from atoll.privacy.dp.losses import has_losses, losses
from atoll.privacy.dp.rdp import rdp_epsilon, rdp_permitted

__all__ = ["Account", "Method", "account", "epsilon", "fits", "guarantee", "of_part", "permitted"]

Method = Literal["best", "pld", "rdp"]

_ALL = 1.0 - 2.0**-53
"""A delta that promises nothing."""

_FAR = 700.0
"""An epsilon beyond it promises nothing, and its exponential is beyond float64."""

_USUAL = 1e-5
"""Delta at which losses are held finely enough where no delta is asked for."""


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
    if method == "pld" or _tight(listed):
        return _pld(listed, delta, neighbouring)
    return account(listed, delta, neighbouring).epsilon


def permitted(
    events: Iterable[Event],
    fpr: float = 0.01,
    neighbouring: Neighbouring = "add_or_remove",
    method: Method = "best",
) -> float:
    """Most of the members that any attack can find, whatever the rows, the model and the attacker's knowledge.

    A measured risk lies below it, mostly far: the bound is for the worst row in the worst company, and an
    attacker who sees every single release and knows all else.

    Args:
        events: what was released; one unit more or less is what the attack is after.
        fpr: share of strangers that it takes for members, in (0, 1).
        neighbouring: which datasets are compared.
        method: ``pld``, ``rdp``, or the smaller of those that apply.

    Raises:
        JobConflict: no accountant reads these events.
        JobError: ``fpr`` is out of range.
        MissingExtra: dp-accounting is not installed.
    """
    if not 0 < fpr < 1:
        raise JobError(f"a false positive rate of {fpr} is not in (0, 1)")
    listed = _merged(events)
    if method == "rdp":
        return rdp_permitted(listed, fpr, neighbouring)
    if method == "pld" or _tight(listed):
        return losses(tuple(listed), _USUAL, neighbouring).permitted(fpr)
    found = (
        _or_none(lambda: losses(tuple(listed), _USUAL, neighbouring).permitted(fpr)),
        _or_none(lambda: rdp_permitted(listed, fpr, neighbouring)),
    )
    known = [value for value in found if value is not None]
    if not known:
        raise _unreadable(listed, neighbouring)
    return min(known)


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
    pld = _or_none(lambda: _pld(listed, delta, neighbouring))
    rdp = _or_none(lambda: rdp_epsilon(listed, delta, neighbouring))
    if pld is None and rdp is None:
        raise _unreadable(listed, neighbouring)
    return Account(pld, rdp, delta)


def _pld(listed: Sequence[Event], delta: float, neighbouring: Neighbouring) -> float:
    if not 0 < delta < 1:
        raise JobError(f"delta {delta} is not in (0, 1)")
    return losses(tuple(listed), delta, neighbouring).epsilon(delta)


def _tight(events: Sequence[Event]) -> bool:
    """Whether losses alone say it: the other accountant is never better."""
    return all(has_losses(event) and not isinstance(event, Selection) for event in events)


def _or_none(ask: Callable[[], float]) -> float | None:
    try:
        return ask()
    except JobConflict:
        return None


def _unreadable(listed: Sequence[Event], neighbouring: Neighbouring) -> JobConflict:
    kinds = sorted({type(event).__name__ for event in listed})
    return JobConflict(
        f"these cannot be accounted for together: {', '.join(kinds)} ({neighbouring})",
        remedy="give discrete noise no sampling, or no release that is only stated beside it",
    )


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


def of_part(event: Event) -> Event:
    """What ``event``, which hides one unit more or less, costs a part of it, such as one record of a site.

    A part that comes or goes leaves its unit there, with another contribution in place of the one it had. Two
    contributions are up to twice as far from each other as each is from none. Sampling of units is not
    counted.

    >>> of_part(Gaussian(4.0, count=3))
    Gaussian(noise_multiplier=2.0, sampling=1.0, count=3)
    """
    match event:
        case Gaussian(noise_multiplier=z) | Laplace(noise_multiplier=z):
            return replace(event, noise_multiplier=z / 2, sampling=1.0)
        case MatrixGaussian():
            return replace(event, deviation=event.deviation / 2)
        case DiscreteGaussian() | Skellam():
            return replace(event, l2=2 * event.l2, sampling=1.0)
        case Geometric():
            return replace(event, l1=2 * event.l1)
        case Selection():
            return replace(event, epsilon=2 * event.epsilon)
        case Stated():
            # By way of the data without the unit: M(D) to M(D0) to M(D'), an epsilon and a delta for each.
            grown = 1.0 + math.exp(min(event.epsilon, _FAR))
            delta = event.delta * grown if event.delta else 0.0
            return replace(event, epsilon=2 * event.epsilon, delta=min(delta, _ALL))


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


def _merged(events: Iterable[Event]) -> list[Event]:
    """Like events together: a ledger of a thousand rounds is one composition."""
    counts: dict[Event, int] = {}
    for event in events:
        one = replace(event, count=1)
        counts[one] = counts.get(one, 0) + event.count
    return [replace(event, count=count) for event, count in counts.items()]
