"""Suppression of small cells in tables of counts, and of others so that nobody can work them out.

A table is published with its margins. Each line is an equation: its cells add up to its margin. A cell
that is hidden alone in a line is a subtraction away; so are two hidden cells whose sum is small. Cells
are therefore hidden until every combination of what is shown leaves at least the minimum open.
A suppressed cell is not a zero: zeros are shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from atoll.core.errors import Forbidden
from atoll.core.layout import Array

__all__ = ["Counts", "small", "suppress"]


@dataclass(frozen=True, eq=False)
class Counts:
    """A table of counts as it may be released.

    Args:
        values: float64 of any shape, NaN where suppressed.
        hidden: bool of the same shape.
        minimum: the rule it was made under.
    """

    values: Array
    hidden: Array
    minimum: int

    def text(self, index: int | tuple[int, ...]) -> str:
        """A cell for people: its number, or a dash with the reason in the legend."""
        return "suppressed" if self.hidden[index] else f"{self.values[index]:.0f}"


def small(counts: Array, minimum: int) -> Array:
    """Which counts are above 0 and below the minimum."""
    return np.asarray((counts > 0) & (counts < minimum))


def suppress(counts: Array, minimum: int = 11, *, margins: bool = True) -> Counts:
    """A vector or table of counts with small cells and their complements hidden.

    Args:
        counts: ``(k,)`` or ``(r, c)``, counts of persons; all numbers are whole.
        minimum: least count that is shown, 0 aside.
        margins: whether the returned table is ``(k + 1,)`` or ``(r + 1, c + 1)``, the last being
            totals. Totals are taken for known either way.

    Raises:
        Forbidden: the total itself is small.

    >>> suppress(np.array([40.0, 3.0, 25.0, 12.0])).values
    array([40., nan, 25., nan, 80.])
    >>> suppress(np.array([40.0, 0.0, 25.0])).values
    array([40.,  0., 25., 65.])
    """
    table = np.atleast_2d(np.asarray(counts, np.float64))
    flat = counts.ndim == 1
    full = np.zeros((table.shape[0] + 1, table.shape[1] + 1))
    full[:-1, :-1] = table
    full[-1, :-1], full[:-1, -1] = table.sum(0), table.sum(1)
    full[-1, -1] = table.sum()
    if small(full[-1:, -1], minimum).any():
        raise Forbidden(
            f"fewer than {minimum} persons stand behind the whole table",
            remedy="widen the selection",
        )
    if flat:
        full = full[:1]
    hidden = _closed(full, small(full, minimum), minimum, flat)
    values = np.where(hidden, np.nan, full)
    shape = full[0].shape if flat else full.shape
    shown = Counts(values.reshape(shape), hidden.reshape(shape), minimum)
    if margins:
        return shown
    inner = (slice(None, -1),) * counts.ndim
    return Counts(shown.values[inner], shown.hidden[inner], minimum)


def _lines(shape: tuple[int, int], flat: bool) -> Iterator[Array]:
    """Index pairs of each equation, its margin last."""
    rows, columns = shape
    for r in range(rows):
        yield np.array([(r, c) for c in range(columns)])
    if not flat:
        for c in range(columns):
            yield np.array([(r, c) for r in range(rows)])


def _closed(full: Array, hidden: Array, minimum: int, flat: bool) -> Array:
    """``hidden``, extended until nothing small can be worked out."""
    hidden = hidden.copy()
    lines = [tuple(line.T) for line in _lines(full.shape, flat)]
    while True:
        able = [line for line in lines if _candidates(full, hidden, line)]
        weak = next((line for line in able if _weak(full, hidden, line, minimum)), None)
        if weak is None:
            weak = _solvable(full, hidden, lines, minimum)
        if weak is None:
            return hidden
        _hide_one(full, hidden, weak)


def _weak(full: Array, hidden: Array, line: tuple[Array, ...], minimum: int) -> bool:
    """Whether a subtraction in this line leaves 1 to ``minimum - 1`` persons, or a single cell."""
    dark, value = hidden[line], full[line]
    if not dark.any():
        return False
    if dark.sum() == 1:
        return True
    # With a shown margin the hidden cells' sum is known; with a hidden one, their difference to it.
    return bool(not dark[-1] and value[:-1][dark[:-1]].sum() < minimum)


def _solvable(
    full: Array, hidden: Array, lines: list[tuple[Array, ...]], minimum: int
) -> tuple[Array, ...] | None:
    """A line to hide more of, for a small cell that all equations together determine; None for no such cell.

    Best is a line through the cell. Where all of those are hidden already, others give it away together.
    """
    cells = np.argwhere(hidden)
    if not len(cells):
        return None
    number = {tuple(cell): i for i, cell in enumerate(cells.tolist())}
    matrix = np.zeros((len(lines), len(cells)))
    for row, line in enumerate(lines):
        pairs = list(zip(*(axis.tolist() for axis in line), strict=True))
        for place, pair in enumerate(pairs):
            if pair in number:
                matrix[row, number[pair]] = -1.0 if place == len(pairs) - 1 else 1.0
    _, singular, right = np.linalg.svd(matrix)
    free = right[int((singular > 1e-9).sum()) :]
    for cell in cells[np.abs(free).max(axis=0, initial=0.0) < 1e-9]:
        if small(full[tuple(cell)], minimum):
            able = [line for line in lines if _candidates(full, hidden, line)]
            own = [line for line in able if (cell == np.array(line).T).all(axis=1).any()]
            if able:
                return (own or able)[0]
    return None


def _candidates(full: Array, hidden: Array, line: tuple[Array, ...]) -> list[int]:
    """Places in the line that can be hidden besides: shown and not zero; the grand total is kept."""
    places = np.flatnonzero(~hidden[line] & (full[line] > 0)).tolist()
    corner = (full.shape[0] - 1, full.shape[1] - 1)
    return [i for i in places if (line[0][i], line[1][i]) != corner]


def _hide_one(full: Array, hidden: Array, line: tuple[Array, ...]) -> None:
    """Hide the smallest further cell of the line, its margin last."""
    places = _candidates(full, hidden, line)
    last = len(line[0]) - 1
    best = min(places, key=lambda i: (i == last, full[line][i], i))
    hidden[line[0][best], line[1][best]] = True
