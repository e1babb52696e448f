"""Ensembles of decision trees over columns that are cut into cells.

Trees lie in arrays as heaps: the children of node ``i`` are ``2 i + 1`` (left) and ``2 i + 2``. A node sends
a row by the cell that its value falls into, so numbers, categories and missing values are one case: a set
of cells goes left. Numbers are compared in float32, as XGBoost does, so that an exported ensemble
(:mod:`atoll.models.trees_xgboost`) sends every row the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from atoll.core.errors import DataError, Fault
from atoll.core.layout import Array

__all__ = [
    "Column",
    "Loss",
    "Trees",
    "cells_of",
    "packed",
    "places",
    "step",
    "unpacked",
    "width_of",
]

Loss = Literal["logistic", "squared"]

_WORD = 32


@dataclass(frozen=True, eq=False)
class Column:
    """How the values of one column fall into cells.

    Args:
        name: of the column.
        cuts: increasing numbers, ``(k,)``, each a float32: cell 0 lies below the first, cell ``k`` from the
            last one on. Empty for categories.
        levels: codes of the categories, a cell each; empty for numbers.
    """

    name: str
    cuts: Array
    levels: tuple[float, ...] = ()

    @property
    def cells(self) -> int:
        """How many cells there are, that of missing values aside."""
        return len(self.levels) or len(self.cuts) + 1

    def cell(self, values: Array, missing: int) -> Array:
        """The cell of each value, ``(n,)`` int64; ``missing`` for NaN.

        Raises:
            DataError: an infinite number, or a category that is not among the levels.
        """
        values = np.asarray(values, np.float64)
        gone = np.isnan(values)
        if self.levels:
            order = np.argsort(self.levels)
            known = np.asarray(self.levels)[order]
            at = np.minimum(np.searchsorted(known, values), len(known) - 1)
            odd = ~gone & (known[at] != values)
            self._refuse(odd, values, "which is not among its levels")
            found = order[at]
        else:
            self._refuse(np.isinf(values), values, "an infinite value")
            found = np.searchsorted(self.cuts.astype(np.float32), _single(values), side="right")
        return np.where(gone, missing, found)

    def _refuse(self, odd: Array, values: Array, why: str) -> None:
        if odd.any():
            # The value stays in a fault, which is for the site's own log.
            fault = Fault(self.name, f"holds {values[odd][0]:g}, {why}")
            raise DataError(f"column {self.name!r} does not fit these trees", faults=[fault])


def _single(values: Array) -> Array:
    with np.errstate(over="ignore"):  # beyond float32 is beyond every cut
        return values.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Trees:
    """An ensemble: the sum of its trees' leaves, and a number before them.

    Args:
        columns: what splits read, in order.
        loss: what the sum means: a log-odds, or the mean itself.
        base: the sum before the first tree.
        split: index of the column each inner node reads, -1 for a leaf, ``(trees, 2^depth - 1)``.
        left: the cells that go left as bits, ``(trees, 2^depth - 1, words)``; see :func:`packed`.
        value: what a node adds where it is a leaf, ``(trees, 2^(depth + 1) - 1)``, each a float32.
    """

    columns: tuple[Column, ...]
    loss: Loss
    base: float
    split: Array
    left: Array
    value: Array

    @property
    def width(self) -> int:
        """Cells of the column with most of them, and one for missing values."""
        return width_of(self.columns)

    def __len__(self) -> int:
        """How many trees there are."""
        return len(self.split)

    def first(self, count: int) -> Trees:
        """The first ``count`` trees alone."""
        return replace(
            self, split=self.split[:count], left=self.left[:count], value=self.value[:count]
        )

    def cells(self, data: Mapping[str, Array]) -> Array:
        """The cells of all rows, ``(columns, n)`` uint16.

        Raises:
            DataError: see :meth:`Column.cell`.
        """
        return cells_of(self.columns, data)

    def add(self, total: Array, cells: Array, start: int = 0) -> None:
        """Add the trees from ``start`` on to ``total (n,)`` in place, one after the other."""
        for tree in range(start, len(self)):
            table = unpacked(self.left[tree], self.width)
            total += self.value[tree][places(self.split[tree], table, cells)]

    def margin(self, data: Mapping[str, Array]) -> Array:
        """The sum for each row, ``(n,)``: log-odds, or the mean itself.

        Args:
            data: columns by name, ``(n,)`` each, NaN for missing, categories as codes.

        Raises:
            DataError: a column is absent, or holds what the trees do not know.
        """
        cells = self.cells(data)
        total = np.full(cells.shape[1], self.base)
        self.add(total, cells)
        return total

    def predict(self, data: Mapping[str, Array]) -> Array:
        """The probability of 1, or the mean, for each row, ``(n,)``."""
        margin = self.margin(data)
        return margin if self.loss == "squared" else 1.0 / (1.0 + np.exp(-margin))


def width_of(columns: Sequence[Column]) -> int:
    """Cells of the column with most of them, and one for missing values."""
    return max(column.cells for column in columns) + 1


def cells_of(columns: Sequence[Column], data: Mapping[str, Array]) -> Array:
    """The cells of all rows, ``(columns, n)`` uint16; the last one is that of missing values."""
    absent = [column.name for column in columns if column.name not in data]
    if absent:
        raise DataError(f"column {absent[0]!r} is missing")
    missing = width_of(columns) - 1
    return np.stack([c.cell(data[c.name], missing) for c in columns]).astype(np.uint16)


def places(split: Array, goes_left: Array, cells: Array) -> Array:
    """The node at which each row rests in one tree, ``(n,)`` int64.

    Args:
        split: ``(2^depth - 1,)``; see :class:`Trees`.
        goes_left: ``(2^depth - 1, width)`` bool.
        cells: ``(columns, n)``.
    """
    node = np.zeros(cells.shape[1], np.int64)
    for _ in range(len(split).bit_length()):
        node = step(node, split, goes_left, cells)
    return node


def step(node: Array, split: Array, goes_left: Array, cells: Array) -> Array:
    """One split further than ``node (n,)``; rows in leaves stay. For the rest see :func:`places`."""
    reads = np.asarray(split, np.int64)
    if (reads < 0).all():
        return node
    # Nodes below the last split are leaves.
    reads = np.concatenate([reads, np.full(len(reads) + 1, -1)])
    column = reads[node]
    rests = column < 0
    rows = np.arange(len(node))
    cell = cells.ravel()[np.maximum(column, 0) * len(node) + rows]
    inner = np.where(rests, 0, node)
    left = goes_left.ravel()[inner * goes_left.shape[1] + cell]
    return np.where(rests, node, 2 * node + 2 - left)


def packed(goes_left: Array) -> Array:
    """Sets of cells, ``(..., width)`` bool, as 32 bits a number, ``(..., words)`` float64."""
    width = goes_left.shape[-1]
    words = -(-width // _WORD)
    padded = np.zeros((*goes_left.shape[:-1], words * _WORD))
    padded[..., :width] = goes_left
    bits = padded.reshape(*goes_left.shape[:-1], words, _WORD)
    return np.asarray(bits @ 2.0 ** np.arange(_WORD))


def unpacked(words: Array, width: int) -> Array:
    """What :func:`packed` packed, ``(..., width)`` bool."""
    numbers = np.asarray(words, np.uint64)[..., None]
    bits = (numbers >> np.arange(_WORD, dtype=np.uint64)) & np.uint64(1)
    return bits.reshape(*words.shape[:-1], -1)[..., :width].astype(bool)
