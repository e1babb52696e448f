"""One linear-algebra thread while clients work.

Sums inside a product are then formed in the same order in this process as in a worker, and small
products do not wait for threads. torch is left alone here: its adapter sets its own number, which
covers more than OpenMP, and puts it back. Runs in several threads of a process hold the libraries together:
the last one to end puts back what was before the first.
"""

from __future__ import annotations

import threading
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


_LOCK = threading.Lock()
_HELD: dict[object, list[int]] = {}
"""By library: how many hold it at one thread, and how many threads it had before."""


class _One:
    """One thread each while it is open; a class, because a generator would cost three times as much."""

    __slots__ = ("_own",)

    def __init__(self, own: Sequence[Any]) -> None:
        self._own = own

    def __enter__(self) -> None:
        # Only what differs is set: threadpoolctl's own limiter would take a tenth of a small round.
        with _LOCK:
            for library in self._own:
                if (held := _HELD.get(key := _whose(library))) is not None:
                    held[0] += 1
                elif (before := library.get_num_threads()) is not None:
                    _HELD[key] = [1, before]
                    if before != 1:
                        _set(library, 1)

    def __exit__(self, *error: object) -> None:
        with _LOCK:
            for library in self._own:
                if (held := _HELD.get(key := _whose(library))) is None:
                    continue
                held[0] -= 1
                if not held[0]:
                    del _HELD[key]
                    if held[1] != 1:
                        _set(library, held[1])


def _set(library: Any, threads: int) -> None:
    # threadpoolctl obeys the first thread that ever set a number, and nobody else while that lives.
    getattr(library, "_real_set_num_threads", library.set_num_threads)(threads)


def _whose(library: Any) -> object:
    """A number of threads belongs to the process, but that of OpenMP to the thread that asks."""
    own = threading.get_ident() if library.internal_api == "openmp" else 0
    return library.filepath, own
