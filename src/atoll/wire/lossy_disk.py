"""A disk in memory that keeps only what it must: the twin of the real one, for simulations and tests.

:meth:`LossyDisk.crash` is a power failure. Of each file it leaves the bytes that were synced, or, where a
source of randomness is given, anything a real disk may leave: bytes written since, a torn end, zeros.
Of each folder it leaves the names as last synced, or after some of the changes since, in their order.
A crash of the program alone loses nothing here, as on a real disk.

    >>> disk, path = LossyDisk(), Path("/spool/update")
    >>> disk.make_folder(path.parent)
    >>> disk.write(path, [b"42"])
    >>> disk.crash()
    >>> disk.size(path) is None
    True
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

from atoll.core.errors import StorageError
from atoll.wire.disk import Piece

__all__ = ["LossyDisk"]

Hook = Callable[[str, Path], None]


def _nothing(operation: str, path: Path) -> None:
    """The hook that does nothing."""


@dataclass(eq=False)
class _File:
    """Bytes as a program sees them, and as a power failure leaves them."""

    data: bytes = b""
    synced: bytes = b""


@dataclass(eq=False)
class _Folder:
    """Names as last synced, and the changes since: (name, file or None for gone) in order."""

    synced: dict[str, _File] = field(default_factory=dict)
    changes: list[tuple[str, _File | None]] = field(default_factory=list)


class LossyDisk:
    """A :class:`~atoll.wire.disk.Disk` in memory.

    Args:
        before: called with the operation's name and path before each; may raise. An operation
            ``"write"`` or ``"append"`` calls it once more as ``"torn"`` when half of its bytes are written.
    """

    def __init__(self, before: Hook = _nothing) -> None:
        self.before = before
        self._files: dict[Path, _File] = {}
        self._folders: dict[Path, _Folder] = {}
        self._lock = threading.RLock()

    def crash(self, random: Random | None = None) -> None:
        """Fail the power: lose all that was not synced, or with ``random`` any part of it."""
        with self._lock:
            self._files = {}
            for path, folder in self._folders.items():
                kept = random.randint(0, len(folder.changes)) if random else 0
                for name, file in folder.changes[:kept]:
                    _apply(folder.synced, name, file)
                folder.changes = []
                self._files |= {path / name: file for name, file in folder.synced.items()}
            for file in {id(f): f for f in self._files.values()}.values():
                file.data = file.synced = _left(file, random)

    def write(self, path: Path, pieces: Iterable[Piece]) -> None:
        """A file of these bytes in place of what was there."""
        with self._lock:
            self._about_to("write", path)
            file = self._files.get(path)
            if file is None:
                file = self._name(path, _File())
            file.data = b""
            self._grow(path, file, b"".join(bytes(piece) for piece in pieces))

    def append(self, path: Path, offset: int, data: Piece) -> None:
        """Write at ``offset`` and end the file there."""
        with self._lock:
            self._about_to("append", path)
            file = self._files.get(path)
            if file is None:
                file = self._name(path, _File())
            if offset > len(file.data):
                raise StorageError(f"{path} cannot be written: nothing may be left out")
            file.data = file.data[:offset]
            self._grow(path, file, bytes(data))

    def _grow(self, path: Path, file: _File, data: bytes) -> None:
        half = len(data) // 2
        file.data += data[:half]
        self._about_to("torn", path)
        file.data += data[half:]

    def read(self, path: Path, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes from ``start`` up to ``stop`` or the end."""
        with self._lock:
            return self._at("read", path).data[start:stop]

    def view(self, path: Path) -> memoryview:
        """The whole file, read only."""
        with self._lock:
            return memoryview(self._at("view", path).data)

    def size(self, path: Path) -> int | None:
        """Bytes of a file; None when there is none."""
        with self._lock:
            file = self._files.get(path)
            return None if file is None else len(file.data)

    def fsync(self, path: Path) -> None:
        """Make a file's bytes durable."""
        with self._lock:
            file = self._at("fsync", path)
            file.synced = file.data

    def begin_fsync(self, path: Path) -> Callable[[], None]:
        """Nothing yet: what is returned makes the file's bytes durable."""
        return partial(self.fsync, path)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, in one step."""
        with self._lock:
            file = self._at("rename", old)
            self._folder(new)
            del self._files[old]
            if old.parent == new.parent:
                # One change, so that no failure finds the file under neither name.
                self._folder(old).changes.append((f"{old.name}/{new.name}", file))
                self._files[new] = file
            else:
                self._folder(old).changes.append((old.name, None))
                self._name(new, file)

    def remove(self, path: Path) -> None:
        """Remove a file if it is there."""
        with self._lock:
            self._about_to("remove", path)
            if self._files.pop(path, None) is not None:
                self._folder(path).changes.append((path.name, None))

    def retire(self, path: Path, spares: Path) -> None:
        """As :meth:`remove`: this disk keeps no spares."""
        self.remove(path)

    def reuse(self, path: Path, spares: Path, size: int = 0) -> None:
        """Nothing: this disk keeps no spares."""

    def foresee(self, spares: Path, size: int) -> None:
        """Nothing: this disk keeps no spares."""

    def names(self, folder: Path) -> tuple[str, ...]:
        """Names in a folder, files and folders, sorted."""
        with self._lock:
            self._about_to("names", folder)
            held = (*self._files, *self._folders)
            return tuple(sorted({p.name for p in held if p.parent == folder and p != folder}))

    def make_folder(self, folder: Path) -> None:
        """A folder with those above it, durable."""
        with self._lock:
            self._about_to("make_folder", folder)
            for path in (folder, *folder.parents):
                self._folders.setdefault(path, _Folder())

    def fsync_folder(self, folder: Path) -> None:
        """Make a folder's names durable."""
        with self._lock:
            self._about_to("fsync_folder", folder)
            held = self._folder(folder / "any")
            for name, file in held.changes:
                _apply(held.synced, name, file)
            held.changes = []

    def fsync_named(self, path: Path) -> None:
        """Make a file and its name durable, one after the other: power may fail between them."""
        self.fsync(path)
        self.fsync_folder(path.parent)

    def _about_to(self, operation: str, path: Path) -> None:
        try:
            self.before(operation, path)
        except OSError as error:
            raise StorageError(f"{path}: {operation} failed: {error.strerror}") from error

    def _at(self, operation: str, path: Path) -> _File:
        self._about_to(operation, path)
        if path not in self._files:
            raise StorageError(f"{path} cannot be read: No such file")
        return self._files[path]

    def _folder(self, path: Path) -> _Folder:
        if path.parent not in self._folders:
            raise StorageError(f"{path} cannot be written: there is no such folder")
        return self._folders[path.parent]

    def _name(self, path: Path, file: _File) -> _File:
        self._folder(path).changes.append((path.name, file))
        self._files[path] = file
        return file


def _apply(names: dict[str, _File], name: str, file: _File | None) -> None:
    old, _, new = name.partition("/")
    if new or file is None:
        names.pop(old, None)
    if file is not None:
        names[new or old] = file


def _left(file: _File, random: Random | None) -> bytes:
    """What a power failure leaves of a file's bytes."""
    if random is None or file.data == file.synced:
        return file.synced
    start = len(file.synced) if file.data.startswith(file.synced) else 0
    cut = random.randint(start, len(file.data))
    zeros = bytes(len(file.data) - cut)
    return random.choice((file.synced, file.data, file.data[:cut], file.data[:cut] + zeros))
