"""What our own parts cost: ``python -m benchmarks.parts`` prints a table and ``RESULT`` with JSON.

The round loop is timed with a trainer that does nothing, so that what is left is ours: drawing the
cohort, seeds, dispatch, folding, hashing, records. Two sizes of cohort give the cost of a round and that of
a task as intercept and slope.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import numpy as np

from atoll import Cohort, Job, Stop, Synchronous, simulate
from atoll.aggregation.exact import Fold
from atoll.core.contracts import Examples
from atoll.core.layout import Array, Entry, Layout
from atoll.core.local import Fit, LocalRule, LocalWork
from atoll.core.metrics import BinnedAUC, Mean, Metrics, RankedScores, merge_all
from atoll.core.seeds import Seed
from atoll.core.values import State, Update
from atoll.data.partition import Partition
from atoll.models.linear import LinearTrainer
from atoll.runtime import checkpoint
from atoll.runtime.checkpoint import Progress, model_hash

Row = dict[str, Any]
SMALL, LARGE = 10, 200
"""Cohorts whose rounds are compared."""


@dataclass(frozen=True, eq=False)
class Still:
    """A trainer that gives the model back as it came."""

    size: int

    @property
    def corrects(self) -> bool:
        """Rules change nothing here."""
        return True

    @cached_property
    def layout(self) -> Layout:
        """One entry."""
        return Layout.of([Entry("weight", (self.size,))])

    def initial(self, seed: Seed) -> Array:
        """Zeros."""
        return np.zeros(self.size, np.float32)

    def fit(
        self,
        parameters: Array,
        data: Any,
        *,
        work: LocalWork,
        rule: LocalRule,
        seed: Seed,
        round: int,
    ) -> Fit:
        """No step."""
        return Fit(parameters, 1, 0.1, len(data), 0.5)

    def gradient(self, parameters: Array, data: Any) -> tuple[Array, float]:
        """Zero."""
        return np.zeros_like(parameters), 0.0

    def evaluate(self, parameters: Array, data: Any) -> Metrics:
        """A constant."""
        return {"loss": Mean.of(0.5, len(data))}


def shortest(step: Callable[[], object], seconds: float = 0.3) -> float:
    """Milliseconds of the fastest call within about ``seconds``; background work only adds."""
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def _clients(count: int, values: int = 30) -> Partition:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count * 60, values), dtype=np.float32)
    return Partition(Examples(x, (x[:, 0] > 0).astype(np.int64)), np.arange(count + 1) * 60)


def _rounds(trainer: Any, cohort: int, rounds: int, **options: Any) -> float:
    """Median milliseconds of a round, first ones left out."""
    evaluate = options.pop("evaluate", False)
    clients = _clients(LARGE)
    made = Job(
        trainer=trainer,
        schedule=Synchronous(Cohort("uniform", cohort)),
        stop=Stop(rounds=rounds),
        evaluate_every=int(evaluate),
        central=False,
        federated=evaluate,
        checkpoint_every=int("out" in options),
    )
    ends: list[float] = []

    def watch(record: Mapping[str, Any]) -> None:
        ends.append(time.perf_counter())

    held_out = clients if evaluate else None
    simulate(made, clients, held_out=held_out, observers=[watch], **options)
    return median(np.diff(ends)[2:].tolist()) * 1e3


def loop(rounds: int) -> list[Row]:
    """Overhead of the round loop, per round and per task."""
    found = []
    for executor, workers in (("serial", 1), ("processes", 1), ("processes", 2)):
        few, many = (
            _rounds(Still(62), cohort, rounds, executor=executor, workers=workers)
            for cohort in (SMALL, LARGE)
        )
        task = (many - few) / (LARGE - SMALL)
        name = executor if executor == "serial" else f"{workers} worker{'s' * (workers > 1)}"
        found += [
            {"part": f"loop, {name}: a round", "ms": few - SMALL * task},
            {"part": f"loop, {name}: a task", "ms": task},
        ]
    return found


def hand_over(size: int) -> list[Row]:
    """A round of four idle tasks with a large model: what moving sums between processes costs."""
    found = []
    for executor, workers in (("serial", 1), ("processes", 1), ("processes", 2)):
        name = executor if executor == "serial" else f"{workers} worker{'s' * (workers > 1)}"
        spent = _rounds(Still(size), 4, 12, executor=executor, workers=workers)
        found.append({"part": f"round of 4 tasks, {size:,} values, {name}", "ms": spent})
    return found


def folder(rounds: int) -> list[Row]:
    """What writing a run's folder adds to a round of 200 tasks."""
    with tempfile.TemporaryDirectory() as scratch:
        kept = _rounds(Still(62), LARGE, rounds, out=Path(scratch) / "run", executor="serial")
    bare = _rounds(Still(62), LARGE, rounds, executor="serial")
    return [{"part": "folder with a checkpoint a round, 200 tasks", "ms": kept - bare}]


