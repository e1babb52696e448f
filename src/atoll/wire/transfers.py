"""Long files to and from the server: cut anywhere, the next try goes on from there.

A blob is named by its SHA-256, so what arrives is checked against its own name. A download grows in a
file beside its place; an upload grows at the server, which says how much it has.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from atoll.core.errors import StorageError, WireError
from atoll.wire.frames import Blob, sync_folder
from atoll.wire.spares import mark, marked, unmark

__all__ = [
    "CHUNK",
    "Fetch",
    "Put",
    "Whole",
    "Write",
    "download",
    "holds",
    "inside",
    "partial_of",
    "upload",
]

CHUNK = 4 << 20
"""Bytes that are sent again at most after an upload was cut."""

_PIECE = 1 << 18

Write = Callable[[bytes | memoryview], None]
"""Takes the next bytes, which need not outlive the call."""

Fetch = Callable[[int, Write], int]
"""Hand over bytes from an offset on; returns how many, at least one."""

Put = Callable[[int, bytes], int]
"""Send a chunk that begins at an offset; returns how many bytes the server then has."""

Whole = Callable[[memoryview], int]
"""Send a file from its start to its end; returns the same."""


def partial_of(path: Path) -> Path:
    """Where a download grows until it is complete."""
    return path.with_name(f"{path.name}.partial")


def inside(name: str) -> PurePosixPath:
    """A file's name from the other side, as a relative path that leads nowhere else.

    Raises:
        WireError: it is none.
    """
    path = PurePosixPath(name)
    bad = path.is_absolute() or not path.parts or any(p in ("..", ".") for p in path.parts)
    if bad or "\\" in name or ":" in name or "\0" in name:
        raise WireError(f"the server names the file {name!r:.120}, which is not in the folder")
    return path


def holds(path: Path, blob: Blob) -> bool:
    """Whether a file is there with just these bytes."""
    if not path.is_file() or path.stat().st_size != blob.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == blob.sha256


def download(blob: Blob, path: Path, fetch: Fetch, *, durable: bool = True) -> None:
    """Bring a blob into a file: in full, or not at all.

    What an earlier try left is used. If it is not what was written then (a power failure may leave
    anything), the blob is fetched once more from its start.

    Args:
        blob: its digest and size.
        path: the file; what an earlier try left lies beside it.
        fetch: where the bytes come from.
        durable: whether it is to outlive the machine's failure.

    Raises:
        WireError: the bytes do not have that digest; the next try begins anew.
        StorageError: the file cannot be written.
    """
    partial = partial_of(path)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, held = _fetched(blob, path, fetch, durable)
        if digest != blob.sha256 and held:
            partial.unlink()
            digest, held = _fetched(blob, path, fetch, durable)
        if digest != blob.sha256:
            partial.unlink()
            raise WireError(
                f"the server gave other bytes than those of {blob.sha256[:16]}…",
                remedy="try again; if it happens again, the server's copy is damaged",
            )
        partial.replace(path)
        if durable:
            sync_folder(path.parent)


def _fetched(blob: Blob, path: Path, fetch: Fetch, durable: bool) -> tuple[str, int]:
    """Complete the file beside ``path``: its digest, and how much of it was there before."""
    partial = partial_of(path)
    partial.touch()
    with partial.open("r+b", buffering=0) as file:
        reused = marked(file.fileno()) is not None
        sha, held = _begun(file, blob.size)
        at = held

        def write(piece: bytes | memoryview) -> None:
            with _writing(path):  # at once: around it, this would pass for the network's error
                _write(file, piece)
                if reused:
                    mark(file.fileno(), file.tell())
            sha.update(piece)

        while at < blob.size:
            at += fetch(at, write)
        if reused:
            unmark(file.fileno(), at)
        if durable:
            os.fsync(file.fileno())
    return sha.hexdigest(), held


def upload(blob: Blob, path: Path, received: int, put: Put, whole: Whole | None = None) -> None:
    """Send what is missing of a file: all of it at once, or after a cut what is left chunk by chunk.

    Args:
        blob: its digest and size.
        path: the file.
        received: bytes that are there.
        put: where the chunks go.
        whole: where a whole file goes that is longer than a chunk; None for chunks from the start.

    Raises:
        WireError: the server takes chunks and does not come to have more.
        StorageError: the file cannot be read, or is not the blob.
    """
    if whole is not None and not received and blob.size > CHUNK:
        received = whole(_mapped(path, blob.size))
    at, sent = received, False
    while at < blob.size or not (sent or blob.size):  # an empty file, too, has to be sent
        chunk = _chunk(path, at, blob.size)
        now, sent = put(at, chunk), True
        if now <= at and blob.size:
            raise WireError(f"the server took {len(chunk)} bytes and still has {now}")
        at = now


def _begun(file: FileIO, size: int) -> tuple[hashlib._Hash, int]:
    """Digest and length of what an earlier try has left; more than there should be is dropped."""
    held = marked(file.fileno())
    if held is None and os.fstat(file.fileno()).st_size > size:
        file.truncate(0)
    end = size if held is None else held if held <= size else 0
    sha, at = hashlib.sha256(), 0
    while piece := file.read(min(_PIECE, end - at)):
        sha.update(piece)
        at += len(piece)
    file.seek(at)
    return sha, at


def _write(file: FileIO, piece: bytes | memoryview) -> None:
    """Write all of ``piece`` to a file without a buffer."""
    left = memoryview(piece)
    while left:
        left = left[file.write(left) :]


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}", remedy="free space or mend the folder"
        ) from error


@contextlib.contextmanager
def _reading(path: Path, size: int) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        there = os.fstat(file.fileno()).st_size
        if there != size:
            raise StorageError(f"{path} has {there} bytes, not the {size} that it should have")
        yield file


def _chunk(path: Path, at: int, size: int) -> bytes:
    with _reading(path, size) as file:
        try:
            file.seek(at)
            return file.read(CHUNK)
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error


def _mapped(path: Path, size: int) -> memoryview:
    """The bytes of a file, without loading them."""
    with _reading(path, size) as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
