"""Numbers become integers before they leave, so that they add up exactly, under masks too.

A vector of the model is rounded stochastically to a grid on [-C, C], which is chosen so that the sum over
n clients stays inside a ring of 32 bits: overflow is impossible. Everything else that says something of a
client (its weight, its rows, its metrics) travels as further integers of 64 bits inside the same sum; in
the clear an update says nothing any more. Encoding: :mod:`atoll.privacy.secagg.fixed`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from atoll.core.chain import COHORT, Passage, Passive, Range, Setting
from atoll.core.errors import Fault, UpdateRefused
from atoll.core.layout import Array
from atoll.core.metrics import Metric, Metrics
from atoll.core.values import Aggregate, Broadcast, Update
from atoll.privacy.links.figures import additive, joined, split
from atoll.privacy.links.shares import Shares
from atoll.privacy.secagg.fixed import WEIGHT, Rounding
from atoll.privacy.secagg.sums import LaneSums
from atoll.privacy.secagg.terms import Lane

__all__ = ["EXAMPLES", "SCALED", "Quantise"]

EXAMPLES = "examples"
"""Lane of the number of rows."""

SCALED = "scaled"
"""Lane of the weight times the staleness factor."""

_DRAWN = 16_384
"""Values that draws are made for at a time."""
_OTHERS = Range(2.0**32)
_ROWS = Range(2.0**40, 1.0)


@dataclass(frozen=True, eq=False)
class Quantise(Passive):
    """The link.

    Args:
        bound: C, for vectors of the model; beyond it a coordinate is clipped.
        model: d, length of a vector of the model.
        vectors: length of every vector that comes, by name, in the order of the lanes.
        cap: largest weight.
        caps: whether more counts as much; else it is refused.
        counts: whether weights are whole numbers.
        kinds: the metrics that come, by name; their values do not matter.
        ranges: of vectors that are none of the model.
        figures: whether weight, rows and metrics travel; not where every figure costs privacy.
        shares: the noise that clients will add; it decides the lattice.
        bits: of the ring for vectors of the model, 32 or 64.
    """

    bound: float
    model: int
    vectors: Mapping[str, int]
    cap: float = 1.0
    caps: bool = True
    counts: bool = True
    kinds: Metrics = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    figures: bool = True
    shares: Shares | None = None
    bits: Literal[32, 64] = 32
    name: str = "quantise"
    needs: frozenset[str] = frozenset()
    gives: frozenset[str] = frozenset({"integers", "weights inside", "staleness inside"})

    def lanes(self, cohort: int) -> tuple[Lane, ...]:
        """The lanes of one update, with the ranges of real values."""
        if cohort not in self._known:
            self._known[cohort] = (*self._vectors(cohort), *self._figures)
        return self._known[cohort]

    def _vectors(self, cohort: int) -> Iterator[Lane]:
        lattice = None
        if self.shares is not None:
            lattice = self.shares.lattice(cohort, self.bound, self.values)
        for name, length in self.vectors.items():
            if length != self.model:
                yield _lane(name, length, self.ranges.get(name, _OTHERS))
            elif lattice is None:
                yield Lane(name, length, self.bound, self.bits)
            else:
                yield Lane(name, length, lattice.levels * lattice.step, step=lattice.step)

    @property
    def values(self) -> int:
        """Values of all vectors of the model together."""
        return sum(length for length in self.vectors.values() if length == self.model)

    @cached_property
    def _figures(self) -> tuple[Lane, ...]:
        if not self.figures:
            return ()
        weight = Range(self.cap, 1.0 if self.counts else None)
        found = [_lane(WEIGHT, 1, weight), _lane(SCALED, 1, Range(self.cap))]
        found.append(_lane(EXAMPLES, 1, _ROWS))
        for metric, parts in self._parts.items():
            found += [_lane(_named(metric, p), v.size, given) for p, (v, given) in parts.items()]
        return tuple(found)

    @cached_property
    def _known(self) -> dict[int, tuple[Lane, ...]]:
        return {}

    def integer_lanes(self, cohort: int) -> tuple[Lane, ...]:
        """The same lanes as they are masked: whole numbers, with the most one client may send."""
        return tuple(
            replace(lane, bound=float(lane.levels(cohort)), step=1.0, excess="refuse")
            for lane in self.lanes(cohort)
        )

    @cached_property
    def _parts(self) -> dict[str, Mapping[str, tuple[Array, Range]]]:
        return {n: split(m) for n, m in sorted(self.kinds.items()) if additive(m)}

    def faults(self, setting: Setting) -> Sequence[Fault]:
        """Metrics that hold single rows, and cohorts too large for the ring."""
        found = [
            Fault(
                f"metric {name!r}",
                f"{type(metric).__name__} holds every row's score and does not add up",
                "use BinnedAUC, or privacy.aggregation = 'plain'",
            )
            for name, metric in setting.metrics.items()
            if self.figures and not additive(metric)
        ]
        if not found:
            found += [
                Fault(f"privacy: lane {lane.name}", text, "lower privacy.bound or the cohort")
                for lane in self.lanes(max(1, setting.cohort))
                for text in lane.faults(max(1, setting.cohort))
            ]
        return found

    def client(self, update: Update, passage: Passage) -> Update:
        """Integers of all lanes; in the clear the update weighs 1 and says nothing else.

        Raises:
            UpdateRefused: other vectors than declared, values that are not finite, or figures
                beyond their range.
        """
        given = {name: v.size for name, v in update.vectors.items()}
        if given != dict(self.vectors):
            raise UpdateRefused(f"vectors {given} where {dict(self.vectors)} are declared")
        values, grid, sent = self._values(update, passage.scale), Rounding(), dict[str, Array]()
        factor = self._share(update) * passage.scale
        for lane in self.lanes(passage.cohort):
            into = np.empty(lane.length, np.int32 if lane.bits == 32 else np.int64)
            stream = None
            if lane.step is None:
                stream = (passage.seed / "round" / lane.name).generator()
            ours = factor if lane.name in self.vectors else None
            for start in range(0, lane.length, _DRAWN):
                block = slice(start, min(start + _DRAWN, lane.length))
                draws = None
                if stream is not None:  # the same as all at once
                    draws = stream.integers(0, 2**32, block.stop - start, dtype=np.uint32)
                part = values[lane.name][block]
                grid.put(lane, passage.cohort, part, draws, into[block], ours)
            sent[lane.name] = into
        return Update(sent, 1.0, 0)

    def bounded(self, update: Update, broadcast: Broadcast) -> Update:
        """The update with each coordinate inside its bound; the very same where all are."""
        share = self._share(update)
        most = self.bound / share if share else math.inf
        cut = {
            name: np.clip(v, -most, most)
            for name, v in update.vectors.items()
            if v.size == self.model and v.size and np.abs(v).max() > most
        }
        return replace(update, vectors={**update.vectors, **cut}) if cut else update

    def _share(self, update: Update) -> float:
        if not self.caps and update.weight > self.cap:
            raise UpdateRefused(f"weight {update.weight:g} is above the largest, {self.cap:g}")
        return min(float(update.weight), self.cap) / self.cap

    def _values(self, update: Update, scale: float) -> dict[str, Array]:
        """What each lane carries; vectors are still to be multiplied by share and ``scale``."""
        values = {name: v.reshape(-1) for name, v in update.vectors.items()}
        if not self.figures:
            return values
        weight = self._share(update) * self.cap
        values[WEIGHT] = np.array([weight])
        values[SCALED] = np.array([weight * scale])
        values[EXAMPLES] = np.array([float(update.examples)])
        for name, parts in self._parts.items():
            known = self.kinds[name]
            metric = update.metrics.get(name)
            if metric is not None and type(metric) is not type(known):
                raise UpdateRefused(f"metric {name!r} is {type(metric).__name__}")
            sent = None if metric is None else split(metric)
            for part, (like, _) in parts.items():
                value = np.zeros(like.size) if sent is None else sent[part][0]
                if value.size != like.size:
                    raise UpdateRefused(f"metric {name!r} has {value.size} {part}, not {like.size}")
                values[_named(name, part)] = value
        return values

    def server(
        self, aggregate: Aggregate, slots: Mapping[str, Array], round: int
    ) -> tuple[Aggregate, Mapping[str, Array]]:
        """Numbers again, in the units of the weights; the metrics of all clients together.

        Raises:
            UpdateRefused: a sum is beyond what so many clients can reach.
        """
        cohort, present = int(slots[COHORT][0]), aggregate.count
        if not present:
            return aggregate, {}
        lanes = {lane.name: lane for lane in self.lanes(cohort)}
        long = {name: lanes.pop(name) for name in self.vectors}
        cap = self.cap if self.figures else 1.0
        sums = LaneSums(long, aggregate.sums, cohort, present, cap, self.model)
        if not self.figures:
            return replace(aggregate, sums=sums), {}
        total = dict(LaneSums(lanes, aggregate.sums, cohort, present))
        return replace(
            aggregate,
            sums=sums,
            weight=float(total[WEIGHT][0]),
            scaled_weight=float(total[SCALED][0]),
            examples=_whole(total[EXAMPLES]),
            metrics=self._metrics(total),
        ), {}

    def _metrics(self, total: Mapping[str, Array]) -> dict[str, Metric]:
        found = {}
        for name, parts in self._parts.items():
            values = {part: total[_named(name, part)] for part in parts}
            metric = joined(type(self.kinds[name]), values)
            if metric is not None:
                found[name] = metric
        return found


def _lane(name: str, length: int, given: Range) -> Lane:
    bits: Literal[32, 64] = 32 if given.bits == 32 else 64
    return Lane(
        name, length, given.bound, bits, given.step, "clip" if given.step is None else "refuse"
    )


def _named(metric: str, part: str) -> str:
    return f"metric.{metric}.{part}"


def _whole(value: Array) -> int:
    """The whole number nearest to the only value."""
    return int(np.rint(value[0]))
