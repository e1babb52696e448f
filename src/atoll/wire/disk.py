"""The few things that server and nodes ask of a disk, so that a simulator can play an unkind one.

What a disk promises is little: bytes written may be lost until the file is synced, and a name made,
changed or removed may be lost until its folder is. :func:`keep` is the one order of steps that makes a
whole file durable: write beside it, sync, rename, sync the folder. :class:`RealDisk` does them for
real; :class:`atoll.wire.lossy_disk.LossyDisk` forgets whatever was not synced.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path
from typing import Protocol

from atoll.core.errors import StorageError
from atoll.wire.frames import Blob
from atoll.wire.spares import LARGE, Spares, mark, marked, unmark
from atoll.wire.trouble import remedy_of

__all__ = ["Disk", "Piece", "RealDisk", "Told", "keep"]

Piece = bytes | memoryview

_CACHED = 1 << 18
"""Bytes that are still in the processor's cache when they are written after they were hashed."""

_AHEAD = 8 << 20
"""The disk begins to write after so many bytes of a file, long before it is asked to be done."""

_BESIDE = 4
"""Files and folders that are waited for at a time."""

_WRITE = 2
"""``SYNC_FILE_RANGE_WRITE`` of Linux: begin, and wait for nothing."""


class Told:
    """Pieces on their way into a file, and what they are together.

    Args:
        pieces: any; those that come out are short, and the same bytes.
    """

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._pieces = pieces
        self._sha, self._size = hashlib.sha256(), 0

    def __iter__(self) -> Iterator[Piece]:
        """The pieces, once."""
        for piece in self._pieces:
            view = memoryview(piece).cast("B")
            for start in range(0, len(view), _CACHED):
                part = view[start : start + _CACHED]
                self._sha.update(part)
                self._size += len(part)
                yield part

    @property
    def blob(self) -> Blob:
        """Digest and size of what has come out."""
        return Blob(self._sha.hexdigest(), self._size)


