"""Blobs in an object store that speaks S3: Amazon's, MinIO, Ceph and others.

A blob is acknowledged when the object store has it. Chunks of an upload gather in a folder of this machine
first, and copies of what is folded or sent are kept there, the least recently used ones leaving first.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from atoll.core.errors import MissingExtra, StorageError
from atoll.server.blobs.contract import checked, missing
from atoll.server.blobs.folder import FolderBlobs
from atoll.wire.disk import Piece
from atoll.wire.frames import Blob

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config, S3Store

__all__ = ["S3Blobs", "open_s3"]

# Read in one request; each has a time limit, so that a large blob must not be one of them.
_RANGE = 16 << 20

_CACHE = 4 << 30


def open_s3(url: str, cache: FolderBlobs, cache_bytes: int = _CACHE) -> S3Blobs:
    """Blobs by URL, ``s3://bucket/prefix?endpoint=https://host&region=name``.

    Keys come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
    ``AWS_SESSION_TOKEN``, web identity, or the machine's role), never from the URL.

    Args:
        url: bucket, prefix, and where it is not Amazon's the endpoint.
        cache: uploads and copies on this machine.
        cache_bytes: most bytes of copies.

    Raises:
        StorageError: the URL is not one, or the bucket cannot be reached.
        MissingExtra: obstore is not installed.
    """
    parts = urlsplit(url)
    asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if parts.scheme != "s3" or not parts.netloc or set(asked) - {"endpoint", "region"}:
        raise StorageError(
            f"{parts.scheme}://{parts.hostname} with {sorted(asked)} is no place for blobs",
            remedy="write s3://bucket/prefix?endpoint=https://host&region=name",
        )
    if "@" in parts.netloc:
        raise StorageError(
            "the object store's keys do not belong into its URL",
            remedy="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment",
        )
    try:
        from obstore.store import S3Store
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "an object store needs obstore, which is not installed",
            remedy="pip install 'atoll[s3]'",
        ) from error
    endpoint = asked.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL", "")
    config: S3Config = {"bucket": parts.netloc}
    if endpoint:
        config["endpoint"] = endpoint
    if "region" in asked:
        config["region"] = asked["region"]
    client: ClientConfig = {"allow_http": endpoint.startswith("http://")}
    retry: RetryConfig = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}
    with _explained(url):
        store = S3Store(
            prefix=parts.path.strip("/") or None,
            config=config,
            client_options=client,
            retry_config=retry,
        )
    blobs = S3Blobs(store, cache, place=f"s3://{parts.netloc}{parts.path}", cache_bytes=cache_bytes)
    blobs.check()
    return blobs


class S3Blobs:
    """:class:`~atoll.server.blobs.contract.Blobs` in an object store.

    Args:
        store: bucket and prefix.
        cache: uploads and copies on this machine.
        place: the store in words, for errors.
        cache_bytes: most bytes of copies.
    """

    def __init__(
        self, store: S3Store, cache: FolderBlobs, *, place: str, cache_bytes: int = _CACHE
    ) -> None:
        self._store = store
        self._cache = cache
        self._place = place
        self._most = cache_bytes
        self._lock = threading.Lock()
        # Sizes of blobs that the object store is known to have; only this server writes there.
        self._known: dict[str, int] = {}
        # Sizes of copies, the least recently used first.
        self._copies: OrderedDict[str, int] = OrderedDict()
        for sha256 in cache.digests():
            self._copies[sha256] = cache.size(sha256) or 0

    def check(self) -> None:
        """Write, read and delete a small object.

        Raises:
            StorageError: one of them failed.
        """
        import obstore

        with _explained(self._place):
            obstore.put(self._store, "check", b"atoll")
            if bytes(obstore.get(self._store, "check").bytes()) != b"atoll":
                raise StorageError(f"{self._place} gives back other bytes than it was given")
            obstore.delete(self._store, "check")

    def put(self, raw: Piece, named: Blob | None = None) -> Blob:
        """Keep ``raw``."""
        blob = self._cache.put(raw, named)
        self._push(blob)
        return blob

    def put_pieces(self, pieces: Iterable[Piece], named: Blob | None = None) -> Blob:
        """Keep what the pieces make together."""
        blob = self._cache.put_pieces(pieces, named)
        self._push(blob)
        return blob

    def put_file(self, path: Path, blob: Blob) -> None:
        """Keep a file of this machine."""
        self._cache.put_file(path, blob)
        self._push(blob)

    def _push(self, blob: Blob) -> None:
        """Send the copy to the object store, unless it is there."""
        import obstore

        if self.size(blob.sha256) != blob.size:
            with _explained(self._place):
                obstore.put(self._store, _key(blob.sha256), self._cache.folder / blob.sha256)
            self._known[blob.sha256] = blob.size
        self._used(blob)

    def has(self, sha256: str) -> bool:
        """Whether all its bytes are here."""
        return self.size(sha256) is not None

    def size(self, sha256: str) -> int | None:
        """How many bytes it has."""
        if sha256 not in self._known:
            import obstore

            # An object store's "missing" is an answer here, not an error.
            with _explained(self._place), contextlib.suppress(FileNotFoundError):
                self._known[sha256] = obstore.head(self._store, _key(sha256))["size"]
        return self._known.get(sha256)

    def read(self, sha256: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes from ``start`` up to ``stop`` or the end."""
        size = self._size(sha256)
        if self._cache.has(sha256):
            return self._cache.read(sha256, start, stop)
        return b"".join(self._ranges(sha256, start, size if stop is None else min(stop, size)))

    def _ranges(self, sha256: str, start: int, stop: int) -> Iterator[bytes]:
        import obstore

        for at in range(start, stop, _RANGE):
            with _explained(self._place):
                yield bytes(
                    obstore.get_range(
                        self._store, _key(sha256), start=at, end=min(at + _RANGE, stop)
                    )
                )

    def view(self, sha256: str) -> memoryview:
        """All bytes, read only: of a copy, which is made where there is none."""
        size = self._size(sha256)
        while True:
            with self._lock:
                if self._cache.has(sha256):
                    view = self._cache.view(sha256)
                    break
            self._fetch(sha256, size)
        self._used(Blob(sha256, size))
        return view

    def _fetch(self, sha256: str, size: int) -> None:
        """Make a copy on this machine, checked."""
        got = self._cache.put_pieces(self._ranges(sha256, 0, size))
        if got.sha256 != sha256:
            self._cache.delete(got.sha256)
            raise StorageError(
                f"blob {sha256[:12]} is damaged at {self._place}",
                remedy="restore that object from a backup",
            )

    def delete(self, sha256: str) -> None:
        """Forget it, if it is here."""
        import obstore

        with _explained(self._place), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, _key(sha256))
        with self._lock:
            self._known.pop(sha256, None)
            self._copies.pop(sha256, None)
        self._cache.delete(sha256)

    def digests(self) -> Iterator[str]:
        """Every blob that is here."""
        import obstore

        with _explained(self._place):
            for chunk in obstore.list(self._store, "blobs"):
                yield from (str(entry["path"]).rpartition("/")[2] for entry in chunk)

    def received(self, sha256: str, owner: str = "") -> int:
        """Where ``owner`` should continue its upload."""
        whole = self.size(sha256)
        if whole is not None:
            return whole
        held = self._cache.received(sha256, owner)
        if self._cache.has(sha256):
            # All its bytes came, and this machine stopped before the object store had them.
            self._push(Blob(sha256, held))
        return held

    def append(self, blob: Blob, offset: int, data: Piece, owner: str = "") -> int:
        """Take a chunk of an upload."""
        held = self._cache.append(blob, offset, data, owner)
        if self._cache.has(blob.sha256):
            self._push(blob)
        return held

    def abandon(self, sha256: str, owner: str = "") -> None:
        """Forget an upload that will not be finished."""
        self._cache.abandon(sha256, owner)

    def unfinished(self, owners: Iterable[str]) -> list[tuple[str, Blob]]:
        """Uploads of these owners that are not whole."""
        return self._cache.unfinished(owners)

    def foresee(self, size: int, count: int) -> None:
        """Make files to be written over by large ones."""
        self._cache.foresee(size, count)

    def sweep(self) -> None:
        """Forget what a crash left half-written."""
        self._cache.sweep()

    def _size(self, sha256: str) -> int:
        size = self.size(sha256)
        if size is None:
            raise missing(sha256)
        return size

    def _used(self, blob: Blob) -> None:
        """Remember that a copy was used, and let the oldest go while there are too many bytes."""
        with self._lock:
            self._copies[blob.sha256] = blob.size
            self._copies.move_to_end(blob.sha256)
            leaving = []
            while len(self._copies) > 1 and sum(self._copies.values()) > self._most:
                leaving.append(self._copies.popitem(last=False)[0])
        # Only copies may go: what the object store has not got yet is the only one there is.
        for sha256 in [leaver for leaver in leaving if self.has(leaver)]:
            with self._lock:
                if sha256 not in self._copies:
                    self._cache.delete(sha256)


def _key(sha256: str) -> str:
    return f"blobs/{checked(sha256)}"


@contextlib.contextmanager
def _explained(place: str) -> Iterator[None]:
    """An object store's errors in words."""
    from obstore import exceptions as exc

    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(
            f"{place}: there is no such bucket, or an object in it is gone",
            remedy="make the bucket, or restore the object from a backup",
        ) from error
    except (exc.PermissionDeniedError, exc.UnauthenticatedError) as error:
        raise StorageError(
            f"{place} refuses this server's keys",
            remedy="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; the key must read, write and"
            " delete in the bucket",
        ) from error
    except exc.BaseError as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise StorageError(
            f"{place} cannot be used: {lines[0][:300]}",
            remedy="check the endpoint, the bucket's name and the network",
        ) from error
