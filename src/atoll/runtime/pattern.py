"""What clients of a run send, found out by asking the algorithm itself.

Its client half is run once behind a trainer that learns nothing: that gives the names, shapes, dtypes
and kinds of metrics of every honest update before any has come. A large model is stood for by a small
one of its kind, unless there is a chain, whose links may know the model's layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from atoll.core.chain import COHORT, Chain
from atoll.core.contracts import Task, Work
from atoll.core.layout import Array, Entry, Layout
from atoll.core.local import Fit, LocalRule, LocalWork
from atoll.core.metrics import Mean, Metric
from atoll.core.seeds import Seed
from atoll.core.values import Broadcast, Update
from atoll.runtime.client import Parts, answer_task

__all__ = ["Blank", "blank_of", "lanes_at"]

_SMALL = 1000
"""A model of no more values is asked about itself."""


@dataclass(frozen=True, eq=False)
class Blank:
    """An update of a client that learned nothing.

    Args:
        update: what it sends, behind the chain.
        work: what it was asked.
        shapes: shape and dtype of every vector that clients of the real model send, by name.
    """

    update: Update
    work: Work
    shapes: Mapping[str, tuple[tuple[int, ...], str]]


def blank_of(parts: Parts, task: Task, broadcast: Broadcast) -> Blank:
    """What the client of ``task`` would send if training changed nothing.

    Args:
        parts: the run's.
        task: any task.
        broadcast: what it starts from.
    """
    whole = parts.trainer.layout
    layout = whole if whole.size <= _SMALL or parts.chain else _alike(whole)
    sizes = {_shared(layout): _shared(whole)}
    vectors = {
        name: np.zeros(_shared(layout), v.dtype) if v.shape == (_shared(whole),) else v
        for name, v in broadcast.vectors.items()
    }
    # A statistic is asked what it sends of no row; there is no training that could be left out.
    asked = getattr(parts.algorithm, "blank", parts.algorithm)
    unmoved = _Unmoved(layout, np.zeros(layout.size, layout.dtype))
    still = replace(parts, algorithm=asked, trainer=unmoved)
    with np.errstate(all="ignore"):
        update, _ = answer_task(still, task, Broadcast(broadcast.version, vectors), {})
    shapes = {
        name: (tuple(sizes.get(int(n), int(n)) for n in v.shape), v.dtype.name)
        for name, v in update.vectors.items()
    }
    return Blank(update, still.work(task), shapes)


def lanes_at(parts: Parts, task: Task, broadcast: Broadcast) -> tuple[Any, ...]:
    """The integers of one masked update in a round; of a statistic they change from round to round.

    Args:
        parts: the run's; its chain makes integers.
        task: any task of the round.
        broadcast: what it starts from.
    """
    quantise = parts.chain.find("quantise")
    over = getattr(quantise, "over", None)
    if over is not None:
        quantise = over(blank_of(replace(parts, chain=Chain()), task, broadcast).shapes)
    return tuple(quantise.integer_lanes(int(broadcast.vectors[COHORT][0])))


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
