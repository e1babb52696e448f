"""Files that nobody needs any more, to be written over instead of making new ones.

A large model comes and goes as files of one size, round after round. Making a file costs blocks of the
disk and pages of memory, which a virtual machine may first have to ask its host for; writing over one
that is there costs a tenth of that. So a file may be kept as a spare when it is removed, and become the
next one.

What is still read is not written over: a spare is taken only when the system says that nobody else has it
open or mapped (a lease, ``F_SETLEASE``), and when it has no other name. Its old name is gone for
good by then, so no failure brings back a name with another file's bytes. A spare that was taken carries a
mark, how many of its bytes are the new ones, until it is complete: after a crash no old byte passes for a
new one. Where a system knows no leases or marks (they are Linux's), there are no spares.
"""

from __future__ import annotations

import itertools
import os
import signal
import stat
import threading
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["LARGE", "Spares", "mark", "marked", "unmark"]

LARGE = 1 << 17
"""A shorter file is not worth it."""

_WAIT = 1 << 20
"""Nor is one worth a wait for the disk."""

_ZEROS = memoryview(bytes(1 << 18))
_MARK = "user.atoll.held"
_MOST_FILES = 64
_MOST_TIMES = 8
"""A spare that is so many times as large as what is wanted is left for what is larger."""
_LEAST_FREE = 4
"""A spare is kept while the disk has so many times its size left."""


def marked(file: int | Path) -> int | None:
    """How many bytes of a file count; None where all do."""
    try:
        return int.from_bytes(os.getxattr(file, _MARK), "little")
    except (OSError, AttributeError):  # no mark, or a system without any
        return None


def mark(file: int | Path, held: int) -> None:
    """Say how many bytes of a file count.

    Raises:
        OSError: the mark cannot be written.
    """
    os.setxattr(file, _MARK, held.to_bytes(8, "little"))


def unmark(number: int, held: int) -> None:
    """End an open file after so many bytes, all of which count.

    Raises:
        OSError: it cannot be changed.
    """
    os.ftruncate(number, held)
    os.removexattr(number, _MARK)


@dataclass(frozen=True)
class _Spare:
    """A file, its size, and the folder that may come back with its old name; None where none does."""

    path: Path
    size: int
    left: Path | None


class Spares:
    """Spare files in ``folder``. Any thread may use it; whatever fails only means that there is no spare.

    Args:
        folder: its own, on the disk of the files; made with the first spare. What another process has
            left there is removed then.
        most: bytes of all.
        certain: whether a name that was removed must not come back after a power failure.
    """

    def __init__(self, folder: Path, most: int = 4 << 30, *, certain: bool = True) -> None:
        self._folder, self._most, self._certain = folder, most, certain
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._held: list[_Spare] = []
        self._begun = False

    def keep(self, path: Path) -> bool:
        """Take over a file that is not needed any more; False where it has to be removed."""
        with self._lock, suppress(OSError):
            if not hasattr(os, "setxattr"):
                return False
            found = path.lstat()
            whole = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_size >= LARGE
            if not whole or not self._room(found.st_size):
                return False
            if not self._begun:
                self._begin()
            spare = self._folder / f"{os.getpid()}-{next(self._numbers)}"
            os.rename(path, spare)
            left = path.parent if self._certain else None
            self._held.append(_Spare(spare, found.st_size, left))
            return True
        return False

    def make(self, size: int) -> None:
        """Write one, of zeros, while nobody waits for it."""
        with self._lock:
            try:
                if not hasattr(os, "setxattr") or not self._room(size):
                    return
                if not self._begun:
                    self._begin()
            except OSError:
                return
            path = self._folder / f"{os.getpid()}-{next(self._numbers)}"
        try:
            with path.open("xb", buffering=0) as file:
                for start in range(0, size, len(_ZEROS)):
                    file.write(_ZEROS[: size - start])
        except OSError:
            with suppress(OSError):
                path.unlink()
        else:
            with self._lock:
                self._held.append(_Spare(path, size, None))

    def place(self, path: Path, size: int) -> bool:
        """Make a spare the file ``path``, of which no byte counts yet; False where there is none.

        It is the smallest that is large enough, or else the largest; not one that is much too large and would
        have to be cut. Short ones are not worth a wait for the disk: their old names have to be gone by then.

        Args:
            path: on the same disk; a file of that name is replaced.
            size: bytes that it will have, or 0 where that is not known.
        """
        with self._lock:
            for spare in sorted(self._held, key=lambda s: (s.size < size, abs(s.size - size))):
                if (size and spare.size > _MOST_TIMES * size) or (
                    spare.left and spare.size < _WAIT
                ):
                    continue
                try:
                    if self._taken(spare, path):
                        self._held = [s for s in self._held if s.path != spare.path]
                        return True
                except OSError:
                    self._held = [s for s in self._held if s.path != spare.path]
                    with suppress(OSError):
                        spare.path.unlink()
        return False

    def left(self, folder: Path) -> frozenset[Path]:
        """Spares whose old names are gone for good once ``folder`` is made durable from now on."""
        with self._lock:
            return frozenset(spare.path for spare in self._held if spare.left == folder)

    def gone(self, spares: Collection[Path]) -> None:
        """The folder that :meth:`left` was asked of is durable."""
        if spares:
            with self._lock:
                self._forget(spares)

    def _forget(self, spares: Collection[Path]) -> None:
        self._held = [replace(s, left=None) if s.path in spares else s for s in self._held]

    def clear(self) -> None:
        """Remove them all, also those of other processes."""
        with self._lock, suppress(OSError):
            self._held.clear()
            for left in self._folder.iterdir():
                left.unlink(missing_ok=True)

    def _begin(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for left in self._folder.iterdir():
            left.unlink(missing_ok=True)
        self._begun = True

    def _room(self, size: int) -> bool:
        held = sum(spare.size for spare in self._held)
        if held + size > self._most or len(self._held) >= _MOST_FILES:
            return False
        parent = self._folder if self._begun else self._folder.parent
        disk = os.statvfs(parent)
        return disk.f_bavail * disk.f_frsize >= _LEAST_FREE * size

    def _taken(self, spare: _Spare, path: Path) -> bool:
        number = os.open(spare.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not _alone(number):
                return False
            os.fchmod(number, 0o600)
            mark(number, 0)
        finally:
            os.close(number)
        if spare.left is not None:
            _sync(spare.left)
            self._forget({s.path for s in self._held if s.left == spare.left})
        os.rename(spare.path, path)
        return True


def _alone(number: int) -> bool:
    """Whether nobody else has this file open or mapped, or by another name."""
    import fcntl  # does not exist everywhere

    if os.fstat(number).st_nlink != 1:
        return False
    # Who opens it in the next moment is told of by a signal; the usual one would end this process.
    fcntl.fcntl(number, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BlockingIOError:
        return False
    fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)
