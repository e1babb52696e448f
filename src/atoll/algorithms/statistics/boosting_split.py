"""The best split of each node of a tree, from sums over cells.

Equations are those of T. Chen and C. Guestrin, "XGBoost: a scalable tree boosting system", KDD 2016: the
weight of a leaf (5), the gain of a split (7), and where missing values go (algorithm 3). The cells of a
category are ordered by their own weight first, after which the best set of them is a cut of that order
(W. D. Fisher, JASA 53, 1958). Splits are the best ones of XGBoost's "hist" method, but for two cases in which
XGBoost does not look at all cuts of categories: missing values in such a column, and categories whose second
derivatives sum to less than the least of a leaf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atoll.core.layout import Array

__all__ = ["FIRST", "PERSONS", "SECOND", "Split", "Terms", "best_splits"]

FIRST, SECOND, PERSONS = range(3)
"""What a cell sums: first and second derivatives of the loss, and persons."""

_LEAST_GAIN = 1e-6
"""Below it lies what rounding makes of nothing; XGBoost's too."""


@dataclass(frozen=True)
class Terms:
    """What a split has to fulfil, and what a leaf weighs.

    Args:
        rate: factor on every leaf.
        l2: penalty on squared leaf weights, lambda in (5).
        gain: least gain of a split, gamma in (7).
        weight: least sum of second derivatives on either side.
        persons: least number of persons on either side.
    """

    rate: float
    l2: float
    gain: float
    weight: float
    persons: float

    def leaf(self, sums: Array) -> float:
        """What a leaf adds (5), as float32 holds it.

        Args:
            sums: of first and second derivatives, ``(2 or more,)``.
        """
        below = float(sums[SECOND]) + self.l2
        return float(np.float32(-self.rate * float(sums[FIRST]) / below)) if below > 0 else 0.0


@dataclass(frozen=True, eq=False)
class Split:
    """One node's best split.

    Args:
        gain: by how much the loss falls (7), without the penalty.
        column: index of the column that is read.
        goes_left: which cells go left, ``(width,)`` bool; the last is that of missing values.
        left: sums of the rows that go left, ``(3,)``.
        right: of those that go right, ``(3,)``.
    """

    gain: float
    column: int
    goes_left: Array
    left: Array
    right: Array


def best_splits(
    cells: Array, sizes: Array, category: Array, terms: Terms
) -> Sequence[Split | None]:
    """The best split of each node; None for a node that stays whole.

    Args:
        cells: sums over each cell, ``(nodes, columns, width, 3)``, the last cell for missing values.
        sizes: cells each column has, that of missing values aside, ``(columns,)``.
        category: which columns hold categories, ``(columns,)`` bool.
        terms: of splits and leaves.
    """
    known, missing = cells[:, :, :-1], cells[:, :, -1]
    order = np.broadcast_to(np.arange(known.shape[2]), known.shape[:3]).copy()
    if category.any():
        order[:, category] = _by_weight(known[:, category], sizes[category], terms)
    ordered = np.take_along_axis(known, order[..., None], axis=2)
    until = np.cumsum(ordered, axis=2)
    whole = until[:, :, -1] + missing
    # (nodes, columns, missing right or left, cut, 3)
    left = np.stack([until, until + missing[:, :, None]], axis=2)
    right = whole[:, :, None, None] - left
    gain = _gain(left, right, whole, terms)
    found: list[Split | None] = []
    for node, gains in enumerate(gain):
        place = int(np.argmax(gains))
        column, direction, cut = np.unravel_index(place, gains.shape)
        if not gains[column, direction, cut] > max(terms.gain, _LEAST_GAIN):
            found.append(None)
            continue
        goes_left = np.zeros(cells.shape[2], bool)
        goes_left[order[node, column, : cut + 1]] = True
        goes_left[-1] = bool(direction)
        at = (node, column, direction, cut)
        found.append(
            Split(float(gains[column, direction, cut]), int(column), goes_left, left[at], right[at])
        )
    return found


def _by_weight(known: Array, sizes: Array, terms: Terms) -> Array:
    """Cells of categories in the order of the leaf each would be; those that do not exist last."""
    below = known[..., SECOND] + terms.l2
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = np.where(below > 0, known[..., FIRST] / below, 0.0)
    exists = np.arange(known.shape[2]) < sizes[:, None]
    return np.argsort(np.where(exists, weight, np.inf), axis=2, kind="stable")


def _gain(left: Array, right: Array, whole: Array, terms: Terms) -> Array:
    """Gain of every cut (7) without its factor of one half; minus infinity where it is not allowed."""
    allowed = np.ones(left.shape[:-1], bool)
    for side in (left, right):
        # Persons with several rows are counted in parts: more than ten in parts are eleven or more.
        allowed &= side[..., PERSONS] > max(terms.persons, 1.0) - 1.0
        allowed &= (side[..., SECOND] >= terms.weight) & (side[..., SECOND] + terms.l2 > 0)
    both = _score(left, terms) + _score(right, terms)
    gain = both - _score(whole, terms)[:, :, None, None]
    return np.where(allowed, gain, -np.inf)


def _score(sums: Array, terms: Terms) -> Array:
    below = sums[..., SECOND] + terms.l2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, sums[..., FIRST] ** 2 / below, 0.0)
