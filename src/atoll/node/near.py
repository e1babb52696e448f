"""A result on its way from the worker to the server: what was checked is what is named, kept and sent.

The file is the node's own copy (:mod:`atoll.node.room.scratch`), which job code has never had. A short one is
read once, and all is done with those bytes. Of a long one the beginning is, with all that the frame tells: the
digest that names the result is taken over these bytes, and goes on over the rest of the file.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path

from atoll.core.errors import WireError
from atoll.wire.disk import Disk
from atoll.wire.frames import HEADER_LIMIT, Blob

__all__ = ["Near", "Seen"]


_BEGINNING = 2 * HEADER_LIMIT
"""Bytes of a long result that are read: its header is among them, whatever it says."""


@dataclass(frozen=True)
class Seen:
    """What has been read of a result.

    Args:
        path: where it lies.
        raw: its bytes, or the first of them with all of its header.
        whole: whether these are all.
    """

    path: Path
    raw: bytes
    whole: bool


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
        """What a file holds, whole where that is not more than ``most`` bytes; None where there is none.

        Raises:
            StorageError: it cannot be read.
        """
        size = self._disk.size(path)
        if size is None:
            return None
        raw = self._disk.read(path) if size <= most else self._disk.read(path, 0, _BEGINNING)
        return Seen(path, raw, size <= most)

    def name(self, what: Seen | Path) -> Blob:
        """Digest and size of a file, which is about to be moved.

        Raises:
            WireError: it does not begin any more with what was seen.
            StorageError: it cannot be read.
        """
        if isinstance(what, Path):
            return Blob.of(self._disk.view(what))
        if what.whole:
            blob = Blob.of(what.raw)
            with self._lock:
                self._last = blob, what.raw
            return blob
        view, beginning = self._disk.view(what.path), len(what.raw)
        if view[:beginning] != what.raw:
            raise WireError("it was changed after it had been checked")
        digest = hashlib.sha256(what.raw)
        digest.update(view[beginning:])
        return Blob(digest.hexdigest(), len(view))

    def take(self, blob: Blob) -> bytes | None:
        """The bytes of that name, once; None where they have to be read."""
        with self._lock:
            if self._last is None or self._last[0] != blob:
                return None
            raw, self._last = self._last[1], None
            return raw
