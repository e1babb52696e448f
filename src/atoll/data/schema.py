"""The contract between a job and its sites' tables: declared columns, and every fault at once.

A :class:`Schema` says what each column is: its type, unit, range, categories and the codes that mean
"missing". :func:`check_sites` holds every site's table against it, gathers the faults of *all* sites
and gives typed tables back: numbers and booleans as float64 with NaN, categories as text with None.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from atoll.core.errors import DataError, Fault, JobError, raise_faults, suggest
from atoll.core.layout import Array
from atoll.data.columns import (
    Column,
    identifies,
    is_missing,
    labels_of,
    natural,
    numbers_of,
    place_of,
    read_cells,
    steady,
    where,
)
from atoll.data.sketches import MOST_LEVELS, Sketch, clashes, guessed, merged, sketch
from atoll.data.table import Table, label
from atoll.data.telling import EXACT, Telling
from atoll.data.zones import zones_note

__all__ = [
    "Column",
    "Schema",
    "check_sites",
    "complete_schema",
    "flagged",
    "goal_of",
    "infer_schema",
    "numbers_and_words",
    "table_faults",
    "unlabelled",
    "with_names",
]

TASKS = ("classification", "regression")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_GRADES = 10
"""More categories than this that are numbers are hardly grades or codes."""
_LEFT_OUT = f"left out, as text of more than {MOST_LEVELS} different values or without any"
_HEAD = 1000
_MOST_SITES = 5
"""Notes on more sites than this are one."""
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
        for name in sorted(name for name, count in Counter(names).items() if count > 1):
            yield Fault(f"column {name!r}", "is declared twice", "remove one declaration")
        if not self.features:
            yield self._nothing()
        if self.task not in TASKS:
            yield Fault("task", f"unknown task {self.task!r}", suggest(self.task, TASKS))
        if self.task == "regression" and self.classes:
            yield Fault("classes", "a regression has no classes", "remove classes")
        if self.task == "regression" and self.goal.type == "category":
            yield Fault(f"column {self.target!r}", "a regression needs a number as its target")
        if self.classes and (len(self.classes) < 2 or len(set(self.classes)) < len(self.classes)):
            yield Fault("classes", f"{list(self.classes)} are not two or more different names")

    def _nothing(self) -> Fault:
        left = [column.name for column in self.columns if column.role == "ignore"]
        if not left:
            return Fault("columns", "no feature is declared", "declare a column besides the target")
        remedy = (
            "give numbers, such as days since a date, or declare the column with its categories"
        )
        return Fault("columns", f"there is no feature; columns {_LEFT_OUT}: {_some(left)}", remedy)

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
        return goal_of(column, self.task, self.classes)

    def read(self, site: str, raw: Table) -> Table:
        """The typed table of one site: features in declared order, then the target.

        Raises:
            DataError: with every fault of this site.
        """
        table, faults = _read(self, site, raw)
        raise_faults(DataError, "the data do not match the declared columns", faults, site=site)
        return table


def goal_of(column: Column, task: str, classes: tuple[str, ...] = ()) -> Column:
    """How a target's column is read: as a category where its values are classes, unless it is boolean."""
    if task == "classification" and column.type != "boolean":
        allowed = classes or column.categories
        return replace(column, type="category", range=None, categories=allowed)
    return column


def check_sites(
    schema: Schema, sites: Mapping[str, Table]
) -> tuple[dict[str, Table], tuple[str, ...]]:
    """Typed tables of all sites, and notes on what is allowed but worth knowing.

    Noted: a site with a single class, a feature without any value at a site, one that looks like an identifier,
    one of a single value, columns that are not read.

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

    def names(column: Column) -> set[str | None]:
        return {
            name
            for table in sites.values()
            if column.name in table.columns
            for name in labels_of(column, table[column.name])
        }

    return with_names(schema, names)


def with_names(schema: Schema, names: Callable[[Column], Iterable[str | None]]) -> Schema:
    """Fill in categories and classes that were not declared with what ``names`` finds for a column.

    Raises:
        DataError: the target has fewer than two classes.
    """

    def listed(column: Column) -> tuple[str, ...]:
        found = {name for name in names(column) if name is not None}
        return tuple(sorted(found, key=natural))

    columns = tuple(
        replace(c, categories=listed(c))
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
        classes = ("false", "true") if goal.type == "boolean" else goal.categories or listed(goal)
        if len(classes) < 2:
            raise DataError(
                f"the target {schema.target!r} has {len(classes)} class over all sites",
                remedy="a classification needs two; check the target column or declare classes",
            )
    return replace(schema, columns=columns, classes=classes)


def flagged(schema: Schema, guess: Collection[str]) -> Schema:
    """The schema with the classes 0 and 1 where the target was found to hold them, and no others.

    A target that is *declared* boolean may be written in many ways, and has the classes false and true.

    Args:
        schema: the declared and the guessed columns.
        guess: names of the latter.
    """
    zeros = schema.task == "classification" and schema.goal.type == "boolean"
    if not zeros or schema.classes or schema.target not in guess:
        return schema
    return replace(schema, classes=("0", "1"))


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
        DataError: no site has the target, or a column holds text at one site and numbers at another.
    """
    names = list(dict.fromkeys(name for table in sites.values() for name in table.names))
    if target not in names:
        raise DataError(f"no site has the target column {target!r}", remedy=suggest(target, names))
    at: dict[str, dict[str, Sketch]] = {
        n: {
            site: sketch(Column(n), table[n], named=n == target)
            for site, table in sites.items()
            if n in table.columns
        }
        for n in names
    }
    every = {n: merged(found.values(), named=n == target) for n, found in at.items()}
    faults = [fault for n, found in at.items() for fault in clashes(n, found)]
    raise_faults(DataError, "the sites' columns do not match", faults)
    goal = replace(guessed(target, every[target]), role="target")
    if task == "regression":
        goal = Column(target, role="target")
    if not task:
        levels = every[target].levels or ()
        few = goal.type == "integer" and len(levels) <= _MOST_CLASSES
        task = "classification" if few or goal.type in ("category", "boolean") else "regression"
    columns = tuple(goal if n == target else guessed(n, every[n]) for n in names)
    made = flagged(Schema(columns, target, task), (target,))
    return with_names(made, lambda c: every[c.name].levels or ())


