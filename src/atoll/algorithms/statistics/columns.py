"""Reading a site's columns: numbers, categories, complete rows; what is wrong is named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from atoll.algorithms.statistics.analysis import Columns
from atoll.core.errors import DataError
from atoll.core.layout import Array
from atoll.data.disclosure import Disclosure
from atoll.data.table import Table

__all__ = [
    "codes",
    "complete",
    "free_head",
    "groups_of",
    "large_enough",
    "numbers",
    "only_binary",
    "reading",
    "selected",
    "tallied",
    "varies",
]


def numbers(data: Columns, name: str) -> Array:
    """A column of finite numbers, ``(n,)``, NaN for missing.

    Raises:
        DataError: it holds an infinite value.
    """
    values = np.asarray(data[name], np.float64)
    if np.isinf(values).any():
        raise DataError(
            f"column {name!r} holds an infinite value", remedy="mend it, or leave it out"
        )
    return values


def free_head(head: str, names: Iterable[str]) -> str:
    """The head of a table's column beside others that are called by names in the data.

    >>> free_head("all", ["aml", "all"]), free_head("all", ["aml"])
    ('all_', 'all')
    """
    taken = set(names)
    while head in taken:
        head += "_"
    return head


def codes(data: Columns, name: str, levels: int) -> Array:
    """A column of categories as whole numbers from 0, -1 for missing, ``(n,)`` int64.

    Raises:
        DataError: a code that is not that of a declared level.
    """
    values = np.asarray(data[name], np.float64)
    missing = np.isnan(values)
    filled = np.where(missing, -1.0, values)
    if not ((filled == np.rint(filled)) & (filled >= -1) & (filled < levels)).all():
        raise DataError(
            f"column {name!r} holds a category beyond the {levels} that are declared",
            remedy="declare all categories that any site holds",
        )
    if (filled[~missing] < 0).any():
        raise DataError(f"column {name!r} holds a negative code", remedy="number categories from 0")
    return np.asarray(filled, np.int64)


def groups_of(data: Columns, by: str, groups: int) -> Array:
    """The group of each row, -1 for none; all rows in group 0 where ``by`` is empty.

    Raises:
        DataError: see :func:`codes`.
    """
    if by:
        return codes(data, by, groups)
    length = len(next(iter(data.values()), ()))
    return np.zeros(length, np.int64)


def complete(data: Columns, names: Iterable[str]) -> Array:
    """Which rows have a value in every column named, ``(n,)`` bool."""
    listed = list(names)
    length = len(data[listed[0]]) if listed else len(next(iter(data.values()), ()))
    rows = np.ones(length, bool)
    for name in listed:
        rows &= ~np.isnan(data[name])
    return rows


def only_binary(cells: Array) -> bool:
    """Whether a column of numbers holds nothing but 0 and 1, missing ones aside."""

    def binary(part: Array) -> bool:
        return bool((np.isnan(part) | (part == 0.0) | (part == 1.0)).all())

    return binary(cells[:64]) and binary(cells)  # most columns show it in their first rows


def varies(squares: Array, count: Array | float, mean: Array) -> Array:
    """Whether sums of squares around means are more than rounding leaves of a constant, bool.

    Args:
        squares: of the values' distances from ``mean``.
        count: of the values.
        mean: of the values; all broadcast.

    >>> varies(np.array([1e-28, 1e-20]), 100.0, np.array([0.1, 0.1])).tolist()
    [False, True]
    """
    return np.asarray(squares > count * (1e-14 * mean) ** 2)


_LEAST = 2.0**-86
"""A sum of squares below it, 1e-26, loses digits that count: what is sent has the unit 2^-112."""


def large_enough(name: str, squares: Array, count: float, mean: Array) -> None:
    """Refuse a column that varies by so little that sums of its squares would be rounded away.

    Args:
        name: of the column.
        squares: sum of squares of the values' distances from ``mean``, or one for each group.
        count: of the values.
        mean: of the values; as ``squares``.

    Raises:
        DataError: the squares are not to be told from rounding.
    """
    if ((squares > 0) & (squares < _LEAST) & varies(squares, count, mean)).any():
        raise DataError(
            f"column {name!r} holds numbers whose squares are too small to be added up",
            remedy="give it in a smaller unit: numbers of 1e-9 and more are safe",
        )


def selected(table: Table, chosen: Mapping[str, Any]) -> Array:
    """Which rows have the values chosen, ``(n,)`` bool.

    Args:
        table: of float64 columns.
        chosen: by column a number, or a range ``(low, high)`` whose ends may be None; the lower end
            belongs to it, the upper one does not.
    """
    rows = np.ones(len(table), bool)
    for name, wanted in chosen.items():
        cells = table[name]
        if not isinstance(wanted, tuple):
            rows &= cells == float(wanted)
            continue
        low, high = wanted
        rows &= ~np.isnan(cells) if low is None else cells >= low
        rows &= True if high is None else cells < high
    return rows


def reading(rule: Disclosure, *names: str) -> tuple[str, ...]:
    """The columns named, each once, and that of the persons."""
    return tuple(dict.fromkeys((*names, *([rule.person] if rule.person else []))))


def tallied(cell: Array, cells: int, data: Columns, rule: Disclosure) -> tuple[Array, Array]:
    """Rows and persons in each cell, ``(cells,)`` each.

    Args:
        cell: of each row, ``(n,)`` int64; -1 is in none.
        cells: how many there are.
        data: the site's columns.
        rule: says who a person is.
    """
    inside = cell >= 0
    rows = np.bincount(cell[inside], minlength=cells).astype(np.float64)
    if not rule.person:
        return rows, rows
    persons = rule.persons(Table({rule.person: np.asarray(data[rule.person])}))
    pairs = np.unique(np.stack([cell[inside], persons[inside]]), axis=1)
    return rows, np.bincount(pairs[0], minlength=cells).astype(np.float64)
