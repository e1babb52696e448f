"""Counts: histograms, cross tables and the most frequent values, in one round or a few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from atoll.algorithms.statistics.analysis import Columns, Question
from atoll.algorithms.statistics.columns import codes, free_head, numbers, reading, tallied
from atoll.core.errors import DataError, Forbidden
from atoll.core.layout import Array
from atoll.data.disclosure import Disclosure
from atoll.data.query_log import Released
from atoll.data.suppression import Counts, suppress

__all__ = [
    "CrossTable",
    "CrossTableResult",
    "HeavyHitters",
    "HeavyHittersResult",
    "Histogram",
    "HistogramResult",
]


def _guarded(rows: Array, persons: Array, minimum: int) -> Counts:
    """Counts of rows, hidden by their counts of persons; margins last."""
    mask = suppress(persons, minimum)
    shown = suppress(rows, 1)
    values = np.where(mask.hidden, np.nan, shown.values)
    return Counts(values, mask.hidden, minimum)


@dataclass(frozen=True, eq=False)
class HistogramResult:
    """Counts between cut points.

    Args:
        column: its name.
        edges: cut points, ``(k + 1,)``.
        counts: ``(k + 2,)`` and the total: below the first edge, the bins, from the last edge on.
    """

    column: str
    edges: Array
    counts: Counts

    def records(self) -> list[dict[str, object]]:
        """One record a bin."""
        edges = [-np.inf, *self.edges.tolist(), np.inf]
        return [
            {"from": low, "to": high, "count": n, "suppressed": bool(dark)}
            for low, high, n, dark in zip(
                edges[:-1], edges[1:], self.counts.values[:-1], self.counts.hidden[:-1], strict=True
            )
        ]


@dataclass(frozen=True)
class Histogram:
    """How many values lie between cut points; a bin holds its lower edge.

    Args:
        name: the column.
        edges: increasing cut points.
        rule: disclosure control of what is released.
    """

    name: str
    edges: tuple[float, ...]
    rule: Disclosure = field(default_factory=Disclosure)

    def __post_init__(self) -> None:
        if len(self.edges) < 1 or not (np.diff(self.edges) > 0).all():
            raise DataError("a histogram needs increasing cut points", remedy="sort the edges")

    def columns(self) -> Sequence[str]:
        """The column, and that of the persons."""
        return reading(self.rule, self.name)

    def start(self) -> Question:
        """Before its only round."""
        return {}

    def ask(self, state: Question) -> Question | None:
        """Nothing: sites know the cut points."""
        return None if state else {}

    def sums(self, question: Question, data: Columns, *, site: int, sites: int) -> Question:
        """Rows and persons in each bin."""
        values = numbers(data, self.name)
        cell = np.searchsorted(np.array(self.edges), values, side="right")
        cell = np.where(np.isnan(values), -1, cell)
        rows, persons = tallied(cell, len(self.edges) + 1, data, self.rule)
        return {"rows": rows, "persons": persons}

    def learn(self, state: Question, totals: Question) -> Question:
        """The totals."""
        return totals

    def result(self, state: Question) -> HistogramResult:
        """The counts, small ones hidden."""
        counts = _guarded(state["rows"], state["persons"], self.rule.minimum)
        return HistogramResult(self.name, np.array(self.edges), counts)

    def released(self, data: Columns) -> Sequence[Released]:
        """The rows with a value, counted between the cut points."""
        return [Released((self.name,), ~np.isnan(data[self.name]), cuts=np.array(self.edges))]


@dataclass(frozen=True, eq=False)
class CrossTableResult:
    """A cross table with margins.

    Args:
        row, column: the two columns.
        rows, columns: names of the levels.
        counts: ``(rows + 1, columns + 1)``, margins last.
    """

    row: str
    column: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: Counts

    def records(self) -> list[dict[str, object]]:
        """One record a row, margins last; NaN is suppressed, 0 is zero."""
        margin = free_head("all", (*self.rows, *self.columns))
        names = (*self.columns, margin)
        return [
            {free_head(self.row, names): row, **dict(zip(names, line, strict=True))}
            for row, line in zip((*self.rows, margin), self.counts.values, strict=True)
        ]


@dataclass(frozen=True)
class CrossTable:
    """Rows by two categories, where both are known.

    Args:
        row, column: columns of codes.
        rows, levels: names of their levels, by code.
        rule: disclosure control of what is released.
    """

    row: str
    column: str
    rows: tuple[str, ...]
    levels: tuple[str, ...]
    rule: Disclosure = field(default_factory=Disclosure)

    def columns(self) -> Sequence[str]:
        """Both columns, and that of the persons."""
        return reading(self.rule, self.row, self.column)

    def start(self) -> Question:
        """Before its only round."""
        return {}

    def ask(self, state: Question) -> Question | None:
        """Nothing: sites know the levels."""
        return None if state else {}

    def _cells(self, data: Columns) -> Array:
        first = codes(data, self.row, len(self.rows))
        second = codes(data, self.column, len(self.levels))
        return np.where((first >= 0) & (second >= 0), first * len(self.levels) + second, -1)

    def sums(self, question: Question, data: Columns, *, site: int, sites: int) -> Question:
        """Rows and persons in each cell."""
        shape = (len(self.rows), len(self.levels))
        size = shape[0] * shape[1]
        rows, persons = tallied(self._cells(data), size, data, self.rule)
        return {"rows": rows.reshape(shape), "persons": persons.reshape(shape)}

    def learn(self, state: Question, totals: Question) -> Question:
        """The totals."""
        return totals

    def result(self, state: Question) -> CrossTableResult:
        """The counts, small ones hidden."""
        counts = _guarded(state["rows"], state["persons"], self.rule.minimum)
        return CrossTableResult(self.row, self.column, self.rows, self.levels, counts)

    def released(self, data: Columns) -> Sequence[Released]:
        """The rows with both values, and each cell."""
        cell, names = self._cells(data), (self.row, self.column)
        table = f"{self.row} by {self.column}"
        found = [Released(tuple(dict.fromkeys(names)), cell >= 0)]
        for i in range(len(self.rows) * len(self.levels)):
            found.append(Released(found[0].columns, cell == i, table))
        return found


@dataclass(frozen=True, eq=False)
class HeavyHittersResult:
    """The most frequent whole numbers of a column.

    Args:
        column: its name.
        values: the numbers, the most frequent first.
        counts: how often each occurs.
        least: counts below this were not looked for.
    """

    column: str
    values: Array
    counts: Array
    least: float

    def records(self) -> list[dict[str, object]]:
        """One record a value."""
        return [
            {self.column: int(v), free_head("count", [self.column]): float(n)}
            for v, n in zip(self.values, self.counts, strict=True)
        ]


@dataclass(frozen=True)
class HeavyHitters:
    """All whole numbers in [0, 2^bits) that at least ``least`` persons have, without a list of them.

    Found digit by digit: a prefix with fewer than ``least`` persons is followed no further, so rare
    codes are never asked about.

    Args:
        name: the column: codes of diagnoses, postal codes, ... as whole numbers.
        least: persons behind each; at least the rule's minimum.
        bits: of the largest number, up to 48.
        rule: disclosure control.
    """

    name: str
    least: int = 11
    bits: int = 32
    rule: Disclosure = field(default_factory=Disclosure)

    def __post_init__(self) -> None:
        if self.least < self.rule.minimum:
            raise Forbidden(f"least = {self.least} is below the minimum of {self.rule.minimum}")
        if not 1 <= self.bits <= 48:
            raise DataError(f"numbers of {self.bits} bits", remedy="1 to 48 are possible")

    @property
    def _steps(self) -> int:
        return -(-self.bits // _DIGIT)

    def columns(self) -> Sequence[str]:
        """The column, and that of the persons."""
        return reading(self.rule, self.name)

    def start(self) -> Question:
        """One empty prefix."""
        return {"step": np.zeros(1), "prefix": np.zeros(1), "count": np.zeros(1)}

    def ask(self, state: Question) -> Question | None:
        """The prefixes that are frequent enough to be followed."""
        step = int(state["step"][0])
        if step == self._steps or not len(state["prefix"]):
            return None
        return {"prefix": state["prefix"], "step": state["step"]}

    def sums(self, question: Question, data: Columns, *, site: int, sites: int) -> Question:
        """Persons behind each next digit of each prefix.

        Raises:
            DataError: a value is no whole number of so many bits.
        """
        prefix, step = question["prefix"].astype(np.int64), int(question["step"][0])
        given = numbers(data, self.name)
        known = ~np.isnan(given)
        fits = (given == np.rint(given)) & (given >= 0) & (given < 1 << self.bits)
        if not fits[known].all():
            raise DataError(
                f"column {self.name!r} holds what is no whole number from 0 to 2^{self.bits}",
                remedy="raise bits, up to 48; give what is larger, negative or broken other codes",
            )
        values = np.where(known, given, -1.0).astype(np.int64)
        rest = _DIGIT * (self._steps - step - 1)
        head, digit = values >> (rest + _DIGIT), (values >> rest) & (_WIDTH - 1)
        place = np.searchsorted(prefix, head)
        place = np.minimum(place, len(prefix) - 1)
        inside = (values >= 0) & (prefix[place] == head)
        cell = np.where(inside, place * _WIDTH + digit, -1)
        _, persons = tallied(cell, len(prefix) * _WIDTH, data, self.rule)
        return {"persons": persons}

    def learn(self, state: Question, totals: Question) -> Question:
        """The next prefixes, in order."""
        persons = totals["persons"]
        kept = np.flatnonzero(persons >= self.least)
        prefix = state["prefix"][kept // _WIDTH] * _WIDTH + kept % _WIDTH
        return {"step": state["step"] + 1, "prefix": prefix, "count": persons[kept]}

    def result(self, state: Question) -> HeavyHittersResult:
        """The numbers by falling count; of equal counts the smaller number first."""
        order = np.lexsort((state["prefix"], -state["count"]))
        found = state["prefix"][order], state["count"][order]
        return HeavyHittersResult(self.name, *found, float(self.least))

    def released(self, data: Columns) -> Sequence[Released]:
        """The rows with a value."""
        return [Released((self.name,), ~np.isnan(data[self.name]))]


_DIGIT = 8
_WIDTH = 1 << _DIGIT
