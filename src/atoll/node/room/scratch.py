"""A worker's own folder, which job code has had in its hands: nothing in it is what it seems.

Job code may nest folders deeper than Python goes, take away its own rights to them, put a pipe, a link or a
folder in the place of a result, and change a file for as long as it holds it open, whatever name that has by
then. So what is wanted of the folder is copied, to a file that job code has never had; nothing in the folder is
looked at or mapped where it lies, and the rest is removed without going down into it.
"""

from __future__ import annotations

import itertools
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from atoll.core.errors import WireError
from atoll.wire.disk import RealDisk

__all__ = ["clear", "size_of", "taken"]

_DEEPEST = 2000
"""Characters of a path; whoever nests folders deeper than that hides files from whoever counts them."""
_BLOCK = 512
_PER_NAME = 4096
"""Bytes that a name counts for at least: a disk has room for so many only."""
_CACHED = 1 << 18
"""Bytes that are still in the processor's cache when they are written after they were read."""


def clear(folder: Path) -> None:
    """Remove a folder and all that is in it, whatever that is; what the disk keeps stays for another time.

    A link to a folder stays, and so does what it leads to.
    """
    with suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    if folder.is_symlink() or not folder.exists():
        return
    numbers, found = itertools.count(), [folder]
    while found:  # each folder is moved up before it is looked into, so that no path grows
        at = found.pop()
        with suppress(OSError):
            at.chmod(0o700)
            with os.scandir(at) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        found.append(_up(entry, folder, numbers))
                    else:
                        os.unlink(entry.path)
            os.rmdir(at)


def _up(entry: os.DirEntry[str], folder: Path, numbers: itertools.count[int]) -> Path:
    os.chmod(entry.path, 0o700)  # or it may not be moved
    while (aside := folder.with_name(f".{folder.name}-{next(numbers)}")).exists():
        pass
    os.rename(entry.path, aside)
    return aside


def size_of(folder: Path) -> float:
    """Bytes that a folder takes on its disk, by the names in it; infinite where they nest too deeply."""
    total, found = 0, [str(folder)]
    while found:
        at = found.pop()
        if len(at) > _DEEPEST:
            return float("inf")
        with suppress(OSError), os.scandir(at) as entries:
            for entry in entries:
                with suppress(OSError):
                    told = entry.stat(follow_symlinks=False)
                    total += max(_PER_NAME, told.st_blocks * _BLOCK)
                    if stat.S_ISDIR(told.st_mode):
                        found.append(entry.path)
    return total


def taken(path: str, place: Path, most: float) -> bool:
    """Copy a file that a worker has written to where job code does not come; False: there is none.

    Args:
        path: in the worker's folder; nothing need be there.
        place: in a folder that job code does not see; a spare (:mod:`atoll.wire.spares`) there is written over.
        most: bytes that it may have.

    Raises:
        WireError: it is no plain file of its own, such as a link, a pipe, a folder; or it is longer.
        StorageError: the copy cannot be written.
    """
    name = os.path.basename(path)
    try:  # without waiting for whoever is to write to a pipe
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise WireError(f"{name} is no plain file: {error.strerror}") from error
    try:
        told = os.fstat(number)
        if not stat.S_ISREG(told.st_mode) or told.st_nlink != 1:
            raise WireError(f"{name} is no plain file")
        if told.st_size > most:
            raise WireError(f"{name} has {told.st_size} bytes, and may have {most:.0f}")
        RealDisk().write(place, _blocks(number, told.st_size))
    finally:
        os.close(number)
    return True


def _blocks(number: int, size: int) -> Iterator[memoryview]:
    """The bytes of a file, not more than it had; each block is written before the next is read."""
    block, at = memoryview(bytearray(min(_CACHED, size))), 0
    while at < size and (read := os.preadv(number, [block[: size - at]], at)):
        yield block[:read]
        at += read
