"""A job before it is run here: does the site's dataset keep its word, and can a worker prepare it.

The first half holds every cell against what the job declares and tells how many do not fit, never which
values. The second starts a real worker process, with the site's limits, in a room as a run's and without keys,
and has it prepare the run as it would for the server, with this site's rows alone. So what the job needs of
libraries, memory and disk is found out by needing it.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atoll.aggregation.exact import Fold
from atoll.core.contracts import Examples
from atoll.core.errors import AtollError, ClientError, DataError, JobError
from atoll.core.layout import Array, Layout
from atoll.core.values import Update
from atoll.data.columns import Column, identifies, labels_of, numbers_of
from atoll.data.table import Table
from atoll.job import deployed
from atoll.job.datasets import own_arrays
from atoll.job.package import Package, spec_to_plain
from atoll.job.schema import DataSpec, JobSpec
from atoll.job.summed import column_totals
from atoll.job.survey import is_read
from atoll.node.datasets import Dataset, open_examples, open_table
from atoll.node.home import Home
from atoll.node.orders import DatasetBody, Order, Report
from atoll.node.room.process import Ended, Log, Worker
from atoll.node.room.rooms import room_for
from atoll.node.room.sandbox import Untried
from atoll.node.room.usage import peak_of
from atoll.node.settings import GIB, Settings
from atoll.wire.findings import Finding, fault, faults_of, ok, size_text, unknown, warning
from atoll.wire.frames import Allowed, Blob, encode, open_frame
from atoll.wire.messages import BlobRef, ResultBody, TaskBody, read_body

__all__ = ["COPIES", "contract", "rehearse"]

COPIES = 8
"""Of a model on a site's disk at most: broadcasts kept, updates and memories kept, and one of each coming."""

_COPIES_IN_MEMORY = 6
"""Of a model in a worker: broadcast, parameters, gradient, two of an optimiser's, update."""
_PATIENCE = 300.0
_RUN = "doctor"
_SUMS = Allowed(most_arrays=10_000, most_bytes=1 << 40)


# The data contract ------------------------------------------------------------------------------


def contract(spec: JobSpec, dataset: Dataset) -> Iterator[Finding]:
    """Hold the dataset against what the job declares of its columns. Counts, never values.

    Args:
        spec: the job.
        dataset: registered under the job's name for it.
    """
    try:
        rows = open_examples(dataset) if own_arrays(spec.data) else open_table(dataset)
    except AtollError as error:
        yield from faults_of("data", error)
        return
    if isinstance(rows, Examples):
        yield ok("data", f"{dataset.name}: {len(rows)} rows of features and targets")
        return
    found = list(_column_faults(spec.data, rows))
    yield from found
    guessed = [n for n in rows.names if _is_read(spec.data, n) and n not in spec.data.columns]
    free = [n for n in guessed if n != spec.data.target]
    if free:
        text = f"{len(free)} columns are read and not declared: {_some(free)}"
        remedy = "their types are guessed; ask for declarations in the job, or for data.drop"
        yield warning("data", text, remedy)
    for name in free:
        if identifies(name, rows[name]):
            text = f"column {name!r} holds another whole number in every row"
            yield warning("data", text, "if that is an identifier, ask for data.drop in the job")
    if not any(finding.state == "fault" for finding in found):
        declared = len([n for n in spec.data.columns if _is_read(spec.data, n)])
        yield ok("data", f"{dataset.name}: {len(rows)} rows, {declared} declared columns kept")


def _column_faults(data: DataSpec, rows: Table) -> Iterator[Finding]:
    if not len(rows):
        yield fault("data", "there are no rows", "fill the file", DataError)
        return
    wanted = dict.fromkeys([*(n for n in data.columns if _is_read(data, n)), data.target])
    for name in wanted:
        if name not in rows.columns:
            remedy = "add it to the file and register it again, or rename it"
            yield fault("data", f"column {name!r} is missing", remedy, DataError)
    for name, told in data.columns.items():
        if name in rows.columns and _is_read(data, name):
            column = Column(name, told.type, told.unit, told.range, told.categories, told.missing)
            for text, remedy in _cell_faults(column, rows[name]):
                yield fault("data", f"column {name!r}: {text}", remedy, DataError)
    if data.target in rows.columns:
        yield from _target_faults(data, rows[data.target])
    if data.site_column in rows.columns:
        names = set(labels_of(Column(data.site_column), rows[data.site_column]))
        if len(names) > 1:
            text = f"column {data.site_column!r} names {len(names)} sites"
            yield fault("data", text, "register the rows of one site only", DataError)


