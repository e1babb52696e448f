"""The jobs that are run, and what their sites compute: the real functions, each result remembered.

A job is tiny (tables of two columns, a linear model of three numbers), and what a site answers depends
on nothing but its task, so it is computed once for all seeds. :func:`train` is also what the checks
compare with: the federation as it should have gone, given who took part in which round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from atoll.aggregation.exact import Fold
from atoll.core.contracts import Task
from atoll.core.values import Broadcast, Update
from atoll.data.table import Table
from atoll.job import deployed
from atoll.job.discretion import Discretion
from atoll.job.load import parse_job
from atoll.job.package import spec_from_plain
from atoll.job.schema import JobSpec
from atoll.report.folder import plain
from atoll.runtime.client import Parts, answer_task, evaluate_client
from atoll.runtime.loop import _shown
from atoll.runtime.threads import Threads
from atoll.wire.frames import Allowed, decode
from atoll.wire.messages import TaskBody
from atoll.wire.metrics import metrics_to_plain

__all__ = [
    "ENDED",
    "SITES",
    "Answer",
    "Plan",
    "Vectors",
    "answer",
    "arrays_digest",
    "federation",
    "job",
    "judged",
    "read_plan",
    "site_of",
    "train",
]

ENDED = ("completed", "failed", "cancelled")
"""Statuses of a run that has ended."""

SITES = ("east", "north", "south", "west")
Vectors = Mapping[str, np.ndarray]
_T = TypeVar("_T")
_known: dict[Any, Any] = {}


def _once(key: Any, make: Callable[[], _T]) -> _T:
    if key not in _known:
        _known[key] = make()
    return _known[key]


def site_of(task: str) -> str:
    """The site in a task's id."""
    return task.split(".", 3)[3]


@cache
def _threads() -> Threads:
    """Made once, when all libraries are loaded."""
    return Threads()


def table(site: str) -> Table:
    """The rows of a site: a few, with two columns and a number to predict."""

    def made() -> Table:
        seed = SITES.index(site) + 1
        draw = np.random.default_rng(seed)
        rows = 14 + 2 * seed
        x = draw.normal(seed / 3, 1, (rows, 2))
        y = x @ [1.5, -1] + draw.normal(0, 0.3, rows)
        return Table.of({"a": x[:, 0], "b": x[:, 1], "dose": y})

    return _once(("table", site), made)


def job(name: str, rounds: int, deadline: float, quorum: float) -> JobSpec:
    """A job by its name: an algorithm, or ``cohort`` for FedAvg with two sites drawn for each round."""
    algorithm: dict[str, Any] = {"name": name, "weights": "examples"}
    paced: dict[str, Any] = {"count": rounds, "deadline": deadline, "quorum": quorum}
    if name == "scaffold":
        algorithm["weights"] = "uniform"
    elif name == "cohort":
        algorithm["name"] = "fedavg"
        paced |= {"cohort": "uniform", "size": 2, "quorum": 1.0}
    elif name in ("fedbuff", "fedasync"):
        paced = {"count": 2 * rounds, "mode": "async", "buffer": 2 if name == "fedbuff" else 1}

    def made() -> JobSpec:
        return parse_job(
            {
                "name": name,
                "seed": 3,
                "data": {
                    "source": "sites/*.csv",
                    "target": "dose",
                    "task": "regression",
                    "test_fraction": 0.3,
                },
                "model": {"kind": "linear"},
                "local": {"epochs": 1, "batch_size": 8, "lr": 0.1},
                "algorithm": algorithm,
                "rounds": paced,
                "evaluation": {"compare": False},
            },
            source="simulation",
        )

    return _once(("job", name, rounds, deadline, quorum), made)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a site answers to a task: vectors, fields of the result's body, and its memory."""

    arrays: Vectors = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    memory: Vectors = field(default_factory=dict)


def arrays_digest(arrays: Vectors) -> str:
    """A name for the bits of some vectors."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        sha.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        sha.update(np.ascontiguousarray(arrays[name]).tobytes())
    return sha.hexdigest()


@dataclass(frozen=True, eq=False)
class Federation:
    """A job's sites together, as no machine of a deployment ever has them."""

    spec: JobSpec
    schema: Any
    sums: Vectors
    parts: Mapping[str, Parts]
    islands: Mapping[str, Any]
    initial: np.ndarray