def sums(size: int = 159_010) -> list[Row]:
    """Adding one update, beside a sum in float64 and one in float32."""
    vector = np.random.default_rng(0).normal(0, 0.05, size).astype(np.float32)
    update, fold = Update({"delta": vector}, 60.0, 60), Fold()
    wide, narrow = np.zeros(size), np.zeros(size, np.float32)

    def add_wide() -> None:
        np.add(wide, vector.astype(np.float64) * 60.0, out=wide)

    def add_narrow() -> None:
        np.add(narrow, vector * np.float32(60.0), out=narrow)

    what = f"{size:,} values"
    return [
        {"part": f"exact sum, one update of {what}", "ms": shortest(lambda: fold.add(update))},
        {"part": f"float64 sum in one order, {what}", "ms": shortest(add_wide)},
        {"part": f"float32 sum in one order, {what}", "ms": shortest(add_narrow)},
    ]


def by_size(sizes: tuple[int, ...]) -> list[Row]:
    """Hash of the model and a durable checkpoint, which every round may take."""
    found: list[Row] = []
    for size in sizes:
        vector = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
        state = State(1, vector, slice(0, size), 1)
        with tempfile.TemporaryDirectory() as scratch:
            progress, place = Progress(state), Path(scratch)
            written = shortest(lambda p=progress, at=place: checkpoint.write(at, p, "job", {}), 0.6)
        hashed = shortest(lambda v=vector: model_hash(v))
        found += [
            {"part": f"model hash, {size:,} values", "ms": hashed},
            {"part": f"checkpoint with fsync, {size:,} values", "ms": written},
        ]
    return found


def evaluation(rounds: int) -> list[Row]:
    """Federated evaluation of a logistic model at 200 clients of 60 rows, per client."""
    found = []
    for name, auc in (("exact AUC", True), ("binned AUC", False)):
        trainer = LinearTrainer("logistic", 30, dtype="float32", exact_auc=auc)
        with_it = _rounds(trainer, SMALL, rounds, evaluate=True, executor="serial")
        without = _rounds(trainer, SMALL, rounds, executor="serial")
        per_client = (with_it - without) / LARGE
        found.append(
            {"part": f"federated evaluation, a client of 60 rows, {name}", "ms": per_client}
        )
    return found


def merging(clients: int = 1000) -> list[Row]:
    """Merging all clients' metrics of one evaluation, 60 rows each."""
    rng = np.random.default_rng(0)
    found = []
    for name, kind in (("exact AUC", RankedScores), ("binned AUC", BinnedAUC)):
        many = [{"auc": kind.of(np.arange(60) % 2, rng.random(60))} for _ in range(clients)]
        spent = shortest(lambda m=many: merge_all(m), 0.5)
        found.append({"part": f"merging the {name} of {clients:,} clients", "ms": spent})
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller models")
    given = parser.parse_args()
    rounds = 20 if given.quick else 60
    sizes = (1_000, 159_010) if given.quick else (1_000, 159_010, 1_663_370, 25_000_000)
    found = [
        *loop(rounds),
        *hand_over(159_010 if given.quick else 1_663_370),
        *folder(rounds),
        *sums(),
        *by_size(sizes),
        *evaluation(6 if given.quick else 12),
        *merging(),
    ]
    for row in found:
        print(f"{row['part']:60} {row['ms']:10.4f} ms")
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main()
