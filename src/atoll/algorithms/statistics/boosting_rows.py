"""The rows of one site in gradient boosting: cells, derivatives of the loss, sums over cells.

Derivatives are rounded to whole multiples of a unit, some 2^-30 of their scale. Their sums are then exact
in float64, in any order and however the rows are spread over sites; and what a right child sums is what its
parent did less the left child, without rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from atoll.algorithms.statistics.boosting_split import FIRST, PERSONS, SECOND
from atoll.core.layout import Array
from atoll.models.trees import Trees, step, unpacked

__all__ = ["Rows", "drawn", "shares"]

FINE = 2.0**30


@dataclass(eq=False)
class Rows:
    """Rows with an outcome.

    Args:
        cells: of each column, ``(columns, n)``.
        outcome: ``(n,)``.
        kept: rows that are kept aside to judge the trees by, ``(n,)`` bool.
        share: of a person that each row is, ``(n,)``: of a person with three rows a third.
    """

    cells: Array
    outcome: Array
    kept: Array
    share: Array
    margin: Array = field(init=False)
    done: Trees | None = field(init=False, default=None)
    first: Array = field(init=False)
    second: Array = field(init=False)
    path: _Path = field(init=False)

    def __post_init__(self) -> None:
        self.path = _Path(self.cells)

    def advance(self, trees: Trees, unit: float) -> None:
        """Bring margins and derivatives up to all of ``trees``; what was done before is kept."""
        start = 0
        if self.done is not None and _begins(trees, self.done):
            start = len(self.done)
            if start == len(trees):
                return
        else:
            self.margin = np.full(len(self.outcome), trees.base)
        for tree in range(start, len(trees)):
            depth = trees.split.shape[1].bit_length()
            node = self.path.node(trees.split[tree], trees.left[tree], depth, trees.width)
            self.margin += trees.value[tree][node]
        self.done = trees
        if trees.loss == "logistic":
            chance = 1.0 / (1.0 + np.exp(-self.margin))
            first, second = chance - self.outcome, chance * (1.0 - chance)
        else:
            first, second = self.margin - self.outcome, np.ones(len(self.outcome))
        train = ~self.kept
        self.first = np.rint(first * (FINE / unit)) * (unit / FINE) * train
        self.second = np.rint(second * FINE) / FINE * train

    def losses(self, unit: float) -> Array:
        """Sums of the loss over rows that train and rows kept aside, ``(2,)``."""
        trees = self.done
        if trees is not None and trees.loss == "logistic":
            each = np.logaddexp(0.0, self.margin) - self.outcome * self.margin
        else:
            each = (self.margin - self.outcome) ** 2
        scale = FINE / unit**2
        each = np.rint(each * scale) / scale
        return np.array([each[~self.kept].sum(), each[self.kept].sum()])

    def sums(self, split: Array, left: Array, level: int, width: int) -> Array:
        """Sums over cells of the left children at a level, or of the root, ``(nodes, columns, width, 3)``.

        Args:
            split: of the tree that grows; see :class:`~atoll.models.trees.Trees`.
            left: of it.
            level: 0 for the root.
            width: of :func:`~atoll.models.trees.width_of`.
        """
        slots = max(1, 2 ** (level - 1))
        inside = ~self.kept
        slot = np.zeros(len(self.outcome), np.int64)
        if level:
            node = self.path.node(split, left, level, width)
            # Left children have odd places; those of this level start at 2^level - 1.
            slot = (node - (2**level - 1)) >> 1
            inside = inside & (node >= 2**level - 1) & (node & 1 == 1)
        chosen = np.flatnonzero(inside)
        whole = len(chosen) == len(slot)
        base = (slot if whole else slot[chosen]) * width
        terms = [self.first, self.second, self.share]
        terms = terms if whole else [term[chosen] for term in terms]
        found = np.zeros((slots, len(self.cells), width, len(terms)))
        for column, cells in enumerate(self.cells):
            at = base + (cells if whole else cells[chosen])
            for kind, term in zip((FIRST, SECOND, PERSONS), terms, strict=True):
                counted = np.bincount(at, term, minlength=slots * width)
                found[:, column, :, kind] = counted.reshape(slots, width)
        return found


class _Path:
    """At which node each row rests in the tree that grows; a level further each round."""

    def __init__(self, cells: Array) -> None:
        self.cells = cells
        self.level = -1  # nothing yet
        self.at = self.split = self.left = np.zeros(0)

    def node(self, split: Array, left: Array, level: int, width: int) -> Array:
        """The node of each row after ``level`` splits, ``(n,)`` int64.

        For the rest see :func:`~atoll.models.trees.places`.
        """
        known = 2 ** max(self.level, 0) - 1
        if (
            not 0 <= self.level <= level
            or not np.array_equal(split[:known], self.split)
            or not np.array_equal(left[:known], self.left)
        ):
            self.level, self.at = 0, np.zeros(self.cells.shape[1], np.int64)
        goes_left = unpacked(left, width)
        for _ in range(self.level, level):
            self.at = step(self.at, split, goes_left, self.cells)
        self.level, above = level, 2**level - 1
        self.split, self.left = split[:above].copy(), left[:above].copy()
        return self.at


def _begins(trees: Trees, done: Trees) -> bool:
    """Whether ``trees`` starts with what was done."""
    count = len(done)
    return (
        trees.base == done.base
        and trees.loss == done.loss
        and np.array_equal(trees.value[:count], done.value)
        and np.array_equal(trees.split[:count], done.split)
        and np.array_equal(trees.left[:count], done.left)
    )


def shares(person: Array | None, rows: int) -> Array:
    """Of a person with ``m`` rows each row is 1/m, rounded down: sums never count a person twice."""
    if person is None:
        return np.ones(rows)
    _, own, times = np.unique(person, return_inverse=True, return_counts=True)
    return np.asarray(np.floor(FINE / times[own]) / FINE)


def drawn(cells: Array, outcome: Array, person: Array | None, part: float, seed: int) -> Array:
    """Which rows are kept aside, ``(n,)`` bool: by what is in them, so wherever they lie.

    Rows of one person go together; so do rows that are alike in every cell and the outcome.
    """
    if not part:
        return np.zeros(len(outcome), bool)
    mixed = np.full(len(outcome), seed, np.uint64)
    for column in (*cells.astype(np.uint64), np.asarray(outcome + 0.0, np.float64).view(np.uint64)):
        mixed = _mixed(mixed ^ column)
    if person is not None:
        _, own = np.unique(person, return_inverse=True)
        total = np.zeros(own.max(initial=-1) + 1, np.uint64)
        np.add.at(total, own, mixed)
        mixed = _mixed(total)[own]
    return np.asarray(mixed < np.uint64(int(part * 2.0**64)), bool)


def _mixed(x: Array) -> Array:
    """Every bit depends on every other: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))
