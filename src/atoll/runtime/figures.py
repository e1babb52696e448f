"""Metrics of held-out rows as whole numbers that add up without any rounding: so they go under masks.

A metric becomes few vectors of integers, each with the most that one client may send. Counts are integers
already. A real sum is written as digits to the base 2^24 (:mod:`atoll.data.limbs`), so what comes out is
the metric of all rows together to the last bit, as if it had been merged in clear.

The digits of many sites add up to more than the digits of their sum: carries would tell a little of each.
So every site moves a random number of units from digit to digit (:func:`spread`), which changes none of the
totals, and the sum of the digits then tells the total alone.

Not every metric is a sum. :class:`~atoll.core.metrics.RankedScores` holds single rows; it is left out, and its
binned form (:class:`~atoll.core.metrics.BinnedAUC`) takes its place where a job asks for one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from atoll.core.chain import Entropy, random_bytes
from atoll.core.errors import UpdateRefused
from atoll.core.layout import Array
from atoll.core.metrics import BinnedAUC, Confusion, Count, Mean, Metric, Metrics, Regression
from atoll.data.limbs import COUNT, LOW
from atoll.privacy.secagg.terms import Lane

__all__ = [
    "COUNTS",
    "DIGITS",
    "Kinds",
    "digits_of",
    "integers_of",
    "kinds_of",
    "lanes_of",
    "metrics_of",
    "number_of",
    "spread",
]

Kinds = Mapping[str, tuple[str, int]]
"""What metrics come, by name: the kind, and how many classes or bins it has (0 where it has neither)."""

COUNTS = 2.0**40
"""Most of anything that is counted."""
DIGITS = 2.0**52
"""No digit is larger, however it was spread."""

_BASE = 24
_MOVED = 28
"""Bits of what is moved from one digit to the next."""

_PARTS: Mapping[str, tuple[str, ...]] = {
    "mean": ("total", "weight"),
    "regression": ("y", "yy", "rr"),
}
"""Which parts of a kind are real sums."""


def kinds_of(metrics: Metrics) -> dict[str, tuple[str, int]]:
    """The kinds of those metrics that add up, in the order of their names."""
    found: dict[str, tuple[str, int]] = {}
    for name, metric in sorted(metrics.items()):
        if isinstance(metric, Mean):
            found[name] = "mean", 0
        elif isinstance(metric, Count):
            found[name] = "count", 0
        elif isinstance(metric, Confusion):
            found[name] = "confusion", len(metric.table)
        elif isinstance(metric, Regression):
            found[name] = "regression", 0
        elif isinstance(metric, BinnedAUC):
            found[name] = "binned_auc", int(metric.counts.shape[1])
    return found


def lanes_of(kinds: Kinds) -> tuple[Lane, ...]:
    """The lanes of a masked sum of such metrics."""
    return tuple(
        Lane(f"{name}.{part}", length, bound, 64, 1.0, "refuse")
        for name, kind in sorted(kinds.items())
        for part, length, bound in _shapes(*kind)
    )


def _shapes(kind: str, size: int) -> Iterable[tuple[str, int, float]]:
    for part in _PARTS.get(kind, ()):
        yield part, COUNT, DIGITS
    if kind in _PARTS:
        yield "wrong", 1, COUNTS
    if kind == "regression":
        yield "n", 1, COUNTS
    if kind == "count":
        yield "count", 1, COUNTS
    if kind == "confusion":
        yield "table", size * size, COUNTS
    if kind == "binned_auc":
        yield "counts", 2 * size, COUNTS
        yield "undefined", 1, COUNTS


def integers_of(
    metrics: Metrics, kinds: Kinds, entropy: Entropy = random_bytes
) -> dict[str, Array]:
    """One client's lanes, int64.

    Args:
        metrics: its own.
        kinds: which are sent; they are those of every client.
        entropy: of what is moved between digits.

    Raises:
        UpdateRefused: a metric is missing, of another kind, or beyond what can be sent.
    """
    own, sent = kinds_of(metrics), dict[str, Array]()
    for name, kind in sorted(kinds.items()):
        if own.get(name) != tuple(kind):
            raise UpdateRefused(f"metric {name!r} is {own.get(name)} here and {kind} elsewhere")
        for part, value in _split(metrics[name]).items():
            if isinstance(value, Fraction):
                sent[f"{name}.{part}"] = spread(digits_of(_units(name, value)), entropy)
            else:
                sent[f"{name}.{part}"] = np.asarray(value, np.int64).reshape(-1)
    return sent


def _split(metric: Metric) -> Mapping[str, Any]:
    """The parts of a metric: fractions, and counts."""
    if isinstance(metric, Mean):
        total, weight = Fraction(metric.total), Fraction(metric.weight)
        return {"total": total, "weight": weight, "wrong": int(not metric.finite)}
    if isinstance(metric, Regression):
        sums = {"y": metric.y, "yy": metric.yy, "rr": metric.rr}
        real = {name: Fraction(value) for name, value in sums.items()}
        return {**real, "wrong": int(not metric.finite), "n": metric.n}
    if isinstance(metric, Count):
        return {"count": metric.count}
    if isinstance(metric, Confusion):
        return {"table": np.array(metric.table, np.int64)}
    if isinstance(metric, BinnedAUC):
        return {"counts": metric.counts, "undefined": metric.undefined}
    raise UpdateRefused(f"{type(metric).__name__} holds single rows: it does not add up")


def metrics_of(kinds: Kinds, sums: Mapping[str, Array]) -> dict[str, Metric]:
    """The metrics of all clients together.

    Args:
        kinds: which were sent.
        sums: what :func:`integers_of` of all adds up to, by lane.
    """
    found: dict[str, Metric] = {}
    for name, (kind, size) in sorted(kinds.items()):

        def real(part: str, name: str = name) -> Fraction:
            return number_of(sums[f"{name}.{part}"])

        def whole(part: str, name: str = name) -> int:
            return int(np.asarray(sums[f"{name}.{part}"])[0])

        if kind == "mean":
            weight = real("weight")
            exact = weight.numerator if weight.denominator == 1 else weight
            found[name] = Mean(real("total"), exact, not whole("wrong"))
        elif kind == "regression":
            y, yy, rr = (real(part) for part in _PARTS[kind])
            found[name] = Regression(whole("n"), y, yy, rr, not whole("wrong"))
        elif kind == "count":
            found[name] = Count(whole("count"))
        elif kind == "confusion":
            table = np.asarray(sums[f"{name}.table"]).reshape(size, size)
            found[name] = Confusion(tuple(tuple(int(c) for c in row) for row in table))
        elif kind == "binned_auc":
            counts = np.asarray(sums[f"{name}.counts"], np.int64).reshape(2, size)
            found[name] = BinnedAUC(counts, whole("undefined"))
    return found


# Digits -----------------------------------------------------------------------------------------


def _units(name: str, value: Fraction) -> int:
    """A real sum in units of ``2**LOW``; what lies below is cut off."""
    units = math.trunc(value * Fraction(2) ** -LOW)
    if abs(units) >> (_BASE * COUNT - 1):
        raise UpdateRefused(f"metric {name!r}: a sum of {float(value):.3g} is too large to be sent")
    return units


def digits_of(total: int) -> Array:
    """A whole number as signed digits to the base 2^24, lowest first, ``(COUNT,)`` int64."""
    sign, rest, digits = (-1 if total < 0 else 1), abs(total), np.empty(COUNT, np.int64)
    for i in range(COUNT):
        rest, digit = divmod(rest, 1 << _BASE)
        digits[i] = sign * digit
    return digits


def spread(digits: Array, entropy: Entropy = random_bytes) -> Array:
    """Digits that stand for the same number and, but for that, are random.

    From every digit but the highest, a random number of carries is taken back.

    Args:
        digits: whole numbers, lowest digit first, ``(COUNT,)`` or ``(numbers, COUNT)``.
        entropy: random bytes from the operating system.
    """
    free = (*digits.shape[:-1], digits.shape[-1] - 1)
    drawn = np.frombuffer(entropy(4 * math.prod(free)), np.uint32).astype(np.int64).reshape(free)
    moved = (drawn >> (32 - _MOVED)) - (1 << (_MOVED - 1))
    found = digits.astype(np.int64)
    found[..., :-1] += moved << _BASE
    found[..., 1:] -= moved
    return found


def number_of(digits: Array) -> Fraction:
    """The number that (added, spread) digits stand for, exactly."""
    whole = sum(int(d) << (_BASE * i) for i, d in enumerate(np.asarray(digits).tolist()))
    return Fraction(whole) * Fraction(2) ** LOW
