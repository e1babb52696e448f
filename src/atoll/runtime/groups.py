"""Groups of tasks that are trained in one go.

Two kinds of trainer take several clients at once: one sums their changes without forming any single
model (:class:`~atoll.core.contracts.CohortTrainer`, for algorithms that want no more than that), one
trains them side by side (:class:`~atoll.core.contracts.LaneTrainer`, for any algorithm). Which
tasks go together follows from the round's tasks alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from atoll.core.contracts import Lane, LaneTrainer, Outcome, Task, Work
from atoll.core.layout import Array
from atoll.core.local import Fit, LocalRule
from atoll.core.values import Broadcast, ClientId, Memory
from atoll.runtime.client import Done, Parts, Takes, fold_task

__all__ = ["fold_group", "groups", "way"]


_NONE: Memory = {}


def groups(parts: Parts, tasks: Sequence[Task]) -> list[tuple[Task, ...]]:
    """The tasks in the groups that are trained in one go, dearest first.

    Groups do not depend on who works on them, so sums over a group are the same on every executor.
    Where everybody takes part in every round, so does everybody in every group.
    """
    versions = sorted({task.version for task in tasks})
    if len(versions) > 1 or len(tasks) < len(parts.clients):
        return _grouped(parts, tasks, versions)
    key = tuple([(task.client, task.fraction) for task in tasks])
    if (places := parts.turns.get(key)) is None:
        made = _grouped(parts, tasks, versions)
        at = {id(task): i for i, task in enumerate(tasks)}
        parts.turns.clear()  # of the last round alone
        parts.turns[key] = [[at[id(task)] for task in group] for group in made]
        return made
    return [tuple([tasks[i] for i in group]) for group in places]


def _grouped(
    parts: Parts, tasks: Sequence[Task], versions: Sequence[int]
) -> list[tuple[Task, ...]]:
    rows = {task.client: parts.rows(task.client) for task in tasks}
    ordered = sorted(tasks, key=lambda t: (-rows[t.client] * t.fraction, t.client))
    size = _size(parts, max(rows.values()), len(tasks)) if tasks else 1
    if size == 1:
        return [(task,) for task in ordered]
    made = list[tuple[Task, ...]]()
    for version in versions:
        own = ordered
        if len(versions) > 1:
            own = [task for task in ordered if task.version == version]
        made += [tuple(own[i : i + size]) for i in range(0, len(own), size)]
    return made


def _size(parts: Parts, rows: int, clients: int) -> int:
    if (size := parts.sizes.get((rows, clients))) is None:
        size = 1
        if parts.cohort is not None:
            size = parts.cohort[0].together(parts.local, rows, clients=clients)
        if size == 1 and parts.side_by_side is not None:
            size = parts.side_by_side.lanes
        parts.sizes.clear()  # cohorts of all sizes must not pile up
        parts.sizes[rows, clients] = size
    return size


def way(parts: Parts) -> str:
    """Which way local training takes at the first client, in words; empty where nobody can say."""
    explain = getattr(parts.trainer, "explain", None)
    if explain is None or not parts.clients:
        return ""
    with suppress(Exception):  # a client whose data cannot be trained on says so in its own outcome
        data = parts.clients[next(iter(parts.clients))]
        return str(explain(parts.local, data, sums=parts.cohort is not None))
    return ""


def fold_group(
    parts: Parts,
    group: Sequence[Task],
    broadcast: Broadcast,
    memories: Mapping[ClientId, Memory],
    fold: Takes,
) -> list[Done]:
    """Run a group that :func:`groups` formed, and fold what it sends.

    What cannot be done in one go (a client's value is not finite, its code raises, …) is done client by
    client, so that a failure is that of the client it belongs to.
    """
    start = time.perf_counter()
    if len(group) > 1 and parts.cohort is not None:
        try:
            works = [
                (parts.work(task), task.scale, memories.get(task.client, _NONE)) for task in group
            ]
            total, kept = parts.cohort[1].cohort(broadcast, works)
            fold.add_sum(total)
        except Exception:
            start = time.perf_counter()  # whose fault it is, the next lines find out
        else:
            each = (time.perf_counter() - start) / len(group)
            return [
                (Outcome(work.client, "contributed", work.examples, "", each), own or None)
                for (work, _, _), own in zip(works, kept, strict=True)
            ]
    if len(group) > 1 and parts.side_by_side is not None:
        return _side_by_side(parts, parts.side_by_side, group, broadcast, memories, fold)
    return [
        fold_task(parts, task, broadcast, memories.get(task.client, _NONE), fold) for task in group
    ]


def _side_by_side(
    parts: Parts,
    trainer: LaneTrainer,
    group: Sequence[Task],
    broadcast: Broadcast,
    memories: Mapping[ClientId, Memory],
    fold: Takes,
) -> list[Done]:
    """Ask every client what it would train, train all of them, and run each again with the answer.

    A client half is pure (decision D2), so it may be run twice. What it trains beyond its first fit, or
    not through ``fit``, it trains by itself.
    """
    asked: dict[ClientId, tuple[Array, Lane]] = {}
    for task in group:
        with suppress(Exception):  # the second run meets it again, and says so in the outcome
            try:
                work = _Asking(**vars(parts.work(task)))
                parts.algorithm.client(broadcast, memories.get(task.client, _NONE), work)
            except _Asked as question:  # kept itself, it would hold on to this frame and its arrays
                asked[task.client] = question.parameters, question.lane
    answers: dict[ClientId, Fit] = {}
    if asked:
        with suppress(Exception):  # one by one, each then has its own failure
            fits = trainer.fit_lanes(
                [parameters for parameters, _ in asked.values()],
                [lane for _, lane in asked.values()],
                round=group[0].version,
            )
            answers = dict(zip(asked, fits, strict=True))

    def again(task: Task) -> Done:
        memory, fit = memories.get(task.client, _NONE), answers.get(task.client)
        return fold_task(parts, task, broadcast, memory, fold, fit=fit)

    return [again(task) for task in group]


class _Asked(Exception):
    """Ends a client half with what it would train; no error."""

    def __init__(self, parameters: Array, lane: Lane) -> None:
        super().__init__()
        self.parameters, self.lane = parameters, lane


class _Asking(Work):
    """A client's work that says what it would train instead of training it."""

    def fit(self, parameters: Array, rule: LocalRule | None = None) -> Fit:
        lane = Lane(self.data, self.local, rule or LocalRule(), self.seed / "fit", 1.0)
        raise _Asked(parameters, lane)
