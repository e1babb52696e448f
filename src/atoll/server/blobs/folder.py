"""Blobs in a folder of this machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path

from atoll.core.errors import StateError, StorageError, TooLarge, Unreachable, WireError
from atoll.server.blobs.contract import checked, is_digest, missing
from atoll.wire.disk import Disk, Piece, RealDisk, Told
from atoll.wire.frames import Blob
from atoll.wire.spares import LARGE

__all__ = ["FolderBlobs"]

_BLOCK = 1 << 20


class FolderBlobs:
    """Blobs as files of a folder, named by their digest.

    Args:
        folder: made if missing; ``new`` and ``uploads`` in it hold what is not whole yet, ``spares`` files
            to be written over.
        disk: what it is on.
    """

    def __init__(self, folder: Path, disk: Disk | None = None) -> None:
        self.folder = folder
        self.disk: Disk = RealDisk() if disk is None else disk
        names = "new", "uploads", "spares", "ahead"
        self._new, self._uploads, self._spares, self._ahead = (folder / name for name in names)
        for path in (folder, self._new, self._uploads):
            self.disk.make_folder(path)
        self._numbers = count()
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], _Upload] = {}
        self._unsure: set[str] = set()
        # What an earlier process has named, and not synced, is here for good from now on.
        self._sure = set(self.digests())
        self.disk.fsync_folder(folder)

    def put(self, raw: Piece, named: Blob | None = None) -> Blob:
        """Keep ``raw``."""
        blob = named or Blob.of(raw)
        if self.has(blob.sha256):
            # It may have been named a moment before a crash: its bytes were synced, its name perhaps not.
            self.disk.fsync_folder(self.folder)
        else:
            self._write((raw,), lambda: blob.sha256, blob.size)
        return blob

    def put_pieces(self, pieces: Iterable[Piece], named: Blob | None = None) -> Blob:
        """Keep what the pieces make together."""
        if named is not None:
            self._write(pieces, lambda: named.sha256, named.size)
            return named
        told = Told(pieces)
        self._write(told, lambda: told.blob.sha256)
        return told.blob

    def _write(self, pieces: Iterable[Piece], digest: Callable[[], str], size: int = 0) -> None:
        """A new file, named by the digest as it is when all pieces are written."""
        partial = self._new / f"{os.getpid()}-{next(self._numbers)}"
        try:
            if not size or size >= LARGE:
                self.disk.reuse(partial, self._ahead, size)
                if self.disk.size(partial) is None:
                    self.disk.reuse(partial, self._spares, size)
            self.disk.write(partial, pieces)
            self._name(partial, digest())
        except BaseException:
            with contextlib.suppress(StorageError):
                self.disk.remove(partial)
            raise

    def put_file(self, path: Path, blob: Blob) -> None:
        """Keep a file of this machine."""
        held = self.disk.size(path)
        if held != blob.size:
            raise WireError(f"{path} has {held} bytes, not {blob.size}")
        self._name(path, blob.sha256)

    def _name(self, path: Path, sha256: str) -> None:
        """Make a whole file durable under its digest; it is not here before it is."""
        self.disk.fsync(path)
        self._unsure.add(sha256)
        self.disk.rename(path, self._path(sha256))
        self.disk.fsync_folder(self.folder)
        self._sure.add(sha256)
        self._unsure.discard(sha256)

    def has(self, sha256: str) -> bool:
        """Whether all its bytes are here."""
        return self.size(sha256) is not None

    def size(self, sha256: str) -> int | None:
        """How many bytes it has."""
        path = self._path(sha256)
        held = None if sha256 in self._unsure else self.disk.size(path)
        if held is not None and sha256 not in self._sure:
            # A server that was replaced meanwhile has named it: its bytes were synced, its name perhaps not.
            # Nothing is built on it before it is here for good.
            self.disk.fsync_folder(self.folder)
            self._sure.add(sha256)
        return held

    def read(self, sha256: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes from ``start`` up to ``stop`` or the end."""
        self._here(sha256)
        return self.disk.read(self._path(sha256), start, stop)

    def view(self, sha256: str) -> memoryview:
        """All bytes, read only, without loading them."""
        self._here(sha256)
        return self.disk.view(self._path(sha256))

    def delete(self, sha256: str) -> None:
        """Forget it, if it is here."""
        self._sure.discard(sha256)
        self.disk.retire(self._path(sha256), self._spares)

    def digests(self) -> Iterator[str]:
        """Every blob that is here."""
        return (name for name in self.disk.names(self.folder) if is_digest(name))

    def received(self, sha256: str, owner: str = "") -> int:
        """Where ``owner`` should continue its upload."""
        whole = self.size(sha256)
        return (self.disk.size(self._partial(sha256, owner)) or 0) if whole is None else whole

    def append(self, blob: Blob, offset: int, data: Piece, owner: str = "") -> int:
        """Take a chunk of an upload."""
        if offset + len(data) > blob.size:
            raise TooLarge(
                f"a chunk of {len(data)} bytes at {offset} is more than the {blob.size} of the blob"
            )
        key = blob.sha256, owner
        with self._lock:
            upload = self._open.get(key)
            if upload is None:
                upload = self._open[key] = _Upload(self._partial(*key))
        with upload.lock:
            # In the middle of an upload nothing but the next bytes is asked about: there are many pieces.
            ends = offset + len(data) == blob.size
            if (ends or not upload.sure) and self.has(blob.sha256):
                self.disk.fsync_folder(self.folder)
                self._forget(key)
                return blob.size
            try:
                if not offset and not upload.held and blob.size >= LARGE:
                    self._begin(upload.path, blob)
                held = upload.take(self.disk, offset, data)
            except StateError:
                if not upload.held:
                    self._forget(key)
                raise
            if held >= blob.size:
                self._finish(key, upload, blob)
            return held

    def _begin(self, path: Path, blob: Blob) -> None:
        """Write over a spare where nothing of an upload is here."""
        if self.disk.size(path) is None:
            self.disk.reuse(path, self._spares, blob.size)

    def _finish(self, key: tuple[str, str], upload: _Upload, blob: Blob) -> None:
        upload.sure = False  # the file gets its name, or is removed, or the disk fails on the way
        if upload.sha.hexdigest() != blob.sha256 or upload.held != blob.size:
            self._forget(key)
            raise Unreachable(
                f"the {upload.held} bytes that are here are not blob {blob.sha256[:12]}",
                remedy="send it again from the start",
            )
        self._name(upload.path, blob.sha256)
        self._forget(key)

    def _forget(self, key: tuple[str, str]) -> None:
        with self._lock:
            upload = self._open.pop(key, None)
        if upload is not None:
            upload.sure = False  # somebody may be waiting for it
        self.disk.remove(self._partial(*key))

    def abandon(self, sha256: str, owner: str = "") -> None:
        """Forget an upload that will not be finished."""
        self._forget((sha256, owner))

    def unfinished(self, owners: Iterable[str]) -> list[tuple[str, Blob]]:
        """Uploads of these owners that are not whole."""
        whose, found = {_mark(owner): owner for owner in owners}, []
        for name in self.disk.names(self._uploads):
            sha256, _, mark = name.partition(".")
            if mark in whose and not self.has(sha256):
                held = self.disk.size(self._uploads / name) or 0
                found.append((whose[mark], Blob(sha256, held)))
            else:
                self.disk.remove(self._uploads / name)
        return found

    def foresee(self, size: int, count: int) -> None:
        """Make files to be written over by what is put here, so that uploads do not take them."""
        for _ in range(count):
            self.disk.foresee(self._ahead, size)

    def sweep(self) -> None:
        """Forget what a crash left half-written."""
        for folder in (self._new, self._spares, self._ahead):
            for name in self.disk.names(folder):
                self.disk.remove(folder / name)

    def _path(self, sha256: str) -> Path:
        return self.folder / checked(sha256)

    def _partial(self, sha256: str, owner: str) -> Path:
        return self._uploads / f"{self._path(sha256).name}.{_mark(owner)}"

    def _here(self, sha256: str) -> None:
        if not self.has(sha256):
            raise missing(sha256)


