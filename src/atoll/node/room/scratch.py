"""A worker's own folder, which job code has had in its hands: nothing in it is what it seems.

Job code may nest folders deeper than Python goes, take away its own rights to them, and put a pipe, a link or a
folder in the place of a result. So what is wanted of the folder is moved away first, to where no process of the
room can change what a name stands for, and looked at then; the rest is removed without going down into it.
"""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path

from atoll.core.errors import WireError

__all__ = ["clear", "size_of", "taken"]

_DEEPEST = 2000
"""Characters of a path; whoever nests folders deeper than that hides files from whoever counts them."""
_BLOCK = 512
_PER_NAME = 4096
"""Bytes that a name counts for at least: a disk has room for so many only."""
_CLOSING = 1.0
"""Seconds in which a process that was started while a result was written has to let go of it."""


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


def taken(path: str, aside: str) -> bool:
    """Move a file that a worker has written out of its reach, by the name that it has; False: there is none.

    Args:
        path: in the worker's folder; nothing need be there.
        aside: a folder on the same disk that job code does not see.

    Raises:
        WireError: it is no plain file of its own, such as a link, a pipe, a folder; or somebody can still write
            to it.
        OSError: it cannot be moved.
    """
    name = os.path.basename(path)
    place = os.path.join(aside, name)
    try:
        os.rename(path, place)
    except FileNotFoundError:
        return os.path.lexists(place)
    told = os.lstat(place)
    if not stat.S_ISREG(told.st_mode) or told.st_nlink != 1:
        raise WireError(f"{name} is no plain file")
    os.chmod(place, 0o600)
    until = time.monotonic() + _CLOSING
    while _is_written(place):
        if time.monotonic() > until:
            raise WireError(f"{name} is still open for writing")
        time.sleep(0.01)
    return True


def _is_written(path: str) -> bool:
    """Whether anybody has a file open or mapped for writing, where the system tells."""
    if sys.platform != "linux":
        return False
    import fcntl  # does not exist everywhere

    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(number, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:  # not on this disk
        return False
    finally:
        os.close(number)
    return False