def _cell_faults(column: Column, cells: Array) -> Iterator[tuple[str, str]]:
    """What does not fit, as counts; with what to do."""
    size = len(cells)
    if column.type == "category":
        allowed = set(column.categories)
        bad = sum(n is not None and n not in allowed for n in labels_of(column, cells))
        if allowed and bad:
            yield f"{bad} of {size} cells are in no declared category", "correct or declare them"
        return
    numbers, wrong = numbers_of(column, cells)
    if wrong.any():
        what = {"boolean": "true or false", "integer": "whole numbers"}.get(column.type, "numbers")
        text = f"{int(wrong.sum())} of {size} cells are not {what}"
        yield text, "correct them, or register their code as --missing"
    if column.range is not None:
        low, high = column.range
        outside = int(((numbers < low) | (numbers > high)).sum())
        if outside:
            unit = f" {column.unit}" if column.unit else ""
            text = f"{outside} of {size} cells are outside [{low:g}, {high:g}]{unit}"
            yield text, "correct them (the unit?), or register their code as --missing"
    if np.isnan(numbers).all() and not wrong.any():
        yield "no cell has a value", "fill it, or ask for the column to be dropped from the job"


def _target_faults(data: DataSpec, cells: Array) -> Iterator[Finding]:
    told = data.columns.get(data.target)
    column = Column(data.target, missing=told.missing if told else ())
    names = labels_of(column, cells)
    empty = sum(name is None for name in names)
    if empty:
        text = f"target {data.target!r}: {empty} of {len(names)} rows have none"
        yield fault("data", text, "leave those rows out, or fill them", DataError)
    if data.task != "classification" or (told and told.type == "boolean"):
        return
    known = set(data.classes)
    strange = sum(n is not None and n not in known for n in names) if known else 0
    if strange:
        text = f"target {data.target!r}: {strange} of {len(names)} rows are of no declared class"
        yield fault("data", text, "correct them, or ask for the class in data.classes", DataError)
    if len(set(names) - {None}) < 2:
        text = f"target {data.target!r}: all rows are of one class"
        yield warning("data", text, "a model can be trained here, an AUC cannot be had")


def _is_read(data: DataSpec, name: str) -> bool:
    """Whether the job reads a column of a file of one site."""
    return name != data.site_column and is_read(data, name)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown


# The rehearsal ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Stage:
    """Where a rehearsal takes place.

    Args:
        given: a folder for the orders' files.
        worker: a running process.
        heard: what it reports.
        package: the job.
        site: this site's name.
        dataset: its rows.
    """

    given: Path
    worker: Worker
    heard: queue.Queue[Report | Ended]
    package: Package
    site: str
    dataset: Dataset


def rehearse(
    package: Package,
    site: str,
    dataset: Dataset,
    settings: Settings,
    scratch: Path,
    home: Home | None = None,
) -> Generator[Finding, None, int]:
    """Have a worker prepare the job on this site's rows.

    Args:
        package: the job and its code.
        site: this site's name in the federation.
        dataset: its rows.
        settings: the site's limits.
        scratch: an empty folder.
        home: of the node, which its worker does not see; None where there is none, and no room.

    Returns:
        bytes of the job's model; 0 where it could not be made.
    """
    heard: queue.Queue[Report | Ended] = queue.Queue()
    log = Log(scratch / "worker.log", 1 << 20)
    folder, given = scratch / "worker", scratch / "given"
    given.mkdir()
    try:
        room = room_for(settings.limits, home, dataset, folder, [str(given)]) if home else None
    except AtollError as error:
        yield from _told(error)
        log.close()
        return 0
    except Untried as error:
        yield fault("rehearsal", str(error), "look again")
        log.close()
        return 0
    worker = Worker(folder, settings, log, lambda _, report: heard.put(report), room)
    stage = _Stage(given, worker, heard, package, site, dataset)
    try:
        return (yield from _prepared(stage, settings))
    except AtollError as error:
        yield from _told(error)
        return 0
    finally:
        worker.end("is not needed any more")
        _wait_for_end(heard)
        log.close()


