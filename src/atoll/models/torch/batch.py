"""One client's rows as torch trains on them: batch by batch, in memory that is used again."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atoll.core.errors import DataError
from atoll.core.layout import Array
from atoll.core.local import LocalWork
from atoll.core.seeds import Seed
from atoll.models.batches import learning_rate, passes
from atoll.models.torch.flat import Bench, tensor_over

__all__ = ["Batch", "Faces", "face", "rated"]

Faces = tuple[Array, Array]
"""Features and targets as NumPy sees them."""

_SAME = {torch.float32: np.float32, torch.float64: np.float64, torch.int64: np.int64}


class Batch:
    """Gathers batches of one client's rows into buffers that are used again.

    Gathering also puts them at aligned addresses: matrix kernels may round otherwise elsewhere, and
    shared memory of a worker process lies elsewhere.

    Args:
        data: features and targets.
        bench: whose dtype float features get.
        targets: dtype of the targets; None for the bench's.
        size: most rows of a batch.

    Raises:
        DataError: features and targets of different lengths.
    """

    def __init__(self, data: Any, bench: Bench, targets: torch.dtype | None, size: int) -> None:
        x, y = np.asarray(data.features), np.asarray(data.targets)
        if len(x) != len(y):
            raise DataError(
                f"{len(x)} rows of features and {len(y)} targets",
                remedy="check how this client's data were read",
            )
        self._given, self._size, self._held = (x, y), size, list[Tensor]()
        self.dtype = bench.compute if x.dtype.kind == "f" else tensor_over(x[:0]).dtype
        self.targets = targets or bench.compute
        self.rows, self.shape, self.target_shape = len(x), x.shape[1:], y.shape[1:]

    @cached_property
    def x(self) -> Tensor:
        """All features."""
        return tensor_over(self._given[0]).to(self.dtype)

    @cached_property
    def y(self) -> Tensor:
        """All targets."""
        return tensor_over(self._given[1]).to(self.targets)

    @cached_property
    def faces(self) -> Faces | None:
        """All rows as they were given, where nothing about them must be changed."""
        wanted = zip(self._given, (self.dtype, self.targets), strict=True)
        fit = all(a.dtype == _SAME.get(t) and a.flags.c_contiguous for a, t in wanted)
        return self._given if fit else None

    @cached_property
    def classes(self) -> int:
        """One more than the largest label; 0 where targets are no labels or some are negative."""
        y = self._given[1]
        if self.targets != torch.int64 or y.ndim != 1 or not len(y) or np.minimum.reduce(y) < 0:
            return 0
        return int(np.maximum.reduce(y)) + 1

    def take(self, index: Array | Tensor) -> tuple[Tensor, Tensor]:
        """Features and targets of the rows ``index``, ``(<= size,)`` int64."""
        if not self._held:
            self._held += [
                torch.empty((self._size, *t.shape[1:]), dtype=t.dtype) for t in (self.x, self.y)
            ]
        n = len(index)
        rows = index if isinstance(index, Tensor) else torch.from_numpy(index)
        x, y = (
            torch.index_select(t, 0, rows, out=into[:n])
            for t, into in zip((self.x, self.y), self._held, strict=True)
        )
        return x, y


def face(t: Tensor) -> Array | None:
    """A tensor's memory as NumPy sees it; None where it is in no plain order, or NumPy lacks the dtype."""
    return t.numpy() if t.dtype in _SAME and t.is_contiguous() else None


def rated(rows: int, work: LocalWork, seed: Seed, round: int) -> Iterator[tuple[float, Array]]:
    """For each step its learning rate and the row numbers of its batch, ``(<= batch_size,)`` int64."""
    for epoch, order, size in passes(rows, work, seed):
        lr = learning_rate(work, round=round, epoch=epoch)
        for start in range(0, len(order), size):
            yield lr, order[start : start + size]
