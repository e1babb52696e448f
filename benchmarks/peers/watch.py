"""One run as a tree of processes: its peak memory, and its end (Linux).

Some peers start daemons that leave the tree, so its members are known by a tag in their environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

__all__ = ["TAG", "Peak", "end", "tagged"]

TAG = "BENCH_TAG"
PAUSE = 0.2


def tagged(tag: str) -> list[int]:
    """Processes that carry a tag, without those that are already dead."""
    sought, found = f"{TAG}={tag}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if sought in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def held(tag: str) -> float:
    """MB (2^20 bytes) that the tagged processes hold: the sum of their proportional shares (PSS)."""
    total = 0
    for pid in tagged(tag):
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


class Peak:
    """Samples the tree five times a second while the context lasts; ``most`` is a lower bound of the peak.

    Args:
        tag: of the processes.
        over: a file that ends the watch when it comes to be.
    """

    def __init__(self, tag: str, over: Path) -> None:
        self.most = 0.0
        self._tag, self._over, self._done = tag, over, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not (self._done.wait(PAUSE) or self._over.exists()):
            self.most = max(self.most, held(self._tag))

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def end(tag: str, patience: float = 5.0) -> None:
    """Let tagged processes end by themselves, then stop those that do not."""
    limit = time.monotonic() + patience
    while left := tagged(tag):
        if time.monotonic() > limit:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            limit = time.monotonic() + patience
        time.sleep(0.1)
