"""One process at a time in a folder: a lock that goes with the process, however that ends."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from atoll.core.errors import StorageError
from atoll.wire.trouble import remedy_of

__all__ = ["alone", "is_taken"]

_GLANCE = 1.0
"""Seconds for which :func:`alone` tries: whoever only looks whether the lock is taken holds it for a moment."""


@contextlib.contextmanager
def alone(lock: Path, refusal: str, remedy: str) -> Iterator[Callable[[], bool]]:
    """Hold the lock while the body runs; a killed process holds none. Gives what tells whether it is there.

    Args:
        lock: its file, which is made if need be and stays.
        refusal: what is said when another process holds it.
        remedy: what to do about that.

    Raises:
        StorageError: another process holds it, or the folder cannot be used.
    """
    import fcntl  # does not exist everywhere

    try:
        number = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(
            f"{lock.parent} cannot be used: {error.strerror}", remedy=remedy_of(error)
        ) from error
    try:
        until = time.monotonic() + _GLANCE
        while True:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise StorageError(refusal, remedy=remedy) from error
                time.sleep(0.05)
            except OSError as error:  # such as on a network folder without locks
                raise StorageError(
                    f"{lock} cannot be locked: {error.strerror}",
                    remedy="put the folder on a local disk",
                ) from error
        yield lambda: _named(lock, number)
    finally:
        os.close(number)


def _named(lock: Path, number: int) -> bool:
    """Whether the open file is still the one of this name, and not moved away with its folder."""
    try:
        return os.path.samestat(os.fstat(number), os.stat(lock))
    except FileNotFoundError:
        return False
    except OSError:  # such as a network folder that does not answer: no proof of anything
        return True


def is_taken(lock: Path) -> bool:
    """Whether a process holds the lock now. Nothing is made or changed, so it can be asked of any folder.

    Raises:
        StorageError: this user may not look.
    """
    import fcntl

    try:
        number = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(
            f"{lock} cannot be looked at: {error.strerror}", remedy=remedy_of(error, reading=True)
        ) from error
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(number)
    return False
