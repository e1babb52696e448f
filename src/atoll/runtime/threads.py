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
        every = ThreadpoolController()
        paths = [c.filepath for c in every.lib_controllers if "/torch" not in c.filepath]
        self._own = every.select(filepath=paths)

    @contextmanager
    def one(self) -> Iterator[None]:
        """One thread each; as before afterwards."""
        with self._own.limit(limits=1):
            yield
