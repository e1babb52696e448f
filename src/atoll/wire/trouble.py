"""What errors of files and disks mean to whoever has to see to them."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from pathlib import Path

from atoll.core.errors import StorageError

__all__ = ["cramped", "fails", "remedy_of", "takes_nothing", "unreadable"]

_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

_CRAMPED = 1 << 20
"""Bytes that are free on a disk that counts as full."""


def remedy_of(error: OSError, *, reading: bool = False) -> str:
    """What to do about an error of the system; empty where nothing is known that it does not say itself.

    Args:
        error: as it came.
        reading: whether something was read, and not written.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free space on this disk; what was acknowledged is still there"
    if error.errno == errno.EROFS:
        return (
            "its disk is mounted read-only, as systems do after errors of a disk (dmesg says): "
            "mend it and mount it for writing, or let the user that runs this program write there"
        )
    if error.errno in (errno.EACCES, errno.EPERM) and reading:
        return (
            "run this as the user whom the folder belongs to (sudo -u USER), "
            "or give it to this user (chown -R)"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return "let the user that runs this program write there (ls -l shows whose it is)"
    if error.errno == errno.EIO:
        return "check the disk: its hardware or file system reports errors"
    return ""


def takes_nothing(error: BaseException | None) -> bool:
    """Whether a disk that is full or read-only is behind an error; once it is mended, the same works."""
    return _behind(error, _PASSING)


def fails(error: BaseException | None) -> bool:
    """The same, or a disk that reports errors; for files that are the program's own, and no user's data."""
    return _behind(error, (*_PASSING, errno.EIO))


def _behind(error: BaseException | None, numbers: Collection[int]) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in numbers:
            return True
        error = error.__cause__ if error.__cause__ is not error else None
    return False


def unreadable(path: Path, error: OSError | ValueError) -> StorageError:
    """The error of a file that should be there and cannot be read, or holds something else."""
    if isinstance(error, OSError):
        said, remedy = error.strerror or str(error), remedy_of(error, reading=True)
    else:
        said, remedy = str(error), ""
    return StorageError(
        f"{path} cannot be read: {said}", remedy=remedy or "restore it from a backup"
    )


def cramped(path: Path) -> str:
    """What to say of a disk without room; empty where it has some, or where that cannot be told.

    A program that has met a full disk may not be able to write even that down.
    """
    try:
        found = os.statvfs(path)
    except OSError:
        return ""
    if found.f_bavail * found.f_frsize >= _CRAMPED:
        return ""
    return f"the disk of {path} is full: free space there, and all goes on by itself"
