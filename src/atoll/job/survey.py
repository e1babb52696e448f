"""What the sites' tables look like together: from what each of them tells, wherever they lie.

A site tells the names of its columns and a :class:`~atoll.data.sketches.Sketch` of those that the job reads
(:func:`tell`); :func:`schema_of` makes one schema of that. A simulation calls both in one process. In a
deployment the first half runs at the sites (:func:`table_survey`) and the second at the server
(:func:`tables_agree`), so both end in the same schema and in the same faults.

What leaves a site: names of columns; names of the levels of text columns (at most 50, else only that there
are more), of columns declared as categories and of the target's classes; and what is wrong with its
cells, in the words of :mod:`atoll.data.columns` and as far as a rule on counts lets it. Declare
``categories`` and ``classes`` where the names themselves are confidential: they are then not sent.
"""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from atoll.core.errors import (
    AtollError,
    DataError,
    Fault,
    JobError,
    WireError,
    raise_faults,
    suggest,
)
from atoll.core.values import ClientId
from atoll.data.columns import BLURRED, Column, blurred, read_cells
from atoll.data.schema import (
    Schema,
    flagged,
    goal_of,
    table_faults,
    unlabelled,
    with_names,
)
from atoll.data.sketches import MOST_LETTERS, Sketch, clashes, guessed, merged, sketch
from atoll.data.table import Table
from atoll.data.telling import Telling
from atoll.job.discretion import OPEN, Discretion
from atoll.job.faults import Gathering
from atoll.job.schema import DataSpec, Section

__all__ = [
    "FaultBody",
    "Told",
    "body_of",
    "is_read",
    "schema_from_plain",
    "schema_of",
    "schema_to_plain",
    "table_survey",
    "tables_agree",
    "tell",
]

_MOST_NAMES = 5_000
"""Names of one column that a site sends; a category of more is a key."""
_MOST_COLUMNS = 20_000
_SHOWN = 5
"""So many columns of a site are named that it spells otherwise."""


@dataclass(frozen=True, eq=False)
class Told:
    """What one site tells of its table.

    Args:
        names: its columns, in order.
        sketches: of the columns that the job reads and does not declare in full.
        mismatch: a target that contradicts the job's task; None for none.
    """

    names: tuple[str, ...]
    sketches: Mapping[str, Sketch]
    mismatch: Fault | None = None


def tell(data: DataSpec, site: ClientId, table: Table) -> Told:
    """What ``site`` tells of its table."""
    declared = _declared(data)
    sketches = {
        name: sketch(declared.get(name, Column(name)), cells, named=_named(data, name))
        for name, cells in table.columns.items()
        if is_read(data, name)
    }
    return Told(table.names, sketches, _mismatch(data, site, table))


def schema_of(data: DataSpec, sites: Mapping[ClientId, Told]) -> Schema:
    """The declared columns, and a guess of the others from all sites together.

    Args:
        data: the job's ``[data]``.
        sites: what they told, in the federation's order.

    Raises:
        DataError: no site has the target, a column that the job names is nowhere, or it holds text at
            one site and numbers at another; the target has fewer than two classes.
        JobError: the task contradicts the target, or a declaration itself.
    """
    names = list(dict.fromkeys(name for told in sites.values() for name in told.names))
    raise_faults(DataError, "the sites' columns do not match", _spellings(data, sites))
    if data.target not in names:
        fault = Fault(
            "data.target", f"no site has the column {data.target!r}", suggest(data.target, names)
        )
        raise DataError("the target", faults=[fault])
    wrong = [told.mismatch for told in sites.values() if told.mismatch is not None]
    raise_faults(JobError, "the target", wrong[:1])
    declared = _declared(data)
    raise_faults(DataError, "the columns that the job names", _unknown(data, {*names, *declared}))
    at = {
        name: {site: t.sketches[name] for site, t in sites.items() if name in t.sketches}
        for name in names
    }
    every = {n: merged(found.values(), named=_named(data, n)) for n, found in at.items()}
    guessing = [n for n in names if is_read(data, n) and n not in declared]
    faults = [f for n in guessing if n != data.target for f in clashes(n, at[n])]
    raise_faults(DataError, "the sites' columns do not match", faults)
    guess = {n: _target(data, guessed(n, every[n])) for n in guessing}
    columns = {n: guess.get(n) or declared.get(n) for n in [*names, *declared]}
    wanted = tuple(column for column in columns.values() if column is not None)
    try:
        schema = flagged(Schema(wanted, data.target, data.task, data.classes), guess)
    except JobError as error:  # a schema does not know which table of the job it came from
        own = [Fault(f"data, {f.place}", f.message, f.remedy) for f in error.faults]
        raise JobError(error.message, faults=own) from error
    return with_names(schema, lambda c: every.get(c.name, Sketch()).levels or ())


