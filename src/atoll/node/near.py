"""A result on its way from the worker to the server: what was checked is what is named, kept and sent.

The worker runs job code, which may have kept its file open. So a short result is read once, and all is done
with those bytes. Of a long one the beginning is, with all that the frame tells: the digest that names the
result is taken over these bytes, and goes on over the rest of the file.
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


_MOST = 256
"""Workers of whose last result the bytes are kept: a node has far fewer at once."""
_BEGINNING = 2 * HEADER_LIMIT
"""Bytes of a long result that are read: its header is among them, whatever it says."""


@dataclass(frozen=True)
class Seen:
    """What has been read of a result.

    Args:
        raw: its bytes, or the first of them with all of its header.
        whole: whether these are all.
    """

    raw: bytes
    whole: bool


class Near:
    """What was read of the last result of each worker, and what that is called. Any thread may use it.

    Several runs at a site have results at the same moment: one must not make another's be read again.

    Args:
        disk: where files lie.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._lock = threading.Lock()
        self._looked: dict[Path, tuple[Path, Seen]] = {}  # by the worker's folder
        self._blob: Blob | None = None
        self._raw = b""

    def look(self, path: Path, most: int) -> Seen | None:
        """What a file holds, whole where that is not more than ``most`` bytes; None where there is none.

        Raises:
            StorageError: it cannot be read.
        """
        size = self._disk.size(path)
        if size is None:
            return None
        raw = self._disk.read(path) if size <= most else self._disk.read(path, 0, _BEGINNING)
        seen = Seen(raw, size <= most)
        with self._lock:
            self._looked.pop(path.parent, None)
            self._looked[path.parent] = path, seen
            while len(self._looked) > _MOST:
                del self._looked[next(iter(self._looked))]
        return seen

    def name(self, path: Path) -> Blob:
        """Digest and size of a file, which is about to be moved.

        Raises:
            WireError: it does not begin any more with what was seen.
            StorageError: it cannot be read.
        """
        with self._lock:
            known, seen = self._looked.get(path.parent, (None, Seen(b"", whole=False)))
            if known == path:
                del self._looked[path.parent]
            if known == path and seen.whole:
                self._raw, self._blob = seen.raw, Blob.of(seen.raw)
                return self._blob
        raw = seen.raw if known == path else b""
        view = self._disk.view(path)
        if view[: len(raw)] != raw:
            raise WireError("it was changed after it had been checked")
        digest = hashlib.sha256(raw)
        digest.update(view[len(raw) :])
        return Blob(digest.hexdigest(), len(view))

    def take(self, blob: Blob) -> bytes | None:
        """The bytes of that name, once; None where they have to be read."""
        with self._lock:
            if blob != self._blob:
                return None
            raw, self._blob, self._raw = self._raw, None, b""
            return raw
