"""``[data]`` and ``[preprocessing]``: from files to a federation ready to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from atoll.algorithms.preprocessing import fit_preprocessor
from atoll.core.contracts import Examples
from atoll.core.errors import DataError, Fault, JobError, raise_faults, suggest
from atoll.core.layout import Array
from atoll.core.seeds import Seed
from atoll.core.values import ClientId
from atoll.data import partition as parts
from atoll.data.card import data_card, examples_card
from atoll.data.idx import fashion_mnist
from atoll.data.preprocessing import Plan
from atoll.data.readers import (
    read_examples,
    read_table,
    sites_from_column,
    sites_from_files,
)
from atoll.data.schema import Column, Schema, check_sites, complete_schema, infer_schema
from atoll.data.synthetic import fcube, synthetic
from atoll.data.table import Table
from atoll.job.schema import DataSpec, JobSpec

__all__ = ["Islands", "islands_of", "load_islands"]

BUILT_IN = ("fashion_mnist", "fcube", "synthetic")
_MOST_CARDS = 200
"""Data cards are made for at most so many clients; a simulation of thousands needs none."""


@dataclass(frozen=True, eq=False)
class Islands:
    """A federation ready to train on.

    Args:
        train: training rows by client.
        held_out: test rows by client.
        central: test rows of the coordinator; None for none.
        features: values per row.
        classes: number of classes; 1 for a regression.
        cards: one data card per site.
        notes: what is allowed but worth knowing.
        black: value of a black pixel after scaling, for image augmentation.
    """

    train: Mapping[ClientId, Any]
    held_out: Mapping[ClientId, Any] = field(default_factory=dict)
    central: Any = None
    features: int = 0
    classes: int = 0
    cards: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    black: float = 0.0


def islands_of(
    clients: Mapping[ClientId, Any], held_out: Mapping[ClientId, Any], central: Any
) -> Islands:
    """A federation handed over in Python.

    Raises:
        DataError: rows and targets of different lengths, or held-out rows of an unknown client.
    """
    faults = [
        Fault(f"client {client!r}", f"{len(e.features)} rows but {len(e.targets)} targets")
        for client, e in clients.items()
        if isinstance(e, Examples) and len(e.features) != len(e.targets)
    ]
    faults += [
        Fault("held_out", f"{client!r} is not a client", suggest(client, clients))
        for client in held_out
        if client not in clients
    ]
    raise_faults(DataError, "the clients' data", faults)
    cards: list[Mapping[str, Any]] = []
    if len(clients) <= _MOST_CARDS:
        cards = [_card(c, examples_card(e)) for c, e in clients.items() if isinstance(e, Examples)]
    return Islands(clients, held_out, central, cards=cards)


def load_islands(spec: JobSpec, folder: Path, seed: int) -> Islands:
    """Read, check, partition, split and preprocess the job's data.

    Args:
        spec: the job.
        folder: relative paths are relative to it.
        seed: root of the run's random streams.

    Raises:
        DataError: with every fault of every site.
        JobError: a source, partition or column that does not exist.
    """
    stream = Seed(seed) / "data"
    source = spec.data.source
    if source in BUILT_IN:
        return _built_in(spec, stream)
    if source.endswith(".npz") and not spec.data.target:
        return _dealt(spec, read_examples(folder / source), None, stream, black=0.0)
    return _tabular(spec, folder, stream)


def _built_in(spec: JobSpec, stream: Seed) -> Islands:
    data, options = spec.data, dict(spec.data.options)
    allowed: dict[str, set[str]] = {
        "fashion_mnist": {"folder", "normalise"},
        "fcube": {"rows", "test_rows"},
        "synthetic": {"alpha", "beta", "iid"},
    }
    faults = [
        Fault(f"data.options.{key}", "unknown option", suggest(key, allowed[data.source]))
        for key in options
        if key not in allowed[data.source]
    ]
    raise_faults(JobError, f"source {data.source!r}", faults)
    if data.source == "fashion_mnist":
        normalise = options.pop("normalise", False)
        train, test = fashion_mnist(**options)
        train, test, black = _scaled(train, test, normalise)
        return _dealt(spec, train, test, stream, black)
    if data.source == "fcube":
        clients, central = fcube(stream, **options)
        return _finished(clients, {}, central, 2)
    alpha, beta = float(options.pop("alpha", 1.0)), float(options.pop("beta", 1.0))
    clients, held_out = synthetic(alpha, beta, stream, **options)
    return _finished(clients, held_out, held_out.examples, 10)


def _scaled(train: Examples, test: Examples, normalise: bool) -> tuple[Examples, Examples, float]:
    """Pixels in [0, 1]; with ``normalise``, (x - .1307) / .3081 as much published code does."""
    mean, sd = (0.1307, 0.3081) if normalise else (0.0, 1.0)

    def scaled(e: Examples) -> Examples:
        pixels = e.features.astype(np.float32)
        if e.features.dtype.kind == "u":
            pixels /= np.float32(255)
        if normalise:
            pixels = (pixels - np.float32(mean)) / np.float32(sd)
        return Examples(pixels, e.targets.astype(np.int64))

    return scaled(train), scaled(test), -mean / sd


def _dealt(
    spec: JobSpec, train: Examples, test: Examples | None, stream: Seed, black: float
) -> Islands:
    """One dataset dealt out to simulated clients."""
    data = spec.data
    if data.partition is None:
        raise JobError(
            f"{data.source} is one dataset",
            faults=[Fault("data.partition", "is required for it", "add [data.partition]")],
        )
    clients = partitioned(data, train, stream / "partition")
    held_out: Mapping[ClientId, Examples] = {}
    if data.test_fraction:
        clients, held_out = parts.split_clients(
            clients, data.test_fraction, stream / "split", stratify=data.stratify
        )
    classes = 1 if data.task == "regression" else int(train.targets.max()) + 1
    return _finished(clients, held_out, test, classes, black)


def partitioned(data: DataSpec, examples: Examples, seed: Seed) -> parts.Partition:
    """``[data.partition]`` applied to one dataset."""
    given = data.partition
    if given is None:
        raise JobError("there is no [data.partition]")
    every: dict[str, dict[str, Any]] = {
        "dirichlet": {
            "alpha": given.alpha,
            "balanced": given.balance,
            "min_rows": given.min_rows,
        },
        "quantity": {"alpha": given.alpha, "min_rows": given.min_rows},
        "classes": {"k": given.classes_per_client},
    }
    options = every.get(given.kind, {})
    scheme = parts.SCHEMES.get(given.kind, parts.iid)
    dealt = parts.deal(examples, scheme(examples.targets, given.clients, seed, **options))
    if given.kind == "feature_noise":
        return parts.add_noise(dealt, given.noise, seed / "noise")
    return parts.rotate(dealt) if given.kind == "rotation" else dealt


def _finished(
    clients: Mapping[ClientId, Examples],
    held_out: Mapping[ClientId, Examples],
    central: Examples | None,
    classes: int,
    black: float = 0.0,
) -> Islands:
    first = next(iter(clients.values()))
    cards: list[Mapping[str, Any]] = []
    if len(clients) <= _MOST_CARDS:
        number = 0 if classes < 2 else classes
        cards = [_card(c, examples_card(e, number)) for c, e in clients.items()]
    return Islands(
        train=clients,
        held_out=held_out,
        central=central,
        features=int(np.prod(first.features.shape[1:])),
        classes=classes,
        cards=cards,
        black=black,
    )


def _tabular(spec: JobSpec, folder: Path, stream: Seed) -> Islands:
    data = spec.data
    raw = _sites(data, folder, stream)
    schema = _schema(data, raw)
    typed, notes = check_sites(schema, raw)
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
        cards=[_card(site, data_card(table, schema)) for site, table in typed.items()],
        notes=notes,
    )


def _card(site: ClientId, card: Mapping[str, Any]) -> dict[str, Any]:
    """A data card as the report shows it: with its site, missing counts and label balance."""
    columns = card.get("columns", {})
    missing = {name: c["missing"] for name, c in columns.items() if c.get("missing")}
    return {"site": site, **card, "missing": missing, "labels": card.get("classes")}


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
        return sites_from_column(read_table(path), data.site_column)
    if data.partition is None:
        return sites_from_files(path)
    if data.partition.kind in ("feature_noise", "rotation"):
        raise JobError(f"partition {data.partition.kind!r} is for arrays, not for tables")
    table = read_table(path)
    if data.target not in table.columns:
        raise DataError(f"no column {data.target!r}", remedy=suggest(data.target, table.columns))
    labels = np.unique([str(v) for v in table[data.target]], return_inverse=True)[1]
    rows = Examples(np.arange(len(table)), labels)
    dealt = partitioned(data, rows, stream / "partition")
    return {client: table.take(e.features) for client, e in dealt.items()}


def _schema(data: DataSpec, raw: Mapping[ClientId, Table]) -> Schema:
    if not data.target:
        raise JobError(
            "the job names no target", faults=[Fault("data.target", "is required", "name a column")]
        )
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
    return complete_schema(Schema(tuple(wanted), data.target, data.task, data.classes), raw)
