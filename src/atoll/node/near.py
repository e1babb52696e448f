"""A result on its way from the worker to the server: a short one is read once for all that is done with it.

The file is the node's own copy (:mod:`atoll.node.room.scratch`), which job code has never had: what was checked
is what is named, kept and sent, also where it is looked at twice.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from atoll.wire.disk import Disk
from atoll.wire.frames import Blob

__all__ = ["Near", "Seen"]


@dataclass(frozen=True)
class Seen:
    """A file, and what has been read of it.

    Args:
        path: where it lies.
        raw: its bytes; None where it is long, or nobody has looked at it.
    """

    path: Path
    raw: bytes | None = None


class Near:
    """Reads and names results; has the bytes of the short one that was named last. Any thread may use it.

    Args:
        disk: where files lie.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._lock = threading.Lock()
        self._last: tuple[Blob, bytes] | None = None

    def look(self, path: Path, most: int) -> Seen | None:
        """A file, read where it has not more than ``most`` bytes; None where there is none.

        Raises:
            StorageError: it cannot be read.
        """
        size = self._disk.size(path)
        if size is None:
            return None
        return Seen(path, self._disk.read(path) if size <= most else None)

    def name(self, seen: Seen) -> Blob:
        """Digest and size of a file, which is about to be moved.

        Raises:
            StorageError: it cannot be read.
        """
        if seen.raw is None:
            return Blob.of(self._disk.view(seen.path))
        blob = Blob.of(seen.raw)
        with self._lock:
            self._last = blob, seen.raw
        return blob

    def take(self, blob: Blob) -> bytes | None:
        """The bytes of that name, once; None where they have to be read."""
        with self._lock:
            if self._last is None or self._last[0] != blob:
                return None
            raw, self._last = self._last[1], None
            return raw
