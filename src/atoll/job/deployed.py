"""A job where its sites are apart: the halves of what :mod:`atoll.job.datasets` does in one process.

At the sites, one after another: :func:`survey`, :func:`column_sums_at`, :func:`islands_at`,
:func:`parts_at`, :func:`ready`. At the server in between: :func:`agree`, an exact
:class:`~atoll.aggregation.exact.Fold` of the sums, :func:`coordinator`. Together they give every site the
very rows, preprocessor and split that a simulation of the job gives it, however rows are spread.

**Which runs end in the same bits.** A synchronous deployed run to which every site contributes in every
round ends in the bits of ``atoll.simulate(job, executor="serial")``: clients of a job with sites of its
own are trained one by one in a simulation too (:class:`~atoll.runtime.client.Parts`, ``apart``), be they
linear, torch (any ``path`` or ``lanes``) or functions, and sums do not depend on order. That holds on
processors for which NumPy, its BLAS and torch choose the same kernels, and with one thread of linear
algebra (:class:`~atoll.runtime.threads.Threads`). It does *not* hold

* for asynchronous runs: which updates meet in a step depends on when they arrive;
* when a site is missing from a round, or ``rounds.deadline`` cut it off;
* for stopping on ``stop.virtual_seconds`` or ``central.*``, which :func:`deployable` refuses;
* against jobs dealt out by ``data.partition`` or built in Python and simulated in groups (linear models
  under plain SGD, torch's ``algebra``, lanes): those equal one client at a time up to rounding only;
* where a CSV file reads otherwise by itself than as part of a whole: a column of ``1.50`` is text, and
  a category of that name, as soon as one other cell of the file is text. Declare such columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from atoll.algorithms.preprocessing import fitted_at, site_sums
from atoll.core.contracts import Examples
from atoll.core.errors import (
    DataError,
    Fault,
    JobConflict,
    JobError,
    LayoutError,
    WireError,
    raise_faults,
)
from atoll.core.layout import Array, Layout
from atoll.core.seeds import Seed
from atoll.core.values import ClientId, Update
from atoll.data.columns import is_missing
from atoll.data.inputs import Inputs
from atoll.data.schema import Schema, check_sites
from atoll.data.table import Table, label
from atoll.job.applying import inputs_of, released
from atoll.job.arrays import array_islands, arrays_agree, arrays_survey, cut_examples
from atoll.job.between import discretion_of, settled_of
from atoll.job.buffered import buffer_faults
from atoll.job.build import Job
from atoll.job.conflicts import federation_faults
from atoll.job.datasets import brings_sites, own_arrays
from atoll.job.discretion import OPEN, Discretion
from atoll.job.from_file import job_from_spec
from atoll.job.islands import Islands
from atoll.job.privacy import with_chain
from atoll.job.readiness import (
    Answer,
    figures_told,
    initial_vector,
    layout_from_plain,
    layout_to_plain,
    ready,
)
from atoll.job.record import record_faults, record_trainer
from atoll.job.registry import LINEAR, trainer_for
from atoll.job.schema import DataSpec, JobSpec
from atoll.job.sites import halves, plan_of, preprocessed
from atoll.job.standing import Rows, Standing
from atoll.job.start import Start, agreed
from atoll.job.study import study_faults
from atoll.job.survey import (
    body_of,
    schema_from_plain,
    schema_to_plain,
    table_survey,
    tables_agree,
)
from atoll.job.tables import schedule_of, weighting_of
from atoll.runtime.checkpoint import model_hash
from atoll.runtime.client import Parts
from atoll.runtime.clock import Clock
from atoll.runtime.schedule import turns_of

__all__ = [
    "agree",
    "column_sums_at",
    "coordinator",
    "dataset_name",
    "deployable",
    "discretion_of",
    "figures_told",
    "initial_vector",
    "inputs_of",
    "islands_at",
    "layout_from_plain",
    "layout_to_plain",
    "left_out",
    "parts_at",
    "ready",
    "schema_from_plain",
    "schema_to_plain",
    "settled_of",
    "survey",
]

Data = Table | Examples
"""A site's rows: a table, or arrays where the job's source is ``.npz`` without a target."""


_UNTOLD = {
    kind: f"updates, sums of columns and figures of held-out rows were added up {how}: numbers of rows, "
    "data cards and figures of single sites were not told"
    for kind, how in (("masked", "under masks"), ("encrypted", "as ciphertexts"))
}


def deployable(spec: JobSpec) -> list[Fault]:
    """What in this job cannot be had where the sites are apart; see also :func:`left_out`."""
    return list(_impossible(spec))


def _impossible(spec: JobSpec) -> Iterator[Fault]:
    data, clock = spec.data, spec.clock
    if spec.statistics is not None:
        yield from study_faults(spec)
        return
    if data.partition is not None:
        yield Fault("data.partition", "sites have rows of their own", "remove it")
    elif not brings_sites(data):
        reason = f"{data.source!r} is no data of a site"
        yield Fault("data.source", reason, "name a table, such as 'heart.csv'")
    elif not data.target and not own_arrays(data):
        yield Fault("data.target", "this key is required for tables", "name the column to predict")
    modelled = {
        "clock.delay": clock.delay.scale > 0 or clock.delay.kind == "trace",
        "clock.availability": clock.availability < 1,
        "clock.availability_trace": bool(clock.availability_trace),
        "clock.dropout": clock.dropout > 0,
        "clock.partial": clock.partial > 0,
        "rounds.over_selection": spec.rounds.over_selection > 0,
        "stop.virtual_seconds": spec.stop.virtual_seconds is not None,
    }
    for place, used in modelled.items():
        if used:
            yield Fault(place, "is for clients in virtual time; sites have their own", "remove it")
    if spec.model.options.get("exact_auc") and spec.model.kind in LINEAR:
        reason = "would send the score of every row"
        yield Fault(
            "model.options.exact_auc", reason, "remove it: the area then has an error bound"
        )
    if spec.stop.metric.startswith("central."):
        reason = f"{spec.stop.metric!r} is watched, but the server has no test rows"
        yield Fault("stop.metric", reason, "watch federated.* instead")
    if spec.executor.name == "ray":
        yield Fault("executor.name", "'ray' is for simulations", "remove [executor]")
    if spec.privacy.aggregation == "encrypted" and spec.rounds.mode == "async":
        reason = "'async' has no rounds whose sites could agree on a sum before it is opened"
        yield Fault("rounds.mode", reason, "set rounds.mode = 'sync', or simulate")
    yield from buffer_faults(spec)


def left_out(spec: JobSpec) -> tuple[str, ...]:
    """What a deployment of this job does without, for the run's notes."""
    found: list[str] = []
    if spec.statistics is not None:
        return ()
    if spec.evaluation.compare:
        found.append(
            "not compared with sites alone and pooled rows: that takes all rows in one place"
        )
    if spec.data.central_test and spec.evaluation.central:
        found.append("no central evaluation: test rows stay at their sites")
    return tuple(found)


