"""A short result on its way from the worker to the server, which is read once.

It is checked, named by its digest, kept and sent: all of that is done with the same bytes.
"""

from __future__ import annotations

import threading
from pathlib import Path

from atoll.wire.disk import Disk
from atoll.wire.frames import Blob

__all__ = ["Near"]


_MOST = 256
"""Workers of whose last result the bytes are kept: a node has far fewer at once."""


class Near:
    """The bytes of the file that was read last of each worker, and what they are called. Any thread may use it.

    Several runs at a site have results at the same moment: one must not make another's be read again, for a
    worker that is still alive may have kept its file open.

    Args:
        disk: where files lie.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._lock = threading.Lock()
        self._looked: dict[Path, tuple[Path, bytes]] = {}  # by the worker's folder
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
            self._looked.pop(path.parent, None)
            self._looked[path.parent] = path, raw
            while len(self._looked) > _MOST:
                del self._looked[next(iter(self._looked))]
        return True, raw

    def name(self, path: Path) -> Blob:
        """Digest and size of a file, which is about to be moved.

        Raises:
            StorageError: it cannot be read.
        """
        with self._lock:
            known, raw = self._looked.get(path.parent, (None, b""))
            if known == path:
                del self._looked[path.parent]
                self._raw, self._blob = raw, Blob.of(raw)
                return self._blob
        return Blob.of(self._disk.view(path))

    def take(self, blob: Blob) -> bytes | None:
        """The bytes of that name, once; None where they have to be read."""
        with self._lock:
            if blob != self._blob:
                return None
            raw, self._blob, self._raw = self._raw, None, b""
            return raw
