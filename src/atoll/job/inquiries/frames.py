"""Records for people: as pandas frames, and as text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from atoll.core.errors import MissingExtra

__all__ = ["frame", "summary"]

_FIRST, _LEAST = 24, 10
"""Characters of a table's first column, and of the others at the least."""


def frame(records: Sequence[Mapping[str, Any]], index: str = "") -> Any:
    """A pandas frame of records.

    Args:
        records: one a line.
        index: column that becomes the index.

    Raises:
        MissingExtra: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingExtra(
            "tables come as pandas frames", remedy="pip install 'atoll[tables]'"
        ) from error
    made = pd.DataFrame([dict(record) for record in records])
    return made.set_index(index) if index and len(made) else made


def summary(
    title: str,
    facts: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    notes: Sequence[str] = (),
) -> str:
    """A table for the terminal, in the manner of statsmodels.

    Args:
        title: the heading; empty for none.
        facts: numbers of the whole, by name, two in a line.
        records: one a line; the first column names it.
        notes: told below.

    >>> print(summary("", {"rows": 9}, [{"name": "age", "coef": 0.25}]))
    ==================================
    rows: 9
    ----------------------------------
                                  coef
    age                           0.25
    ==================================
    """
    name, *heads = dict.fromkeys(head for record in records for head in record) or [""]
    cells = [[_text(record.get(head, ""), 3) for head in heads] for record in records]
    widths = [
        max(_LEAST, *(len(text) + 1 for text in one)) for one in zip(heads, *cells, strict=True)
    ]
    rule = "-" * (_FIRST + sum(widths))
    lines = [*([title] if title else []), rule.replace("-", "=")]
    lines += _in_pairs([f"{fact}: {_text(value)}" for fact, value in facts.items()])
    for first, line in zip(
        ["", *(str(r.get(name, "")) for r in records)], [heads, *cells], strict=True
    ):
        texts = zip(line, widths, strict=True)
        lines.append(f"{first[: _FIRST - 1]:<{_FIRST}}" + "".join(f"{t:>{w}}" for t, w in texts))
    lines.insert(len(lines) - len(records) - 1, rule)
    return "\n".join([*lines, rule.replace("-", "="), *(f"note: {note}" for note in notes)])


def _in_pairs(items: Sequence[str]) -> Iterator[str]:
    for first, second in zip(items[::2], [*items[1::2], ""], strict=False):
        yield f"{first:<39}{second}".rstrip()


def _text(value: Any, digits: int = 6) -> str:
    """A cell; what is suppressed, NaN or None where a file was read, is a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return value if isinstance(value, str) else f"{value:.{digits}g}"
