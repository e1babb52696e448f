"""The contract between a job and its sites' tables: declared columns, and every fault at once.

A :class:`Schema` says what each column is: its type, unit, range, categories and the codes that mean
"missing". :func:`check_sites` holds every site's table against it, gathers the faults of *all* sites
and gives typed tables back: numbers and booleans as float64 with NaN, categories as text with None.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from atoll.core.errors import DataError, Fault, JobError, raise_faults, suggest
from atoll.core.layout import Array
from atoll.data.columns import (
    Column,
    is_missing,
    labels_of,
    natural,
    numbers_of,
    place_of,
    read_cells,
    where,
)
from atoll.data.table import Table, as_column, label

__all__ = ["Column", "Schema", "check_sites", "complete_schema", "infer_schema"]

TASKS = ("classification", "regression")
_MOST_LEVELS = 50
"""A text column with more distinct values than this is taken for a name or key and left out."""
_MOST_CLASSES = 20
"""A target of whole numbers with more distinct values than this is taken for a quantity."""


@dataclass(frozen=True)
class Schema:
    """What the tables of all sites look like.

    Args:
        columns: the declared columns; what is not declared is not read.
        target: name of the column to predict.
        task: ``classification`` or ``regression``.
        classes: names of the classes in the order of their indices; empty: not known yet (see
            :func:`complete_schema`). With a boolean target the first stands for false.

    Raises:
        JobError: the declarations contradict each other; all faults are listed.
    """

    columns: tuple[Column, ...]
    target: str
    task: Literal["classification", "regression"] = "classification"
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        raise_faults(JobError, "declared columns", list(self._faults()))

    def _faults(self) -> Iterator[Fault]:
        names = [column.name for column in self.columns]
        for column in self.columns:
            yield from column.faults()
            if column.role == "target" and column.name != self.target:
                yield Fault(f"column {column.name!r}", f"is a second target beside {self.target!r}")
            if column.role == "ignore" and column.name == self.target:
                yield Fault(f"column {column.name!r}", "the target cannot be ignored")
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield Fault(f"column {name!r}", "is declared twice", "remove one declaration")
        if not self.features:
            yield Fault("columns", "no feature is declared", "declare a column besides the target")
        if self.task not in TASKS:
            yield Fault("task", f"unknown task {self.task!r}", suggest(self.task, TASKS))
        if self.task == "regression" and self.classes:
            yield Fault("classes", "a regression has no classes", "remove classes")
        if self.task == "regression" and self.goal.type == "category":
            yield Fault(f"column {self.target!r}", "a regression needs a number as its target")
        if self.classes and (len(self.classes) < 2 or len(set(self.classes)) < len(self.classes)):
            yield Fault("classes", f"{list(self.classes)} are not two or more different names")

    @property
    def features(self) -> tuple[Column, ...]:
        """The columns a model sees, in declared order."""
        return tuple(c for c in self.columns if c.name != self.target and c.role == "feature")

    @property
    def goal(self) -> Column:
        """The target's column; declared, or what the task implies.

        A class is read as a category unless it is declared boolean.
        """
        default = Column(self.target, "number", role="target")
        column = next((c for c in self.columns if c.name == self.target), default)
        if self.task == "classification" and column.type != "boolean":
            allowed = self.classes or column.categories
            return replace(column, type="category", range=None, categories=allowed)
        return column

    def read(self, site: str, raw: Table) -> Table:
        """The typed table of one site: features in declared order, then the target.

        Raises:
            DataError: with every fault of this site.
        """
        table, faults = _read(self, site, raw)
        raise_faults(DataError, "the data do not match the declared columns", faults, site=site)
        return table


def check_sites(
    schema: Schema, sites: Mapping[str, Table]
) -> tuple[dict[str, Table], tuple[str, ...]]:
    """Typed tables of all sites, and notes on what is allowed but worth knowing.

    Noted: a site with a single class, a feature without any value at a site, columns not declared.

    Raises:
        DataError: with every fault of every site; each names site, column, value and row.
    """
    typed: dict[str, Table] = {}
    faults: list[Fault] = []
    if not sites:
        faults.append(Fault("sites", "there are none", "check the path or the site column"))
    for site, raw in sites.items():
        typed[site], found = _read(schema, site, raw)
        faults += found
    raise_faults(DataError, "the sites' data do not match the declared columns", faults)
    return typed, tuple(_notes(schema, sites, typed))


def complete_schema(schema: Schema, sites: Mapping[str, Table]) -> Schema:
    """Fill in categories and classes that were not declared with all names any site holds.

    Only names travel, no counts; declare them where the names themselves are confidential.
    """

    def names(column: Column) -> tuple[str, ...]:
        found: set[str] = set()
        for table in sites.values():
            if column.name in table.columns:
                found |= {n for n in labels_of(column, table[column.name]) if n is not None}
        return tuple(sorted(found, key=natural))

    columns = tuple(
        replace(c, categories=names(c))
        if c.type == "category"
        and not c.categories
        and c.role == "feature"
        and c.name != schema.target
        else c
        for c in schema.columns
    )
    classes = schema.classes
    if schema.task == "classification" and not classes:
        goal = schema.goal
        classes = ("false", "true") if goal.type == "boolean" else goal.categories or names(goal)
        if len(classes) < 2:
            raise DataError(
                f"the target {schema.target!r} has {len(classes)} class over all sites",
                remedy="a classification needs two; check the target column or declare classes",
            )
    return replace(schema, columns=columns, classes=classes)


def infer_schema(
    sites: Mapping[str, Table],
    target: str,
    task: Literal["", "classification", "regression"] = "",
) -> Schema:
    """A schema guessed from the tables of all sites, for a quick start; declare columns in earnest.

    Numbers that are all 0 or 1 become booleans, whole numbers integers, text categories. Text with
    more than 50 distinct values and columns without any value are ignored. The target is a class
    when it is text or has at most 20 distinct whole values.

    Raises:
        DataError: no site has the target.
    """
    names = list(dict.fromkeys(name for table in sites.values() for name in table.names))
    if target not in names:
        raise DataError(f"no site has the target column {target!r}", remedy=suggest(target, names))
    guess = {n: _guess(n, [t[n] for t in sites.values() if n in t.columns]) for n in names}
    goal = replace(guess[target], role="target")
    if task == "regression":
        goal = Column(target, role="target")
    if not task:
        levels = {
            n for t in sites.values() if target in t.columns for n in labels_of(goal, t[target])
        }
        few = goal.type == "integer" and len(levels - {None}) <= _MOST_CLASSES
        task = "classification" if few or goal.type in ("category", "boolean") else "regression"
    columns = tuple(goal if n == target else guess[n] for n in names)
    return complete_schema(Schema(columns, target, task), sites)


def _guess(name: str, parts: Sequence[Array]) -> Column:
    joined = as_column([cell for part in parts for cell in part.tolist()])
    numbers, wrong = numbers_of(Column(name), joined)
    if wrong.any():
        levels = set(labels_of(Column(name), joined)) - {None}
        role: Literal["feature", "ignore"] = "ignore" if len(levels) > _MOST_LEVELS else "feature"
        return Column(name, "category", role=role)
    seen = numbers[~np.isnan(numbers)]
    if not len(seen):
        return Column(name, role="ignore")
    if np.isin(seen, (0, 1)).all():
        return Column(name, "boolean")
    return Column(name, "integer" if np.all(seen == np.floor(seen)) else "number")


def _read(schema: Schema, site: str, raw: Table) -> tuple[Table, list[Fault]]:
    """The typed table as far as it can be made, and every fault."""
    wanted = (*schema.features, schema.goal)
    faults = [
        Fault(f"site {site!r}, column {c.name!r}", "is missing", suggest(c.name, raw.names))
        for c in wanted
        if c.name not in raw.columns
    ]
    if not len(raw):
        faults.append(Fault(f"site {site!r}", "has no rows", "leave the site out or fill its file"))
    typed: dict[str, Array] = {}
    for column in wanted:
        if column.name in raw.columns:
            typed[column.name], found = read_cells(site, column, raw[column.name])
            faults += found
    if schema.target in typed:
        empty = np.array([is_missing(cell) for cell in typed[schema.target]], bool)
        told = [f for f in faults if f.place == place_of(site, schema.goal)]
        if empty.any() and not told:
            message = f"the target is missing {where(empty)}"
            remedy = "remove these rows: they can neither train nor test"
            faults.append(Fault(place_of(site, schema.goal), message, remedy))
    return Table(typed), faults


def _notes(schema: Schema, sites: Mapping[str, Table], typed: Mapping[str, Table]) -> Iterator[str]:
    for site, table in typed.items():
        for column in schema.features:
            if all(is_missing(cell) for cell in table[column.name]):
                yield f"site {site!r}: column {column.name!r} has no value in any of {len(table)} rows"
        if schema.task == "classification":
            held = {label(cell) for cell in table[schema.target]}
            if len(held) == 1:
                yield f"site {site!r}: a single class, {held.pop()!r}, in {len(table)} rows"
    declared = {c.name for c in schema.columns} | {schema.target}
    extra = {name for raw in sites.values() for name in raw.names} - declared
    if extra:
        yield f"columns not declared and not read: {', '.join(sorted(extra))}"
