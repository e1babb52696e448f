"""Small blobs in the store, large ones where they were: fewer waits for the disk in each round.

A model of a hundred thousand parameters is a frame of 400 kB. In a folder each costs two waits for the
disk, for its bytes and for its name; in the store (:meth:`~atoll.server.store.contract.Store.hold`) it costs
none of its own, because it is written in the same transaction as the row that names it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from atoll.server.blobs.contract import Blobs, checked
from atoll.server.store.contract import Store
from atoll.wire.disk import Piece
from atoll.wire.frames import Blob

__all__ = ["NearBlobs"]

_SMALL = 1 << 20
_REMEMBERED = 64 << 20


class NearBlobs:
    """:class:`~atoll.server.blobs.contract.Blobs` of which the small ones are in the store.

    What :meth:`put` keeps in the store is durable with the store's next write that takes an epoch, and so
    before anything that names it; a blob that no row ever names may be lost in a crash.

    Args:
        store: for small ones; acquired by this server.
        far: for large ones and for all that is uploaded in chunks.
        small: most bytes of a small one.
    """

    def __init__(self, store: Store, far: Blobs, small: int = _SMALL) -> None:
        self._store = store
        self._far = far
        self._small = small
        self._lock = threading.Lock()
        # Small blobs lately written or read, the oldest first.
        self._lately: OrderedDict[str, bytes] = OrderedDict()
        self._lately_bytes = 0
        # Small blobs that came in chunks or as a file, and lie with the large ones.
        self._elsewhere: set[str] = set()
        # Large ones that are being uploaded, or were: the store is not asked about them chunk by chunk.
        self._large: set[str] = set()

    def put(self, raw: Piece, named: Blob | None = None) -> Blob:
        """Keep ``raw``."""
        if len(raw) > self._small:
            return self._far.put(raw, named)
        return self._hold(bytes(raw), named)

    def _hold(self, raw: bytes, named: Blob | None = None) -> Blob:
        blob = named or Blob.of(raw)
        self._store.hold(blob.sha256, raw)
        with self._lock:
            self._large.discard(blob.sha256)
        self._remember(blob.sha256, raw)
        return blob

    def put_pieces(self, pieces: Iterable[Piece], named: Blob | None = None) -> Blob:
        """Keep what the pieces make together."""
        first: list[Piece] = []
        size, rest = 0, iter(pieces)
        for piece in rest:
            first.append(piece)
            size += len(piece)
            if size > self._small:
                return self._far.put_pieces(chain(first, rest), named)
        return self._hold(b"".join(first), named)

    def put_file(self, path: Path, blob: Blob) -> None:
        """Keep a file of this machine."""
        self._far.put_file(path, blob)
        self._note(blob)

    def has(self, sha256: str) -> bool:
        """Whether all its bytes are here."""
        return self.size(sha256) is not None

    def size(self, sha256: str) -> int | None:
        """How many bytes it has."""
        near = self._near(sha256)
        if near is not None:
            return len(near)
        size = self._far.size(sha256)
        if size is not None:
            self._note(Blob(sha256, size))
        return size

    def read(self, sha256: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes from ``start`` up to ``stop`` or the end."""
        near = self._near(sha256)
        return self._far.read(sha256, start, stop) if near is None else near[start:stop]

    def view(self, sha256: str) -> memoryview:
        """All bytes, read only."""
        near = self._near(sha256)
        return self._far.view(sha256) if near is None else memoryview(near)

    def delete(self, sha256: str) -> None:
        """Forget it, if it is here."""
        near = self._near(sha256)
        with self._lock:
            self._lately_bytes -= len(self._lately.pop(sha256, b""))
            elsewhere = sha256 in self._elsewhere
            self._elsewhere.discard(sha256)
            self._large.discard(sha256)
        if near is not None or elsewhere:
            self._store.drop(sha256)
        # Asking an object store about each of the others would take longer than all the rest.
        if near is None or elsewhere:
            self._far.delete(sha256)

    def digests(self) -> Iterator[str]:
        """Every blob that is here."""
        near = self._store.holdings()
        yield from near
        yield from (sha256 for sha256 in self._far.digests() if sha256 not in near)

    def received(self, sha256: str, owner: str = "") -> int:
        """Where ``owner`` should continue its upload."""
        near = self._near(sha256)
        return self._far.received(sha256, owner) if near is None else len(near)

    def append(self, blob: Blob, offset: int, data: Piece, owner: str = "") -> int:
        """Take a chunk of an upload."""
        held = self._far.append(blob, offset, data, owner)
        self._note(blob)
        return held

    def _note(self, blob: Blob) -> None:
        """Where a blob of that size lies; whoever only says so hides no small one by that."""
        with self._lock:
            known = blob.sha256 in self._elsewhere or blob.sha256 in self._large
        if not known and self._near(blob.sha256) is None:
            with self._lock:
                (self._elsewhere if blob.size <= self._small else self._large).add(blob.sha256)

    def abandon(self, sha256: str, owner: str = "") -> None:
        """Forget an upload that will not be finished."""
        with self._lock:
            self._large.discard(sha256)
        self._far.abandon(sha256, owner)

    def unfinished(self, owners: Iterable[str]) -> list[tuple[str, Blob]]:
        """Uploads of these owners that are not whole."""
        return self._far.unfinished(owners)

    def foresee(self, size: int, count: int) -> None:
        """Make files to be written over by large ones."""
        self._far.foresee(size, count)

    def sweep(self) -> None:
        """Forget what a crash left half-written."""
        self._far.sweep()

    def _near(self, sha256: str) -> bytes | None:
        """The bytes of a small blob of the store."""
        with self._lock:
            raw = self._lately.get(checked(sha256))
            if raw is not None:
                self._lately.move_to_end(sha256)
                return raw
            if sha256 in self._elsewhere or sha256 in self._large:
                return None  # asking the store each time would cost more than the rest
        raw = self._store.held(sha256)
        if raw is not None:
            self._remember(sha256, raw)
        return raw

    def _remember(self, sha256: str, raw: bytes) -> None:
        with self._lock:
            self._lately_bytes += len(raw) - len(self._lately.pop(sha256, b""))
            self._lately[sha256] = raw
            while self._lately_bytes > _REMEMBERED:
                self._lately_bytes -= len(self._lately.popitem(last=False)[1])
