"""Rows that are no table (images, sequences): one ``.npz`` per site, or one dealt out to clients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from atoll.core.contracts import Examples
from atoll.core.errors import DataError, Fault, JobError, raise_faults
from atoll.core.layout import Array
from atoll.core.seeds import Seed
from atoll.core.values import ClientId
from atoll.data import partition as parts
from atoll.data.card import examples_card
from atoll.data.columns import Column
from atoll.data.schema import Schema
from atoll.job.discretion import OPEN, Discretion
from atoll.job.faults import Gathering
from atoll.job.islands import MOST_CARDS, Islands, card, untold
from atoll.job.schema import DataSpec, JobSpec, Section
from atoll.job.survey import FaultBody, body_of

__all__ = [
    "array_islands",
    "arrays_agree",
    "arrays_survey",
    "class_faults",
    "cut_examples",
    "examples_islands",
]


class ArraysSurvey(Section):
    """What :func:`arrays_survey` gives.

    Args:
        shape: of one row's features.
        classes: one more than the largest class index; 0 for a regression.
        faults: what is wrong with its rows.
    """

    shape: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=32)]
    classes: Annotated[int, Field(ge=0, le=100_000)]
    faults: tuple[FaultBody, ...] = ()


def arrays_survey(
    data: DataSpec, site: ClientId, rows: Examples, rule: Discretion = OPEN
) -> dict[str, Any]:
    """What the server must know of a site's rows to agree on a schema, ready for JSON.

    Raises:
        PolicyError: the site has few persons.
    """
    rule.admit(rule.telling(rows), np.arange(len(rows)), site)
    faults = list(_wrong(data, rows))
    labelled = data.task == "classification" and len(rows) > 0 and not faults
    return ArraysSurvey(
        shape=tuple(rows.features.shape[1:]),
        classes=int(rows.targets.max()) + 1 if labelled else 0,
        faults=tuple(map(FaultBody.of, faults)),
    ).model_dump(mode="json")


def _wrong(data: DataSpec, rows: Examples) -> Iterable[Fault]:
    targets = rows.targets
    if not len(rows):
        yield Fault("", "has no rows", "leave the site out or fill its file")
    if targets.ndim != 1 or targets.dtype.kind not in "biuf":
        shape = f"targets are {targets.dtype} of shape {targets.shape}"
        yield Fault("", shape, "one number a row", "targets are not one number a row")
        return
    yield from class_faults(data, targets)


def class_faults(data: DataSpec, targets: Array) -> Iterable[Fault]:
    """What keeps these targets, one number a row, from being classes, where the job says that they are."""
    if data.task == "classification" and len(targets):
        if targets.dtype.kind == "f" and not np.all(targets == np.floor(targets)):
            yield Fault("", "targets are no whole numbers", "set data.task = 'regression'")
        elif targets.min() < 0:
            least = f"a target is {targets.min():g}"
            yield Fault("", least, "classes count from 0", "a target is below 0")
        elif targets.max() >= 100_000:
            most = f"a target is {targets.max():g}"
            yield Fault("", most, "set data.task = 'regression'", "a target is no class")


def arrays_agree(
    data: DataSpec, surveys: Mapping[ClientId, Mapping[str, Any]], expect: Iterable[Fault] = ()
) -> Schema:
    """The schema of all sites: one feature that stands for the arrays, and classes by their index.

    Raises:
        DataError: with every fault of every site.
        JobError: the same, where one of the faults is the job's.
        WireError: what a site sent is no survey.
    """
    sites = {site: body_of(ArraysSurvey, raw, site) for site, raw in surveys.items()}
    found = Gathering()
    with found.attempt("data"):
        raise_faults(JobError, "federation", list(expect))
    with found.attempt("data"):
        raise_faults(DataError, "the sites' rows", _faults(sites))
        classes = max((s.classes for s in sites.values()), default=0)
        if data.task == "classification" and classes < 2:
            raise DataError("the targets have one class over all sites", remedy="check the targets")
    found.raise_all("the data do not match the job")
    names = tuple(map(str, range(classes)))
    return Schema((Column("features"),), "targets", data.task, names)


def _faults(sites: Mapping[ClientId, ArraysSurvey]) -> list[Fault]:
    found = [
        Fault(f"site {site!r}", body.message, body.remedy)
        for site, s in sites.items()
        for body in s.faults
    ]
    shapes = {site: s.shape for site, s in sites.items()}
    first = next(iter(shapes), "")
    for site, shape in shapes.items():
        if shape != shapes[first]:
            message = f"rows have shape {list(shape)}, but {list(shapes[first])} at {first!r}"
            found.append(Fault(f"site {site!r}", message, "bring all sites to one shape"))
    return found


def cut_examples(
    data: DataSpec, site: ClientId, rows: Examples, stream: Seed, rule: Discretion = OPEN
) -> tuple[Examples, Examples]:
    """Rows for training and for the test of one site; ``stream`` is that of the job's data.

    Raises:
        PolicyError: few persons are behind the rows for training.
    """
    made = parts.split(rows, data.test_fraction, stream / "split" / site, stratify=data.stratify)
    rule.admit(rule.telling(made[0]), np.arange(len(made[0])), site, "training rows")
    return made


def array_islands(
    spec: JobSpec,
    sites: Mapping[ClientId, Examples],
    schema: Schema,
    stream: Seed,
    rule: Discretion = OPEN,
) -> Islands:
    """What trainers get of these sites, which may be all of a federation or one of them.

    Args:
        spec: the job.
        sites: their rows.
        schema: see :func:`arrays_agree`.
        stream: for splits.
        rule: what may be told of their rows.

    Raises:
        PolicyError: few persons are behind the rows of one.
    """
    cut = {site: cut_examples(spec.data, site, rows, stream, rule) for site, rows in sites.items()}
    train = {site: own for site, (own, _) in cut.items()}
    tests = {site: test for site, (_, test) in cut.items() if len(test)}
    silent = [s for s, t in tests.items() if rule.silent(rule.telling(t), np.arange(len(t)))]
    held_out = {site: test for site, test in tests.items() if site not in silent}
    notes = [untold(site, rule.minimum) for site in silent]
    classes = max(1, len(schema.classes))
    return replace(examples_islands(train, held_out, None, classes, rule=rule), notes=notes)


def examples_islands(
    clients: Mapping[ClientId, Examples],
    held_out: Mapping[ClientId, Examples],
    central: Examples | None,
    classes: int,
    black: float = 0.0,
    rule: Discretion = OPEN,
) -> Islands:
    """A federation of rows that are no tables, with its data cards."""
    first = next(iter(clients.values()))
    cards: list[Mapping[str, Any]] = []
    if len(clients) <= MOST_CARDS:
        cards = [card(c, examples_card(e, classes, rule.telling(e))) for c, e in clients.items()]
    return Islands(
        train=clients,
        held_out=held_out,
        central=central,
        features=int(np.prod(first.features.shape[1:])),
        classes=classes,
        cards=cards,
        black=black,
    )
