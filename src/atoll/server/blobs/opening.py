"""The home of a server's blobs, chosen by URL."""

from __future__ import annotations

from pathlib import Path

from atoll.server.blobs.contract import Blobs
from atoll.server.blobs.folder import FolderBlobs
from atoll.wire.disk import Disk, RealDisk

__all__ = ["open_blobs"]


def open_blobs(place: str, folder: Path, disk: Disk | None = None) -> Blobs:
    """The blobs at ``place``.

    Args:
        place: ``s3://bucket/prefix`` for an object store; empty for ``folder`` itself.
        folder: where blobs, or an object store's uploads and copies, lie on this machine.
        disk: of this machine.

    Raises:
        StorageError: there is no such kind of place, or it cannot be reached.
        MissingExtra: the library for object stores is not installed.
    """
    here = FolderBlobs(folder, RealDisk() if disk is None else disk)
    if not place:
        return here
    from atoll.server.blobs.s3 import open_s3

    return open_s3(place, here)
