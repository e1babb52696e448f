"""Tables as statistics read them: numbers as they are, categories as codes with agreed names."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from atoll.core.errors import DataError, Fault
from atoll.core.layout import Array
from atoll.data.columns import is_missing, natural, respelt
from atoll.data.schema import numbers_and_words
from atoll.data.table import Table, as_column, label

__all__ = [
    "MOST_LEVELS",
    "coded",
    "labels_of",
    "levels_of",
    "lost_notes",
    "mixed_note",
    "partly_note",
    "without_values",
]

MOST_LEVELS = 50
"""Text with more different values is no category: its values may be names."""


_MOST_NAMED = 5
"""Columns or sites that a note names."""


def partly_note(sites: Mapping[str, Collection[str]]) -> str:
    """Which columns some sites have and others have not, as a note; empty where all have the same.

    >>> partly_note({"bern": ["age", "Sex"], "lyon": ["age", "sex"]})
    "columns that not every site has are not read: 'Sex' (at bern), 'sex' (at lyon)"
    """
    held: dict[str, list[str]] = {}
    for site, names in sites.items():
        for name in names:
            held.setdefault(name, []).append(site)
    lost = [f"{n!r} (at {_some(at)})" for n, at in held.items() if len(at) < len(sites)]
    return f"columns that not every site has are not read: {_some(lost)}" if lost else ""


def lost_notes(sites: Mapping[str, Collection[str]], text: Collection[str]) -> list[str]:
    """What nobody reads although all columns were asked for: see :func:`partly_note`, and too much text.

    Args:
        sites: names of columns by site.
        text: names of those that hold text of more than :data:`MOST_LEVELS` values.

    >>> lost_notes({"bern": ["name", "age"], "lyon": ["name", "age"]}, {"name"})
    ["columns of text with more than 50 different values are not read: 'name'"]
    """
    names = _some([repr(name) for name in sorted(text)])
    long = f"columns of text with more than {MOST_LEVELS} different values are not read: {names}"
    return [note for note in (long if text else "", partly_note(sites)) if note]


def mixed_note(column: str, sites: Mapping[str, Array], *, read: bool = True) -> str:
    """Where text keeps a column of numbers from being one, as a note; empty where nothing does.

    Args:
        column: its name.
        sites: its cells by site.
        read: whether its values are categories; else it has too many of them.

    >>> mixed_note("arm", {"bern": as_column([1, 2]), "lyon": as_column([3, "?"])})
    "column 'arm' holds numbers, and text beside them at lyon: each value is a category of its own"
    """
    counts = {site: numbers_and_words(cells) for site, cells in sites.items()}
    text = [site for site, (_, words) in counts.items() if words]
    if not text or sum(n for n, _ in counts.values()) <= sum(words for _, words in counts.values()):
        return ""
    so = "each value is a category of its own" if read else "mend the text, or it is not read"
    return f"column {column!r} holds numbers, and text beside them at {_some(text)}: {so}"


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def labels_of(cells: Array) -> dict[str, Array]:
    """The different values of a column of text by name, each with the rows that hold it, ``(n,)`` bool."""
    names = np.array(["" if is_missing(cell) else label(cell) for cell in cells], object)
    return {name: names == name for name in sorted(set(names) - {""}, key=natural)}


def levels_of(
    columns: Mapping[str, Iterable[Iterable[str] | None]],
) -> dict[str, tuple[str, ...]]:
    """Names of categories from what single sites hold.

    Args:
        columns: by column what each site has: names, or None where the column holds numbers there.

    Returns:
        names by column, for columns in which some site holds text and which have no more of them than
        :data:`MOST_LEVELS`.

    >>> levels_of({"sex": [["m"], ["f"]], "age": [None, None]})
    {'sex': ('f', 'm')}
    """
    found = {}
    for name, sites in columns.items():
        told = [set(names) for names in sites if names is not None]
        every = set[str]().union(*told)
        if told and len(every) <= MOST_LEVELS:
            found[name] = tuple(sorted(every, key=natural))
    return found


def coded(
    site: str, raw: Table, levels: Mapping[str, tuple[str, ...]], person: str, persons: Array
) -> Table:
    """Numbers as they are, categories as codes from 0, persons as numbers; other text is left out.

    Args:
        site: for errors.
        raw: its rows.
        levels: names of categories by column.
        person: column of persons; empty for none.
        persons: the person behind each row.

    Raises:
        DataError: a category that is not among the names.
    """
    columns: dict[str, Array] = {}
    for name, cells in raw.columns.items():
        if name == person:
            columns[name] = persons.astype(np.float64)
        elif name in levels:
            place = {text: float(i) for i, text in enumerate(levels[name])}
            if cells.dtype.kind == "f":
                place |= {read: place[text] for read, text in respelt(levels[name]).items()}
            codes = [math.nan if is_missing(c) else place.get(label(c), -1.0) for c in cells]
            columns[name] = np.array(codes, np.float64)
            if (columns[name] < 0).any():
                message = "holds a category that is not declared"
                remedy = f"declared are {', '.join(levels[name])}"
                where = f"site {site!r}, column {name!r}"
                fault = Fault(where, message, remedy, withheld=message)
                raise DataError("the declared columns", site=site, faults=[fault])
        elif cells.dtype.kind != "O":
            columns[name] = as_column(cells)
    return Table(columns)


def without_values(table: Table, missing: Mapping[str, Iterable[str | float]]) -> Table:
    """The table with some values taken for missing.

    Args:
        table: a site's rows.
        missing: by column.
    """
    columns = dict(table.columns)
    for name, values in missing.items():
        if name not in columns:
            continue
        gone = {label(value) for value in values}
        cells = columns[name]
        if cells.dtype.kind == "O":
            columns[name] = as_column([None if label(c) in gone else c for c in cells])
        else:
            kept = np.array(cells, np.float64)
            kept[np.array([label(c) in gone for c in kept.tolist()], bool)] = math.nan
            columns[name] = kept
    return Table(columns)