class Disk(Protocol):
    """A disk. Every method may raise :class:`~atoll.core.errors.StorageError`."""

    def write(self, path: Path, pieces: Iterable[Piece]) -> None:
        """A file of these bytes in place of what was there; not durable before :meth:`fsync`."""
        ...

    def append(self, path: Path, offset: int, data: Piece) -> None:
        """Write at ``offset``, at most the file's size, and end the file there; not yet durable."""
        ...

    def read(self, path: Path, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes from ``start`` up to ``stop`` or the end."""
        ...

    def view(self, path: Path) -> memoryview:
        """The whole file, read only, without loading it; good even after the file is removed."""
        ...

    def size(self, path: Path) -> int | None:
        """Bytes of a file; None when there is none."""
        ...

    def fsync(self, path: Path) -> None:
        """Make a file's bytes durable; not its name."""
        ...

    def begin_fsync(self, path: Path) -> Callable[[], None]:
        """Begin what :meth:`fsync` does; what is returned waits for that, and raises what it raises."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, in one step, over whatever had it; not yet durable."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file if it is there; not yet durable."""
        ...

    def retire(self, path: Path, spares: Path) -> None:
        """As :meth:`remove`; the file may be kept in the folder ``spares``, which has no other use."""
        ...

    def reuse(self, path: Path, spares: Path, size: int = 0) -> None:
        """Make writing ``path`` cheaper, where there is a spare; no byte of that counts before it is written.

        Args:
            path: a file that is written next, from its start.
            spares: as for :meth:`retire`, on the same disk.
            size: bytes that it will have; 0 where that is not known.
        """
        ...

    def foresee(self, spares: Path, size: int) -> None:
        """Have a spare of that size ready for :meth:`reuse`, where the disk keeps any; that takes a while."""
        ...

    def names(self, folder: Path) -> tuple[str, ...]:
        """Names in a folder, sorted; none where there is no folder."""
        ...

    def make_folder(self, folder: Path) -> None:
        """A folder with those above it, durable; nothing when it is there."""
        ...

    def fsync_folder(self, folder: Path) -> None:
        """Make a folder's names durable."""
        ...

    def fsync_named(self, path: Path) -> None:
        """As :meth:`fsync` of a file and :meth:`fsync_folder` of its folder, in whatever order."""
        ...


def keep(disk: Disk, path: Path, pieces: Iterable[Piece], by: Path | None = None) -> Blob:
    """Write a file durably: when this returns it is there in full; before, what was there still is.

    Args:
        disk: where.
        path: the file; one writer at a time.
        pieces: its bytes.
        by: where to write before the name is given, on the same disk; beside ``path`` when left out.

    Returns:
        digest and size, taken while the bytes were written.

    Raises:
        StorageError: it could not be written.
    """
    partial = path.with_name(f".{path.name}.partial") if by is None else by
    told = Told(pieces)
    try:
        disk.write(partial, told)
        disk.fsync(partial)
        disk.rename(partial, path)
    except BaseException:
        with contextlib.suppress(StorageError):
            disk.remove(partial)
        raise
    disk.fsync_folder(path.parent)
    return told.blob


class RealDisk:
    """The disk of this machine; a :class:`Disk`."""

    def __init__(self) -> None:
        self._spares: dict[Path, Spares] = {}

    def write(self, path: Path, pieces: Iterable[Piece]) -> None:
        """A file of these bytes in place of what was there."""
        with _explained(path, "written"):
            number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                reused = marked(number) is not None
                if reused:
                    mark(number, 0)
                elif os.fstat(number).st_size:
                    os.ftruncate(number, 0)
                end = 0
                for piece in pieces:
                    end += _write_all(number, piece, end)
                if reused:
                    unmark(number, end)
            finally:
                os.close(number)

    def write_over(self, path: Path, pieces: Iterable[Piece]) -> None:
        """As :meth:`write`, a file that nobody reads before this returns, and that need never reach the disk.

        What is there is written over in place, which costs a fraction of making a file.
        """
        with _explained(path, "written"):
            number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                end = 0
                for piece in pieces:
                    end += _write_all(number, piece, end, begin=False)
                # A cut that changes nothing would wait for the disk's journal all the same.
                if os.fstat(number).st_size != end:
                    os.ftruncate(number, end)
            finally:
                os.close(number)

    def append(self, path: Path, offset: int, data: Piece) -> None:
        """Write at ``offset`` and end the file there."""
        with _explained(path, "written"):
            number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                held = marked(number)
                end = os.fstat(number).st_size if held is None else held
                if offset > end:
                    raise OSError(errno.EINVAL, "nothing may be left out")
                if offset < end:
                    if held is None:
                        os.ftruncate(number, offset)
                    else:
                        mark(number, offset)
                _write_all(number, data, offset)
                if held is not None:
                    mark(number, offset + len(data))
            finally:
                os.close(number)

    def read(self, path: Path, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes from ``start`` up to ``stop`` or the end."""
        with _explained(path, "read"), path.open("rb") as file:
            end = _end(file.fileno()) if stop is None else stop
            file.seek(start)
            return file.read(max(end - start, 0))

    def view(self, path: Path) -> memoryview:
        """The whole file, read only, without loading it."""
        with _explained(path, "read"), path.open("rb") as file:
            if not (end := _end(file.fileno())):
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), end, access=mmap.ACCESS_READ))

    def size(self, path: Path) -> int | None:
        """Bytes of a file; None when there is none."""
        with _explained(path, "read"):
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                return None
            held = marked(path) if size >= LARGE else None
            return size if held is None else held

    def fsync(self, path: Path) -> None:
        """Make a file's bytes durable."""
        with _explained(path, "written"):
            if (held := marked(path)) is not None:
                with path.open("r+b", buffering=0) as file:
                    unmark(file.fileno(), held)
            _sync(path)

    def begin_fsync(self, path: Path) -> Callable[[], None]:
        """Have a thread make a file's bytes durable; what is returned waits for that."""
        return self._beside.submit(self.fsync, path).result

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, in one step."""
        with _explained(new, "written"):
            os.replace(old, new)

    def remove(self, path: Path) -> None:
        """Remove a file if it is there."""
        with _explained(path, "removed"):
            path.unlink(missing_ok=True)

    def retire(self, path: Path, spares: Path) -> None:
        """Keep a file as a spare, or remove it."""
        if not self._kept(spares).keep(path):
            self.remove(path)

    def _kept(self, spares: Path) -> Spares:
        found = self._spares.get(spares)
        return self._spares.setdefault(spares, Spares(spares)) if found is None else found

    def reuse(self, path: Path, spares: Path, size: int = 0) -> None:
        """Make a spare the file ``path``, if there is one."""
        if spares in self._spares:
            self._spares[spares].place(path, size)

    def foresee(self, spares: Path, size: int) -> None:
        """Write a spare."""
        self._kept(spares).make(size)

    def names(self, folder: Path) -> tuple[str, ...]:
        """Names in a folder, sorted."""
        with _explained(folder, "read"):
            try:
                return tuple(sorted(os.listdir(folder)))
            except FileNotFoundError:
                return ()

    def make_folder(self, folder: Path) -> None:
        """A folder with those above it, durable."""
        with _explained(folder, "made"):
            missing = [p for p in (folder, *folder.parents) if not p.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            for made in reversed(missing):
                _sync(made.parent)

    def fsync_folder(self, folder: Path) -> None:
        """Make a folder's names durable."""
        before = [(spares, spares.left(folder)) for spares in list(self._spares.values())]
        with _explained(folder, "written"):
            _sync(folder)
        for spares, left in before:
            spares.gone(left)

    @cached_property
    def _beside(self) -> ThreadPoolExecutor:
        """Threads that wait for the disk; a new one for each wait would cost more than that."""
        return ThreadPoolExecutor(_BESIDE, "fsync")

    def fsync_named(self, path: Path) -> None:
        """Make a file and its name durable: the disk is waited for once, not for each."""
        beside = self._beside.submit(self.fsync_folder, path.parent)
        try:
            self.fsync(path)
        finally:
            beside.exception()  # waits for its end
        beside.result()


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _end(number: int) -> int:
    """How many bytes of an open file count."""
    held = marked(number)
    return os.fstat(number).st_size if held is None else held


def _write_all(number: int, data: Piece, offset: int, *, begin: bool = True) -> int:
    """Write at an offset, and have the disk begin with every :data:`_AHEAD` bytes that are complete.

    Returns:
        how many bytes ``data`` has.
    """
    left = memoryview(data).cast("B")
    size = len(left)
    while left:
        written = os.pwrite(number, left[:_AHEAD], offset)
        begun, complete = offset // _AHEAD, (offset + written) // _AHEAD
        if begin and complete > begun:
            _beginning()(number, begun * _AHEAD, (complete - begun) * _AHEAD, _WRITE)
        left, offset = left[written:], offset + written
    return size


@cache
def _beginning() -> Callable[[int, int, int, int], object]:
    """Linux's call that has the disk begin to write; elsewhere nothing.

    Whoever then waits for a long file waits for its last bytes. Whether it works does not matter to anybody.
    """
    try:
        found = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError, TypeError):  # another system
        return lambda number, start, size, how: None
    found.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    begin: Callable[[int, int, int, int], object] = found
    return begin


@contextlib.contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    """An OSError in words, with what to do about it."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be {what}: {error.strerror or error}",
            remedy=remedy_of(error, reading=what == "read"),
        ) from error
