"""The answers of one training call, folded one by one as they come (decision D5).

What an update must look like is asked of the algorithm itself: its client half is run once behind a
trainer that learns nothing, which gives the names, shapes, dtypes and kinds of metrics of every honest
update, and whether its weight is the client's own. So the first answer to come has no more say than
the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from atoll.core.contracts import Task
from atoll.core.errors import UpdateRefused
from atoll.core.layout import Array
from atoll.core.metrics import Metrics
from atoll.core.values import Aggregate, Broadcast, Update
from atoll.runtime.client import Parts
from atoll.runtime.pattern import blank_of
from atoll.server.rounds.answers import Expected
from atoll.server.rounds.slabs import SlabFold
from atoll.wire.frames import decode
from atoll.wire.messages import ResultBody, TaskBody
from atoll.wire.metrics import metrics_from_plain

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


def pattern_of(parts: Parts, task: Task, broadcast: Broadcast) -> Pattern:
    """Ask the algorithm what its clients send; a large model is stood for by a small one of its kind.

    Args:
        parts: the run's.
        task: any task.
        broadcast: what it starts from.
    """
    blank = blank_of(parts, task, broadcast)
    # Behind such a chain nothing in the clear says how many rows a site has.
    inside = parts.chain.gives("weights inside")
    return Pattern(
        expected=Expected(dict(blank.shapes)),
        metrics={name: type(metric) for name, metric in blank.update.metrics.items()},
        weighs=inside or blank.update.weight == blank.work.weight,
        counts=inside or blank.update.examples == blank.work.examples,
    )


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
        self._fold = SlabFold(parts.trainer.layout.shared.stop, updates)

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
        chain = self._parts.chain
        rows = len(self._parts.clients[task.client])
        weight = self._parts.weighting.of(task.client, rows)
        if chain.gives("weights inside"):
            weight, rows = 1.0, 0
        self._pattern.check(body, metrics, weight, rows)
        update = Update(arrays, body.weight, body.examples, metrics)
        self._parts.gate.check(update)
        allowed = self.expected.allowed
        self._fold.add(
            update, chain.factor(task.scale), lambda: decode(self._frame(task.id), allowed)[1]
        )

    def aggregate(self) -> Aggregate:
        """What the answers so far add up to."""
        return self._fold.aggregate()
