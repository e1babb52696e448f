"""Tables of sites: read, held against the declared columns, split and preprocessed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from atoll.algorithms.preprocessing import fit_preprocessor
from atoll.core.contracts import Examples
from atoll.core.errors import DataError, Fault, JobError, raise_faults, suggest
from atoll.core.layout import Array
from atoll.core.seeds import Seed
from atoll.core.values import ClientId
from atoll.data import partition as parts
from atoll.data.card import data_card
from atoll.data.preprocessing import Plan
from atoll.data.readers import read_table, sites_from_column, sites_from_files
from atoll.data.schema import Column, Schema, check_sites, complete_schema, infer_schema
from atoll.data.table import Table
from atoll.job.dealing import partitioned
from atoll.job.faults import Gathering
from atoll.job.islands import Islands, card
from atoll.job.schema import DataSpec, JobSpec

__all__ = ["tabular_islands"]

Expect = Callable[[Collection[ClientId]], list[Fault]]
"""What the job asks of the federation and does not get, once its clients are known by name."""


def tabular_islands(spec: JobSpec, folder: Path, stream: Seed, expect: Expect) -> Islands:
    """A federation from one table per site, or from one table with sites or a partition.

    Args:
        spec: the job.
        folder: relative paths are relative to it.
        stream: for partitions and splits.
        expect: asked once the sites are known; what it finds is raised together with the data's faults.

    Raises:
        DataError: with every fault of every site.
        JobError: a column or option that does not fit.
    """
    data = spec.data
    raw = _sites(data, folder, stream)
    schema, typed, notes = _checked(data, raw, expect)
    train: dict[ClientId, Table] = {}
    test: dict[ClientId, Table] = {}
    for site, table in typed.items():
        rows, held = _rows(table, schema, data, stream / "split" / site)
        train[site], test[site] = table.take(rows), table.take(held)
    linear = spec.model.kind in ("linear", "logistic", "multinomial")
    plan = Plan(**spec.preprocessing.model_dump(), dtype=spec.model.dtype if linear else "float32")
    fitted = fit_preprocessor(train, plan, schema)
    clients = {site: fitted[site].apply(table) for site, table in train.items()}
    held_out = {site: fitted[site].apply(table) for site, table in test.items() if len(table)}
    first = next(iter(clients.values()))
    return Islands(
        train=clients,
        held_out=held_out,
        central=_together(held_out) if data.central_test and held_out else None,
        features=first.features.shape[1],
        classes=1 if data.task == "regression" else len(schema.classes),
        cards=[card(site, data_card(table, schema)) for site, table in typed.items()],
        notes=notes,
    )


def _checked(
    data: DataSpec, raw: Mapping[ClientId, Table], expect: Expect
) -> tuple[Schema, Mapping[ClientId, Table], tuple[str, ...]]:
    found = Gathering()
    with found.attempt("data"):
        raise_faults(JobError, "federation", expect(raw))
    with found.attempt("data"):
        schema = _schema(data, raw)
        typed, notes = check_sites(schema, raw)
    found.raise_all("the data do not match the job")
    return schema, typed, notes


def _together(sites: Mapping[ClientId, Examples]) -> Examples:
    return Examples(
        np.concatenate([e.features for e in sites.values()]),
        np.concatenate([e.targets for e in sites.values()]),
    )


def _rows(table: Table, schema: Schema, data: DataSpec, seed: Seed) -> tuple[Array, Array]:
    """Row numbers for training and for the test."""
    labels = np.array([str(v) for v in table[schema.target]])
    index = Examples(np.arange(len(table)), labels)
    train, test = parts.split(index, data.test_fraction, seed, stratify=data.stratify)
    return train.features, test.features


def _sites(data: DataSpec, folder: Path, stream: Seed) -> dict[ClientId, Table]:
    path = folder / data.source
    if data.site_column:
        table = read_table(path)
        if data.site_column not in table.columns:
            remedy = suggest(data.site_column, table.columns)
            fault = Fault("data.site_column", f"{path} has no column {data.site_column!r}", remedy)
            raise DataError("the sites", faults=[fault])
        return sites_from_column(table, data.site_column)
    if data.partition is None:
        return sites_from_files(path)
    if data.partition.kind in ("feature_noise", "rotation"):
        fault = Fault(
            "data.partition.kind",
            f"{data.partition.kind!r} is for arrays, not for tables",
            "use iid, dirichlet, classes or quantity",
        )
        raise JobError("the partition does not fit the data", faults=[fault])
    table = read_table(path)
    if data.target not in table.columns:
        remedy = suggest(data.target, table.columns)
        fault = Fault("data.target", f"{path} has no column {data.target!r}", remedy)
        raise DataError("the target", faults=[fault])
    labels = np.unique([str(v) for v in table[data.target]], return_inverse=True)[1]
    rows = Examples(np.arange(len(table)), labels)
    dealt = partitioned(data, rows, stream / "partition")
    return {client: table.take(e.features) for client, e in dealt.items()}


def _schema(data: DataSpec, raw: Mapping[ClientId, Table]) -> Schema:
    columns = {name for table in raw.values() for name in table.names}
    if data.target not in columns:
        fault = Fault(
            "data.target", f"no site has the column {data.target!r}", suggest(data.target, columns)
        )
        raise DataError("the target", faults=[fault])
    raise_faults(JobError, "the target", list(_mismatch(data, raw)))
    guess = infer_schema(raw, data.target, data.task)
    declared = {
        name: Column(
            name,
            c.type,
            unit=c.unit,
            range=c.range,
            categories=c.categories,
            missing=c.missing,
        )
        for name, c in data.columns.items()
    }
    known = {c.name for c in guess.columns}
    listed = [*data.features, *data.drop]
    faults = [
        Fault(
            "data.features" if n in data.features else "data.drop",
            f"no column {n!r}",
            suggest(n, known),
        )
        for n in listed
        if n not in known and n not in declared
    ]
    raise_faults(DataError, "the columns that the job names", faults)
    merged = {**{c.name: c for c in guess.columns}, **declared}
    wanted = [
        replace(c, role="target" if name == data.target else "feature")
        if name in declared or name == data.target
        else c
        for name, c in merged.items()
        if name not in data.drop
        and (not data.features or name in data.features or name in (data.target, *declared))
    ]
    try:
        schema = Schema(tuple(wanted), data.target, data.task, data.classes)
    except JobError as error:  # a schema does not know which table of the job it came from
        own = [Fault(f"data, {f.place}", f.message, f.remedy) for f in error.faults]
        raise JobError(error.message, faults=own) from error
    return complete_schema(schema, raw)


def _mismatch(data: DataSpec, raw: Mapping[ClientId, Table]) -> Iterator[Fault]:
    """A quantity called a class, or a name called a quantity."""
    if data.target in data.columns or data.classes:
        return  # declared: every cell will be held against that
    for site, table in raw.items():
        if data.target not in table.columns or not len(table):
            continue
        cells = table[data.target]
        if data.task == "regression" and cells.dtype.kind == "O":
            texts = [c for c in cells if isinstance(c, str)]
            if len(texts) == len(cells):
                yield Fault(
                    "data.task",
                    f"a regression needs numbers; {data.target!r} is {texts[0]!r} at {site!r}",
                    "set data.task = 'classification', or name another target",
                )
                return
        if data.task == "classification" and cells.dtype.kind == "f":
            broken = cells[~np.isnan(cells) & (cells != np.floor(cells))]
            if len(broken):
                yield Fault(
                    "data.task",
                    f"a classification needs classes; {data.target!r} is {broken[0]:g} at {site!r}",
                    "set data.task = 'regression', or declare data.classes",
                )
                return
