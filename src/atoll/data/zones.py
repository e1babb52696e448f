"""Times of different zones among sites: one and the same moment is then written in several ways.

Points in time are text in tables (:func:`~atoll.data.table.as_column`), each of them a category of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

__all__ = ["zones_note"]

_TIME = re.compile(
    r"\d{1,4}([-./])\d{1,2}\1\d{1,4}"
    r"(?:[T ]\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?: ?[AaPp][Mm])?"
    r" ?(?P<zone>[+-]\d{2}(?::?\d{2})?|[A-Za-z][\w/+-]*)?)?"
)
"""A day, or a day with a time and perhaps its zone, as the zone is written."""
_NONE = "no zone"
_MOST_NAMED = 5


def zones_note(column: str, sites: Mapping[str, Iterable[str]]) -> str:
    """Which sites write the times of a column in which zone, as a note; empty where all write the same.

    Of a zone with summer time a site has two.

    Args:
        column: its name.
        sites: the different values of the column by site; those that are no times are passed over.

    >>> print(zones_note("seen", {"bern": ["2024-01-01 00:00:00+01:00"], "lyon": ["2024-01-01"]}))
    column 'seen' holds times of different zones (+01:00 at bern; no zone at lyon), so that one ...
    """
    at: dict[tuple[str, ...], list[str]] = {}
    for site, names in sites.items():
        times = filter(None, map(_TIME.fullmatch, set(names)))
        zones = tuple(sorted({time["zone"] or _NONE for time in times}))
        if zones:
            at.setdefault(zones, []).append(site)
    if len(at) < 2:
        return ""
    told = "; ".join(f"{', '.join(zones)} at {_listed(at[zones])}" for zones in at)
    return (
        f"column {column!r} holds times of different zones ({told}), so that one moment is several categories: "
        "write all times in one zone, or give a number, such as days since a date"
    )


def _listed(sites: list[str]) -> str:
    return ", ".join(sites[:_MOST_NAMED]) + (", …" if len(sites) > _MOST_NAMED else "")
