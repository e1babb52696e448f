"""What a job that trains a model may tell of a site's rows beside its updates: one rule, in one place.

A :class:`Discretion` is made of the rule that the site's steward has set for the dataset and of what the job
asks for, whichever is stricter (:mod:`atoll.node.policy.leaving`), or in a simulation of the job alone.
Whatever tells a number of rows asks it: the survey's faults, sums of columns, data cards, figures of
held-out rows.

What must be exact for the model stays exact: the number of training rows, which weighs an update, and sums
of columns. Where too few persons are behind them, they are not made inexact; the site is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from atoll.core.contracts import Examples
from atoll.core.errors import Fault, PolicyError, raise_faults
from atoll.core.layout import Array
from atoll.core.metrics import BinnedAUC, Confusion, Count, Mean, Metric, Metrics, Regression
from atoll.data.columns import Column, is_missing, labels_of
from atoll.data.disclosure import persons_of
from atoll.data.preprocessing import Plan, counted_levels, summed_columns
from atoll.data.schema import Schema
from atoll.data.table import Table
from atoll.data.telling import Telling

__all__ = ["OPEN", "Discretion", "Rule", "no_rule"]

_WAYS = "set privacy.aggregation = 'masked' with five sites or more"


@dataclass(frozen=True)
class Discretion:
    """The rule on small counts of one run at one site.

    Args:
        minimum: least number of persons behind a number that is told; 1 for no rule.
        person: column that names the person a row belongs to; empty: every row is a person.
        strict: whether counts of fewer persons *inside* what training in the clear takes (sums of
            columns, figures, names of categories) are refused too.
        masked: whether sums and figures of single sites are seen by nobody, by masks or as ciphertexts.
        counted: whether the number of rows is told all the same, as an account of privacy needs it.
        inputs: whether what a model has to be given is handed out with it: None where whoever runs it has the
            rows, as in a simulation; else what the site's rule says.
    """

    minimum: int = 1
    person: str = ""
    strict: bool = False
    masked: bool = False
    counted: bool = False
    inputs: bool | None = None

    def telling(self, rows: Table | Examples) -> Telling:
        """How counts of these rows may be told.

        Raises:
            DataError: a table without the column of persons, or with a row that names none.
        """
        if self.minimum <= 1 or not self.person or isinstance(rows, Examples):
            return Telling(self.minimum)
        return Telling(self.minimum, persons_of(rows, self.person))

    def admit(self, telling: Telling, rows: Array, site: str, what: str = "rows") -> None:
        """Refuse a site of which a number of rows would be told, and is small.

        Raises:
            PolicyError: names the site, and not the number.
        """
        if telling.few(rows) and (self.counted or not self.masked):
            raise PolicyError(
                f"fewer than {self.minimum} persons stand behind the {what} of this site",
                site=site,
                remedy=f"leave the site out, {_WAYS}, or have its steward lower the minimum "
                "(atoll node data rule)",
            )

    def silent(self, telling: Telling, test: Array) -> bool:
        """Whether figures of these held-out rows are those of few persons, and would be seen."""
        return not self.masked and telling.few(test)

    def releases(
        self, table: Table, plan: Plan, schema: Schema, telling: Telling, few: bool
    ) -> bool:
        """Whether sums of these training rows, added up over sites, may be handed out with the model.

        The rule is stricter here than for the sums themselves, whatever hides those: no count of few persons
        may follow from this site's own part, and there are no few rows that were held out.

        Args:
            table: typed training rows.
            plan: what is fitted on the sums.
            schema: the declared columns.
            telling: of these rows.
            few: whether few rows are held out.
        """
        if self.inputs is None:
            return True
        if not self.inputs or few or telling.few(np.arange(len(table))):
            return False
        return self.minimum <= 1 or not any(_telling_columns(table, plan, schema, telling))

    # What is refused under a strict rule --------------------------------------------------------

    def refuse_names(
        self, site: str, table: Table, levels: Mapping[str, Array], telling: Telling
    ) -> None:
        """Refuse to tell names of categories that few persons have.

        Args:
            site: whose they are.
            table: its rows as they were read.
            levels: by column the names that would be told.
            telling: of the table.

        Raises:
            PolicyError: names the columns.
        """
        if not self.strict or self.minimum <= 1:
            return
        faults = [
            Fault(
                f"site {site!r}, column {name!r}",
                f"has a category of fewer than {self.minimum} persons, whose name would be told",
                "declare categories (classes for the target), or drop the column",
            )
            for name, own in levels.items()
            if _rare(np.array(labels_of(Column(name), table[name]), object), own, telling)
        ]
        raise_faults(PolicyError, "the site's rule on small counts", faults, site=site)

    def refuse_sums(
        self, site: str, table: Table, plan: Plan, schema: Schema, telling: Telling
    ) -> None:
        """Refuse to send sums in the clear from which a count of few persons follows.

        Args:
            site: whose they are.
            table: its typed training rows.
            plan: what is fitted on the sums.
            schema: the declared columns.
            telling: of these rows.

        Raises:
            PolicyError: names the columns.
        """
        if not self.strict or self.masked or self.minimum <= 1 or plan.mode != "federated":
            return
        faults = [
            Fault(
                f"site {site!r}, column {name!r}",
                f"its sums tell of fewer than {self.minimum} persons",
                f"{_WAYS}, preprocessing.mode = 'site', or drop the column",
            )
            for name in _telling_columns(table, plan, schema, telling)
        ]
        raise_faults(PolicyError, "the site's rule on small counts", faults, site=site)

    def figures(self, metrics: Metrics, telling: Telling) -> Metrics:
        """The figures that may leave: under a strict rule those without a count of few persons.

        Args:
            metrics: of some rows.
            telling: of these rows.
        """
        if not self.strict or self.masked or self.minimum <= 1:
            return metrics
        return {n: m for n, m in metrics.items() if not _counts_few(m, telling.least)}


OPEN = Discretion()
"""Nothing is held back."""

Rule = Callable[[int], Discretion]
"""What may be told of the rows of a run over so many sites."""


def no_rule(sites: int) -> Discretion:
    """The rule that holds nothing back, however many sites there are."""
    return OPEN


def _rare(names: Array, levels: Array, telling: Telling) -> bool:
    return any(telling.few(np.asarray(names == level, bool)) for level in levels)


def _telling_columns(table: Table, plan: Plan, schema: Schema, telling: Telling) -> Iterator[str]:
    """Columns whose sums give a count of few persons away."""
    for column in summed_columns(plan, schema):
        if not telling.moments_told(table[column.name]):
            yield column.name
    for column in schema.features:
        levels = counted_levels(plan, column)
        if not levels:
            continue
        cells = table[column.name]
        empty = np.array([is_missing(cell) for cell in cells], bool)
        if telling.few(empty) or _rare(cells, np.array(levels, object), telling):
            yield column.name


def _counts_few(metric: Metric, least: int) -> bool:
    """Whether a count of 1 to ``least - 1`` rows is in the metric, or follows from it."""
    return any(0 < count < least for count in _counts(metric))


def _counts(metric: Any) -> Iterator[int]:
    if isinstance(metric, Count):
        yield metric.count
    elif isinstance(metric, Confusion):
        yield from (count for row in metric.table for count in row)
    elif isinstance(metric, BinnedAUC):
        yield from map(int, np.unique(metric.counts))
        yield metric.undefined
    elif isinstance(metric, Regression):
        yield metric.n
    elif isinstance(metric, Mean):
        total, weight = Fraction(metric.total), Fraction(metric.weight)
        if weight.denominator == 1:
            yield int(weight)
            if total.denominator == 1:  # a share, such as that of right answers
                yield from (int(total), int(weight - total))
