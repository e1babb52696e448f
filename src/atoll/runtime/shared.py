"""Arrays that several processes map and nobody copies.

The memory is anonymous to the file system (its file is unlinked at birth), so a process killed at
any moment leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping, Sequence
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np

from atoll.aggregation.exact import Fold
from atoll.core.layout import Array
from atoll.core.values import Broadcast

__all__ = ["Board", "SharedArray", "Tray", "Turns"]


class SharedArray:
    """A block of shared memory seen as one array; crosses to a child when the child is started.

    Args:
        context: multiprocessing context of the children.
        shape: shape of the array.
        dtype: dtype of the array.
    """

    def __init__(self, context: BaseContext, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        size = max(1, int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize)
        self._block: Any
        if context.get_start_method() == "fork":
            self._block = mmap.mmap(-1, size)  # no file, so no limit but that of memory
        else:
            self._block = context.RawArray(ctypes.c_byte, size)
        self._view: Array | None = None

    @classmethod
    def laid(cls, context: BaseContext, arrays: Sequence[Array]) -> SharedArray:
        """``arrays`` one below the other, copied; they differ in their number of rows alone."""
        shape, rows = arrays[0].shape[1:], sum(map(len, arrays))
        made = cls(context, (rows, *shape), arrays[0].dtype)
        np.concatenate(arrays, out=made.view())
        return made

    def __getstate__(self) -> dict[str, Any]:
        """A child maps the block anew."""
        return {**self.__dict__, "_view": None}

    def view(self) -> Array:
        """The array, without a copy."""
        if self._view is None:
            count = int(np.prod(self.shape, dtype=np.int64))
            self._view = np.frombuffer(self._block, self.dtype, count).reshape(self.shape)
        return self._view


class Board:
    """Slots in shared memory on which the parent pins broadcasts for the workers to read.

    Args:
        context: multiprocessing context of the workers.
        like: a broadcast with the names, shapes and dtypes of all to come.
        slots: how many versions can hang at once.
    """

    def __init__(self, context: BaseContext, like: Broadcast, slots: int) -> None:
        self._slots = [
            {n: SharedArray(context, v.shape, v.dtype) for n, v in like.vectors.items()}
            for _ in range(slots)
        ]

    def __len__(self) -> int:
        """Number of slots."""
        return len(self._slots)

    def fits(self, broadcast: Broadcast) -> bool:
        """Whether the slots hold it: the same names, shapes and dtypes."""
        wanted = {n: (s.shape, s.dtype) for n, s in self._slots[0].items()}
        return wanted == {n: (v.shape, v.dtype) for n, v in broadcast.vectors.items()}

    def pin(self, slot: int, broadcast: Broadcast) -> None:
        """Copy ``broadcast`` onto ``slot``."""
        for name, shared in self._slots[slot].items():
            np.copyto(shared.view(), broadcast.vectors[name])

    def read(self, slot: int, version: int) -> Broadcast:
        """The broadcast on ``slot``, as read-only views."""
        vectors = {}
        for name, shared in self._slots[slot].items():
            vectors[name] = shared.view()[...]
            vectors[name].flags.writeable = False
        return Broadcast(version, vectors)


class Tray:
    """Where a worker forms its fold, so that only a shell of it is sent.

    Args:
        context: multiprocessing context of the worker.
        like: a broadcast; updates rarely carry more vectors than it does. What does not fit is sent.
    """

    def __init__(self, context: BaseContext, like: Broadcast) -> None:
        values = sum(v.size for v in like.vectors.values()) + 4096
        self._limbs = SharedArray(context, (2 * values,), np.int64)
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0

    def fold(self, updates: int) -> Fold:
        """In the worker: a new fold of so many updates, whose sums are formed here."""
        self._places, self._end = {}, 0
        return Fold(updates, self._room)

    def _room(self, name: str, size: int) -> Array | None:
        """Memory for the sum ``name``; asked twice when its first update was refused."""
        start, end = self._places.get(name, (self._end, self._end + 2 * size))
        room = self._limbs.view()
        if end - start != 2 * size or end > room.size:
            return None
        self._places[name], self._end = (start, end), max(self._end, end)
        return room[start:end].reshape(2, size)

    def lay(self, fold: Fold) -> tuple[Fold, dict[str, tuple[int, int]]]:
        """In the worker: the shell, and where its numbers lie."""
        base, places = self._limbs.view(), dict[str, tuple[int, int]]()
        for name, exact in fold.sums.items():
            limbs = exact.detach()
            if np.may_share_memory(limbs, base):
                places[name] = self._places[name]
            else:
                exact.attach(limbs)
        return fold, places

    def lift(self, fold: Fold, places: Mapping[str, tuple[int, int]]) -> Fold:
        """In the parent: the fold, whose numbers stay on the tray until the worker begins another."""
        for name, (start, end) in places.items():
            fold.sums[name].attach(self._limbs.view()[start:end].reshape(2, -1))
        return fold


class Turns:
    """Which item of a list is next: workers take turns, so whoever is free takes it.

    Args:
        context: multiprocessing context of the workers.
        workers: how many there are.
    """

    def __init__(self, context: Any, workers: int) -> None:
        self._lock = context.Lock()
        self._numbers = SharedArray(context, (2 + workers,), np.int64)  # next, end, who has what

    def deal(self, items: int) -> None:
        """In the parent, while all workers wait: a new list."""
        self._numbers.view()[:] = (0, items, *[-1] * (len(self._numbers.view()) - 2))

    def take(self, worker: int) -> int | None:
        """In a worker: the item to do next; None when none is left."""
        numbers = self._numbers.view()
        with self._lock:
            item = int(numbers[0])
            more = item < int(numbers[1])
            numbers[0] = item + more
        numbers[2 + worker] = item if more else -1
        return item if more else None

    def stop(self) -> None:
        """In the parent: what nobody has taken yet is left undone."""
        self._numbers.view()[1] = 0

    def at(self, worker: int) -> int:
        """In the parent: the item a worker is at; -1 for none."""
        return int(self._numbers.view()[2 + worker])
