"""The answers of one training call, folded one by one as they come (decision D5).

What an update must look like is asked of the algorithm itself: its client half is run once behind a
trainer that learns nothing, which gives the names, shapes, dtypes and kinds of metrics of every honest
update, and whether its weight is the client's own. So the first answer to come has no more say than
the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from atoll.core.contracts import Task
from atoll.core.errors import UpdateRefused
from atoll.core.layout import Array, Entry, Layout
from atoll.core.local import Fit, LocalRule, LocalWork
from atoll.core.metrics import Mean, Metric, Metrics
from atoll.core.seeds import Seed
from atoll.core.values import Aggregate, Broadcast, Update
from atoll.runtime.client import Parts
from atoll.server.answers import Expected
from atoll.server.slabs import SlabFold
from atoll.wire.frames import decode
from atoll.wire.messages import ResultBody, TaskBody
from atoll.wire.metrics import metrics_from_plain

_SMALL = 1000
"""A model of no more values is asked about itself."""

__all__ = ["Pattern", "TrainFold", "pattern_of"]


@dataclass(frozen=True)
class Pattern:
    """What every honest update of a run looks like.

    Args:
        expected: its vectors.
        metrics: kinds of its metrics by name; one may be absent.
        weighs: whether its weight is the client's w_i.
        counts: whether its examples are the client's rows.
    """

    expected: Expected
    metrics: Mapping[str, type]
    weighs: bool
    counts: bool

    def check(self, body: ResultBody, metrics: Metrics, weight: float, rows: int) -> None:
        """Refuse numbers that are not this client's.

        Raises:
            UpdateRefused: with what was said and what is known.
        """
        if self.weighs and body.weight != weight:
            raise UpdateRefused(f"weight {body.weight!r} where {weight!r} is this site's")
        if self.counts and body.examples != rows:
            raise UpdateRefused(f"{body.examples} examples at a site with {rows} rows")
        for name, metric in metrics.items():
            if self.metrics.get(name) is not type(metric):
                raise UpdateRefused(f"metric {name!r:.80} is not one of this algorithm")


@dataclass(frozen=True, eq=False)
class _Unmoved:
    """A trainer that learns nothing."""

    layout: Layout
    start: Array
    corrects: bool = True

    def initial(self, seed: Seed) -> Array:
        return self.start

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
        return Fit(parameters.copy(), 1, 1.0, len(data), 1.0)

    def gradient(self, parameters: Array, data: Any) -> tuple[Array, float]:
        return np.zeros_like(parameters), 1.0

    def evaluate(self, parameters: Array, data: Any) -> Mapping[str, Metric]:
        return {"loss": Mean.of(1.0, len(data))}


def pattern_of(parts: Parts, task: Task, broadcast: Broadcast) -> Pattern:
    """Ask the algorithm what its clients send; a large model is stood for by a small one of its kind.

    Args:
        parts: the run's.
        task: any task.
        broadcast: what it starts from.
    """
    whole = parts.trainer.layout
    layout = whole if whole.size <= _SMALL else _alike(whole)
    sizes = {_shared(layout): _shared(whole)}
    vectors = {
        name: np.zeros(_shared(layout), v.dtype) if v.shape == (_shared(whole),) else v
        for name, v in broadcast.vectors.items()
    }
    still = _Unmoved(layout, np.zeros(layout.size, layout.dtype))
    work = replace(parts, trainer=still).work(task)
    with np.errstate(all="ignore"):
        update, _ = parts.algorithm.client(Broadcast(broadcast.version, vectors), {}, work)
    slots = {
        name: (tuple(sizes.get(int(n), int(n)) for n in v.shape), v.dtype.name)
        for name, v in update.vectors.items()
    }
    return Pattern(
        expected=Expected(slots),
        metrics={name: type(metric) for name, metric in update.metrics.items()},
        weighs=update.weight == work.weight,
        counts=update.examples == work.examples,
    )


def _shared(layout: Layout) -> int:
    return int(layout.shared.stop)


def _alike(layout: Layout) -> Layout:
    """A small layout with the same regions; its lengths are those of nothing else."""
    regions = {entry.region: entry for entry in layout.entries if entry.size}
    small = [
        Entry(f"region {region}", (101 + region,), "float32", entry.trainable, entry.personal)
        for region, entry in sorted(regions.items())
    ]
    return Layout(tuple(small), layout.dtype)


class TrainFold:
    """The running sum of one call; memory O(model), whatever the number of sites.

    Args:
        parts: the run's.
        pattern: see :func:`pattern_of`.
        updates: how many may come.
        frame: gives the frame of a task's answer again, once the call is complete.
    """

    def __init__(
        self, parts: Parts, pattern: Pattern, updates: int, frame: Callable[[str], memoryview]
    ) -> None:
        self._parts = parts
        self._pattern = pattern
        self._frame = frame
        self._fold = SlabFold(_shared(parts.trainer.layout), updates)

    @property
    def expected(self) -> Expected:
        """What an answer may hold."""
        return self._pattern.expected

    def take(self, task: TaskBody, body: ResultBody, arrays: Mapping[str, Array]) -> None:
        """Fold one answer.

        Raises:
            UpdateRefused: it may not enter the sum, which is unchanged.
            WireError: its metrics are malformed.
        """
        metrics = metrics_from_plain(body.metrics)
        rows = len(self._parts.clients[task.client])
        weight = self._parts.weighting.of(task.client, rows)
        self._pattern.check(body, metrics, weight, rows)
        update = Update(arrays, body.weight, body.examples, metrics)
        allowed = self.expected.allowed
        self._fold.add(update, task.scale, lambda: decode(self._frame(task.id), allowed)[1])

    def aggregate(self) -> Aggregate:
        """What the answers so far add up to."""
        return self._fold.aggregate()
