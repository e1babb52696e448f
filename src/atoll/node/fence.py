"""The newest epoch of the server that this node has seen; a server of an older one was replaced.

Each start of a server on its store is a new epoch. A server that another has replaced may still answer, and
would ask for what the other has long had. The newest epoch is written down before anything that comes with
it is taken in, so that a node that was started again knows it too. Beside it stands what the server has drawn
at that start: one that was put back from a backup may come to the same epoch, and draws something else.
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
        self._epoch, self._start = _read(path, disk)
        if self._epoch:
            # An earlier process may have been killed before its name was durable; from now on it counts.
            disk.fsync_folder(path.parent)

    @property
    def epoch(self) -> int:
        """The newest that was seen; 0 before any."""
        return self._epoch

    @property
    def seen(self) -> str:
        """The newest, with what was drawn at that start, as a server is told; empty before any."""
        return f"{self._epoch}{self._start and '-'}{self._start}" if self._epoch else ""

    def told(self, epoch: int, start: str) -> bool:
        """Whether a server of that start has been followed, so that it has been told what was seen before."""
        return (epoch, start) == (self._epoch, self._start)

    def follow(self, epoch: int, start: str = "") -> None:
        """Let a word of the server in ``epoch`` in; when this returns, older ones are kept out for good.

        Args:
            epoch: of the server.
            start: what it has drawn at its start; empty where it does not say.

        Raises:
            FenceError: a newer epoch was seen, or another start of the same one.
            StorageError: it cannot be written down; then it counts as not seen.
        """
        if epoch < self._epoch:
            raise FenceError(
                f"a server in epoch {epoch} answers, though epoch {self._epoch} was seen: it was replaced",
                remedy=f"stop the old server. {self._way_out}",
            )
        if epoch == self._epoch and start and self._start not in ("", start):
            raise FenceError(
                f"a server in epoch {epoch} answers, and it is another start than the one that was seen in "
                "this epoch: it was put back from a backup, or two of them run",
                remedy=f"stop the one that is too much. {self._way_out}",
            )
        if epoch > self._epoch or start not in ("", self._start):
            seen = {"epoch": epoch, **({"start": start} if start else {})}
            keep(self._disk, self._path, [json.dumps(seen).encode() + b"\n"])
            if epoch > self._epoch:
                log.info("the server is in its epoch %d", epoch)
            self._epoch, self._start = epoch, start

    @property
    def _way_out(self) -> str:
        return (
            "If this is the right one, from a backup, there: stop it, "
            f"atoll server restored FOLDER --seen {self._epoch} (the largest of all sites), start it"
        )


def _read(path: Path, disk: Disk) -> tuple[int, str]:
    """Epoch and start; a node of an older version has not written the second down."""
    if disk.size(path) is None:
        return 0, ""
    try:
        found = json.loads(disk.read(path))
        epoch, start = found["epoch"], found.get("start", "")
    except (ValueError, KeyError, TypeError, AttributeError):
        epoch, start = None, ""
    if type(epoch) is not int or epoch < 0 or not isinstance(start, str):
        raise StorageError(
            f"{path} is damaged: it does not say which epoch of the server was seen",
            remedy="remove it, once no other server of the federation runs than the right one",
        )
    return epoch, start
