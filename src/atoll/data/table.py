"""A site's rows as named columns: the one shape that every reader gives and every check takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np

from atoll.core.errors import DataError, suggest
from atoll.core.layout import Array

__all__ = ["Table", "as_column", "label"]


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of one length, in order.

    Args:
        columns: name -> ``(n,)``; numbers as float64 with NaN for missing, anything else as an
            object array with None for missing (see :func:`as_column`).

    Raises:
        DataError: columns of different lengths, or a column that is not one-dimensional.

    >>> table = Table.of({"age": [63, None], "sex": ["f", "m"]})
    >>> len(table), table["age"][0].item(), table.take(np.array([1]))["sex"][0]
    (2, 63.0, 'm')
    """

    columns: Mapping[str, Array]

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in self.columns.items() if values.ndim == 1}
        deep = [name for name in self.columns if name not in lengths]
        if deep:
            raise DataError(f"columns with more than one dimension: {', '.join(deep)}")
        if len(set(lengths.values())) > 1:
            raise DataError(f"columns of different lengths: {lengths}")

    @classmethod
    def of(cls, columns: Mapping[str, Iterable[Any]]) -> Table:
        """A table of lists or arrays; each goes through :func:`as_column`.

        Raises:
            DataError: a column is a single value, and text is one; or two names are one as text.
        """
        if len({str(name) for name in columns}) < len(columns):
            names = [str(name) for name in columns]
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"column {twice!r} appears twice", remedy="rename one")
        for name, values in columns.items():
            if isinstance(values, str | bytes) or not isinstance(values, Iterable):
                raise DataError(
                    f"column {str(name)!r} is {values!r:.80}, and no list of values",
                    remedy="give each column as a list or an array; of a single row as lists of one value",
                )
        return cls({str(name): as_column(values) for name, values in columns.items()})

    def __len__(self) -> int:
        """n, the number of rows; 0 without columns."""
        return next((len(values) for values in self.columns.values()), 0)

    def __getitem__(self, name: str) -> Array:
        """The column ``name``, ``(n,)``.

        Raises:
            DataError: there is none.
        """
        if name not in self.columns:
            raise DataError(f"no column {name!r}", remedy=suggest(name, self.columns))
        return self.columns[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in order."""
        return tuple(self.columns)

    def take(self, rows: Array) -> Table:
        """The rows at the given positions (or where a boolean mask holds), in that order."""
        return Table({name: values[rows] for name, values in self.columns.items()})

    def without(self, *names: str) -> Table:
        """The table less some columns."""
        return Table({name: v for name, v in self.columns.items() if name not in names})


def as_column(values: Iterable[Any]) -> Array:
    """Values as a column: float64 when all are numbers or booleans, else objects; None, NaN and "" are missing.

    Points in time are text: a column of days alone, all of them at midnight, is written as in a CSV file.

    >>> as_column([1, None, True]).tolist()
    [1.0, nan, 1.0]
    >>> as_column(["a", "", 2]).tolist()
    ['a', None, 2]
    >>> as_column(np.array(["2021-01-31", "NaT"], "datetime64[ns]")).tolist()
    ['2021-01-31', None]
    """
    given = values if isinstance(values, np.ndarray) else _objects(values)
    if given.dtype.kind in "biuf":
        return given.astype(np.float64, copy=False)
    if given.dtype.kind == "M":  # as objects, nanoseconds would be mere numbers
        given = given.astype("datetime64[us]")
    cells = _dated([_cell(cell) for cell in given.astype(object).ravel()])
    if all(cell is None or isinstance(cell, int | float | np.number | np.bool_) for cell in cells):
        numbers = np.array([np.nan if c is None else _float(c) for c in cells], np.float64)
        return numbers.reshape(given.shape)
    return _objects(cells).reshape(given.shape)


def label(value: object) -> str:
    """The name of a category: text without spaces around it, whole numbers without a decimal point.

    >>> label(3.0), label(" a "), label(True)
    ('3', 'a', '1')
    """
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def _float(number: Any) -> float:
    """A whole number beyond every float is an infinite one, which the schema names as a fault of its row."""
    try:
        return float(number)
    except OverflowError:
        return float(np.inf if number > 0 else -np.inf)


def _objects(values: Iterable[Any]) -> Array:
    cells = list(values)
    column = np.empty(len(cells), object)
    column[:] = cells
    return column


def _dated(cells: list[Any]) -> list[Any]:
    """The cells with points in time as text; days without hours where all are such."""
    times = [cell for cell in cells if isinstance(cell, datetime)]
    days = all(t.tzinfo is None and t.time() == time() for t in times)
    return [
        str(cell.date() if days and isinstance(cell, datetime) else cell)
        if isinstance(cell, date)
        else cell
        for cell in cells
    ]


def _cell(cell: object) -> object:
    """A cell as it is, None where it is missing; what holds several values is text, as in a CSV file."""
    if isinstance(cell, Decimal):
        cell = float(cell)
    if isinstance(cell, bytes):  # what some writers of Parquet files, and NumPy's own text, are
        cell = cell.decode("utf-8", "backslashreplace")
    if isinstance(cell, list | tuple | dict | set | np.ndarray):
        return str(cell.tolist() if isinstance(cell, np.ndarray) else cell)
    return None if _is_missing(cell) else cell


def _is_missing(cell: object) -> bool:
    if isinstance(cell, str):
        return not cell.strip()
    if cell is None or type(cell).__name__ == "NAType":  # pandas' own, which compares with nothing
        return True
    return bool(cell != cell)  # only NaN and NaT differ from themselves
