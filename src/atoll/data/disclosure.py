"""Disclosure control at a site: how many persons must stand behind whatever leaves it.

Counted are persons, not rows: a patient with twelve visits is one person. The rules are

- fewer persons than the minimum: the site answers nothing at all;
- two analyses whose sets of persons can be combined to leave fewer than the minimum: the second is
  refused (:class:`~atoll.data.query_log.QueryLog`, which the site keeps);
- a smallest or largest value is one person's, and leaves only where the rule says so;
- a quantile is released where at least the minimum lies on either side of it;
- small cells of tables are suppressed, and with them as many others as it takes
  (:mod:`atoll.data.suppression`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atoll.core.errors import DataError, Forbidden
from atoll.core.layout import Array
from atoll.data.columns import BLURRED, blurred, is_missing
from atoll.data.table import Table, label
from atoll.data.telling import Telling

__all__ = ["Disclosure", "persons_of"]


@dataclass(frozen=True)
class Disclosure:
    """The rule of a site or a federation.

    Args:
        minimum: least number of persons behind anything released; 1 switches the counts' control off.
        person: column that names the person a row belongs to; empty: every row is a person.
        extremes: whether smallest and largest values may be released.
        differences: whether the query log refuses differences; a site without it must trust those
            who ask.
        masked: sums of single sites are seen by nobody, so the minimum holds for totals, and a site
            with fewer persons may take part.

    Raises:
        DataError: a minimum below 1.
    """

    minimum: int = 11
    person: str = ""
    extremes: bool = False
    differences: bool = True
    masked: bool = False

    def __post_init__(self) -> None:
        if self.minimum < 1:
            raise DataError(f"a minimum of {self.minimum} persons", remedy="give 1 or more")

    def persons(self, table: Table) -> Array:
        """The person behind each row as a whole number, ``(n,)`` int64."""
        return persons_of(table, self.person)

    def count(self, table: Table) -> int:
        """How many persons the rows belong to."""
        if not self.person:
            return len(table)
        return int(self.persons(table).max(initial=-1)) + 1

    def telling(self, table: Table) -> Telling:
        """How counts of this table's rows may be told.

        Raises:
            DataError: there is no column of persons, or a row without one.
        """
        persons = self.persons(table) if self.person and self.minimum > 1 else None
        return Telling(self.minimum, persons)

    def enough(self, table: Table, site: str) -> None:
        """Refuse a site with fewer persons than the minimum; the number is not told.

        Raises:
            Forbidden: names the site.
        """
        if self.masked:
            return
        if self.count(table) < self.minimum:
            raise Forbidden(
                f"fewer than {self.minimum} persons stand behind this analysis",
                site=site,
                remedy="leave the site out, widen the selection, or mask the sums",
            )

    def quantile_faults(self, count: float, levels: Sequence[float]) -> list[str]:
        """Which quantiles of ``count`` values may not be released, and why.

        >>> Disclosure(11).quantile_faults(100, [0.5, 0.99])
        ['the quantile 0.99 of 100 values has fewer than 11 of them on one side']
        """
        if self.minimum == 1:
            return []
        found = []
        for q in levels:
            allowed = self.extremes and q in (0.0, 1.0) and count >= self.minimum
            # A hair's breadth of tolerance: 0.1 * 110 is 11 in decimals and not in binary.
            if not allowed and min(q, 1 - q) * count < self.minimum - 1e-9:
                found.append(
                    f"the quantile {q:g} of {count:g} values has fewer than {self.minimum} "
                    "of them on one side"
                )
        return found


def persons_of(table: Table, column: str = "") -> Array:
    """The person behind each row as a whole number, ``(n,)`` int64.

    Args:
        table: a site's rows.
        column: names the person; empty: every row is a person of its own.

    Raises:
        DataError: there is no such column, a row without a person, or numbers that are not told apart.
    """
    if not column:
        return np.arange(len(table))
    names = table[column]
    if any(is_missing(name) for name in names):
        raise DataError(f"column {column!r} names no person in some rows", remedy="fill it")
    if blurred(names):
        raise DataError(
            f"column {column!r} {BLURRED}",
            remedy="write them as text, for instance with a letter before the digits",
        )
    plain = names if names.dtype.kind == "f" else np.array([label(name) for name in names], str)
    _, codes = np.unique(plain, return_inverse=True)
    return np.asarray(codes, np.int64)
