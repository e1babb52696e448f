"""A round over models of any size in memory for one: sums are formed and used slab by slab.

An update is checked whole when it comes and stays on disk. When the round is complete, a slab of every
update is read, added up exactly and handed to the algorithm's server step for that slab of the model,
then the next. So what a round costs in memory is the model it makes and a few slabs, where sums over
the whole model would take four times the model in integers and more in intermediate results.

That needs a server step that treats each parameter by itself. Atoll's own methods do (a test holds each of
them against the whole step, bit for bit); another's gets the whole sums.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from atoll.aggregation.exact import Fold, sum_of, total_of
from atoll.core.contracts import Algorithm, Weighting, Work
from atoll.core.errors import UpdateRefused
from atoll.core.layout import Array, Layout
from atoll.core.local import LocalWork
from atoll.core.values import Aggregate, Broadcast, Memory, State, Update, freeze
from atoll.privacy.secagg.sums import LaneSums
from atoll.runtime.checkpoint import ModelHash

__all__ = ["SLAB", "BySlabs", "Rooms", "SlabFold", "Totals"]

SLAB = 1 << 18
"""Values handled at a time."""

_MODEL = ""
_WORKERS = min(4, os.cpu_count() or 1)
"""Slabs that are worked on at the same time."""

_PARTS = 4
"""Parts in which a slab is added up, one after the other."""

_TOGETHER = 4
"""Slabs of a large model for which the updates are opened once."""

_LARGE = 8 << 20
"""Bytes of a vector whose memory is worth keeping."""

_IN_MEMORY = 32 << 20
"""Bytes of updates that may stay in memory instead of being read again."""

Reopen = Callable[[], Mapping[str, Array]]
"""Gives an update's vectors once more."""


@dataclass(frozen=True, eq=False)
class _Held:
    """One update: the factor of its vectors, the reach of each, and where they are."""

    factor: float
    reaches: Mapping[str, int]
    vectors: Reopen


class Rooms:
    """Memory of a run's vectors that nobody knows any more, for those of the next round.

    The system clears each new page first, which takes longer than to fill it. A round makes its vectors
    while those before it are still there: what is kept between rounds is memory that it needs in any case.

    Attributes:
        most: vectors that a round makes; so many are kept.
    """

    def __init__(self) -> None:
        self.most = 1
        self._free: list[mmap.mmap] = []

    def take(self, size: int, dtype: np.dtype[Any]) -> Array:
        """A vector of whatever was there."""
        wanted = size * dtype.itemsize
        if wanted < _LARGE or not hasattr(mmap, "MAP_ANONYMOUS"):
            return np.empty(size, dtype)
        raw = self._found(wanted)
        # Whoever holds the vector or a part of it holds this: the memory is free when it goes.
        owner = (ctypes.c_char * wanted).from_buffer(raw)
        weakref.finalize(owner, self._keep, raw).atexit = False
        return np.frombuffer(memoryview(owner).cast("B"), dtype)

    def _keep(self, raw: mmap.mmap) -> None:
        if len(self._free) < self.most:
            self._free.append(raw)

    def _found(self, wanted: int) -> mmap.mmap:
        while self._free:
            with contextlib.suppress(IndexError):  # another thread was first
                if len(raw := self._free.pop()) == wanted:
                    return raw
        made = mmap.mmap(-1, wanted, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError, AttributeError):
            made.madvise(mmap.MADV_HUGEPAGE)
        return made


