"""One site's rows as analyses see them, and what disclosure control says to an analysis of them.

A simulation, a federation of tables and a site's node ask through the same lines: fewer persons than the
minimum, extremes, and differences to earlier answers are refused before any sum is formed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from atoll.algorithms.statistics.analysis import Analysis
from atoll.algorithms.statistics.together import released_by
from atoll.core.errors import Forbidden
from atoll.core.layout import Array
from atoll.data.disclosure import Disclosure
from atoll.data.query_log import QueryLog, Released
from atoll.data.table import Table

__all__ = ["Holding"]


@dataclass(frozen=True, eq=False)
class Holding:
    """A site's whole table, who is who, and which rows are looked at.

    Args:
        table: of float64 columns.
        persons: the person behind each row, ``(n,)`` whole numbers from 0.
        rows: which take part, ``(n,)`` bool.
        chosen: which were chosen by their values, ``(n,)`` bool: how many those are is told of any analysis.
    """

    table: Table
    persons: Array
    rows: Array
    chosen: Array

    @classmethod
    def whole(cls, table: Table, persons: Array) -> Holding:
        """All rows."""
        every = np.ones(len(table), bool)
        return cls(table, persons, every, every)

    @property
    def seen(self) -> Table:
        """The rows that take part."""
        return self.table if self.rows.all() else self.table.take(self.rows)

    def where(self, rows: Array, *, chosen: bool = True) -> Holding:
        """Of the rows that take part those that are in ``rows`` too.

        Args:
            rows: ``(n,)`` bool.
            chosen: whether by their values, not for having any.
        """
        by_value = self.chosen & rows if chosen else self.chosen
        return replace(self, rows=self.rows & rows, chosen=by_value)

    @property
    def _study(self) -> tuple[str, str]:
        """Names the rows that were chosen, and those that take part."""
        return _name(self.chosen), _name(self.rows)

    def admit(
        self, analysis: Analysis, rule: Disclosure, log: QueryLog, site: str, *, dry: bool
    ) -> None:
        """Note in the site's log what an analysis is about to release, or refuse it and note nothing.

        Args:
            analysis: what is asked.
            rule: disclosure control.
            log: of the site.
            site: for errors.
            dry: only look.

        Raises:
            Forbidden: names the site and the reason.
            StorageError: the log cannot be written; nothing may be sent.
        """
        if rule.minimum == 1:
            return
        study = self._study
        whole = [Released((), self.chosen, study=study)]
        for one in released_by(analysis, self.seen.columns):
            rows = self.rows.copy()
            rows[self.rows] = one.rows
            whole.append(replace(one, rows=rows, study=study))
            count = np.count_nonzero(np.bincount(self.persons[rows], minlength=1))
            seen = one.apart or not rule.masked
            if seen and not one.table and 0 < count < rule.minimum:
                way = "ask for nothing of single sites" if one.apart else "mask the sums"
                raise Forbidden(
                    f"fewer than {rule.minimum} persons have a value in "
                    f"{', '.join(map(repr, one.columns))}",
                    site=site,
                    remedy=f"leave the column or the site out, widen the selection, or {way}",
                )
        if rule.differences:
            log.admit(whole, self.persons, self.table.columns, site=site, dry=dry)


def _name(rows: Array) -> str:
    """Names a part of the rows; empty for all."""
    return "" if rows.all() else hashlib.sha256(np.packbits(rows).tobytes()).hexdigest()[:16]
