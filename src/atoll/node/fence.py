"""The newest epoch of the server that this node has seen; a server of an older one was replaced.

Each start of a server on its store is a new epoch. A server that another has replaced may still answer, and
would ask for what the other has long had. The newest epoch is written down before anything that comes with
it is taken in, so that a node that was started again knows it too.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from atoll.core.errors import FenceError, StorageError
from atoll.wire.disk import Disk, keep

__all__ = ["Fence"]

log = logging.getLogger("atoll.node")


class Fence:
    """What is kept in the file ``path``. One thread at a time.

    Args:
        path: of the file; it need not exist.
        disk: where it lies.

    Raises:
        StorageError: it cannot be read, or is not as it was written.
    """

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path, self._disk = path, disk
        self._epoch = _read(path, disk)
        if self._epoch:
            # An earlier process may have been killed before its name was durable; from now on it counts.
            disk.fsync_folder(path.parent)

    @property
    def epoch(self) -> int:
        """The newest that was seen; 0 before any."""
        return self._epoch

    def follow(self, epoch: int) -> None:
        """Let a word of the server in ``epoch`` in; when this returns, older ones are kept out for good.

        Raises:
            FenceError: a newer epoch was seen.
            StorageError: it cannot be written down; then it counts as not seen.
        """
        if epoch < self._epoch:
            raise FenceError(
                f"a server in epoch {epoch} answers, though epoch {self._epoch} was seen: it was replaced",
                remedy="stop the old server. If this is the right one, from a backup, there: stop it, "
                f"atoll server restored FOLDER --seen {self._epoch} (the largest of all sites), start it",
            )
        if epoch > self._epoch:
            keep(self._disk, self._path, [json.dumps({"epoch": epoch}).encode() + b"\n"])
            log.info("the server is in its epoch %d", epoch)
            self._epoch = epoch


def _read(path: Path, disk: Disk) -> int:
    if disk.size(path) is None:
        return 0
    try:
        epoch = json.loads(disk.read(path))["epoch"]
    except (ValueError, KeyError, TypeError):
        epoch = None
    if type(epoch) is not int or epoch < 0:
        raise StorageError(
            f"{path} is damaged: it does not say which epoch of the server was seen",
            remedy="remove it, once no other server of the federation runs than the right one",
        )
    return epoch
