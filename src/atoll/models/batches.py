"""Which rows each local step sees, and at which learning rate: one definition for every trainer.

The order of epoch e is the permutation drawn from ``seed / "epoch" / e``, cut into consecutive
batches. A batch that holds every row is taken in the rows' own order: nothing is drawn for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from atoll.core.errors import DataError, JobError, suggest
from atoll.core.layout import Array
from atoll.core.local import LocalWork, Schedule
from atoll.core.seeds import Seed

__all__ = ["Plan", "batches", "full_batch", "learning_rate", "order", "passes", "plan"]

_SLACK = 1e-9
"""0.07 * 100 is 7.000000000000001 in float64 and still means seven steps."""


@dataclass(frozen=True)
class Plan:
    """How one client's rows are cut into steps.

    Args:
        rows: n_k.
        size: rows of a full batch; never more than ``rows``.
        per_epoch: batches in one pass.
        steps: optimiser steps in all; runs over into further epochs where needed.
    """

    rows: int
    size: int
    per_epoch: int
    steps: int

    @property
    def epochs(self) -> int:
        """Passes that are begun; the last one may end early."""
        return -(-self.steps // self.per_epoch)


def full_batch(rows: int, work: LocalWork) -> int:
    """How many of ``rows`` rows a batch of ``work`` holds that is not cut short."""
    return min(work.batch_size, rows) if work.batch_size > 0 else rows


def plan(rows: int, work: LocalWork) -> Plan:
    """Cut ``rows`` rows into the batches of ``work``.

    A client with fewer rows than a batch takes them all in one step, also under ``drop_last``:
    it would otherwise send back what it got.

    Raises:
        DataError: the client has no rows.

    >>> plan(25, LocalWork(epochs=1.5, batch_size=10))
    Plan(rows=25, size=10, per_epoch=3, steps=5)
    """
    if rows <= 0:
        raise DataError("the client has no rows to train on", remedy="leave it out of the cohort")
    size = full_batch(rows, work)
    full, rest = divmod(rows, size)
    per_epoch = full + (1 if rest and not work.drop_last else 0)
    steps = work.steps
    if steps is None:
        steps = math.ceil(work.epochs * per_epoch - _SLACK)
    return Plan(rows, size, per_epoch, max(steps, 0))


def batches(rows: int, work: LocalWork, seed: Seed) -> Iterator[tuple[int, Array]]:
    """For each step its local epoch and the row numbers of its batch, ``(<= batch_size,)`` int64.

    Args:
        rows: n_k, at least 1.
        work: the local work.
        seed: the stream of this fit; ``seed / "epoch" / e`` orders epoch e.

    >>> [(e, len(i)) for e, i in batches(5, LocalWork(epochs=2, batch_size=3), Seed(0))]
    [(0, 3), (0, 2), (1, 3), (1, 2)]
    """
    for epoch, visited, size in passes(rows, work, seed):
        for start in range(0, len(visited), size):
            yield epoch, visited[start : start + size]


def passes(
    rows: int, work: LocalWork, seed: Seed, *, cut: Plan | None = None
) -> Iterator[tuple[int, Array, int]]:
    """For each local epoch its number, the row numbers it visits in order, and the batch size.

    The row numbers serve who gathers many batches at once; see :func:`batches` for the rest. ``cut`` is
    the plan, where the caller has it already.

    >>> [(e, len(order), size) for e, order, size in passes(5, LocalWork(1.5, batch_size=2), Seed(0))]
    [(0, 5, 2), (1, 4, 2)]
    """
    cut = cut or plan(rows, work)
    for epoch in range(cut.epochs):
        yield epoch, order(cut, seed, epoch), cut.size


def order(cut: Plan, seed: Seed, epoch: int) -> Array:
    """The row numbers that a local epoch visits in order, ``(<= rows,)`` int64.

    They are those of the batches that are taken: the last epoch may end early.

    Args:
        cut: the client's plan.
        seed: the stream of this fit.
        epoch: from 0, below ``cut.epochs``.
    """
    drawn = cut.size < cut.rows
    found = seed.permutation(cut.rows, "epoch", epoch) if drawn else np.arange(cut.rows)
    taken = min(cut.per_epoch, cut.steps - epoch * cut.per_epoch) * cut.size
    return found if taken >= cut.rows else found[:taken]


def learning_rate(work: LocalWork, *, round: int, epoch: int) -> float:
    """eta_l of a step in ``round`` and local ``epoch`` (both counted from 0).

    >>> from atoll.core.local import Optimizer
    >>> halve = Schedule("step", gamma=0.5, every=10)
    >>> learning_rate(LocalWork(optimizer=Optimizer(lr=0.1), schedule=halve), round=20, epoch=0)
    0.025
    """
    lr, schedule = work.optimizer.lr, work.schedule
    t = round if schedule.unit == "round" else epoch
    return lr * _factor(schedule, t)


def _factor(schedule: Schedule, t: int) -> float:
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind == "step":
        return float(schedule.gamma ** (t // schedule.every))
    if schedule.kind == "cosine":
        share = min(t, schedule.every) / schedule.every
        return schedule.floor + (1.0 - schedule.floor) * 0.5 * (1.0 + math.cos(math.pi * share))
    raise JobError(
        f"unknown schedule {schedule.kind!r}",
        remedy=suggest(str(schedule.kind), ["constant", "step", "cosine"]),
    )
