"""What researchers have uploaded and no job refers to yet: not more than each may have, and not for ever.

Counted since this server's start, by what an upload says it will be: whoever begins many has all of them
counted.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from atoll.core.errors import TooLarge
from atoll.server.blobs import Blobs
from atoll.server.engine import ENDED
from atoll.server.garbage import needed
from atoll.server.settings import GIB, MIB
from atoll.server.store.contract import Store
from atoll.wire.frames import Blob

__all__ = ["Uploads"]

_LEAST = MIB
"""Bytes that an upload counts for at least: names cost something too."""


class Uploads:
    """Uploads by researcher. Any thread may ask.

    Args:
        most: bytes of one researcher.
        seconds: after which an upload to which nothing was added is forgotten.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._lock = threading.Lock()
        self._held: dict[str, dict[str, tuple[int, float]]] = {}

    def expect(self, name: str, blob: Blob, now: float) -> None:
        """A researcher uploads a blob, or a part of it.

        Raises:
            TooLarge: with that it would have more than it may.
        """
        with self._lock:
            held = self._held.setdefault(name, {})
            before = held.get(blob.sha256, (_LEAST, now))[0]
            others = sum(size for sha256, (size, _) in held.items() if sha256 != blob.sha256)
            size = max(before, blob.size)
            if others + size > self._most:
                raise TooLarge(
                    f"{name} has uploaded {others / GIB:.3g} GiB that no job refers to, and may have "
                    f"{self._most / GIB:.3g} GiB of that",
                    remedy="submit the job that they are for, or wait: what no job refers to is forgotten "
                    f"after {self._seconds / 3600:.3g} h",
                )
            held[blob.sha256] = size, now

    def used(self, digests: Iterable[str]) -> None:
        """A job refers to these, whoever has uploaded them."""
        with self._lock:
            for sha256 in digests:
                for held in self._held.values():
                    held.pop(sha256, None)

    def clear(self, store: Store, blobs: Blobs, now: float) -> None:
        """Delete what nobody has added to for so long, unless a run has it too; no job is taken in meanwhile.

        Raises:
            StorageError: it cannot be deleted; it is not tried again before the server's next start.
        """
        with self._lock:
            old = [
                (name, sha256)
                for name, held in self._held.items()
                for sha256, (_, when) in held.items()
                if now - when > self._seconds
            ]
            for name, sha256 in old:
                del self._held[name][sha256]
        used = needed(store, ENDED) if old else set[str]()
        for name, sha256 in old:
            blobs.abandon(sha256, name)
            if sha256 not in used:
                blobs.delete(sha256)
