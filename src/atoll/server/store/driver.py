"""Statements for the database's driver itself.

What every round asks is put to the driver without the toolkit between them, which takes ten times as long
for a question as SQLite for its answer. The statements are the toolkit's all the same: compiled once for
the database at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Dialect

__all__ = ["Statement"]


class Statement:
    """One statement, ready to be run.

    Args:
        built: by the toolkit, with named parameters.
        dialect: of the database.
        columns: those an insert gives values for.
    """

    def __init__(self, built: Any, dialect: Dialect, columns: Sequence[str] = ()) -> None:
        compiled: Any = built.compile(dialect=dialect, column_keys=list(columns) or None)
        self._text = str(compiled)
        self._order: Sequence[str] | None = compiled.positiontup if compiled.positional else None

    def run(self, cursor: Any, **given: Any) -> Any:
        """Run it; the cursor, with its rows if there are any."""
        cursor.execute(self._text, self._values(given))
        return cursor

    def many(self, cursor: Any, rows: Iterable[Mapping[str, Any]]) -> None:
        """Run it for each of several."""
        if listed := [self._values(row) for row in rows]:
            cursor.executemany(self._text, listed)

    def _values(self, given: Mapping[str, Any]) -> Any:
        return given if self._order is None else [given[name] for name in self._order]
