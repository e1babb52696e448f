"""Blobs that were downloaded: plans, models, code. Nothing here is precious; all of it is checked.

A file's name is the digest of what it holds. What this process has not itself downloaded or checked is
read through once before it is used.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from atoll.core.errors import StorageError
from atoll.wire.disk import RealDisk
from atoll.wire.frames import Blob
from atoll.wire.spares import LARGE, Spares
from atoll.wire.transfers import partial_of
from atoll.wire.trouble import remedy_of

__all__ = ["Cache"]

_MOST_PATHS = 1000


class Cache:
    """The cache in ``folder``. Any thread may use it.

    Args:
        folder: its own.
        most: bytes it may hold; what was used longest ago goes first.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder, most
        self._lock = threading.Lock()
        self._disk = RealDisk()
        self._busy: dict[str, threading.Lock] = {}
        self._known: dict[str, int] = {}  # checked by this process, least recently used first
        self._paths: dict[str, Path] = {}  # asked for again and again, and dear to make
        self._numbers = itertools.count()
        self._total: int | None = None  # bytes in the folder, once they have been counted
        # A name that comes back is looked through before it is used: it need not be gone for good.
        self._spares = Spares(folder / ".spares", most // 8, certain=False)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(
                f"{folder} cannot be made: {error.strerror}", remedy=remedy_of(error)
            ) from error

    def path(self, blob: Blob) -> Path:
        """Where ``blob`` lies once it is there."""
        found = self._paths.get(blob.sha256)
        if found is None:
            if len(self._paths) > _MOST_PATHS:
                self._paths.clear()
            found = self._paths[blob.sha256] = self._folder / blob.sha256
        return found

    def has(self, blob: Blob) -> bool:
        """Whether it is there, in its own bytes."""
        with self._lock:
            if self._known.pop(blob.sha256, None) is not None and self.path(blob).exists():
                self._known[blob.sha256] = blob.size
                return True
        try:
            with self.path(blob).open("rb") as file:
                right = hashlib.file_digest(file, "sha256").hexdigest() == blob.sha256
        except OSError:
            return False
        if right:
            with self._lock:
                self._known[blob.sha256] = blob.size
        else:
            with suppress(OSError):
                self.path(blob).unlink()
        return right

    def put(self, blob: Blob, raw: bytes | memoryview) -> None:
        """Keep bytes that came with a message.

        Args:
            blob: their digest, which was checked, and size.
            raw: the bytes.

        Raises:
            StorageError: the folder cannot be written.
        """
        if self.has(blob):
            return
        aside = self._folder / f".{blob.sha256}.{os.getpid()}.{next(self._numbers)}"
        if blob.size >= LARGE:
            self._spares.place(aside, blob.size)
        try:
            self._disk.write(aside, [raw])
            self._disk.rename(aside, self.path(blob))
        except StorageError:
            with suppress(OSError):
                aside.unlink()
            raise
        self._note(blob)

    def _note(self, blob: Blob) -> None:
        """A new file is there."""
        with self._lock:
            self._known[blob.sha256] = blob.size
            if self._total is not None:
                self._total += blob.size

    def fetch(self, blob: Blob, download: Callable[[Blob, Path], None]) -> Path:
        """The file of ``blob``, downloaded where it is not there.

        Args:
            blob: what is wanted.
            download: brings it to a path, its digest checked; may resume what it began.

        Raises:
            AtollError: what ``download`` raises.
        """
        with self._lock:
            own = self._busy.setdefault(blob.sha256, threading.Lock())
        with own:
            if not self.has(blob):
                partial = partial_of(self.path(blob))
                if blob.size >= LARGE and not partial.exists():
                    self._spares.place(partial, blob.size)
                download(blob, self.path(blob))
                self._note(blob)
        return self.path(blob)

    def drop(self, sha256: str) -> None:
        """Remove what will not be used again; without harm where it will."""
        with self._lock:
            size = self._known.pop(sha256, None)
            self._busy.pop(sha256, None)
            if size is not None and self._total is not None:
                self._total -= size
            path = self._paths.pop(sha256, None) or self._folder / sha256
            if not self._spares.keep(path):
                with suppress(OSError):
                    path.unlink()

    def trim(self, keep: Collection[str]) -> None:
        """Make room: remove what was used longest ago, but nothing that ``keep`` names.

        Args:
            keep: digests in use.
        """
        with self._lock:
            if self._total is not None and self._total <= self._most:
                return
            found = {}
            for entry in os.scandir(self._folder):
                with suppress(OSError):
                    found[entry.name] = entry.stat()
            self._total = total = sum(stat.st_size for stat in found.values())
            ranks = {name: rank for rank, name in enumerate(self._known)}
            # Unknown to this process: older than anything it knows, oldest first among themselves.
            order = sorted(found, key=lambda n: (ranks.get(n, -1), found[n].st_mtime, n))
            for name in order:
                if total <= self._most:
                    return
                if name in keep or name.startswith(".") or name.endswith(".partial"):
                    continue
                with suppress(OSError):
                    (self._folder / name).unlink()
                    self._total = total = total - found[name].st_size
                self._known.pop(name, None)
                self._busy.pop(name, None)