def _read(schema: Schema, site: str, raw: Table) -> tuple[Table, list[Fault]]:
    """The typed table as far as it can be made, and every fault."""
    typed: dict[str, Array] = {}
    cells: dict[str, list[Fault]] = {}
    for column in (*schema.features, schema.goal):
        if column.name in raw.columns:
            typed[column.name], cells[column.name] = read_cells(site, column, raw[column.name])
    if schema.target in typed and not cells[schema.target]:
        cells[schema.target] += unlabelled(site, schema.goal, typed[schema.target])
    return Table(typed), table_faults(schema, site, raw.names, not len(raw), cells)


def table_faults(
    schema: Schema,
    site: str,
    names: Collection[str],
    empty: bool,
    cells: Mapping[str, Iterable[Fault]],
) -> list[Fault]:
    """Every fault of one site's table, in the order of the schema's columns.

    Args:
        schema: the declared columns.
        site: whose table it is.
        names: its columns.
        empty: whether it has no rows.
        cells: by column what is wrong with its cells.
    """
    wanted, held = (*schema.features, schema.goal), frozenset(names)
    faults = [
        Fault(f"site {site!r}, column {c.name!r}", "is missing", suggest(c.name, names))
        for c in wanted
        if c.name not in held
    ]
    if empty:
        faults.append(Fault(f"site {site!r}", "has no rows", "leave the site out or fill its file"))
    return faults + [fault for c in wanted for fault in cells.get(c.name, ())]


def unlabelled(site: str, goal: Column, typed: Array, telling: Telling = EXACT) -> list[Fault]:
    """The fault of rows without a target, given the target's typed cells; see :func:`read_cells`."""
    empty = np.array([is_missing(cell) for cell in typed], bool)
    if not empty.any():
        return []
    message = f"the target is missing {where(empty)}"
    remedy = "remove these rows: they can neither train nor test"
    told = f"the target is missing in {telling.words(empty, 'row')}"
    return [Fault(place_of(site, goal), message, remedy, told)]


def _notes(schema: Schema, sites: Mapping[str, Table], typed: Mapping[str, Table]) -> Iterator[str]:
    yield from _lacking(schema, typed)
    yield from _spelt(tuple(sites))
    for column in schema.features:
        if len(typed) > 1 and steady([table[column.name] for table in typed.values()]):
            yield f"column {column.name!r} holds the same value in every row: it tells a model nothing"
        if column.unit or column.range is not None:  # whoever writes that means the quantity
            continue
        if all(identifies(column.name, table[column.name]) for table in typed.values()):
            yield (
                f"column {column.name!r} holds another whole number in every row: if that is an identifier, "
                "leave it out (data.drop)"
            )
    yield from _alike(schema)
    yield from _dates(schema)
    yield from _zones(schema, typed)
    yield from _mixed(schema, sites)
    ignored = [c.name for c in schema.columns if c.role == "ignore"]
    if ignored:
        yield (f"columns {_LEFT_OUT}: {_some(ignored)}")
    declared = {c.name for c in schema.columns} | {schema.target}
    extra = {name for raw in sites.values() for name in raw.names} - declared
    if extra:
        yield f"columns not read, as not declared or left out: {_some(sorted(extra))}"


