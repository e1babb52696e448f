"""What happens inside a worker process: a run is opened from its plan, and its tasks are carried out.

Everything is computed by the same functions as in a simulation (:mod:`atoll.job.deployed`,
:func:`atoll.runtime.client.answer_task`), so an update has the bits that the serial executor's has.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from atoll.core.contracts import Task
from atoll.core.errors import (
    Forbidden,
    JobConflict,
    JobError,
    PolicyError,
    StateError,
    StorageError,
    UpdateRefused,
    WireError,
)
from atoll.core.layout import Array
from atoll.core.metrics import Metrics, RankedScores
from atoll.core.values import Broadcast, Memory, Update
from atoll.data.table import Table
from atoll.job import deployed
from atoll.job.datasets import own_arrays
from atoll.job.islands import Islands
from atoll.job.package import Package, spec_from_plain, unpack
from atoll.job.schema import JobSpec
from atoll.job.settling import FEWEST
from atoll.job.start import Start
from atoll.job.study import Agreed
from atoll.job.summed import column_integers, column_lanes, lanes_told
from atoll.node.datasets import digest_of, open_examples, open_table
from atoll.node.orders import Order, Report
from atoll.node.plans import sites_in
from atoll.node.policy.leaving import Leaving, discreet
from atoll.node.policy.queries import Answering
from atoll.node.policy.redaction import told
from atoll.runtime.client import Parts, answer_task, evaluate_client, work_on
from atoll.runtime.figures import integers_of, kinds_of, lanes_of
from atoll.runtime.pattern import lanes_at
from atoll.runtime.threads import Threads
from atoll.wire.disk import RealDisk
from atoll.wire.frames import Allowed, check_finite, open_frame, pieces
from atoll.wire.messages import INITIAL, ResultBody
from atoll.wire.metrics import metrics_to_plain
from atoll.wire.trouble import takes_nothing

__all__ = ["Workplace", "written"]

_VECTORS = Allowed(most_arrays=10_000, most_bytes=1 << 44)
"""What a plan, a broadcast or a memory may hold; both sides have checked sizes before."""

_SOON, _LATER = 0.2, 10.0
"""Seconds between looks whether a full disk has room again: at first, and at last."""

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class _Done:
    """What a task gives.

    Args:
        arrays: vectors to send.
        fields: further fields of the result's body.
        memory: the client's own, to be kept; empty for none.
    """

    arrays: Mapping[str, Array] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    memory: Memory = field(default_factory=dict)


@dataclass(eq=False)
class _Run:
    """A run as far as it has been opened."""

    plan: str
    plain: tuple[Any, Any, Any]
    spec: JobSpec
    schema: Any
    sums: Mapping[str, Array]
    sites: int
    parts: tuple[Parts, Islands] | None = None

    def same(self, plain: tuple[Any, Any, Any], sums: Mapping[str, Array]) -> bool:
        """Whether another plan says the same of everything that matters here."""
        alike = self.plain == plain and list(self.sums) == list(sums)
        return alike and all(np.array_equal(self.sums[name], sums[name]) for name in sums)


class Workplace:
    """One run at one site.

    Args:
        folder: where the job's own code is laid down; relative names in the job are relative to it.
        memory: GiB the site allows, for the message when they are not enough.
    """

    def __init__(self, folder: Path, memory: float = 0.0) -> None:
        self._folder = folder
        self._memory = memory
        self._run: _Run | None = None
        self._rows: tuple[str, Any, str] | None = None  # dataset's path, rows, digest
        self._code: Mapping[str, str] | None = None
        self._threads: Threads | None = None
        self._answering: Answering | None = None
        self._worked: tuple[Any, Update, Memory] | None = None  # which work, and what it gave

    def carry_out(self, order: Order) -> Report:
        """Do what ``order`` says; whatever is raised becomes the task's failure.

        Raises:
            StorageError: not even the failure can be written.
        """
        began = time.perf_counter()
        kept = False
        try:
            done = self._answer(order)
            if done.memory:
                check_finite(done.memory)
                _write(Path(order.keep), {"task": order.task.id}, done.memory)
            seconds = time.perf_counter() - began
            body = written(order.task.id, "done", seconds=seconds, **done.fields)
            _write(Path(order.result), body, done.arrays)
            kept = bool(done.memory)
        except BaseException as error:  # job code may raise anything, SystemExit too
            traceback.print_exc(file=sys.stderr)
            forbidden = isinstance(error, UpdateRefused | PolicyError | Forbidden)
            status = "refused" if forbidden else "failed"
            minimum = order.dataset.dataset.rule.minimum
            reason = discreet(told(error, self._folder, self._memory), minimum)
            seconds = time.perf_counter() - began
            body = written(order.task.id, status, reason=reason, seconds=seconds)
            _write(Path(order.result), body, {})
        digest = self._rows[2] if self._rows else ""
        return Report(task=order.task.id, kept=kept, digest=digest, values=self._noised())

    def _noised(self) -> int:
        """How many values of an update get noise, as far as the run is known."""
        if self._run is None or self._run.parts is None:
            return 0
        return int(getattr(self._run.parts[0].chain.find("noise"), "values", 0))

    def _answer(self, order: Order) -> _Done:
        run = _with_room(lambda: self._opened(order))
        rows = self._data(order, run.spec)
        if run.spec.statistics is not None:
            return _with_room(lambda: self._asked(order, run, rows))
        return _VERBS[order.task.kind](self, order, run, rows)

    # Opening ------------------------------------------------------------------------------------

    def _opened(self, order: Order) -> _Run:
        """The run as its plan describes it; one that only grew where it does not matter stays open."""
        if self._run is not None and self._run.plan == order.plan:
            return self._run
        body, sums = open_frame(Path(order.plan), _VECTORS)
        check_finite(sums)
        sites = len(sites_in(body)) or FEWEST
        plain = body.get("spec"), body.get("schema"), sites
        if self._run is not None and self._run.same(plain, sums):
            self._run.plan = order.plan
            return self._run
        if plain[0] is None:
            raise WireError("the run's plan holds no job")
        spec = spec_from_plain(plain[0])
        schema: Any = None
        if plain[1]:
            known = Agreed if spec.statistics is not None else None
            schema = known.from_plain(plain[1]) if known else deployed.schema_from_plain(plain[1])
        if self._code != order.code:
            if self._code is not None:
                raise JobError("the code of a run has changed while it ran")
            code = {name: p for name, p in order.code.items() if name != INITIAL}
            files = {name: Path(p).read_bytes() for name, p in code.items()}
            unpack(Package(spec, files), self._folder)
            self._code = order.code
        self._run = _Run(order.plan, plain, spec, schema, sums, sites)
        return self._run

    def _data(self, order: Order, spec: JobSpec) -> Any:
        """The site's rows, read once in the life of this process."""
        dataset = order.dataset.dataset
        if self._rows is None or self._rows[0] != dataset.path:
            seen, digest = _stamp(dataset.path), digest_of(dataset.path)
            if order.digest and digest != order.digest:
                raise StateError(
                    "the dataset's file has changed since the run began",
                    remedy="put back the file as it was, or start a new run",
                )
            rows = open_examples(dataset) if own_arrays(spec.data) else open_table(dataset)
            if _stamp(dataset.path) != seen:  # the digest may be that of other rows
                raise StateError(
                    "the dataset's file was changed while it was read",
                    remedy="start a new run once it is whole",
                )
            self._rows = dataset.path, rows, digest
        return self._rows[1]

    def _parts(self, order: Order, run: _Run, rows: Any) -> tuple[Parts, Islands]:
        if run.parts is None:
            site, gate = order.task.client, _gate(order, run)
            islands = gate.islands(run.schema, run.sums, rows)
            start = _start(order, run.spec)
            parts = deployed.parts_at(run.spec, islands, self._folder, site, run.sites, start)
            run.parts = parts, islands
            self._threads = Threads()  # now that every library is loaded
        return run.parts

    def _one(self) -> AbstractContextManager[None]:
        return self._threads.one() if self._threads else nullcontext()

    def _asked(self, order: Order, run: _Run, rows: Table) -> _Done:
        """A task of statistics: no code of the job's runs here."""
        if order.code:
            raise JobError("statistics bring no code", remedy="submit the job without it")
        t, digest = order.task, self._rows[2] if self._rows else ""
        dataset, at, agreed = order.dataset.dataset, self._answering, run.schema
        if at is None or (at.dataset, at.sites) != (dataset, run.sites):
            at = self._answering = Answering(run.spec, t.client, run.sites, dataset)
        self._threads = self._threads or Threads()
        with self._one():
            if t.kind == "survey":
                return _Done(fields={"answer": at.survey(rows)})
            if t.kind == "ready":
                return _Done(fields={"answer": at.ready(agreed, rows, digest)})
            if t.kind != "train":
                raise StateError(f"statistics have no {t.kind!r}")
            task = Task(t.client, t.version, t.scale, t.fraction, t.repeat)
            asked = Broadcast(t.version, _vectors(order.broadcast))
            update = at.answer(agreed, rows, digest, task, asked)
            told = lanes_told(at.lanes(agreed, rows, task, asked))
        fields = {"weight": float(update.weight), "examples": int(update.examples)}
        return _Done(update.vectors, {**fields, **_of_lanes(told)} if told else fields)

    # What a task can be -------------------------------------------------------------------------

    def survey(self, order: Order, run: _Run, rows: Any) -> _Done:
        """What the columns are called and which levels they have."""
        return _Done(fields={"answer": _gate(order, run).survey(rows)})

    def sums(self, order: Order, run: _Run, rows: Any) -> _Done:
        """Exact sums of the training rows' columns; whole numbers and nothing else in a masked run."""
        update = _gate(order, run).sums(run.schema, rows)
        if deployed.settled_of(run.spec, run.sites).hidden:
            told = lanes_told(column_lanes(run.spec, run.schema))
            return _Done(column_integers(update.vectors), _of_lanes(told))
        fields = {"weight": float(update.weight), "examples": int(update.examples)}
        return _Done(update.vectors, fields)

    def ready(self, order: Order, run: _Run, rows: Any) -> _Done:
        """Rows, card and layout; with them the initial vector where it is asked for."""
        parts, islands = self._parts(order, run, rows)
        with self._one():
            answer = _gate(order, run).ready(parts, islands)
            first = deployed.initial_vector(parts) if order.task.initial else None
        return _Done({} if first is None else {"initial": first}, {"answer": answer})

    def fit(self, order: Order, run: _Run, rows: Any) -> _Done:
        """The work of a round that is to come; nothing of it leaves this process before :meth:`train`."""
        parts, _ = self._parts(order, run, rows)
        self._worked = None
        task, model = _task(order), Broadcast(order.task.version, _vectors(order.broadcast))
        with self._one():
            update, memory = work_on(parts, task, model, _memory(order))
        own = {name: np.array(v) for name, v in update.vectors.items()}  # not the trainer's memory
        kept = {name: np.array(v) for name, v in memory.items()}
        self._worked = _work(order), replace(update, vectors=own), kept
        return _Done()

    def train(self, order: Order, run: _Run, rows: Any) -> _Done:
        """The client's half of a round; work that :meth:`fit` has done is not done again."""
        parts, _ = self._parts(order, run, rows)
        task, model = _task(order), Broadcast(order.task.version, _vectors(order.broadcast))
        worked, self._worked = self._worked, None
        with self._one():
            if worked is not None and worked[0] == _work(order):
                update = parts.chain.client(worked[1], task, model, parts.stream(task))
                memory = worked[2]
            else:
                update, memory = answer_task(parts, task, model, _memory(order))
        check_finite(update.vectors)  # what the server would refuse does not leave the site
        fields = {
            "weight": float(update.weight),
            "examples": int(update.examples),
            "metrics": _leaving(_gate(order, run).figures(update.metrics, rows)),
        }
        if parts.chain.gives("sums only"):
            fields |= _of_lanes(lanes_told(lanes_at(parts, task, model)))
        return _Done(update.vectors, fields, memory)

    def evaluate(self, order: Order, run: _Run, rows: Any) -> _Done:
        """Metrics on the held-out rows."""
        parts, _ = self._parts(order, run, rows)
        client = order.task.client
        if client not in parts.held_out:
            raise StateError(
                "this site holds no test rows", remedy="set data.test_fraction above 0"
            )
        parameters = Broadcast(order.task.version, _vectors(order.broadcast)).parameters
        with self._one():
            found = evaluate_client(parts, parameters, client, _memory(order))
        if parts.chain.gives("sums only"):
            kinds = kinds_of(found)
            return _Done(integers_of(found, kinds), _of_lanes(lanes_told(lanes_of(kinds))))
        shown = _leaving(_gate(order, run).figures(found, rows))
        rows = 0 if parts.figures is not None else len(parts.held_out[client])
        fields = {"metrics": shown, "examples": rows}
        return _Done(fields=fields)


