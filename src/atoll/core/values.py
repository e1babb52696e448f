"""The values that pass between server and client in a round.

Every vector in an :class:`Update` is *per unit of weight*: an aggregator forms the weighted sums
``sum_i s_i w_i v_i`` and ``sum_i w_i`` (``s_i``: staleness factor, 1 in synchronous rounds), so that
models, control variates, histograms and Gram matrices share one additive path (decision D4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from atoll.core.errors import LayoutError
from atoll.core.layout import Array, Layout
from atoll.core.metrics import Metrics

__all__ = [
    "Aggregate",
    "Broadcast",
    "ClientId",
    "Memory",
    "Merged",
    "State",
    "Update",
    "freeze",
    "moved",
    "renewed",
]

_Record = TypeVar("_Record")

ClientId = str
"""Name of a client: a site, or a simulated client."""

Memory = Mapping[str, Array]
"""A client's own state between rounds; empty before its first."""


@dataclass(frozen=True)
class Merged:
    """Metrics of several clients together, where nobody has seen those of a single one.

    Args:
        metrics: of all their rows.
        clients: whose rows.
    """

    metrics: Metrics
    clients: tuple[ClientId, ...]


def renewed(record: _Record, **changes: Any) -> _Record:
    """``dataclasses.replace`` in a third of its time, for records that check nothing when they are made.

    Raises:
        TypeError: the record has no field of such a name.
    """
    fields = vars(record)
    if not changes.keys() <= fields.keys():
        raise TypeError(f"{type(record).__name__} has no {sorted(changes.keys() - fields.keys())}")
    made = object.__new__(type(record))
    vars(made).update(fields, **changes)
    return made


def freeze(array: Array) -> Array:
    """The same array, marked read-only, so that a state cannot be changed behind its back."""
    array.flags.writeable = False
    return array


@dataclass(frozen=True, eq=False)
class State:
    """The whole state of an algorithm between rounds: one frozen record (decision D2).

    Args:
        round: committed server steps so far (the model's version).
        parameters: the shared region of the global model, ``(d,)``.
        trained: the part of ``parameters`` that gradient steps change; the rest is averaged.
        population: N, clients in the federation.
        slots: further vectors of the server: momentum, second moment, control variate …
    """

    round: int
    parameters: Array
    trained: slice
    population: int
    slots: Mapping[str, Array] = field(default_factory=dict)

    @classmethod
    def start(cls, parameters: Array, layout: Layout, population: int, **slots: Array) -> State:
        """State before the first round.

        Args:
            parameters: full vector ``(layout.size,)``; its shared region is copied.
            layout: the model's layout.
            population: N, clients in the federation.
            slots: initial further vectors.
        """
        layout.check(parameters, what="initial parameters")
        own = freeze(parameters[layout.shared].copy())
        return cls(0, own, layout.shared_trainable, population, _slots(slots))

    def next(self, parameters: Array, **slots: Array) -> State:
        """The state one server step later; slots not named stay as they are."""
        merged = {**self.slots, **_slots(slots)}
        return renewed(self, round=self.round + 1, parameters=freeze(parameters), slots=merged)


def _slots(given: Mapping[str, Any]) -> dict[str, Array]:
    return {
        name: freeze(np.asarray(value)) for name, value in given.items()
    }  # a number is an array


def moved(parameters: Array, step: Array) -> Array:
    """``parameters + step`` computed in float64 and rounded once to the parameters' dtype."""
    made = np.empty_like(parameters)
    return np.add(parameters, step, out=made, dtype=np.float64, casting="same_kind")


@dataclass(frozen=True, eq=False)
class Broadcast:
    """What the server sends a cohort: named vectors, ``parameters`` always among them."""

    version: int
    vectors: Mapping[str, Array]

    @property
    def parameters(self) -> Array:
        """The shared region of the global model, ``(d,)``."""
        return self.vectors["parameters"]


@dataclass(frozen=True, eq=False)
class Update:
    """What one client returns.

    Args:
        vectors: additive named vectors, per unit of weight.
        weight: w_i >= 0, such as the number of examples.
        examples: n_k, rows that took part (reported, not used in the arithmetic).
        metrics: mergeable metrics of the local training.
    """

    vectors: Mapping[str, Array]
    weight: float
    examples: int
    metrics: Metrics = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Aggregate:
    """The combination of the updates of one server step.

    Args:
        sums: ``sum_i s_i w_i v_i`` for each named vector, in float64 (int64 where integers were sent).
        weight: ``sum_i w_i``.
        scaled_weight: ``sum_i s_i w_i``.
        count: number of updates.
        examples: sum of n_k.
        metrics: the merged metrics.
    """

    sums: Mapping[str, Array]
    weight: float
    scaled_weight: float
    count: int
    examples: int
    metrics: Metrics = field(default_factory=dict)

    def mean(self, name: str) -> Array:
        """``sum_i s_i w_i v_i / sum_i w_i`` in float64.

        Raises:
            LayoutError: no update carried ``name``, or all weights are zero.
        """
        if name not in self.sums:
            raise LayoutError(f"no vector {name!r} in the aggregate")
        if not self.weight > 0:
            raise LayoutError("all weights of the round are zero", remedy="check the weight rule")
        return np.asarray(self.sums[name] / self.weight)