def _spellings(data: DataSpec, sites: Mapping[ClientId, Told]) -> list[Fault]:
    """One fault for each site that writes names of columns in other capitals or blanks than most sites do.

    Only of names that no site has in two spellings: those are two columns.
    """
    forms: dict[str, Counter[str]] = {}
    twice: set[str] = set()
    for told in sites.values():
        read = [name for name in told.names if is_read(data, name)]
        count = Counter(map(_folded, read))
        twice |= {form for form, times in count.items() if times > 1}
        for name in read:
            forms.setdefault(_folded(name), Counter())[name] += 1
    wanted = {_folded(n): n for n in (data.target, *data.features, *data.columns)}
    usual = {
        form: wanted[form] if wanted.get(form) in found else max(found, key=found.__getitem__)
        for form, found in forms.items()
    }
    faults = []
    for site, told in sites.items():
        odd = [
            f"{name!r} ({usual[form]!r})"
            for name in told.names
            if (form := _folded(name)) in usual and form not in twice and name != usual[form]
        ]
        if odd:
            shown = ", ".join(odd[:_SHOWN])
            more = f" and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
            message = f"writes names of columns otherwise than other sites: {shown}{more}"
            faults.append(Fault(f"site {site!r}", message, "rename them in its table"))
    return faults


def _folded(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def _declared(data: DataSpec) -> dict[str, Column]:
    return {
        name: Column(
            name,
            c.type,
            unit=c.unit,
            range=c.range,
            categories=c.categories,
            missing=c.missing,
            role="target" if name == data.target else "feature",
        )
        for name, c in data.columns.items()
        if name not in data.drop
    }


def _target(data: DataSpec, column: Column) -> Column:
    """A guessed column in its role."""
    if column.name != data.target:
        return column
    if data.task == "regression":
        return Column(column.name, role="target")
    return replace(column, role="target")


def is_read(data: DataSpec, name: str) -> bool:
    """Whether the job reads a column; that of the sites' names is taken out before."""
    named = name == data.target or name in data.columns or name in data.features
    return name not in data.drop and (named or not data.features)


def _named(data: DataSpec, name: str) -> bool:
    """Whether all names of a column are asked for: classes, and categories that are not declared."""
    own = data.columns.get(name)
    if name != data.target:
        return own is not None and own.type == "category" and not own.categories
    known = own is not None and (own.type == "boolean" or own.categories)
    return data.task == "classification" and not data.classes and not known


def _unknown(data: DataSpec, known: set[str]) -> list[Fault]:
    return [
        Fault(
            "data.features" if n in data.features else "data.drop",
            f"no column {n!r}",
            suggest(n, known),
        )
        for n in (*data.features, *data.drop)
        if n not in known
    ]


def _mismatch(data: DataSpec, site: ClientId, table: Table) -> Fault | None:
    """A quantity called a class, or a name called a quantity."""
    if data.target in data.columns or data.classes:
        return None  # declared: every cell will be held against that
    if data.target not in table.columns or not len(table):
        return None
    cells = table[data.target]
    if data.task == "regression" and cells.dtype.kind == "O":
        texts = [c for c in cells if isinstance(c, str)]
        if len(texts) == len(cells):
            return Fault(
                "data.task",
                f"a regression needs numbers; {data.target!r} is {texts[0]!r} at {site!r}",
                "set data.task = 'classification', or name another target",
                f"a regression needs numbers; {data.target!r} is text at {site!r}",
            )
    if data.task == "classification" and cells.dtype.kind == "f":
        broken = cells[~np.isnan(cells) & (cells != np.floor(cells))]
        if len(broken):
            return Fault(
                "data.task",
                f"a classification needs classes; {data.target!r} is {broken[0]:g} at {site!r}",
                "set data.task = 'regression', or declare data.classes",
                f"a classification needs classes; {data.target!r} has fractions at {site!r}",
            )
        if blurred(cells):
            message = f"{data.target!r} {BLURRED} at {site!r}"
            remedy = "write classes as text, or set data.task = 'regression'"
            return Fault("data.target", message, remedy, message)
    return None


Text = Annotated[str, Field(max_length=1000)]


class FaultBody(Section):
    """What is wrong, without its place: that follows from who says it of which column."""

    message: Text
    remedy: Text = ""

    @classmethod
    def of(cls, fault: Fault) -> FaultBody:
        """The fault without values of the data, and not too long."""
        shown = fault.apart()
        return cls(message=shown.message[:1000], remedy=shown.remedy[:1000])


class SketchBody(Section):
    """A :class:`~atoll.data.sketches.Sketch` on its way to the server."""

    text: bool
    some: bool
    whole: bool
    binary: bool
    bare: bool
    levels: Annotated[tuple[Text, ...], Field(max_length=_MOST_NAMES)] | None


class TableSurvey(Section):
    """What :func:`table_survey` gives.

    ``flags`` is what is wrong with the target should it turn out to hold zeros and ones everywhere.
    """

    names: Annotated[tuple[Text, ...], Field(max_length=_MOST_COLUMNS)]
    empty: bool
    columns: Annotated[dict[Text, SketchBody], Field(max_length=_MOST_COLUMNS)]
    cells: Annotated[dict[Text, tuple[FaultBody, ...]], Field(max_length=_MOST_COLUMNS)]
    flags: tuple[FaultBody, ...] = ()
    mismatch: FaultBody | None = None


def table_survey(
    data: DataSpec, site: ClientId, table: Table, rule: Discretion = OPEN
) -> dict[str, Any]:
    """What the server must know of a site's table to agree on a schema, ready for JSON.

    Raises:
        DataError: a column whose names are asked for has too many, or one that is no name.
        PolicyError: the site has few persons, or names that may not leave.
    """
    told, telling = tell(data, site, table), rule.telling(table)
    rule.admit(telling, np.arange(len(table)), site)
    raise_faults(DataError, "columns with names", list(_essays(data, site, told)), site=site)
    levels = {n: np.array(s.levels, object) for n, s in told.sketches.items() if s.levels}
    rule.refuse_names(site, table, levels, telling)
    flags: list[Fault] = []
    if data.target in told.sketches:
        flags = _goal_faults(site, Column(data.target, "boolean"), table, telling)
    return TableSurvey(
        names=told.names,
        empty=not len(table),
        columns={n: SketchBody(**dataclasses.asdict(s)) for n, s in told.sketches.items()},
        cells={
            name: tuple(map(FaultBody.of, faults))
            for name, faults in _cells(data, site, table, telling).items()
            if faults
        },
        flags=tuple(map(FaultBody.of, flags)),
        mismatch=None if told.mismatch is None else FaultBody.of(told.mismatch),
    ).model_dump(mode="json")


def _essays(data: DataSpec, site: ClientId, told: Told) -> Iterable[Fault]:
    for name, found in told.sketches.items():
        levels = found.levels or ()
        place = f"site {site!r}, column {name!r}"
        if _named(data, name) and len(levels) > _MOST_NAMES:
            message = f"has {len(levels):,} different values"
            yield Fault(place, message, "it is no category; declare it as what it is, or drop it")
        elif _named(data, name) and any(len(level) > MOST_LETTERS for level in levels):
            message = f"has a value of more than {MOST_LETTERS} letters"
            yield Fault(place, message, "it is no category; declare it as what it is, or drop it")


def _cells(
    data: DataSpec, site: ClientId, table: Table, telling: Telling
) -> dict[str, list[Fault]]:
    """What is wrong with cells, as far as it can be said before the schema is known.

    That is all of it: columns that are not declared become what fits the cells of every site.
    """
    declared, found = _declared(data), dict[str, list[Fault]]()
    for name, cells in table.columns.items():
        if not is_read(data, name):
            continue
        column = declared.get(name, Column(name))
        if name == data.target:
            goal = goal_of(column, data.task, data.classes)
            found[name] = _goal_faults(site, goal, table, telling)
        elif name in declared or cells.dtype.kind in "biuf":
            found[name] = read_cells(site, column, cells, telling)[1]
    return found


def _goal_faults(site: ClientId, goal: Column, table: Table, telling: Telling) -> list[Fault]:
    typed, faults = read_cells(site, goal, table[goal.name], telling)
    return faults or unlabelled(site, goal, typed, telling)


def tables_agree(
    data: DataSpec, surveys: Mapping[ClientId, Mapping[str, Any]], expect: Iterable[Fault] = ()
) -> Schema:
    """The schema of all sites, from what :func:`table_survey` gave at each.

    Args:
        data: the job's ``[data]``.
        surveys: by site, in the federation's order.
        expect: what the job asks of this federation and does not get.

    Raises:
        DataError: with every fault of every site.
        JobError: the same, where one of the faults is the job's.
        WireError: what a site sent is no survey.
    """
    sites = {site: body_of(TableSurvey, raw, site) for site, raw in surveys.items()}
    told = {
        site: Told(
            s.names,
            {name: Sketch(**body.model_dump()) for name, body in s.columns.items()},
            _placed("data.task", s.mismatch) if s.mismatch else None,
        )
        for site, s in sites.items()
    }
    found = Gathering()
    with found.attempt("data"):
        raise_faults(JobError, "federation", list(expect))
    with found.attempt("data"):
        schema = schema_of(data, told)
        guessed_flag = schema.goal.type == "boolean" and data.target not in data.columns
        faults = [
            fault
            for site, s in sites.items()
            for fault in _faults(schema, site, s, flag=guessed_flag)
        ]
        raise_faults(DataError, "the sites' data do not match the declared columns", faults)
    found.raise_all("the data do not match the job")
    return schema


def _faults(schema: Schema, site: ClientId, told: TableSurvey, *, flag: bool) -> list[Fault]:
    """The faults of one site, as :func:`~atoll.data.schema.check_sites` would find them there."""
    every = {**told.cells, schema.target: told.flags} if flag else told.cells
    cells = {
        name: [_placed(f"site {site!r}, column {name!r}", body) for body in bodies]
        for name, bodies in every.items()
    }
    return table_faults(schema, site, told.names, told.empty, cells)


def _placed(place: str, body: FaultBody) -> Fault:
    return Fault(place, body.message, body.remedy)


_Body = TypeVar("_Body", bound=BaseModel)


def body_of(kind: type[_Body], raw: Mapping[str, Any], site: ClientId) -> _Body:
    """What came over the wire, held against its closed form.

    Raises:
        WireError: it is something else; names the site.
    """
    try:
        # By way of JSON: strict about types, yet an array may become a tuple.
        return kind.model_validate_json(json.dumps(raw))
    except (ValidationError, TypeError, ValueError) as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in _errors(error)[:3])
        raise WireError(
            f"what it sent is no {kind.__name__} ({told or error})",
            remedy="check that both sides run the same version of Atoll",
            site=site,
        ) from error