def _prepared(stage: _Stage, settings: Settings) -> Generator[Finding, None, int]:
    spec, site = stage.package.spec, stage.site
    began = time.monotonic()
    survey, _ = _asked(stage, "survey", None, {})
    try:
        schema = deployed.agree(spec, {site: survey.answer})
    except DataError as error:
        if any(one.place != "data" for one in error.faults):
            raise  # of a column; what is of all the data may look otherwise with the other sites
        why = "; ".join(one.message for one in error.faults) or error.message
        yield unknown("rehearsal", f"not possible with this site alone: {why}")
        return 0
    sums: Mapping[str, Array] = {}
    if spec.preprocessing.mode == "federated":
        body, vectors = _asked(stage, "sums", schema, {})
        fold = Fold(1)
        if deployed.settled_of(spec, 1).hidden:  # in the form in which masks are put on
            vectors = column_totals(spec, schema, vectors)
        fold.add(Update(vectors, 1.0, body.examples))
        sums = fold.aggregate().sums
    body, _ = _asked(stage, "ready", schema, sums)
    answer = body.answer
    peak = peak_of(stage.worker.pid)
    layout = deployed.layout_from_plain(answer["layout"])
    took = time.monotonic() - began
    rows = f"{answer['rows']} rows to train on, {answer['held_out']} held out, "
    yield ok(
        "rehearsal",
        f"a worker prepared the job in {took:.1f} s: {rows if answer['rows'] else ''}a model of "
        f"{layout.size:,} numbers ({size_text(_bytes(layout))})",
    )
    yield from _fits(settings, peak, _bytes(layout))
    return _bytes(layout)


def _bytes(layout: Layout) -> int:
    return int(layout.size * np.dtype(layout.dtype).itemsize)


def _fits(settings: Settings, peak: int, model: int) -> Iterator[Finding]:
    """Memory and spool against the model."""
    allowed = settings.limits.memory * GIB
    needed = peak + _COPIES_IN_MEMORY * model
    text = f"the job: about {size_text(needed)} of the {size_text(allowed)} a worker may use"
    if needed > allowed:
        remedy = "raise memory under [limits] in node.toml, or ask for a smaller model"
        yield fault("memory", text, remedy, ClientError)
    else:
        yield ok("memory", text)
    spool = settings.spool * GIB
    if 3 * model > spool:
        text = f"an update of {size_text(model)} hardly fits a spool of {size_text(spool)}"
        yield fault("spool", text, "raise spool in node.toml", ClientError)


def _asked(
    stage: _Stage, kind: Any, schema: Any, sums: Mapping[str, Array]
) -> tuple[ResultBody, Mapping[str, Array]]:
    """One task for the worker, and its answer.

    Raises:
        ClientError: the worker ended, or could not do it.
    """
    plain = None if schema is None else deployed.schema_to_plain(schema)
    spec = spec_to_plain(stage.package.spec)
    raw = encode({"run": _RUN, "spec": spec, "sites": [stage.site], "schema": plain}, sums)
    plan = _kept(stage.given, raw)
    code = {n: _kept(stage.given, content) for n, content in stage.package.files.items()}
    task = TaskBody(
        id=f"{_RUN}.{kind}.0.{stage.site}",
        run=_RUN,
        kind=kind,
        number=0,
        client=stage.site,
        plan=BlobRef.of(Blob.of(raw)),
    )
    d = stage.dataset
    order = Order(
        task=task,
        plan=str(plan),
        code={name: str(path) for name, path in code.items()},
        result=str(stage.worker.aside / f"{kind}.result"),
        keep=str(stage.worker.aside / f"{kind}.memory"),
        dataset=DatasetBody(
            name=d.name,
            path=d.path,
            missing=list(d.missing),
            columns=dict(d.columns),
            rule=d.rule.to_plain(),
        ),
    )
    stage.worker.order(order)
    try:
        report = stage.heard.get(timeout=_PATIENCE)
    except queue.Empty:
        raise ClientError(f"{kind}: the worker took longer than {_PATIENCE:.0f} s") from None
    if isinstance(report, Ended):
        stage.heard.put(report)  # whoever waits for the end waits no longer
        raise ClientError(f"{kind}: the worker {report.reason}")
    plain_body, vectors = open_frame(Path(order.result), _SUMS)
    body = read_body(ResultBody, plain_body)
    if body.status != "done":
        raise ClientError(f"{kind}: {body.reason}")
    return body, vectors


def _kept(given: Path, raw: bytes) -> Path:
    path = given / Blob.of(raw).sha256
    path.write_bytes(raw)
    return path


def _told(error: AtollError) -> Iterator[Finding]:
    """What went wrong, without values: a fault of the data is told by its place."""
    if isinstance(error, DataError | JobError) and error.faults:
        for one in error.faults:
            remedy = one.remedy or error.remedy or "correct the data, or the declaration"
            text = f"{one.place or error.message}: does not fit the job"
            yield fault("rehearsal", text, remedy, type(error))
        return
    first, _, rest = error.message.partition("\n  next: ")
    remedy = rest or error.remedy or "mend the job; the same happens in a run"
    yield fault("rehearsal", first, remedy, type(error))


def _wait_for_end(heard: queue.Queue[Report | Ended]) -> None:
    """Until the process is gone and its folder with it."""
    with suppress(queue.Empty):
        while not isinstance(heard.get(timeout=10), Ended):
            pass
