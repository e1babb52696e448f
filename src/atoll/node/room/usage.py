"""What a worker holds of the machine, with all that it has started, as the node sees it from outside.

A limit that a process carries (:mod:`atoll.node.room.limits`) holds for that process alone. Many of them,
memory that they share, and files that have lost their name are counted here, from time to time; whoever
takes more is ended. Linux tells of them in :manpage:`proc(5)`; elsewhere nothing is counted.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Usage", "peak_of", "trouble", "usage_of"]

_BLOCK = 512
_IN_MEMORY = ("dev/shm", "tmp")
"""Folders of a room whose files are memory."""


@dataclass(frozen=True)
class Usage:
    """What a process and all that it has started hold.

    Args:
        tasks: processes and threads.
        memory: bytes of memory, what several of them share counted once.
        unnamed: bytes of files that are still open or mapped and that no folder names.
    """

    tasks: int
    memory: float
    unnamed: float


def trouble() -> str:
    """Why what a worker starts is not counted with it on this machine; empty where it is."""
    own = threading.get_native_id()
    if Path(f"/proc/self/task/{own}/children").exists():
        return ""
    return "the system does not tell what a process has started"


def usage_of(pid: int, folder: Path, enough: float, room: bool) -> Usage:
    """What the process ``pid`` and all that it has started hold now.

    Args:
        pid: a child of the caller that has not been waited for.
        folder: on the disk on which files without a name count.
        enough: bytes of memory up to which an estimate from above will do, which costs less.
        room: whether they have a room of their own.
    """
    family = _family(pid)
    threads = sum(next(_told(f"/proc/{one}/status", ("Threads:",)), 0) for one in family)
    return Usage(threads, _memory(family, enough, room), _unnamed(family, os.stat(folder).st_dev))


def peak_of(pid: int) -> int:
    """Most bytes of memory that one of them has held; 0 where that cannot be read."""
    return max((_kib(f"/proc/{one}/status", ("VmHWM:",)) for one in _family(pid)), default=0)


def _family(pid: int) -> list[int]:
    """A process and those it has started, and so on; who has lost its parent in a room is among them."""
    found = [pid]
    for one in found:  # which grows
        with suppress(OSError):
            for task in os.listdir(f"/proc/{one}/task"):
                found += map(int, Path(f"/proc/{one}/task/{task}/children").read_text().split())
    return found


def _told(path: str, names: tuple[str, ...]) -> Iterator[int]:
    """The numbers in the lines that begin with one of these names."""
    with suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(names):
                yield int(line.split()[1])


def _kib(path: str, names: tuple[str, ...]) -> int:
    return sum(_told(path, names)) << 10


# Memory ---------------------------------------------------------------------------------------------


def _memory(family: Sequence[int], enough: float, room: bool) -> float:
    own = mapped = 0
    for one in family:
        own += _kib(f"/proc/{one}/status", ("RssAnon:", "VmSwap:"))
        mapped += _kib(f"/proc/{one}/status", ("RssShmem:",))
    files = _files(family[2:]) if room else 0  # behind those that wait for the others
    if own + max(mapped, files) <= enough:
        return own + max(mapped, files)
    own = mapped = 0
    for one in family:  # what two of them hold is half of each
        exactly, about = f"/proc/{one}/smaps_rollup", f"/proc/{one}/status"
        own += _kib(exactly, ("Pss_Anon:", "SwapPss:")) or _kib(about, ("RssAnon:", "VmSwap:"))
        mapped += _kib(exactly, ("Pss_Shmem:",)) or _kib(about, ("RssShmem:",))
    return own + max(mapped, files)


def _files(family: Iterable[int]) -> int:
    """Bytes of the files that a room has in memory: what is mapped of them is seen in the processes too."""
    for one in family:  # any of them that is still there
        with suppress(OSError):
            found = [os.statvfs(f"/proc/{one}/root/{name}") for name in _IN_MEMORY]
            return sum((disk.f_blocks - disk.f_bfree) * disk.f_frsize for disk in found)
    return 0


# The disk -------------------------------------------------------------------------------------------


def _unnamed(family: Iterable[int], disk: int) -> float:
    found: dict[int, float] = {}
    for one in family:
        with suppress(OSError), os.scandir(f"/proc/{one}/fd") as numbers:
            for number in numbers:
                with suppress(OSError):
                    told = os.stat(number.path)
                    if stat.S_ISREG(told.st_mode) and not told.st_nlink and told.st_dev == disk:
                        found[told.st_ino] = told.st_blocks * _BLOCK
    # A file can be closed and go on in memory; then only how much is mapped is told.
    for one in family:
        path = f"/proc/{one}/maps"
        with suppress(OSError), open(path, encoding="utf-8", errors="replace") as maps:
            for line in maps:
                if line.endswith(" (deleted)\n"):
                    span, _, _, device, inode, _ = line.split(None, 5)
                    major, minor = (int(number, 16) for number in device.split(":"))
                    if os.makedev(major, minor) == disk:
                        start, end = (int(number, 16) for number in span.split("-"))
                        found.setdefault(int(inode), end - start)
    return sum(found.values())