def _start(order: Order, spec: JobSpec) -> Start | None:
    """The model that came with the job, checked as anything that a server sends."""
    path = order.code.get(INITIAL)
    return None if path is None else Start.sent(Path(path), spec.model.start)


_VERBS: Mapping[str, Callable[[Workplace, Order, _Run, Any], _Done]] = {
    "survey": Workplace.survey,
    "sums": Workplace.sums,
    "ready": Workplace.ready,
    "fit": Workplace.fit,
    "train": Workplace.train,
    "evaluate": Workplace.evaluate,
}


def _task(order: Order) -> Task:
    """The task as the algorithm knows it."""
    t = order.task
    return Task(t.client, t.version, t.scale, t.fraction, t.repeat)


def _work(order: Order) -> tuple[Any, ...]:
    """What decides what comes of the work, before the chain."""
    t = order.task
    return t.client, t.version, t.fraction, t.repeat, t.kept, order.broadcast, order.plan


def _gate(order: Order, run: _Run) -> Leaving:
    """Through which everything passes that a run of training tells at this site."""
    return Leaving.of(run.spec, order.task.client, run.sites, order.dataset.dataset.rule)


def _of_lanes(told: list[list[Any]]) -> dict[str, Any]:
    """For the node, not for the server: which lanes the job has, whatever terms say of them."""
    return {"answer": {"lanes": told}}