def _mark(owner: str) -> str:
    """How the files of an owner's uploads end."""
    return hashlib.sha256(owner.encode("utf-8", "replace")).hexdigest()[:16]


class _Upload:
    """One upload under way: its digest so far is kept, so that no byte is read twice.

    ``sure`` says that the file has just those bytes, as the last write has left it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.sha = hashlib.sha256()
        self.held = 0
        self.sure = False

    def take(self, disk: Disk, offset: int, data: Piece) -> int:
        """Write what is new of a chunk; returns the bytes held."""
        if not self.sure or offset > self.held:
            # Beyond what is known here a server that has lost the store may have written meanwhile.
            self._catch_up(disk)
        if offset > self.held:
            raise StateError(
                f"a chunk at {offset} leaves a gap: {self.held} bytes are held",
                remedy=f"continue at {self.held}",
            )
        fresh = memoryview(data)[self.held - offset :]
        if fresh or not self.held:
            self.sure = False
            disk.append(self.path, self.held, fresh)
            self.sha.update(fresh)
            self.held += len(fresh)
            self.sure = True
        return self.held

    def _catch_up(self, disk: Disk) -> None:
        """Read what an earlier process, or a write that failed half-way, left in the file."""
        size = disk.size(self.path) or 0
        if size < self.held:
            self.sha, self.held = hashlib.sha256(), 0
        while self.held < size:
            block = disk.read(self.path, self.held, min(size, self.held + _BLOCK))
            self.sha.update(block)
            self.held += len(block)
