"""How a count may be told of a site's rows: exactly, as *suppressed*, or in words without the number.

Every count of rows that a site tells for people to read (a data card, a fault, a note) is made by a
:class:`Telling`, which knows the least number of persons and who stands behind which row. A suppressed
count is the text :data:`SUPPRESSED`, never a number, so it is no zero; zeros are shown. A minimum of 1
tells everything exactly, as in a simulation, whose rows lie on one machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from atoll.core.layout import Array

__all__ = ["EXACT", "SUPPRESSED", "Telling"]

SUPPRESSED = "suppressed"
"""Stands in the place of a number that few persons are behind."""

_FEW_VALUES = 3
"""A mean and a standard deviation of so many distinct values, with n, give away how often each occurs."""


@dataclass(frozen=True, eq=False)
class Telling:
    """The rule on counts, for one table's rows.

    Args:
        minimum: least number of persons behind a count that is told; 1 for no rule.
        persons: the person behind each row, ``(n,)`` int64; None where every row is a person.
    """

    minimum: int = 1
    persons: Array | None = None

    @property
    def least(self) -> int:
        """So many rows belong to the minimum of persons at least, whichever rows they are.

        >>> Telling(11).least, Telling(11, np.array([0, 0, 0, 1])).least
        (11, 31)
        """
        most = 1 if self.persons is None else int(np.bincount(self.persons).max(initial=1))
        return (self.minimum - 1) * most + 1

    def take(self, rows: Array) -> Telling:
        """Of some of the rows."""
        return Telling(self.minimum, None if self.persons is None else self.persons[rows])

    def behind(self, rows: Array) -> int:
        """How many persons the rows belong to; a mask ``(n,)`` bool, or row numbers.

        >>> Telling(11, np.array([0, 0, 1])).behind(np.array([True, True, False]))
        1
        """
        if self.persons is None:
            return int(rows.sum()) if rows.dtype == bool else len(rows)
        return len(np.unique(self.persons[rows]))

    def few(self, rows: Array) -> bool:
        """Whether somebody stands behind these rows, and fewer persons than the minimum.

        >>> [Telling(11).few(np.arange(n)) for n in (0, 1, 10, 11)]
        [False, True, True, False]
        """
        return self.minimum > 1 and 0 < self.behind(rows) < self.minimum

    def number(self, rows: Array) -> int | str:
        """How many rows, or :data:`SUPPRESSED`."""
        if self.few(rows):
            return SUPPRESSED
        return int(rows.sum()) if rows.dtype == bool else len(rows)

    def words(self, rows: Array, one: str) -> str:
        """How many, in words that are alike on either side of the minimum whatever the number is.

        Exact numbers of two questions that differ a little would give away those between them.

        Args:
            rows: a mask or row numbers.
            one: what is counted, in the singular.

        >>> Telling(11).words(np.arange(3), "cell"), Telling(11).words(np.arange(300), "cell")
        ('fewer than 11 cells', '11 cells or more')
        >>> Telling().words(np.arange(1), "cell"), Telling().words(np.arange(300), "cell")
        ('1 cell', '300 cells')
        """
        if self.minimum > 1:
            few = self.few(rows)
            return f"fewer than {self.minimum} {one}s" if few else f"{self.minimum} {one}s or more"
        count = int(rows.sum()) if rows.dtype == bool else len(rows)
        return f"1 {one}" if count == 1 else f"{count} {one}s"

    def counts(self, cells: Mapping[str, Array]) -> dict[str, int | str]:
        """How many rows are in each of these cells, which together are all rows: a number, or suppressed.

        The number of all rows is known, so a small cell is hidden with as many others as it takes: at
        least two, and the minimum of persons in them together.

        Args:
            cells: masks by name.

        >>> sizes = {"a": 40, "b": 3, "c": 25, "d": 0}
        >>> ends = np.cumsum([0, *sizes.values()])
        >>> at = np.arange(68)
        >>> Telling(11).counts({n: (at >= a) & (at < b) for n, a, b in zip(sizes, ends, ends[1:])})
        {'a': 40, 'b': 'suppressed', 'c': 'suppressed', 'd': 0}
        """
        sizes = {name: int(mask.sum()) for name, mask in cells.items()}
        hidden = {name for name, mask in cells.items() if self.few(mask)}
        while hidden and self._open(cells, hidden):
            shown = [name for name in cells if name not in hidden and sizes[name]]
            if not shown:
                break
            hidden.add(min(shown, key=sizes.__getitem__))
        return {name: SUPPRESSED if name in hidden else size for name, size in sizes.items()}

    def _open(self, cells: Mapping[str, Array], hidden: set[str]) -> bool:
        """Whether subtraction from the number of all rows gives a hidden cell, or few persons, away."""
        together = np.logical_or.reduce([cells[name] for name in hidden])
        return len(hidden) == 1 or self.behind(together) < self.minimum

    def moments_told(self, cells: Array) -> bool:
        """Whether mean and standard deviation of these numbers may be told beside their number.

        Not where few persons have a value, or have none (one more missing code moves the mean by them), nor
        where there are so few distinct values that it follows how often each occurs and that is small.

        Args:
            cells: ``(n,)`` float64, NaN for missing.
        """
        if self.minimum <= 1:
            return True
        known = ~np.isnan(cells)
        if self.few(known) or self.few(~known):
            return False
        values = np.unique(cells[known])
        return len(values) > _FEW_VALUES or not any(self.few(cells == value) for value in values)


EXACT = Telling()
"""Everything is told as it is."""
