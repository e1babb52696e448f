"""The secrets of encrypted runs at a site: files of the node's folder that no worker is told of.

For each run a seed, from which this site's half of the agreement follows, and the run's secret key once the
site has it. Both are written before anything that depends on them is said, and are removed with the run.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from urllib.parse import quote

from atoll.core.errors import StateError, StorageError
from atoll.wire.disk import Disk, RealDisk, keep
from atoll.wire.trouble import remedy_of

__all__ = ["RunKeys"]

_SEED = "seed"
_KEY = "key"


class RunKeys:
    """The secrets in ``folder``.

    Args:
        folder: their own; it need not exist.
        disk: where it lies.
    """

    def __init__(self, folder: Path, disk: Disk | None = None) -> None:
        self._folder, self._disk = folder, RealDisk() if disk is None else disk

    def seed(self, run: str) -> bytes:
        """32 bytes of this site for a run, made the first time.

        Raises:
            StorageError: they cannot be read or written.
        """
        return self._read(run, _SEED) or self.keep(run, os.urandom(32), _SEED)

    def key(self, run: str) -> bytes:
        """The secret key of a run.

        Raises:
            StateError: this site has none.
            StorageError: it cannot be read.
        """
        found = self._read(run, _KEY)
        if found is None:
            raise StateError(
                "this site does not have the key of this run",
                remedy="restore the node's folder as it was, or start the run anew",
            )
        return found

    def has(self, run: str) -> bool:
        """Whether the key of a run is here."""
        return self._read(run, _KEY) is not None

    def keep(self, run: str, secret: bytes, name: str = _KEY) -> bytes:
        """Write a secret durably, readable by the node's owner only; gives it back.

        Raises:
            StorageError: it cannot be written.
        """
        folder = self._place(run)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._folder.chmod(0o700)
        except OSError as error:
            raise StorageError(
                f"{folder} cannot be made: {error.strerror}", remedy=remedy_of(error)
            ) from error
        self._disk.make_folder(folder)
        keep(self._disk, folder / name, [secret])
        return secret

    def drop(self, run: str) -> None:
        """Forget a run."""
        shutil.rmtree(self._place(run), ignore_errors=True)

    def _read(self, run: str, name: str) -> bytes | None:
        path = self._place(run) / name
        return self._disk.read(path) if self._disk.size(path) is not None else None

    def _place(self, run: str) -> Path:
        return self._folder / quote(run, safe="")[:150]
