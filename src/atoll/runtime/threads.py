"""One linear-algebra thread while clients work.

Sums inside a product are then formed in the same order in this process as in a worker, and small
products do not wait for threads. torch is left alone here: its adapter sets its own number, which
covers more than OpenMP, and puts it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController

__all__ = ["Threads"]


class Threads:
    """The libraries that were loaded when this was made."""

    def __init__(self) -> None:
        every = ThreadpoolController().lib_controllers
        self._own = [c for c in every if "/torch" not in c.filepath]

    @contextmanager
    def one(self) -> Iterator[None]:
        """One thread each; as before afterwards."""
        # Only what differs is set: threadpoolctl's own limiter would take a tenth of a small round.
        changed = [(c, n) for c in self._own if (n := c.get_num_threads()) != 1]
        for library, _ in changed:
            library.set_num_threads(1)
        try:
            yield
        finally:
            for library, before in changed:
                if before is not None:
                    library.set_num_threads(before)
