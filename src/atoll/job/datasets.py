"""``[data]``: from a source to a federation ready to train on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from atoll.core.contracts import Examples
from atoll.core.errors import DataError, Fault, JobError, raise_faults
from atoll.core.seeds import Seed
from atoll.core.values import ClientId
from atoll.data import partition as parts
from atoll.data.idx import fashion_mnist
from atoll.data.readers import read_examples, sites_from_files
from atoll.data.synthetic import fcube, synthetic
from atoll.job.arrays import (
    array_islands,
    arrays_agree,
    arrays_survey,
    class_faults,
    examples_islands,
)
from atoll.job.dealing import partitioned
from atoll.job.discretion import Rule, no_rule
from atoll.job.islands import Islands, islands_of, together
from atoll.job.options import checked_options
from atoll.job.schema import DataSpec, JobSpec
from atoll.job.sites import tabular_islands

__all__ = ["BUILT_IN", "Islands", "brings_sites", "islands_of", "load_islands", "own_arrays"]

_Count = Annotated[int, Field(ge=1)]
_Spread = Annotated[float, Field(ge=0)]

BUILT_IN: Mapping[str, Mapping[str, Any]] = {
    "fashion_mnist": {"folder": str, "normalise": bool},
    "fcube": {"rows": _Count, "test_rows": _Count},
    "synthetic": {"alpha": _Spread, "beta": _Spread, "iid": bool},
}
"""Sources that need no file of the job's own, and the options of each."""


def brings_sites(data: DataSpec) -> bool:
    """Whether the rows have sites of their own, so that the job may run where they lie."""
    return data.source not in BUILT_IN and data.partition is None


def own_arrays(data: DataSpec) -> bool:
    """Whether the rows are no table: ``.npz`` files of features and targets."""
    return data.source.endswith(".npz") and not data.target


def _nothing(clients: Collection[ClientId]) -> list[Fault]:
    return []


def load_islands(
    spec: JobSpec,
    folder: Path,
    seed: int,
    expect: Callable[[Collection[ClientId]], list[Fault]] = _nothing,
    rule: Rule = no_rule,
) -> Islands:
    """Read, check, partition, split and preprocess the job's data.

    Args:
        spec: the job.
        folder: relative paths are relative to it.
        seed: root of the run's random streams.
        expect: asked once the clients are known by name; what it finds is raised together with the
            faults of the data.
        rule: what may be told of the rows of so many sites.

    Raises:
        DataError: with every fault of every site.
        PolicyError: few persons are behind the rows of a site.
        JobError: a source, partition or column that does not exist, or what ``expect`` found.
    """
    stream = Seed(seed) / "data"
    source = spec.data.source
    if spec.privacy.counts is not None and not brings_sites(spec.data):
        reason = "clients that are dealt out are no sites with persons of their own"
        raise JobError("the data", faults=[Fault("privacy.counts", reason, "remove the table")])
    if source in BUILT_IN:
        made = _built_in(spec, folder, stream)
    elif own_arrays(spec.data) and any(sign in source for sign in "*?["):
        made = _gathered(spec, folder, stream, rule)
    elif own_arrays(spec.data):
        made = _dealt(spec, read_examples(folder / source), None, stream, black=0.0)
        made = _judged(spec.data, made)
    else:
        return tabular_islands(spec, folder, stream, expect, rule)
    raise_faults(JobError, "the federation", expect(made.train))
    return made


def _gathered(spec: JobSpec, folder: Path, stream: Seed, rule: Rule) -> Islands:
    """One site per file of rows that are no table."""
    if spec.data.partition is not None:
        fault = Fault("data.partition", "the data already have sites, one a file", "remove it")
        raise JobError("the partition does not fit the data", faults=[fault])
    sites = sites_from_files(folder / spec.data.source, read_examples)
    surveys = {site: arrays_survey(spec.data, site, rows) for site, rows in sites.items()}
    agreed = arrays_agree(spec.data, surveys)
    return _judged(spec.data, array_islands(spec, sites, agreed, stream, rule(len(sites))))


def _judged(data: DataSpec, made: Islands) -> Islands:
    """With the held-out rows as one central test set too, where the job wants one."""
    if not data.central_test or not made.held_out:
        return made
    return replace(made, central=together(made.held_out))


def _built_in(spec: JobSpec, folder: Path, stream: Seed) -> Islands:
    source = spec.data.source
    options, faults = checked_options(
        spec.data.options, BUILT_IN[source], "data.options", f"source {source!r}"
    )
    if source == "fashion_mnist" and spec.data.partition is None:
        faults.append(Fault("data.partition", "is required for it", "add [data.partition]"))
    raise_faults(JobError, f"source {source!r}", faults)
    if source == "fashion_mnist":
        place = options.get("folder")
        train, test = fashion_mnist(None if place is None else folder / place)
        train, test, black = _scaled(train, test, options.get("normalise", False))
        return _dealt(spec, train, test, stream, black)
    if source == "fcube":
        clients, central = fcube(stream, **options)
        return examples_islands(clients, {}, central, 2)
    alpha, beta = options.pop("alpha", 1.0), options.pop("beta", 1.0)
    clients, held_out = synthetic(alpha, beta, stream, **options)
    return examples_islands(clients, held_out, held_out.examples, 10)


def _scaled(train: Examples, test: Examples, normalise: bool) -> tuple[Examples, Examples, float]:
    """Pixels in [0, 1]; with ``normalise``, (x - .1307) / .3081 as much published code does."""
    mean, sd = (0.1307, 0.3081) if normalise else (0.0, 1.0)

    def scaled(e: Examples) -> Examples:
        if not normalise:
            return e
        pixels = e.features - np.float32(mean)
        pixels /= np.float32(sd)
        return Examples(pixels, e.targets)

    return scaled(train), scaled(test), -mean / sd


def _dealt(
    spec: JobSpec, train: Examples, test: Examples | None, stream: Seed, black: float
) -> Islands:
    """One dataset dealt out to simulated clients."""
    data = spec.data
    if train.targets.ndim == 1:
        raise_faults(
            DataError, f"the targets in {data.source}", list(class_faults(data, train.targets))
        )
    clients = partitioned(data, train, stream / "partition")
    held_out: Mapping[ClientId, Examples] = {}
    if data.test_fraction:
        clients, held_out = parts.split_clients(
            clients, data.test_fraction, stream / "split", stratify=data.stratify
        )
    classes = 1 if data.task == "regression" else int(train.targets.max()) + 1
    return examples_islands(clients, held_out, test, classes, black)
