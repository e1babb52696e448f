"""Clients' memories in one anonymous file, so that only their places cross a pipe.

A memory on the shelf is never written again: a worker lays a new one down beside it, and the old
one's place is free once nothing in the parent holds it, so a round that fails or is aborted leaves
every client's memory as it was. The file has no name: it is gone with the last process that has it
open, however that ends.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np

from atoll.core.layout import Array
from atoll.core.values import Memory

__all__ = ["Places", "Shelf"]

Places = tuple[tuple[str, int, str, tuple[int, ...]], ...]
"""Of each array of a memory: name, offset in the file, dtype and shape."""

_SMALL = 1 << 14
"""Bytes below which a memory is sent: its place would be larger than it."""
_PAGE = mmap.ALLOCATIONGRANULARITY
_ALIGN = 64


class Shelf:
    """Places of one size for memories; they grow in number as clients come.

    Crosses to a child when the child is started. Where there are no anonymous files, nothing is ever
    laid down and memories are sent.
    """

    def __init__(self) -> None:
        made = hasattr(os, "memfd_create")
        self._file = os.memfd_create("atoll-memories", os.MFD_CLOEXEC) if made else -1
        self._end = self._width = self._total = 0
        self._free: list[tuple[mmap.mmap, int, int]] = []

    def __getstate__(self) -> dict[str, Any]:
        """The file only; a child has no use for the rest."""
        return {"handle": DupFd(self._file) if self._file >= 0 else None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Open the parent's file."""
        handle = state["handle"]
        self._file = -1 if handle is None else handle.detach()

    @property
    def descriptors(self) -> list[int]:
        """What a forked child must keep open."""
        return [self._file] if self._file >= 0 else []

    def reserve(self, count: int) -> list[Place]:
        """In the parent: places for ``count`` memories; none before the first one was seen."""
        if not self._width:
            return []
        if count > len(self._free):
            self._grow(max(count - len(self._free), self._total // 4))
        return [Place(self, *self._free.pop()) for _ in range(count)]

    def _grow(self, count: int) -> None:
        size = count * self._width
        os.ftruncate(self._file, self._end + size)
        block = mmap.mmap(self._file, size, prot=mmap.PROT_READ, offset=self._end)
        self._free += [(block, i * self._width, self._end) for i in reversed(range(count))]
        self._end += size
        self._total += count

    def adopt(self, memory: Memory) -> Memory:
        """In the parent: the same memory on the shelf; as it is where it is small or of objects."""
        need = _size(memory)
        if self._file < 0 or need < _SMALL or not _plain(memory):
            return memory
        if need > self._width:  # larger than all before: places of the old size are given up
            self._width, self._total, self._free = -(-need // _PAGE) * _PAGE, 0, []
        (place,) = self.reserve(1)
        places = self.lay(place.room, memory)
        return memory if places is None else place.memory(places)

    def give_back(self, block: mmap.mmap, start: int, base: int, width: int) -> None:
        """In the parent: a place that nothing holds any more."""
        if width == self._width:
            self._free.append((block, start, base))

    def lay(self, room: tuple[int, int], memory: Memory) -> Places | None:
        """In a worker: write a memory at ``room`` (offset, bytes); None where it does not fit."""
        at, size = room
        if not _SMALL <= _size(memory) <= size or not _plain(memory):
            return None
        places = []
        for name, value in memory.items():
            array = np.ascontiguousarray(value)
            places.append((name, at, array.dtype.str, np.shape(value)))
            _write(self._file, array, at)
            at += -(-array.nbytes // _ALIGN) * _ALIGN
        return tuple(places)

    def fetch(self, places: Places) -> dict[str, Array]:
        """In a worker: a copy of the memory at ``places``."""
        found = {}
        for name, at, dtype, shape in places:
            found[name] = np.empty(shape, dtype)
            _read(self._file, found[name], at)
        return found

    def places(self, memory: Memory) -> Places | None:
        """In the parent: where a memory lies; None when any of it is not on this shelf."""
        found = []
        for name, value in memory.items():
            owner = getattr(value.base, "base", None)
            if not isinstance(owner, Place) or owner.shelf is not self:
                return None
            if not value.flags.c_contiguous:
                return None
            at = value.__array_interface__["data"][0] - owner.address + owner.room[0]
            found.append((name, at, value.dtype.str, value.shape))
        return tuple(found) or None

    def close(self) -> None:
        """In the parent: no more is laid down; memories that are still held stay readable."""
        self._width, self._free = 0, []
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Place:
    """A place on a shelf; it is free for another memory when the last array on it is dropped.

    NumPy keeps the object behind ``__array_interface__`` alive as long as any view of it.
    """

    __slots__ = ("_at", "address", "room", "shelf")

    def __init__(self, shelf: Shelf, block: mmap.mmap, start: int, base: int) -> None:
        self.shelf, self._at = shelf, (block, start, base)
        whole = np.frombuffer(block, np.uint8)
        self.address = int(whole.__array_interface__["data"][0]) + start
        self.room = base + start, shelf._width

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """The bytes of the place, read-only."""
        shape = (self.room[1],)
        return {"data": (self.address, True), "shape": shape, "typestr": "|u1", "version": 3}

    def memory(self, places: Places) -> dict[str, Array]:
        """Views of what was laid down here."""
        whole, found = np.asarray(self), {}
        for name, at, kind, shape in places:
            start, dtype = at - self.room[0], np.dtype(kind)
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            found[name] = whole[start : start + size].view(dtype).reshape(shape)
        return found

    def __del__(self) -> None:
        """Free the place."""
        self.shelf.give_back(*self._at, self.room[1])


def _size(memory: Memory) -> int:
    return sum(-(-v.nbytes // _ALIGN) * _ALIGN for v in memory.values())


def _plain(memory: Memory) -> bool:
    return all(type(v) is np.ndarray and v.dtype.kind in "biufc" for v in memory.values())


def _write(file: int, array: Array, at: int) -> None:
    left = array.reshape(-1).view(np.uint8).data
    while len(left):
        done = os.pwrite(file, left, at)
        left, at = left[done:], at + done


def _read(file: int, array: Array, at: int) -> None:
    left = array.reshape(-1).view(np.uint8).data
    while len(left):
        done = os.preadv(file, [left], at)
        if not done:
            raise OSError("a client's memory is not where it should be")
        left, at = left[done:], at + done