def dataset_name(data: DataSpec) -> str:
    """The name under which sites register their rows for this job.

    >>> from atoll.job.schema import DataSpec
    >>> [dataset_name(DataSpec(source=s)) for s in ("heart.csv", "scans/*.npz", "hospitals")]
    ['heart', 'scans', 'hospitals']
    """
    path = PurePosixPath(data.source)
    return path.parent.name if any(sign in path.name for sign in "*?[") else path.stem


def survey(spec: JobSpec, site: ClientId, table: Data, rule: Discretion = OPEN) -> dict[str, Any]:
    """What a site tells of its rows before anything is fitted, ready for JSON.

    Names of columns and levels, never counts; see :mod:`atoll.job.survey` for what leaves the site.

    Raises:
        DataError: the rows are not of one site, or a column of names has too many.
        PolicyError: few persons are behind the rows, or behind a name.
    """
    if isinstance(table, Examples):
        return arrays_survey(spec.data, site, table, rule)
    return table_survey(spec.data, site, _own(spec, site, table), rule)


def agree(spec: JobSpec, surveys: Mapping[ClientId, Mapping[str, Any]]) -> Schema:
    """The schema of all sites.

    For rows that are no tables it has one feature that stands for the arrays.

    Args:
        spec: the job.
        surveys: by site, in any order.

    Raises:
        DataError: with every fault of every site.
        JobError: the same, where one of the faults is the job's; or the preprocessing does not fit.
        WireError: what a site sent is no survey; names the site.
    """
    sites = {site: surveys[site] for site in sorted(surveys)}
    asked = federation_faults(schedule_of(spec), weighting_of(spec), Clock(), sites)
    if own_arrays(spec.data):
        return arrays_agree(spec.data, sites, asked)
    schema = tables_agree(spec.data, sites, asked)
    raise_faults(JobError, "preprocessing", plan_of(spec).faults(schema))
    return schema


