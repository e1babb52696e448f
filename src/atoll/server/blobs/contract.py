"""Bytes by their digest: models, updates, plans and code, each kept under its own SHA-256.

When :meth:`Blobs.put` or the last :meth:`Blobs.append` returns, the bytes are durable and whole; until then
nobody can see them. What is large arrives in chunks, and continues after a break, a restart or a power
failure where it stood: the digest is checked over all bytes before the blob is named. A folder is the
default home (:mod:`atoll.server.blobs.folder`), an object store the other (:mod:`atoll.server.blobs.s3`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from atoll.core.errors import NotFound
from atoll.wire.disk import Piece
from atoll.wire.frames import Blob

__all__ = ["Blobs", "checked", "is_digest", "missing"]

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Blobs(Protocol):
    """Bytes by their digest. Every method may raise :class:`~atoll.core.errors.StorageError`."""

    def put(self, raw: Piece, named: Blob | None = None) -> Blob:
        """Keep ``raw``; durable when this returns. The same bytes twice are one blob.

        Args:
            raw: the bytes.
            named: their digest and size, where they are known.
        """
        ...

    def put_pieces(self, pieces: Iterable[Piece], named: Blob | None = None) -> Blob:
        """Keep what the pieces make together, such as :func:`atoll.wire.frames.pieces`; see :meth:`put`."""
        ...

    def put_file(self, path: Path, blob: Blob) -> None:
        """Keep a file of this machine; it is gone from ``path`` afterwards.

        Args:
            path: the file.
            blob: its digest and size, taken by the caller while it was written.

        Raises:
            WireError: the file has another size.
        """
        ...

    def has(self, sha256: str) -> bool:
        """Whether all its bytes are here."""
        ...

    def size(self, sha256: str) -> int | None:
        """How many bytes it has; None when it is not here."""
        ...

    def read(self, sha256: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes from ``start`` up to ``stop`` or the end.

        Raises:
            NotFound: it is not here.
        """
        ...

    def view(self, sha256: str) -> memoryview:
        """All bytes, read only, without loading them; good even after the blob is deleted.

        Raises:
            NotFound: it is not here.
        """
        ...

    def delete(self, sha256: str) -> None:
        """Forget it, if it is here."""
        ...

    def digests(self) -> Iterator[str]:
        """Every blob that is here."""
        ...

    def received(self, sha256: str, owner: str = "") -> int:
        """Where ``owner`` should continue its upload: bytes held, all of them when it is here."""
        ...

    def append(self, blob: Blob, offset: int, data: Piece, owner: str = "") -> int:
        """Take a chunk of an upload; with the last one the blob is checked, durable and here.

        Args:
            blob: what all chunks together will be.
            offset: where this one starts; what was held before is not written twice.
            data: its bytes.
            owner: whose upload it is; nobody can spoil another's.

        Returns:
            bytes held now.

        Raises:
            StateError: the chunk leaves a gap; the message says where to continue.
            TooLarge: more bytes than the blob has.
            Unreachable: all are here and their digest is another, as after a power failure; the upload
                starts again.
        """
        ...

    def abandon(self, sha256: str, owner: str = "") -> None:
        """Forget an upload that will not be finished."""
        ...

    def unfinished(self, owners: Iterable[str]) -> list[tuple[str, Blob]]:
        """Uploads of these owners that are not whole, with the bytes held; those of others are forgotten.

        For the one server, when it starts.
        """
        ...

    def foresee(self, size: int, count: int) -> None:
        """So many of that size will come beyond those that go: a hint, which takes a while."""
        ...

    def sweep(self) -> None:
        """Forget what a crash left half-written; uploads stay. For the one server, when it starts."""
        ...


def is_digest(name: str) -> bool:
    """Whether ``name`` could be a blob's.

    >>> is_digest("0f" * 32), is_digest("upload.tmp")
    (True, False)
    """
    return _DIGEST.fullmatch(name) is not None


def checked(sha256: str) -> str:
    """``sha256`` if it can be the name of a blob.

    Raises:
        NotFound: it cannot.
    """
    if not is_digest(sha256):
        raise NotFound(f"{sha256[:80]!r} is no blob's digest")
    return sha256


def missing(sha256: str) -> NotFound:
    """The answer where a blob is asked for that is not there."""
    return NotFound(f"blob {sha256[:12]} is not here")