class Totals(Mapping[str, Array]):
    """The sums of a round by name; those as long as the model are formed when they are asked for.

    Args:
        small: sums that are there.
        shapes: shape and dtype of the long ones.
        held: the updates.
    """

    def __init__(
        self,
        small: Mapping[str, Array],
        shapes: Mapping[str, tuple[tuple[int, ...], str]],
        held: list[_Held],
    ) -> None:
        self._small, self._shapes, self._held = small, shapes, held

    def __iter__(self) -> Iterator[str]:
        """Names in their order."""
        return iter(sorted([*self._small, *self._shapes]))

    def __contains__(self, name: object) -> bool:
        """Whether there is such a sum; it is not formed for that."""
        return name in self._small or name in self._shapes

    def __len__(self) -> int:
        """How many names."""
        return len(self._small) + len(self._shapes)

    def __getitem__(self, name: str) -> Array:
        """A whole sum."""
        if name in self._small:
            return self._small[name]
        shape, _ = self._shapes[name]
        return self.between(slice(None), (name,))[name].reshape(shape)

    def opened(self) -> list[Mapping[str, Array]]:
        """The vectors of all updates; while they are kept, so is what they are maps of."""
        return [held.vectors() for held in self._held]

    def between(
        self,
        here: slice,
        names: tuple[str, ...] | None = None,
        opened: Sequence[Mapping[str, Array]] | None = None,
    ) -> dict[str, Array]:
        """A slab of the long sums and all of the others; ``opened`` spares opening the updates."""
        there = list(zip(self._held, opened or self.opened(), strict=True))
        found: dict[str, Array] = {}
        for name in tuple(self._shapes) if names is None else names:
            terms = [
                (vectors[name].reshape(-1)[here], held.factor, held.reaches[name])
                for held, vectors in there
            ]
            found[name] = total_of(terms, self._shapes[name][1])
        return {**self._small, **found} if names is None else found


class SlabFold:
    """What :class:`~atoll.aggregation.exact.Fold` does, to the same bits, with long vectors left on disk.

    Args:
        size: length of a long vector.
        updates: how many may come.
    """

    def __init__(self, size: int, updates: int) -> None:
        self._size = size
        self._updates = max(1, updates)
        self._rest = Fold(self._updates)
        self._shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        self._held: list[_Held] = []
        self._bytes = 0

    def add(self, update: Update, scale: float, reopen: Reopen) -> None:
        """Take in an update; it is checked whole before any of it counts.

        Args:
            update: its vectors need not outlive this call.
            scale: its staleness factor.
            reopen: gives the vectors again.

        Raises:
            UpdateRefused: see :meth:`atoll.aggregation.exact.Fold.add`.
        """
        long = {n: v for n, v in update.vectors.items() if v.size == self._size and self._size > 1}
        factor = float(scale) * float(update.weight)
        shapes = {name: (v.shape, v.dtype.name) for name, v in long.items()}
        if self._held and shapes != self._shapes:
            raise UpdateRefused(f"vectors {sorted(shapes)}, not {sorted(self._shapes)}")
        reaches = {name: self._reach(name, v, factor) for name, v in long.items()}
        small = {name: v for name, v in update.vectors.items() if name not in long}
        self._rest.add(replace(update, vectors=small), scale)
        self._shapes = shapes
        self._held.append(_Held(factor, reaches, self._kept(long, reopen)))

    def _reach(self, name: str, vector: Array, factor: float) -> int:
        # A sum whose limbs take no memory: it is asked, and nothing is added.
        limbs = np.broadcast_to(np.int64(0), (2, vector.size))
        asked = sum_of(vector.size, vector.dtype.name, limbs)
        try:
            reach = asked.check(vector.reshape(-1), factor)
            if reach * self._updates >= asked.limit:
                share = asked.limit // self._updates
                raise UpdateRefused(f"a value of {reach:.3g} is beyond its share {share:.3g}")
        except UpdateRefused as error:
            raise UpdateRefused(f"{name!r}: {error.message}", remedy=error.remedy) from error
        return reach

    def _kept(self, vectors: Mapping[str, Array], reopen: Reopen) -> Reopen:
        """Short updates stay in memory: reading them again would cost more than it saves."""
        size = sum(v.nbytes for v in vectors.values())
        if self._bytes + size > _IN_MEMORY:
            return reopen
        self._bytes += size
        copies = {name: v.copy() for name, v in vectors.items()}
        return lambda: copies

    def aggregate(self) -> Aggregate:
        """What the updates add up to; its sums are :class:`Totals`."""
        rest = self._rest.aggregate()
        return replace(rest, sums=Totals(rest.sums, self._shapes, list(self._held)))


