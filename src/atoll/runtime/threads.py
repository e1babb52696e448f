"""One linear-algebra thread while clients work.

Sums inside a product are then formed in the same order in this process as in a worker, and small
products do not wait for threads. torch is left alone here: its adapter sets its own number, which
covers more than OpenMP, and puts it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from threadpoolctl import ThreadpoolController

__all__ = ["Threads"]


class Threads:
    """The libraries that were loaded when this was made."""

    def __init__(self) -> None:
        every = ThreadpoolController().lib_controllers
        self._own = [c for c in every if "/torch" not in c.filepath]

    def one(self) -> AbstractContextManager[None]:
        """One thread each; as before afterwards."""
        return _One(self._own)


class _One:
    """One thread each while it is open; a class, because a generator would cost three times as much."""

    __slots__ = ("_changed", "_own")

    def __init__(self, own: Sequence[Any]) -> None:
        self._own = own
        self._changed: list[tuple[Any, int | None]] = []

    def __enter__(self) -> None:
        # Only what differs is set: threadpoolctl's own limiter would take a tenth of a small round.
        self._changed = [(c, n) for c in self._own if (n := c.get_num_threads()) != 1]
        for library, _ in self._changed:
            library.set_num_threads(1)

    def __exit__(self, *error: object) -> None:
        for library, before in self._changed:
            if before is not None:
                library.set_num_threads(before)