def column_sums_at(
    spec: JobSpec, schema: Schema, site: ClientId, table: Data, rule: Discretion = OPEN
) -> Update:
    """Exact sums of the columns of this site's training rows: vectors that add up over sites.

    Where there is nothing to add up (each site preprocesses for itself, or the rows are no table) they
    are those of no columns.

    Raises:
        DataError: the table does not fit the schema; every fault of this site.
        JobError: the preprocessing does not fit the columns.
        PolicyError: few persons are behind the rows; or, where the rule is strict, behind a part of them
            that the sums tell of.
    """
    if isinstance(table, Examples):
        train, _ = cut_examples(spec.data, site, table, _stream(spec), rule)
        return Update(_no_sums(), 1.0, len(train))
    own, plan = _own(spec, site, table), plan_of(spec)
    typed = schema.read(site, own)
    cut = halves(spec, schema, site, typed, _stream(spec), rule, rule.telling(own))
    rule.refuse_sums(site, cut.train, plan, schema, cut.telling.take(cut.rows[0]))
    update = site_sums(cut.train, plan, schema)
    return update if plan.mode == "federated" else replace(update, vectors=_no_sums())


def _no_sums() -> dict[str, Array]:
    return {"rows": np.zeros(1), **{n: np.zeros(0) for n in ("present", "limbs", "levels")}}


def islands_at(
    spec: JobSpec,
    schema: Schema,
    sums: Mapping[str, Array],
    site: ClientId,
    table: Data,
    rule: Discretion = OPEN,
) -> Islands:
    """What the trainer gets at this site, and its data card.

    Args:
        spec: the job.
        schema: see :func:`agree`.
        sums: what the sums of all sites add up to; not read where there is nothing to add up.
        site: this one.
        table: its rows.
        rule: what may be told of them.

    Raises:
        DataError: the table does not fit the schema, or the sums are not of these columns.
        JobError: the preprocessing does not fit the columns.
        PolicyError: few persons are behind the rows.
    """
    stream = _stream(spec)
    if isinstance(table, Examples):
        return array_islands(spec, {site: table}, schema, stream, rule)
    own = _own(spec, site, table)
    typed, notes = check_sites(schema, {site: own})
    cut = {site: halves(spec, schema, site, typed[site], stream, rule, rule.telling(own))}
    fitted = {site: fitted_at(cut[site].train, sums, plan_of(spec), schema)}
    return preprocessed(spec, schema, typed, cut, fitted, notes, rule)


def parts_at(
    spec: JobSpec,
    islands: Islands,
    folder: Path,
    site: ClientId,
    sites: int = 1,
    start: Start | None = None,
) -> Parts:
    """What is fixed for the run at this site; imports the job's own code.

    Args:
        spec: the job.
        islands: see :func:`islands_at`.
        folder: where the job's code lies.
        site: this one.
        sites: how many take part in the run.
        start: the model that came with the job; None for one that begins at its seed's.

    Raises:
        JobError: the model cannot be built, or the one that came with the job is another than it names, or of
            another layout.
        JobConflict: it does not go with the algorithm, or the site has no rows.
        MissingExtra: the model needs a library that is not installed here.
    """
    job = job_from_spec(spec, folder).settled(sites)
    start, trainer = agreed(spec.model.start, start), trainer_for(spec, islands, folder)
    first = None if start is None else start.vector(trainer.layout)
    raise_faults(JobConflict, "this job cannot run", job.faults(trainer), site=site)
    raise_faults(JobConflict, "this job cannot run", job.privacy_faults, site=site)
    if len(islands.train[site]):
        rows = (len(islands.train[site]),)
        own = turns_of(job.schedule, job.stop.rounds).visits
        trainer = record_trainer(job.privacy, trainer, rows, job.local, own)
        if job.privacy.record is not None:
            wrong = record_faults(trainer, islands.train[site])
            raise_faults(JobConflict, "this model cannot be trained privately", wrong, site=site)
    if not len(islands.train[site]):
        raise JobConflict("there are no rows to train on", site=site)
    parts = Parts(
        algorithm=job.algorithm,
        trainer=trainer,
        clients=islands.train,
        seed=Seed(spec.seed),
        local=job.local,
        weighting=job.weighting,
        held_out=islands.held_out if job.federated else {},
        apart=True,
        first=first,
    )
    # Whether n clients are enough is the coordinator's to check: here is only one.
    made, found = with_chain(job.privacy, parts, job.schedule, job.stop.rounds, site=True)
    raise_faults(JobConflict, "this job cannot run", found, site=site)
    return made