def federation(spec: JobSpec, sites: tuple[str, ...]) -> Federation:
    """The preparation, in one place."""

    def made() -> Federation:
        schema = deployed.agree(spec, {s: deployed.survey(spec, s, table(s)) for s in sites})
        fold = Fold(len(sites))
        for site in sites:
            fold.add(deployed.column_sums_at(spec, schema, site, table(site)))
        sums = dict(fold.aggregate().sums)
        islands = {s: deployed.islands_at(spec, schema, sums, s, table(s)) for s in sites}
        parts = {s: deployed.parts_at(spec, islands[s], Path(), s) for s in sites}
        return Federation(
            spec, schema, sums, parts, islands, deployed.initial_vector(parts[sites[0]])
        )

    return _once(("federation", spec.hash(), sites), made)


@dataclass(frozen=True, eq=False)
class Plan:
    """A run's plan, as a worker reads it; two runs of one job have the same ``key``."""

    key: str
    spec: JobSpec
    schema: Any
    sums: Vectors


def read_plan(path: Path) -> Plan:
    """The plan in a file that is called by its digest."""

    def made() -> Plan:
        body, sums = decode(path.read_bytes(), Allowed(most_arrays=100, most_bytes=1 << 30))
        spec = spec_from_plain(body["spec"])
        schema = deployed.schema_from_plain(body["schema"]) if body["schema"] else None
        key = f"{spec.hash()} {body['schema']!r} {arrays_digest(sums)}"
        return Plan(hashlib.sha256(key.encode()).hexdigest(), spec, schema, sums)

    return _once(("plan", path.name), made)


def answer(plan: Plan, task: TaskBody, model: Vectors, memory: Vectors) -> Answer:
    """What the site of ``task`` answers, given what a node hands to its worker."""
    asked = task.kind, task.client, task.initial
    local = task.version, task.scale, task.fraction, task.repeat
    key = plan.key, *asked, *local, arrays_digest(model), arrays_digest(memory)

    def made() -> Answer:
        with _threads().one():
            return _answer(plan, task, model, memory)

    return _once(key, made)


def _answer(plan: Plan, task: TaskBody, model: Vectors, memory: Vectors) -> Answer:
    site, spec, schema = task.client, plan.spec, plan.schema
    if task.kind == "survey":
        return Answer(fields={"answer": deployed.survey(spec, site, table(site))})
    if task.kind == "sums":
        update = deployed.column_sums_at(spec, schema, site, table(site))
        return Answer(update.vectors, {"weight": update.weight, "examples": update.examples})
    parts, islands = _parts(plan, site)
    if task.kind == "ready":
        first = {"initial": deployed.initial_vector(parts)} if task.initial else {}
        return Answer(first, {"answer": deployed.ready(parts, islands)})
    if task.kind == "evaluate":
        found = evaluate_client(parts, model["parameters"], site, memory)
        rows = len(parts.held_out[site])
        return Answer(fields={"metrics": metrics_to_plain(found), "examples": rows})
    return _trained(parts, task, model, memory)


def _parts(plan: Plan, site: str) -> tuple[Parts, Any]:
    def made() -> tuple[Parts, Any]:
        given = plan.spec, plan.schema, plan.sums, site, table(site)
        islands = deployed.islands_at(*given, Discretion(inputs=False))  # as a site's rule begins
        return deployed.parts_at(plan.spec, islands, Path(), site), islands

    return _once(("parts", plan.key, site), made)


def _trained(parts: Parts, task: Any, model: Vectors, memory: Vectors) -> Answer:
    asked = Task(task.client, task.version, task.scale, task.fraction, task.repeat)
    update, kept = answer_task(parts, asked, Broadcast(task.version, model), memory)
    fields = {
        "weight": float(update.weight),
        "examples": int(update.examples),
        "metrics": metrics_to_plain(update.metrics),
    }
    return Answer(update.vectors, fields, kept)


def train(whole: Federation, task: TaskBody, model: Broadcast, memory: Vectors) -> tuple[Any, Any]:
    """What an honest site sends for ``task``, and what it keeps: computed from the whole federation."""
    key = (
        "train",
        whole.spec.hash(),
        tuple(whole.parts),
        task.client,
        (task.version, task.scale, task.fraction, task.repeat),
        arrays_digest(model.vectors),
        arrays_digest(memory),
    )

    def made() -> tuple[Update, Vectors]:
        asked = Task(task.client, task.version, task.scale, task.fraction, task.repeat)
        with _threads().one():
            return answer_task(whole.parts[task.client], asked, model, memory)

    return _once(key, made)


def judged(whole: Federation, site: str, model: np.ndarray, memory: Vectors) -> dict[str, Any]:
    """Metrics of a model on a site's held-out rows, as a round's record shows them."""
    digests = arrays_digest({"model": model}), arrays_digest(memory)

    def made() -> dict[str, Any]:
        with _threads().one():
            found = evaluate_client(whole.parts[site], model, site, memory)
        return dict(plain(_shown(found)))

    return _once(("judged", whole.spec.hash(), tuple(whole.parts), site, *digests), made)
