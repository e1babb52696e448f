"""One file of an audit log: a journal whose lines are made durable several at once, while others are written.

A :class:`~atoll.node.journal.Journal` waits for the disk with each line, and moves its head with it. An audit
log has a line for each answer, and an answer waits for the disk anyway: so here a line is written, the disk is
asked to begin with it, and whoever must know waits later, when the answer itself is durable too. The head
follows: it never names a line that a power failure could take back.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from atoll.core.errors import StorageError
from atoll.node.journal import Head, Reading, Signer, keep_head, line_of
from atoll.wire.disk import Disk

__all__ = ["Segment"]


class Segment:
    """A file that one process writes. Any of its threads may.

    Args:
        path: the file, in a folder that is there.
        signer: signs the heads.
        disk: where it lies.
        found: what is in it, as :func:`~atoll.node.journal.read_journal` has read it.

    Raises:
        StorageError: the file or its head cannot be written.
    """

    def __init__(self, path: Path, signer: Signer, disk: Disk, found: Reading) -> None:
        self.path, self._signer, self._disk = path, signer, disk
        self._lock, self._heading = threading.RLock(), threading.Lock()
        self._count = self._sure = len(found.digests)
        self._last = self._sure_digest = found.digest(self._count)
        self._size = self._sure_size = found.size
        self._open: deque[tuple[bytes, str]] = deque()  # lines that the disk may not have
        self._doubt, self._failures = False, 0
        self._head: Head | None = None
        if found.digests:  # a killed process may have written what no disk has yet
            disk.fsync(path)
            disk.fsync_folder(path.parent)
        self.anchor()

    @property
    def count(self) -> int:
        """Lines, durable or not."""
        with self._lock:
            return self._count

    @property
    def last(self) -> str:
        """Hash of the last one."""
        with self._lock:
            return self._last

    def write(self, body: Mapping[str, Any]) -> int:
        """Write a line, which a crash of the machine may still take back; returns its number.

        Raises:
            StorageError: it could not be written, and does not count.
        """
        with self._lock:
            raw, digest = line_of(body, self._count + 1, self._last)
            self._mend()
            self._disk.append(self.path, self._size, raw)
            self._open.append((raw, digest))
            self._count, self._last, self._size = self._count + 1, digest, self._size + len(raw)
            return self._count

    def begin_sync(self) -> Callable[[], None]:
        """Begin to make durable what is written; what is returned waits for it, and may raise StorageError."""
        with self._lock:
            self._mend()
            upto, failures = self._count, self._failures
        done = self._disk.begin_fsync(self.path)

        def wait() -> None:
            try:
                done()
            except StorageError:
                with self._lock:
                    # What was to be written may be neither on the disk nor any more on its way there.
                    self._doubt, self._failures = True, self._failures + 1
                raise
            with self._lock:
                while failures == self._failures and self._sure < upto:
                    raw, self._sure_digest = self._open.popleft()
                    self._sure, self._sure_size = self._sure + 1, self._sure_size + len(raw)

        return wait

    def sync(self, number: int) -> None:
        """Wait until line ``number`` survives any crash.

        Raises:
            StorageError: it may not. Trying again is safe.
        """
        while True:
            with self._lock:
                if number <= self._sure:
                    return
            self.begin_sync()()

    def append(self, body: Mapping[str, Any]) -> None:
        """Write a line that is rare: when this returns it survives any crash, and its name too.

        Raises:
            StorageError: it may not be there.
        """
        self.sync(self.write(body))
        self._disk.fsync_folder(self.path.parent)
        self.anchor()

    def anchor(self) -> None:
        """Move the head to the last line that is durable. Other lines need not wait for this.

        Raises:
            StorageError: it could not be written.
        """
        with self._heading:
            with self._lock:
                count, digest = self._sure, self._sure_digest
            if self._head is None or self._head.count < count:
                self._head = keep_head(self._disk, self.path, self._signer, count, digest)

    def _mend(self) -> None:
        """Write again what the disk has failed to take."""
        if self._doubt:
            self._disk.append(self.path, self._sure_size, b"".join(raw for raw, _ in self._open))
            self._doubt = False