def _lacking(schema: Schema, typed: Mapping[str, Table]) -> Iterator[str]:
    """Sites without a value of a feature, or with one class; many of them in one note."""
    bare: dict[str, list[str]] = {}
    single: dict[str, str] = {}
    for site, table in typed.items():
        for column in schema.features:
            if all(is_missing(cell) for cell in table[column.name]):
                bare.setdefault(column.name, []).append(site)
        if schema.task == "classification":
            held = {label(cell) for cell in table[schema.target]}
            if len(held) == 1:
                single[site] = held.pop()
    for name, without in bare.items():
        if len(without) > _MOST_SITES:
            yield f"column {name!r} has no value at {len(without)} sites: {_some(without, _MOST_SITES)}"
            continue
        for site in without:
            yield f"site {site!r}: column {name!r} has no value in any of {len(typed[site])} rows"
    if len(single) > _MOST_SITES:
        yield f"{len(single)} of {len(typed)} sites have a single class: {_some(list(single), _MOST_SITES)}"
        return
    for site, only in single.items():
        yield f"site {site!r}: a single class, {only!r}, in {len(typed[site])} rows"


def _spelt(sites: Sequence[str]) -> Iterator[str]:
    """Names of sites that people write for one, and that are several here."""
    if several := _forms(sites):
        yield (
            "sites have names that differ in capitals, spaces or the code of a letter only, and count as "
            f"different: {_some(several, 8)}"
        )


def _forms(names: Iterable[str]) -> list[str]:
    """Those of the names that look like another of them, as they are shown."""
    forms: dict[str, list[str]] = {}
    for name in names:
        plain = unicodedata.normalize("NFKC", name).casefold()
        forms.setdefault("".join(plain.split()), []).append(name)
    several = [found for found in forms.values() if len(found) > 1]
    return [ascii(name) if _twins(found) else repr(name) for found in several for name in found]


def _twins(names: list[str]) -> bool:
    """Whether names look alike when they are printed, such as an ä of one code and one of two."""
    return len({unicodedata.normalize("NFKC", name) for name in names}) < len(names)


def _some(names: list[str], most: int = 50) -> str:
    """All of the names, or of very many the first: whoever reads six columns of 20,000 knows which."""
    more = len(names) - most
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:most])} and {more} more"


def _alike(schema: Schema) -> Iterator[str]:
    """Names that people write for one thing, and that are several here."""
    listed = {c.name: c.categories for c in schema.features} | {schema.target: schema.classes}
    for name, values in listed.items():
        if several := _forms(values):
            yield (
                f"column {name!r} has values that differ in capitals or spaces only, and count as different: "
                f"{', '.join(several[:8])}{', …' if len(several) > 8 else ''}"
            )


def _dates(schema: Schema) -> Iterator[str]:
    """Categories that are days: a model learns nothing about a day that it has not seen."""
    for column in schema.features:
        if len(column.categories) > 2 and all(map(_DAY.match, column.categories)):
            yield (
                f"column {column.name!r} holds dates, and each of them is a category of its own: give a "
                "number in its place, such as days since a date, or leave it out (data.drop)"
            )


def _zones(schema: Schema, typed: Mapping[str, Table]) -> Iterator[str]:
    """Categories that are times of other zones elsewhere; a site by itself knows the categories of all."""
    for column in schema.features:
        if column.type == "category":
            held = {site: set(table[column.name]) - {None} for site, table in typed.items()}
            if len(held) == 1:
                held["all sites"] = set(column.categories)
            if note := zones_note(column.name, held):
                yield note


def _mixed(schema: Schema, sites: Mapping[str, Table]) -> Iterator[str]:
    """Columns of numbers that a few cells of text have made a category, or have had left out."""
    for column in schema.columns:
        graded = sum(_is_number(name) for name in column.categories) > _GRADES
        if column.name == schema.target or not (column.role == "ignore" or graded):
            continue
        numbers, words, places = 0, 0, list[str]()
        for site, raw in sites.items():
            if column.name in raw.columns:
                some, others = numbers_and_words(raw[column.name])
                numbers, words = numbers + some, words + others
                places += [repr(site)] if others else []
        if places and numbers > words:
            at = ", ".join(places[:5]) + (", …" if len(places) > 5 else "")
            yield (
                f"column {column.name!r} holds numbers, and text beside them at {at}, so it is no quantity "
                "here: if it should be one, declare it (type = 'number'; texts for \"not known\" under missing)"
            )


def numbers_and_words(cells: Array) -> tuple[int, int]:
    """How many cells are numbers, and how many text; of a column that begins with text, of its beginning."""
    if cells.dtype.kind == "f":
        return int(np.isfinite(cells).sum()), 0
    for some in (cells[:_HEAD], cells):
        values, wrong = numbers_of(Column(""), some)
        found = int(np.isfinite(values).sum()), int(wrong.sum())
        if found[1] > found[0]:
            break
    return found


def _is_number(name: str) -> bool:
    return natural(name)[0] == 0
