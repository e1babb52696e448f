"""Tables of sites: read, held against the declared columns, split and preprocessed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
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
from atoll.data.card import data_card
from atoll.data.inputs import Inputs
from atoll.data.preprocessing import Plan, Preprocessor
from atoll.data.readers import read_table, sites_from_column, sites_from_files
from atoll.data.schema import Schema, check_sites
from atoll.data.table import Table
from atoll.data.telling import EXACT, Telling
from atoll.job.dealing import partitioned
from atoll.job.discretion import OPEN, Discretion, Rule, no_rule
from atoll.job.faults import Gathering
from atoll.job.islands import Islands, card, together, untold
from atoll.job.schema import DataSpec, JobSpec
from atoll.job.survey import schema_of, tell

__all__ = ["Halves", "halves", "plan_of", "preprocessed", "site_tables", "tabular_islands"]

Expect = Callable[[Collection[ClientId]], list[Fault]]
"""What the job asks of the federation and does not get, once its clients are known by name."""


@dataclass(frozen=True, eq=False)
class Halves:
    """One site's typed rows, cut in two.

    Args:
        train: rows for training.
        test: rows for the test.
        rows: the numbers of both, in the site's table.
        telling: how counts of the site's rows may be told.
    """

    train: Table
    test: Table
    rows: tuple[Array, Array]
    telling: Telling = field(default=EXACT)


def tabular_islands(
    spec: JobSpec,
    folder: Path,
    stream: Seed,
    expect: Expect,
    rule: Rule = no_rule,
) -> Islands:
    """A federation from one table per site, or from one table with sites or a partition.

    Args:
        spec: the job.
        folder: relative paths are relative to it.
        stream: for partitions and splits.
        expect: asked once the sites are known; what it finds is raised together with the data's faults.
        rule: what may be told of the rows of so many sites.

    Raises:
        DataError: with every fault of every site.
        JobError: a column or option that does not fit.
        PolicyError: few persons are behind the rows of a site.
    """
    raw = site_tables(spec.data, folder, stream)
    schema, typed, notes = _checked(spec.data, raw, expect)
    own = rule(len(raw))
    cut = {
        site: halves(spec, schema, site, table, stream, own, own.telling(raw[site]))
        for site, table in typed.items()
    }
    train = {site: half.train for site, half in cut.items()}
    fitted = fit_preprocessor(train, plan_of(spec), schema)
    made = preprocessed(spec, schema, typed, cut, fitted, notes, own)
    held_out = made.held_out
    central = together(held_out) if spec.data.central_test and held_out else None
    return replace(made, central=central)


def plan_of(spec: JobSpec) -> Plan:
    """``[preprocessing]``, in the dtype that the model computes in."""
    linear = spec.model.kind in ("linear", "logistic", "multinomial")
    return Plan(**spec.preprocessing.model_dump(), dtype=spec.model.dtype if linear else "float32")


def halves(
    spec: JobSpec,
    schema: Schema,
    site: ClientId,
    typed: Table,
    stream: Seed,
    rule: Discretion = OPEN,
    telling: Telling = EXACT,
) -> Halves:
    """Rows for training and for the test of one site.

    Args:
        spec: the job.
        schema: the declared columns, with classes.
        site: whose rows they are.
        typed: its typed table.
        stream: that of the job's data.
        rule: what may be told of the rows.
        telling: of the table.

    Raises:
        PolicyError: few persons are behind the rows for training.
    """
    data = spec.data
    labels = np.array([str(v) for v in typed[schema.target]])
    index = Examples(np.arange(len(typed)), labels)
    train, test = parts.split(
        index, data.test_fraction, stream / "split" / site, stratify=data.stratify
    )
    rows = train.features, test.features
    rule.admit(telling, rows[0], site, "training rows")
    return Halves(typed.take(rows[0]), typed.take(rows[1]), rows, telling)


def preprocessed(
    spec: JobSpec,
    schema: Schema,
    typed: Mapping[ClientId, Table],
    cut: Mapping[ClientId, Halves],
    fitted: Mapping[ClientId, Preprocessor],
    notes: tuple[str, ...],
    rule: Discretion = OPEN,
) -> Islands:
    """What trainers get of these sites, which may be all of a federation or one of them.

    Args:
        spec: the job.
        schema: the declared columns, with categories and classes.
        typed: the sites' typed tables.
        cut: their rows for training and for the test, see :func:`halves`.
        fitted: their preprocessors.
        notes: what is allowed but worth knowing.
        rule: what may be told of their rows.
    """
    silent = [site for site, half in cut.items() if rule.silent(half.telling, half.rows[1])]
    tests = {site: half.test for site, half in cut.items() if len(half.test)}
    train = {site: fitted[site].apply(half.train) for site, half in cut.items()}
    held_out = {s: fitted[s].apply(test) for s, test in tests.items() if s not in silent}
    first = next(iter(train.values()))
    plan = plan_of(spec)
    alike = plan.mode == "federated" and all(
        rule.releases(h.train, plan, schema, h.telling.take(h.rows[0]), h.telling.few(h.rows[1]))
        for h in cut.values()
    )
    return Islands(
        train=train,
        held_out=held_out,
        features=first.features.shape[1],
        classes=1 if spec.data.task == "regression" else len(schema.classes),
        labels=schema.classes,
        cards=[card(site, _card(typed[site], schema, half)) for site, half in cut.items()],
        notes=(*notes, *(untold(site, rule.minimum) for site in silent)),
        inputs=Inputs(schema.features, next(iter(fitted.values()))) if alike else None,
    )


def _card(table: Table, schema: Schema, half: Halves) -> Mapping[str, Any]:
    """The data card; without columns where few rows are held out, for sums of the others are told."""
    made = data_card(table, schema, half.telling)
    if not half.telling.few(half.rows[1]):
        return made
    return {key: made[key] for key in ("rows", "fingerprint")}


def _checked(
    data: DataSpec, raw: Mapping[ClientId, Table], expect: Expect
) -> tuple[Schema, Mapping[ClientId, Table], tuple[str, ...]]:
    found = Gathering()
    with found.attempt("data"):
        raise_faults(JobError, "federation", expect(raw))
    with found.attempt("data"):
        schema = schema_of(data, {site: tell(data, site, table) for site, table in raw.items()})
        typed, notes = check_sites(schema, raw)
    found.raise_all("the data do not match the job")
    return schema, typed, notes


def site_tables(data: DataSpec, folder: Path, stream: Seed) -> dict[ClientId, Table]:
    """The sites' tables as they were read: of one table with sites, one a site, or dealt out.

    Args:
        data: the job's ``[data]``.
        folder: relative paths are relative to it.
        stream: for partitions.

    Raises:
        DataError: a file or column is missing.
        JobError: the partition is not for tables.
    """
    path = folder / data.source
    if data.site_column:
        table = read_table(path, names=data.site_column)
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
