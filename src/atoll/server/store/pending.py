"""Small blobs on their way into a store: they are written with the next rows, in one transaction.

A blob that no row names is nobody's, so it need not be durable before the first row that does. Waiting
for that row saves a wait for the disk at each blob, and a delete costs none at all.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

__all__ = ["Pending"]


class Pending:
    """What the next transaction writes beside its rows: digests with their bytes, or None to delete."""

    def __init__(self) -> None:
        self._changes: dict[str, bytes | None] = {}
        self._lock = threading.Lock()

    def hold(self, sha256: str, raw: bytes) -> None:
        """Write this one."""
        with self._lock:
            self._changes[sha256] = raw

    def drop(self, sha256: str) -> None:
        """Delete this one."""
        with self._lock:
            self._changes[sha256] = None

    def changes(self) -> dict[str, bytes | None]:
        """All changes that no finished transaction has written."""
        with self._lock:
            return dict(self._changes)

    def done(self, written: Mapping[str, bytes | None]) -> None:
        """These are written; what was changed again meanwhile is not."""
        with self._lock:
            for sha256, raw in written.items():
                if sha256 in self._changes and self._changes[sha256] is raw:
                    del self._changes[sha256]
