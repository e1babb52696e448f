"""One declared column, and reading a site's cells as what it declares."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from atoll.core.errors import Fault, suggest
from atoll.core.layout import Array
from atoll.data.table import label
from atoll.data.telling import EXACT, Telling

__all__ = [
    "BLURRED",
    "FLAGS",
    "Column",
    "blurred",
    "identifies",
    "is_missing",
    "labels_of",
    "natural",
    "numbers_of",
    "place_of",
    "read_cells",
    "respelt",
    "steady",
    "where",
]

TYPES = ("number", "integer", "category", "boolean")
_ROLES = ("feature", "target", "ignore")
_LEADING_ZERO = re.compile(r"0[0-9]+")
_TRUE, _FALSE = {"1", "true", "yes", "t", "y"}, {"0", "false", "no", "f", "n"}

FLAGS = _TRUE | _FALSE
"""What a boolean may be written as, in any capitals."""

Code = str | float | int
Types = Literal["number", "integer", "category", "boolean"]


@dataclass(frozen=True)
class Column:
    """One declared column.

    Args:
        name: as in the tables' header.
        type: ``number``, ``integer`` (whole), ``category`` or ``boolean``.
        unit: for people, such as ``mg/dl``.
        range: smallest and largest value allowed, both included.
        categories: all values allowed, in the order of their codes; empty: any.
        missing: values that mean "not known", such as ``0``, ``"?"`` or ``-9``.
        role: ``feature``, ``target`` or ``ignore``.
    """

    name: str
    type: Types = "number"
    unit: str = ""
    range: tuple[float, float] | None = None
    categories: tuple[str, ...] = ()
    missing: tuple[Code, ...] = ()
    role: Literal["feature", "target", "ignore"] = "feature"

    def faults(self) -> Iterator[Fault]:
        """What contradicts itself in this declaration."""
        place = f"column {self.name!r}"
        if self.type not in TYPES:
            yield Fault(place, f"unknown type {self.type!r}", suggest(self.type, TYPES))
        if self.role not in _ROLES:
            yield Fault(place, f"unknown role {self.role!r}", suggest(self.role, _ROLES))
        if self.range is not None and self.type not in ("number", "integer"):
            yield Fault(place, f"a {self.type} has no range", "remove range")
        if self.range is not None and not self.range[0] <= self.range[1]:
            yield Fault(
                place, f"range {list(self.range)} is empty", "write the smaller value first"
            )
        if self.categories and self.type != "category":
            yield Fault(place, f"a {self.type} has no categories", "set type = 'category'")
        if len(set(self.categories)) < len(self.categories):
            yield Fault(place, "a category appears twice", "remove the second")


BLURRED = "holds whole numbers too long to be told apart"
"""What is wrong with names for which :func:`blurred` holds."""


def read_cells(
    site: str, column: Column, raw: Array, telling: Telling = EXACT
) -> tuple[Array, list[Fault]]:
    """One column, typed, and its faults; faulty cells become missing.

    Args:
        site: whose cells they are.
        column: what they should be.
        raw: as they were read, ``(n,)``.
        telling: how others than the site are told how many cells are faulty.
    """
    place = place_of(site, column)
    if column.type == "category":
        if blurred(raw):
            remedy = "write them as text, for instance with a letter before the digits"
            nothing = np.full(len(raw), None, object)
            return nothing, [Fault(place, BLURRED, remedy, BLURRED)]
        names = labels_of(column, raw)
        allowed = set(column.categories)
        unknown = np.array(
            [bool(allowed) and n is not None and n not in allowed for n in names], bool
        )
        out = np.empty(len(names), object)
        out[:] = [None if bad else n for n, bad in zip(names, unknown, strict=True)]
        if not unknown.any():
            return out, []
        first = str(names[int(np.argmax(unknown))])
        message = f"unknown category {first!r} {where(unknown)}"
        told = f"{_cells(unknown, telling)} an unknown category"
        return out, [Fault(place, message, suggest(first, column.categories), told)]
    numbers, wrong = numbers_of(column, raw)
    faults = []
    if wrong.any():
        value = raw[int(np.argmax(wrong))]
        remedy = "correct it, or add it to the column's missing codes"
        what = {"boolean": "true or false", "integer": "a whole number"}.get(
            column.type, "a number"
        )
        message = f"{_show(value)} is not {what} {where(wrong)}"
        faults.append(Fault(place, message, remedy, f"{_cells(wrong, telling)} not {what}"))
    if column.range is not None:
        low, high = column.range
        outside = (numbers < low) | (numbers > high)
        if outside.any():
            value = numbers[int(np.argmax(outside))]
            unit = f" {column.unit}" if column.unit else ""
            message = f"{value:g} is outside [{low:g}, {high:g}]{unit} {where(outside)}"
            told = f"{_cells(outside, telling)} outside [{low:g}, {high:g}]{unit}"
            remedy = "correct it, declare it missing, or widen the range"
            faults.append(Fault(place, message, remedy, told))
    return numbers, faults


def numbers_of(column: Column, raw: Array) -> tuple[Array, Array]:
    """Cells as float64 with NaN for missing, ``(n,)``, and a mask of those that are not of the type."""
    codes = {label(code) for code in column.missing}
    if raw.dtype.kind == "f":
        numbers = raw.astype(np.float64)
        wrong = np.isinf(numbers)
    else:
        parsed = [_parse(cell, boolean=column.type == "boolean", codes=codes) for cell in raw]
        numbers = np.array([math.nan if p is None else p for p in parsed], np.float64)
        wrong = np.array([p is None for p in parsed], bool) | np.isinf(numbers)
    for code in codes:
        number = _parse(code, boolean=False, codes=set())
        if number is not None:
            coded = numbers == number
            numbers[coded], wrong[coded] = math.nan, False
    if column.type == "integer":
        wrong |= ~np.isnan(numbers) & (numbers != np.floor(numbers))
    if column.type == "boolean":
        wrong |= ~np.isnan(numbers) & ~np.isin(numbers, (0, 1))
    numbers[wrong] = math.nan
    return numbers, wrong


def _parse(cell: object, *, boolean: bool, codes: set[str]) -> float | None:
    """The number a cell holds, NaN when it is missing, None when it is no number."""
    if cell is None:
        return math.nan
    text = label(cell)
    if text in codes or not text:
        return math.nan
    if boolean and text.lower() in _TRUE | _FALSE:
        return float(text.lower() in _TRUE)
    try:
        return None if "_" in text else float(text)  # to Python 2_5 is 25, to its writer a name
    except ValueError:
        return None


def labels_of(column: Column, raw: Array) -> list[str | None]:
    """Cells as names of categories, None where missing or a missing code."""
    codes = {label(code) for code in column.missing}
    names = [None if is_missing(cell) else label(cell) for cell in raw]
    if raw.dtype.kind == "f" and (spelt := respelt(column.categories)):
        names = [None if name is None else spelt.get(name, name) for name in names]
    return [None if name in codes else name for name in names]


def respelt(categories: Collection[str]) -> dict[str, str]:
    """Categories that begin with a zero, by what a file that was read as numbers makes of them.

    >>> respelt(("01067", "50667", "7", "07"))
    {'1067': '01067'}
    """
    found = {str(int(name)): name for name in categories if _LEADING_ZERO.fullmatch(name)}
    return {read: name for read, name in found.items() if read not in categories}


def place_of(site: str, column: Column) -> str:
    """Where a fault is, for people."""
    return f"site {site!r}, column {column.name!r}"


def where(mask: Array) -> str:
    """Where a mask holds, for people; rows count from 1."""
    first, count = int(np.argmax(mask)) + 1, int(mask.sum())
    return f"in row {first}" if count == 1 else f"in row {first} and {count - 1} more"


def _cells(mask: Array, telling: Telling) -> str:
    """How many, for those who may not see which."""
    words = telling.words(mask, "cell")
    return f"{words} is" if words.startswith("1 ") else f"{words} are"


def _show(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


def is_missing(cell: object) -> bool:
    """Whether a cell of a :class:`~atoll.data.table.Table` holds nothing: None or NaN."""
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def blurred(cells: Array) -> bool:
    """Whether a column holds whole numbers so long that several of them are one float, as names must not be.

    >>> blurred(np.array([12345678901234567.0])), blurred(np.array([123456789012345.0, np.nan]))
    (True, False)
    """
    return cells.dtype.kind == "f" and bool((np.abs(cells[np.isfinite(cells)]) >= 2.0**53).any())


_FEW = 20
"""Of fewer rows nothing is said: they may well have different values by chance."""
_UNLIKELY = 5.0
"""So many pairs of equal numbers are expected of a quantity over that span; that there is none is 1 in 150."""
_BY_NAME = re.compile(
    r"(^|[^a-z])(id|nr|no|num|number|key|index|pid|mrn|uid|uuid|identifier)$"
    r"|(patient|person|subject|record|case|visit|sample|study|row)(id|nr|no|number)$"
)


def identifies(name: str, cells: Array) -> bool:
    """Whether a feature looks like the number of the row's person: another whole number in every row.

    So may a quantity of many digits. Where its name does not say that it is a number of somebody, the numbers
    have to lie so close that a quantity would have come twice.

    Args:
        name: of the column.
        cells: its typed cells, ``(n,)``; see :func:`read_cells`.

    >>> identifies("patient_id", 10_000_000 + 7919.0 * np.arange(30)), identifies("visit", np.arange(30.0))
    (True, True)
    >>> identifies("income", 10_000_000 + 7919.0 * np.arange(30)), identifies("patient_id", np.zeros(30))
    (False, False)
    """
    size = len(cells)
    if size < _FEW or cells.dtype.kind != "f":
        return False
    for some in (cells[:500], cells):  # most columns are known for quantities by their first rows
        if (
            np.isnan(some).any()
            or (some != np.floor(some)).any()
            or len(np.unique(some)) < len(some)
        ):
            return False
    span = float(cells.max() - cells.min()) + 1
    return bool(_BY_NAME.search(name.lower())) or size * size / (2 * span) > _UNLIKELY


def steady(parts: Sequence[Array]) -> bool:
    """Whether a feature has one and the same value in all rows, of which there are not just a few.

    Args:
        parts: its typed cells at each site, ``(n,)`` each.

    >>> steady([np.full(30, 60.0), np.full(5, 60.0)]), steady([np.full(30, 60.0), np.full(5, 61.0)])
    (True, False)
    """
    whole = [cells for cells in parts if len(cells)]
    if sum(map(len, whole)) < _FEW or is_missing(whole[0][0]):
        return False
    first = whole[0][0]
    return all(bool((cells == first).all()) for cells in whole)


def natural(name: str) -> tuple[int, float, str]:
    """Sort key: numbers by value, then text."""
    number = _parse(name, boolean=False, codes=set())
    return (1, 0.0, name) if number is None or math.isnan(number) else (0, number, name)
