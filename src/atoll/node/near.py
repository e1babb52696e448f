"""A short result on its way from the worker to the server, which is read once.

It is checked, named by its digest, kept and sent: all of that is done with the same bytes.
"""

from __future__ import annotations

import threading
from pathlib import Path

from atoll.wire.disk import Disk
from atoll.wire.frames import Blob

__all__ = ["Near"]


class Near:
    """The bytes of the file that was read last, and what they are called. Any thread may use it.

    Args:
        disk: where files lie.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._blob: Blob | None = None
        self._raw = b""

    def look(self, path: Path, most: int) -> tuple[bool, bytes | None]:
        """Whether there is such a file, and its bytes, where they are not more than ``most``.

        Raises:
            StorageError: it cannot be read.
        """
        size = self._disk.size(path)
        if size is None or size > most:
            return size is not None, None
        raw = self._disk.read(path)
        with self._lock:
            self._path, self._blob, self._raw = path, None, raw
        return True, raw

    def name(self, path: Path) -> Blob:
        """Digest and size of a file, which is about to be moved.

        Raises:
            StorageError: it cannot be read.
        """
        with self._lock:
            if path == self._path:
                self._path, self._blob = None, Blob.of(self._raw)
                return self._blob
        return Blob.of(self._disk.view(path))

    def take(self, blob: Blob) -> bytes | None:
        """The bytes of that name, once; None where they have to be read."""
        with self._lock:
            if blob != self._blob:
                return None
            raw, self._blob, self._raw = self._raw, None, b""
            return raw
