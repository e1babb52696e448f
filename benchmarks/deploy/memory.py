"""What processes hold in memory while a run goes on: sampled, so lower bounds of the peaks (Linux)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

__all__ = ["Watch", "descendants"]

PAUSE = 0.05
EVERY = 4
"""The whole tree is looked at once in so many looks at the server: it costs more."""


def descendants(*roots: int) -> list[int]:
    """``roots`` and all their descendants."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found = list(roots)
    for pid in found:
        found += children.get(pid, [])
    return found


def shares(pids: list[int]) -> float:
    """MB (2^20 bytes) that processes hold: the sum of their proportional shares (PSS)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def private(pids: list[int]) -> float:
    """MB of memory of processes' own: what no file stands behind (RssAnon)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
    return total / 1024


class Watch:
    """Looks at a server and at the whole tree while the context lasts.

    Args:
        server: processes that make up the server, asked for at each look.
        tree: all processes.
        on: whether to look at all.
    """

    def __init__(
        self, server: Callable[[], list[int]], tree: Callable[[], list[int]], on: bool = True
    ) -> None:
        self._server, self._tree, self._on = server, tree, on
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._found = dict.fromkeys(("server", "own", "tree"), 0.0)
        self._before = 0.0

    def _look(self) -> None:
        number, over = 0, False
        while not over:
            over = self._done.wait(PAUSE)
            server, found = self._server(), self._found
            found["server"] = max(found["server"], shares(server))
            found["own"] = max(found["own"], private(server))
            if over or number % EVERY == 0:
                found["tree"] = max(found["tree"], shares(self._tree()))
            number += 1

    def __enter__(self) -> Watch:
        if self._on:
            self._before = private(self._server())
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._on:
            self._thread.join()

    @property
    def most(self) -> dict[str, float]:
        """MB: ``server`` at most, its ``growth`` in memory of its own, the whole ``tree`` at most."""
        if not self._on:
            return {}
        found = self._found
        return {
            "server": found["server"],
            "growth": found["own"] - self._before,
            "tree": found["tree"],
        }
