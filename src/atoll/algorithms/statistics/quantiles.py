"""Quantiles without sorting pooled rows: bisection on counts.

A quantile of n values is an order statistic, or lies between two neighbours. How many values are at most
t is a count that adds up, so the k-th smallest is found by bisection: every round, all brackets are cut at
:data:`CUTS` points at once. Cut points divide the *representable* numbers between two bounds evenly, so no
range need be declared and about eleven rounds reach the value to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from atoll.algorithms.statistics.analysis import Columns, Question
from atoll.algorithms.statistics.columns import numbers, reading, tallied
from atoll.algorithms.statistics.memo import Memo
from atoll.core.errors import Forbidden
from atoll.core.layout import Array
from atoll.data.disclosure import Disclosure
from atoll.data.query_log import Released

__all__ = ["CUTS", "Quantiles", "QuantilesResult"]

CUTS = 63
"""Cut points inside each bracket in a round: six bits of 64."""


@dataclass(frozen=True, eq=False)
class QuantilesResult:
    """Quantiles by column.

    Args:
        columns: names, in order.
        levels: the shares asked for, in [0, 1].
        value: ``(columns, levels)``, NaN where refused or without values.
        bound: largest possible distance from the exact quantile, ``(columns, levels)``.
        notes: why some are not told.
    """

    columns: tuple[str, ...]
    levels: tuple[float, ...]
    value: Array
    bound: Array
    notes: tuple[str, ...] = ()

    def records(self) -> list[dict[str, object]]:
        """One record a column."""
        return [
            {"column": n, **{f"{q:g}": v for q, v in zip(self.levels, row, strict=True)}}
            for n, row in zip(self.columns, self.value, strict=True)
        ]


@dataclass(frozen=True)
class Quantiles:
    """Quantiles of columns by linear interpolation between order statistics, as NumPy's default.

    Smallest and largest values are the levels 0 and 1, where the rule allows them.

    Args:
        names: the columns.
        levels: shares in [0, 1].
        tolerance: brackets narrower than this share of their larger bound are cut no further; 0 goes
            on to the last bit.
        rule: disclosure control: a quantile needs so many values on either side.
    """

    names: tuple[str, ...]
    levels: tuple[float, ...] = (0.25, 0.5, 0.75)
    tolerance: float = 1e-9
    rule: Disclosure = field(default_factory=Disclosure)
    memo: Memo[list[Array]] = field(default_factory=Memo, init=False, repr=False, compare=False)

    def columns(self) -> Sequence[str]:
        """The columns, and that of the persons."""
        return reading(self.rule, *self.names)

    def start(self) -> Question:
        """Before the first round."""
        return {"round": np.zeros(1)}

    def ask(self, state: Question) -> Question | None:
        """Nothing first, then cut points until every bracket is narrow enough."""
        if not state["round"][0]:
            return {}
        if not self._wide(state).any():
            return None
        return {"cuts": _cuts(state["low"], state["high"])}

    def sums(self, question: Question, data: Columns, *, site: int, sites: int) -> Question:
        """How many values there are; then how many are at most each cut point."""
        if "cuts" not in question:
            pairs = [
                tallied(np.where(np.isnan(numbers(data, name)), -1, 0), 1, data, self.rule)
                for name in self.names
            ]
            count, persons = np.array(pairs)[..., 0].T
            return {"count": count, "persons": persons}
        cuts = question["cuts"]
        ordered = self.memo.of(site, data, self.names, lambda: self._ordered(data))
        found = [np.searchsorted(values, cuts[i], side="right") for i, values in enumerate(ordered)]
        return {"below": np.array(found, np.float64)}

    def _ordered(self, data: Columns) -> list[Array]:
        return [np.sort(_known(numbers(data, name))) for name in self.names]

    def learn(self, state: Question, totals: Question) -> Question:
        """Brackets around the order statistics; then the part of each that holds its own."""
        if "count" in totals:
            return self._begun(totals["count"], totals["persons"])
        low, high, rank = state["low"], state["high"], state["rank"]
        cuts, below = _cuts(low, high), totals["below"]
        part = (below < rank[..., None]).sum(axis=-1)
        edges = np.concatenate([low[..., None], cuts, high[..., None]], axis=-1)
        narrow = {
            "low": np.take_along_axis(edges, part[..., None], -1)[..., 0],
            "high": np.take_along_axis(edges, part[..., None] + 1, -1)[..., 0],
        }
        return {**state, **narrow, "round": state["round"] + 1}

    def _begun(self, count: Array, persons: Array) -> Question:
        shape = (len(self.names), 2 * len(self.levels))
        place = np.outer(np.maximum(count - 1, 0), np.array(self.levels))
        first = np.floor(place + 1e-12 * np.maximum(place, 1))
        second = np.minimum(first + (place > first), np.maximum(count - 1, 0)[:, None])
        rank = np.stack([first, second], axis=-1).reshape(shape) + 1
        dead = np.repeat(~self._allowed(persons), 2, axis=1) | (count == 0)[:, None]
        top = np.finfo(np.float64).max
        return {
            "round": np.ones(1),
            "count": count,
            "persons": persons,
            "share": np.clip(place - first, 0.0, 1.0),
            "rank": rank,
            "low": np.where(dead, 0.0, -top),
            "high": np.where(dead, 0.0, top),
        }

    def _allowed(self, count: Array) -> Array:
        return np.array(
            [[not self.rule.quantile_faults(n, [q]) for q in self.levels] for n in count.tolist()],
            bool,
        ).reshape(len(count), len(self.levels))

    def _wide(self, state: Question) -> Array:
        """Which brackets are still to be cut: a bracket of two neighbouring numbers is not."""
        low, high = state["low"], state["high"]
        size = np.maximum(np.abs(low), np.abs(high))
        with np.errstate(over="ignore"):
            far = (high - low) > self.tolerance * size
        return np.asarray(far & (np.nextafter(low, np.inf) < high))

    def result(self, state: Question) -> QuantilesResult:
        """Interpolated values with their bounds; the rest is noted."""
        low, high, persons = state["low"], state["high"], state["persons"]
        exact = np.nextafter(low, np.inf) >= high  # the bracket (low, high] holds one number
        middle = np.where(exact, high, 0.5 * low + 0.5 * high)
        width = np.where(exact, 0.0, 0.5 * high - 0.5 * low)
        shape = (len(self.names), len(self.levels), 2)
        pair, error, share = middle.reshape(shape), width.reshape(shape), state["share"]
        value = pair[..., 0] + share * (pair[..., 1] - pair[..., 0])
        bound = np.maximum(error[..., 0], error[..., 1])
        known = self._allowed(persons) & (state["count"] > 0)[:, None]
        notes = [
            f"{name}: {fault}"
            for name, n in zip(self.names, persons.tolist(), strict=True)
            for fault in self.rule.quantile_faults(n, self.levels)
        ]
        # Without the number of values, which may be small itself.
        notes = [f"{note.split(' of ')[0]} has too few values on one side" for note in notes]
        return QuantilesResult(
            self.names,
            self.levels,
            np.where(known, value, np.nan),
            np.where(known, bound, np.nan),
            tuple(notes),
        )

    def released(self, data: Columns) -> Sequence[Released]:
        """The rows of each column with a value.

        Raises:
            Forbidden: a smallest or largest value is asked for and not allowed.
        """
        extreme = [q for q in self.levels if q in (0.0, 1.0)]
        if extreme and not self.rule.extremes and self.rule.minimum > 1:
            raise Forbidden(
                "a smallest or largest value is one person's",
                remedy="ask for quantiles such as 0.05 and 0.95; a site's policy may allow extremes",
            )
        return [Released((name,), ~np.isnan(data[name])) for name in self.names]


def _known(values: Array) -> Array:
    return values[~np.isnan(values)]


def _cuts(low: Array, high: Array) -> Array:
    """Cut points inside each bracket, ``low.shape + (CUTS,)``: even among representable numbers."""
    start, end = _place(low), _place(high)
    # A 64th of the way, rounded up where few numbers are left; the difference itself may overflow.
    step = np.maximum((end >> np.int64(6)) - (start >> np.int64(6)), np.int64(1))
    ahead = np.arange(1, CUTS + 1, dtype=np.int64) * step[..., None]
    return _number(np.minimum(start[..., None] + ahead, end[..., None]))


def _place(x: Array) -> Array:
    """Position of a finite float64 in the order of all, as int64."""
    bits = (np.asarray(x, np.float64) + 0.0).view(np.int64)
    return np.where(bits >= 0, bits, np.int64(-(2**63)) - bits)


def _number(place: Array) -> Array:
    bits = np.where(place >= 0, place, np.int64(-(2**63)) - place)
    return bits.view(np.float64)
