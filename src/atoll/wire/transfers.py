"""Long files to and from the server: cut anywhere, the next try goes on from there.

A blob is named by its SHA-256, so what arrives is checked against its own name. A download grows in a
file beside its place; an upload grows at the server, which says how much it has.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from atoll.core.errors import StorageError, WireError
from atoll.wire.frames import Blob, sync_folder

__all__ = ["CHUNK", "Fetch", "Put", "Write", "download", "upload"]

CHUNK = 4 << 20
"""Bytes that are sent again at most after an upload was cut."""

_PIECE = 1 << 18

Write = Callable[[bytes], None]
"""Takes the next bytes."""

Fetch = Callable[[int, Write], int]
"""Hand over bytes from an offset on; returns how many, at least one."""

Put = Callable[[int, bytes], int]
"""Send a chunk that begins at an offset; returns how many bytes the server then has."""


def download(blob: Blob, path: Path, fetch: Fetch) -> None:
    """Bring a blob into a file: in full and durable, or not at all.

    Args:
        blob: its digest and size.
        path: the file; what an earlier try left beside it is used.
        fetch: where the bytes come from.

    Raises:
        WireError: the bytes do not have that digest; the next try begins anew.
        StorageError: the file cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("ab+") as file:
            sha, at = _begun(file, blob.size)

            def write(piece: bytes) -> None:
                with _writing(path):  # at once: around it, this would pass for the network's error
                    file.write(piece)
                sha.update(piece)

            while at < blob.size:
                at += fetch(at, write)
            file.flush()
            os.fsync(file.fileno())
        if sha.hexdigest() != blob.sha256:
            partial.unlink()
            raise WireError(
                f"the server gave other bytes than those of {blob.sha256[:16]}…",
                remedy="try again; if it happens again, the server's copy is damaged",
            )
        partial.replace(path)
        sync_folder(path.parent)


def upload(blob: Blob, path: Path, received: int, put: Put) -> None:
    """Send what is missing of a file, chunk by chunk.

    Args:
        blob: its digest and size.
        path: the file.
        received: bytes that are there.
        put: where the chunks go.

    Raises:
        WireError: the server takes chunks and does not come to have more.
        StorageError: the file cannot be read, or is not the blob.
    """
    at, sent = received, False
    while at < blob.size or not (sent or blob.size):  # an empty file, too, has to be sent
        chunk = _chunk(path, at, blob.size)
        now, sent = put(at, chunk), True
        if now <= at and blob.size:
            raise WireError(f"the server took {len(chunk)} bytes and still has {now}")
        at = now


def _begun(file: BinaryIO, size: int) -> tuple[hashlib._Hash, int]:
    """Digest and length of what an earlier try has left; more than there should be is dropped."""
    if os.fstat(file.fileno()).st_size > size:
        file.truncate(0)
    file.seek(0)
    sha, at = hashlib.sha256(), 0
    while piece := file.read(_PIECE):
        sha.update(piece)
        at += len(piece)
    return sha, at


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}", remedy="free space or mend the folder"
        ) from error


def _chunk(path: Path, at: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            there = os.fstat(file.fileno()).st_size
            file.seek(at)
            chunk = file.read(CHUNK)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    if there != size:
        raise StorageError(f"{path} has {there} bytes, not the {size} that it should have")
    return chunk
