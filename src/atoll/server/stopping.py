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
        self._wanted: dict[str, str] = {}  # why each run is to end that was not yet told

    def look(self, engines: Iterable[Engine]) -> None:
        """Cancel those of the runs of which a line says so, and that were not told yet.

        Args:
            engines: of the runs that are at work. One that comes later, as its line was read while its engine
                was being made, is told by a later look.

        Raises:
            StorageError: the log cannot be read, or the row of a run cannot be written; the next look does it
                again.
        """
        for line in self._office.store.events(None, self._read):
            if line.kind == STOPPED:
                self._wanted[line.run] = line.text
            self._read = line.number
        for engine in engines:
            if engine.id in self._wanted:
                with suppress(StateError):  # it has ended meanwhile
                    engine.cancel(self._wanted[engine.id])
                del self._wanted[engine.id]
