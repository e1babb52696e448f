"""What guessing a schema needs to know of a site's columns: sketches that merge, names but no counts.

A :class:`Sketch` says of one column whether it holds text, numbers, whole numbers, zeros and ones only,
and which names its text takes. Sketches of many sites merge into that of their pooled rows, so a guess
from them is the same wherever the rows lie. The values of a column of numbers are never in it, unless
they are asked for as names (the classes of a target, or a column declared as a category).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np

from atoll.core.errors import Fault
from atoll.core.layout import Array
from atoll.data.columns import Column, labels_of, natural, numbers_of, place_of

__all__ = ["MOST_LETTERS", "MOST_LEVELS", "Sketch", "clashes", "guessed", "merged", "sketch"]

MOST_LEVELS = 50
"""A text column with more distinct values than this is taken for a name or key and left out."""

MOST_LETTERS = 200
"""A text column with a longer value than this is taken for free text and left out."""


@dataclass(frozen=True)
class Sketch:
    """One column, at one site or at several.

    Args:
        text: whether a cell is no number.
        some: whether a cell is a number.
        whole: whether all numbers are whole.
        binary: whether all numbers are 0 or 1.
        bare: whether there are numbers whose names are not among ``levels``.
        levels: distinct names of cells, numbers first; None: more than :data:`MOST_LEVELS`, or free text.
    """

    text: bool = False
    some: bool = False
    whole: bool = True
    binary: bool = True
    bare: bool = False
    levels: tuple[str, ...] | None = ()


def sketch(column: Column, cells: Array, *, named: bool = False) -> Sketch:
    """The sketch of one site's cells.

    Args:
        column: its name and missing codes.
        cells: as a :class:`~atoll.data.table.Table` holds them.
        named: whether its names matter whatever they are, however many.

    >>> sketch(Column("dose"), np.array([1.0, 2.5, np.nan]))
    Sketch(text=False, some=True, whole=False, binary=False, bare=True, levels=())
    """
    plain = Column(column.name)
    numbers, wrong = numbers_of(plain, cells)
    seen = numbers[~np.isnan(numbers)]
    numeric = cells.dtype.kind in "biuf"
    endless = numeric and bool(
        wrong.any()
    )  # infinities: no category, a fault once the cells are read
    levels: tuple[str, ...] | None = ()
    if named or not numeric:
        names = set(labels_of(column if named else plain, cells)) - {None, ""}
        told = sorted((n for n in names if n is not None), key=natural)
        few = len(told) <= MOST_LEVELS and all(len(n) <= MOST_LETTERS for n in told)
        levels = tuple(told) if named or few else None
    return Sketch(
        text=bool(wrong.any()) and not numeric,
        some=bool(len(seen)) or endless,
        whole=bool(np.all(seen == np.floor(seen))) and not endless,
        binary=bool(((seen == 0) | (seen == 1)).all()) and not endless,
        bare=numeric and not named and bool(len(seen)),
        levels=levels,
    )


def merged(sketches: Iterable[Sketch], *, named: bool = False) -> Sketch:
    """The sketch of all rows together; ``named`` as in :func:`sketch`."""

    def both(a: Sketch, b: Sketch) -> Sketch:
        levels = None if a.levels is None or b.levels is None else {*a.levels, *b.levels}
        if levels is not None and len(levels) > MOST_LEVELS and not named:
            levels = None
        return Sketch(
            text=a.text or b.text,
            some=a.some or b.some,
            whole=a.whole and b.whole,
            binary=a.binary and b.binary,
            bare=a.bare or b.bare,
            levels=None if levels is None else tuple(sorted(levels, key=natural)),
        )

    return reduce(both, sketches, Sketch())


def guessed(name: str, found: Sketch) -> Column:
    """The column that a merged sketch suggests: text is a category, zeros and ones are a boolean.

    Ignored are text with too many names, and what has no value anywhere.
    """
    if found.text:
        role: Literal["feature", "ignore"] = "ignore" if found.levels is None else "feature"
        return Column(name, "category", role=role)
    if not found.some:
        return Column(name, role="ignore")
    if found.binary:
        return Column(name, "boolean")
    return Column(name, "integer" if found.whole else "number")


def clashes(name: str, sites: Mapping[str, Sketch]) -> list[Fault]:
    """The sites where a column holds numbers although it is a category elsewhere.

    Their names are not known, and would seldom mean the same: 1 and "yes" are two categories.
    """
    words = [site for site, found in sites.items() if found.text]
    if not words or merged(sites.values()).levels is None:
        return []
    message = f"holds numbers, but text at {words[0]!r}"
    remedy = "declare the column with its type, or leave it out"
    return [
        Fault(place_of(site, Column(name)), message, remedy)
        for site, found in sites.items()
        if found.bare
    ]