def _errors(error: Exception) -> list[Any]:
    return list(error.errors()) if isinstance(error, ValidationError) else []


class ColumnBody(Section):
    """A :class:`~atoll.data.columns.Column` on the wire."""

    name: Text
    type: Literal["number", "integer", "category", "boolean"]
    unit: Text
    range: tuple[float, float] | None
    categories: tuple[Text, ...]
    missing: tuple[str | float, ...]
    role: Literal["feature", "target", "ignore"]


class SchemaBody(Section):
    """A :class:`~atoll.data.schema.Schema` on the wire."""

    columns: Annotated[tuple[ColumnBody, ...], Field(max_length=_MOST_COLUMNS)]
    target: Text
    task: Literal["classification", "regression"]
    classes: tuple[Text, ...]


def schema_to_plain(schema: Schema) -> dict[str, Any]:
    """The schema as JSON can hold it; :func:`schema_from_plain` gives an equal one back."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(schema)))
    return plain


def schema_from_plain(plain: Mapping[str, Any]) -> Schema:
    """Read what :func:`schema_to_plain` gave.

    Raises:
        WireError: it is something else.
    """
    body = body_of(SchemaBody, plain, "")
    columns = tuple(Column(**column.model_dump()) for column in body.columns)
    try:
        return Schema(columns, body.target, body.task, body.classes)
    except AtollError as error:
        raise WireError(f"the schema contradicts itself: {error}") from error