def coordinator(
    spec: JobSpec,
    layout: Layout,
    initial: Array,
    answers: Mapping[ClientId, Mapping[str, Any]],
    inputs: Inputs | None = None,
) -> tuple[Job, Parts]:
    """The server's half of the run: everything the loop asks for, without data or model code.

    Clients are their numbers of rows, the trainer a :class:`~atoll.job.standing.Standing`. The job's
    ``islands`` gives the same with the sites' cards and notes; its definition and hash are the job's own.

    Args:
        spec: the job.
        layout: of the model.
        initial: the initial vector, ``(layout.size,)``.
        answers: what :func:`ready` gave, by site, in any order.
        inputs: see :func:`~atoll.job.applying.inputs_of`; handed out where every site agrees to it.

    Raises:
        WireError: what a site sent is no answer; names the site.
        DataError: sites have another layout or another initial vector; all of them are named.
        LayoutError: the initial vector does not fit the layout.
        JobConflict: the job cannot run on this federation, or not where the sites are apart.
    """
    told = {site: body_of(Answer, answers[site], site) for site in sorted(answers)}
    raise_faults(JobConflict, "this job cannot be deployed", deployable(spec))
    standing = Standing(layout, initial, next((a.way for a in told.values()), ""))
    raise_faults(DataError, "the sites' models", list(_unlike(layout, initial, told)))
    settled = job_from_spec(spec, Path()).settled(len(told))
    untold = _UNTOLD.get(settled.privacy.aggregation)
    for site, answer in told.items():
        if not answer.rows and untold is None:
            raise WireError(
                "what it sent is no Answer (rows: 0, which masked and encrypted runs alone allow)",
                site=site,
            )
    inputs, kept = released(spec, inputs, [site for site, a in told.items() if not a.inputs])
    notes = [*left_out(spec), *([] if untold is None else [untold]), *kept]
    islands = Islands(
        train={site: Rows(a.rows or 1, told=a.rows > 0) for site, a in told.items()},
        held_out={
            site: Rows(a.held_out, told=a.rows > 0) for site, a in told.items() if a.held_out
        },
        cards=[{**a.card, "site": site} for site, a in told.items() if a.card],
        notes=tuple(dict.fromkeys([*notes, *(n for a in told.values() for n in a.notes)])),
        inputs=inputs,
    )
    job = replace(
        settled,
        trainer=standing,
        central=False,
        compare=False,
        islands=lambda seed: islands,
        executor=("remote", 0, "auto"),
    )
    parts = Parts(
        algorithm=job.algorithm,
        trainer=standing,
        clients=islands.train,
        seed=Seed(spec.seed),
        local=job.local,
        weighting=job.weighting,
        held_out=islands.held_out if job.federated else {},
        apart=True,
    )
    faults = job.faults(standing, parts.clients, parts.held_out)
    declared = job.privacy_faults
    parts, found = with_chain(
        job.privacy, parts, job.schedule, job.stop.rounds, declared, job.outside
    )
    raise_faults(
        JobConflict, "this job cannot run on this federation", [*faults, *declared, *found]
    )
    return job, parts


def _unlike(layout: Layout, initial: Array, told: Mapping[ClientId, Answer]) -> Iterator[Fault]:
    """The sites whose model is another; all of them should have built the same one."""
    start = model_hash(initial)
    for site, answer in told.items():
        try:
            same = layout_from_plain(answer.layout).digest() == layout.digest()
        except LayoutError as error:
            raise WireError(f"its layout is none: {error.message}", site=site) from error
        if not same:
            remedy = "compare versions of libraries, and the numbers of columns"
            yield Fault(f"site {site!r}", "has built a model of another layout", remedy)
        elif answer.initial != start:
            remedy = "compare versions of Python, NumPy and torch"
            yield Fault(f"site {site!r}", "starts from another initial vector", remedy)


def _stream(spec: JobSpec) -> Seed:
    return Seed(spec.seed) / "data"


def _own(spec: JobSpec, site: ClientId, table: Table) -> Table:
    """The table without the site column, which may be there and then names one site.

    Raises:
        DataError: it names several.
    """
    column = spec.data.site_column
    if not column or column not in table.columns:
        return table
    names = {None if is_missing(cell) else label(cell) for cell in table[column]}
    if len(names) > 1:
        fault = Fault(
            f"site {site!r}, column {column!r}",
            f"names {len(names)} sites",
            "register the rows of one site only",
        )
        raise DataError("the rows are not of one site", site=site, faults=[fault])
    return table.without(column)
