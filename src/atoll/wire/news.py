"""An answer with news: a blob that goes along, the frame that names it, and how long the blob is.

::

    blob | frame (see :mod:`atoll.wire.frames`) | size of the blob, u64, little-endian

The blob is the longest of those that go along with the tasks that name them, mostly a model; the others are
arrays of the frame, by their digests, and where there is none the size is 0. It comes first so that bytes are
looked at once: SHA-256 over the blob is its name, and goes on over the rest to the digest that is signed.
Whoever sends one blob to many takes the first part once for all of them.

A site asks for this form with ``first=1`` in its query, and is told by the media type. One that does not ask
gets the frame alone, with all blobs in it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from atoll.core.layout import Array
from atoll.wire.frames import Allowed, FrameError, decode

__all__ = ["NEWS", "First", "alone", "digests", "joined", "opened"]

NEWS = "application/vnd.atoll.news"
"""The media type of such an answer."""

_SIZE = 8
_ALONG = Allowed(dtypes=("uint8",), most_arrays=1000, most_bytes=64 << 20)


class First:
    """A blob that may come first, with its digest begun.

    Args:
        raw: its bytes.
        sha: SHA-256 that has taken them, and nobody goes on with; None where it is still to be taken.

    Attributes:
        raw: its bytes.
        array: the same, as an array of a frame.
    """

    def __init__(self, raw: bytes | memoryview, sha: hashlib._Hash | None = None) -> None:
        self.raw = raw
        self.array: Array = np.frombuffer(raw, np.uint8)
        self.sha = hashlib.sha256(raw) if sha is None else sha


def joined(first: First | None, frame: bytes) -> tuple[bytes, bytes]:
    """An answer and its SHA-256.

    Args:
        first: the blob that comes first; None for none.
        frame: what names it.
    """
    raw = b"" if first is None else first.raw
    sha = hashlib.sha256() if first is None else first.sha.copy()
    size = len(raw).to_bytes(_SIZE, "little")
    sha.update(frame)
    sha.update(size)
    return b"".join((raw, frame, size)), sha.digest()


def digests(raw: bytes) -> tuple[bytes, bytes]:
    """SHA-256 of an answer, and of the blob that comes first.

    Raises:
        FrameError: it is none.
    """
    view, size = memoryview(raw), _first(raw)
    sha = hashlib.sha256(view[:size])
    name = sha.digest()
    sha.update(view[size:])
    return sha.digest(), name


def opened(raw: bytes, name: bytes | None = None) -> tuple[dict[str, Any], dict[str, Array]]:
    """What an answer says, and the blobs that came along, by digests that are theirs.

    Args:
        raw: the answer.
        name: SHA-256 of the blob that comes first, as :func:`digests` found it; None: not yet taken.

    Raises:
        FrameError: malformed, or a blob is not what it is called.
    """
    view, size = memoryview(raw), _first(raw)
    body, blobs = alone(view[size:-_SIZE])
    if size:
        known = hashlib.sha256(view[:size]).digest() if name is None else name
        blobs[known.hex()] = np.frombuffer(view[:size], np.uint8)
    return body, blobs


def alone(frame: bytes | memoryview) -> tuple[dict[str, Any], dict[str, Array]]:
    """The same of an answer that is a frame and nothing else.

    Raises:
        FrameError: malformed, or a blob is not what it is called.
    """
    body, blobs = decode(frame, _ALONG)
    for name, blob in blobs.items():
        if (found := hashlib.sha256(blob.data).hexdigest()) != name:
            raise FrameError(f"bytes called {name[:12]} are {found[:12]}")
    return body, blobs


def _first(raw: bytes) -> int:
    size = int.from_bytes(raw[-_SIZE:], "little")
    if len(raw) < _SIZE or size > len(raw) - _SIZE:
        raise FrameError("these bytes are no news")
    return size
