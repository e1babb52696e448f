"""Runs that whoever runs the server has said are to end: lines of the log, written by another process.

The row of a run is the running server's alone; a command beside it (``atoll server cancel``) can only say what
is wanted. What it has said stays in the log, so it also counts for a server that is started later.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from atoll.core.errors import StateError
from atoll.server.office import Office
from atoll.server.rounds.engine import Engine
from atoll.server.store.contract import STOPPED

__all__ = ["Stopping"]


class Stopping:
    """Reads the log from its beginning, each line once."""

    def __init__(self, office: Office) -> None:
        self._office, self._read = office, 0

    def look(self, engines: Iterable[Engine]) -> None:
        """Cancel those of the runs of which a new line says so.

        Raises:
            StorageError: the log cannot be read, or the row of a run cannot be written; the next look does it
                again.
        """
        runs = {engine.id: engine for engine in engines}
        for line in self._office.store.events(None, self._read):
            if line.kind == STOPPED and line.run in runs:
                with suppress(StateError):  # it has ended meanwhile
                    runs[line.run].cancel(line.text)
            self._read = line.number