def _stamp(path: str) -> tuple[int, ...] | None:
    """What tells one state of a file from the next; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def written(task: str, status: str, **fields: Any) -> dict[str, Any]:
    """The body of a result."""
    return ResultBody.model_validate({"task": task, "status": status, **fields}).model_dump()


def _leaving(metrics: Metrics) -> dict[str, Any]:
    """Metrics as they are sent; none that holds single rows.

    Raises:
        JobConflict: one of the job's own does.
    """
    for name, metric in metrics.items():
        if isinstance(metric, RankedScores):
            raise JobConflict(
                f"the metric {name!r} holds the score of every row, which may not leave the site",
                remedy="let the job's evaluate use BinnedAUC",
            )
    return metrics_to_plain(metrics)


def _vectors(path: str) -> Mapping[str, Array]:
    if not path:
        raise WireError("the task names no broadcast")
    _, vectors = open_frame(Path(path), _VECTORS)
    check_finite(vectors)
    return vectors


def _memory(order: Order) -> Memory:
    return open_frame(Path(order.memory), _VECTORS)[1] if order.memory else {}


def _write(path: Path, body: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write a frame over an earlier one; the node copies it, and makes the copy durable."""
    _with_room(lambda: RealDisk().write_over(path, pieces(body, arrays)))


def _with_room(act: Callable[[], _T]) -> _T:
    """What ``act`` gives, as soon as the disk has room for what it writes: a full one costs no work.

    The node ends what takes longer than a task may. No code of the job's runs in ``act``.
    """
    wait = _SOON
    while True:
        try:
            return act()
        except (StorageError, OSError) as error:
            if not takes_nothing(error):
                raise
            if wait == _SOON:
                sys.stderr.write(f"waiting for the disk: {error}\n")
                sys.stderr.flush()
        time.sleep(wait)
        wait = min(2.0 * wait, _LATER)