@dataclass(frozen=True, eq=False)
class BySlabs:
    """An algorithm that knows no end, its server step done slab by slab; otherwise the algorithm itself.

    Args:
        inner: the algorithm.
        slab: values at a time.
        rooms: where vectors as long as the model are made.
    """

    inner: Algorithm
    slab: int = SLAB
    rooms: Rooms = field(default_factory=Rooms, repr=False)

    @property
    def needs_correction(self) -> bool:
        """The algorithm's own."""
        return self.inner.needs_correction

    def faults(self, weighting: Weighting, local: LocalWork) -> list[str]:
        """The algorithm's own."""
        return list(self.inner.faults(weighting, local))

    def init(self, parameters: Array, layout: Layout, population: int) -> State:
        """The algorithm's own."""
        return self.inner.init(parameters, layout, population)

    def broadcast(self, state: State) -> Broadcast:
        """The algorithm's own."""
        return self.inner.broadcast(state)

    def client(self, broadcast: Broadcast, memory: Memory, work: Work) -> tuple[Update, Memory]:
        """The algorithm's own."""
        return self.inner.client(broadcast, memory, work)

    def staleness(self, tau: int) -> float:
        """The algorithm's own."""
        return self.inner.staleness(tau)

    def server(self, state: State, aggregate: Aggregate) -> State:
        """The server's half of a round; the same bits as in one go."""
        sums, size = aggregate.sums, state.parameters.size
        if (
            not isinstance(sums, Totals | LaneSums)
            or size <= self.slab
            or not _by_parameter(self.inner)
        ):
            return self.inner.server(state, aggregate)
        made: dict[str, Array] = {}
        part_size = -(-self.slab // _PARTS)
        width = self.slab * max(1, min(_TOGETHER, size // (self.slab * 2 * _WORKERS)))

        def step(start: int) -> slice:
            stop, opened = min(start + width, size), sums.opened()
            # In parts: what is computed on the way stays in the processor's cache.
            for first in range(start, stop, part_size):
                piece(slice(first, min(first + part_size, stop)), opened)
            return slice(start, stop)

        def piece(here: slice, opened: Sequence[Mapping[str, Array]]) -> None:
            found = replace(aggregate, sums=sums.between(here, opened=opened))
            part = self.inner.server(_part(state, here), found)
            vectors = {_MODEL: part.parameters, **part.slots}
            if not made:
                long = {n: v for n, v in vectors.items() if v.shape == part.parameters.shape}
                self.rooms.most = len(long)
                made.update(
                    {**vectors, **{n: self.rooms.take(size, v.dtype) for n, v in long.items()}}
                )
            for name, vector in vectors.items():
                if made[name].shape == (size,):
                    made[name][here] = vector

        first = step(0)
        model = made[_MODEL]
        hashed = ModelHash(model.dtype)
        hashed.take(model[first])
        # Slabs know nothing of each other, and NumPy lets go of the interpreter while it computes.
        with ThreadPoolExecutor(_WORKERS, "atoll-slab") as workers:
            for done in workers.map(step, range(width, size, width)):
                hashed.take(model[done])
        frozen = {name: freeze(vector) for name, vector in made.items()}
        hashed.keep(model)
        slots = {name: slot for name, slot in frozen.items() if name != _MODEL}
        return replace(state, round=state.round + 1, parameters=model, slots=slots)


def _by_parameter(algorithm: Algorithm) -> bool:
    """Whether its server step treats each parameter by itself: known of Atoll's own methods."""
    return type(algorithm).__module__.startswith("atoll.algorithms.")


def _part(state: State, here: slice) -> State:
    start, stop = max(state.trained.start, here.start), min(state.trained.stop, here.stop)
    trained = slice(start - here.start, max(start, stop) - here.start)
    if start >= here.stop:
        trained = slice(0, 0)
    slots = {n: s[here] if s.shape == state.parameters.shape else s for n, s in state.slots.items()}
    return State(state.round, state.parameters[here], trained, state.population, slots)
