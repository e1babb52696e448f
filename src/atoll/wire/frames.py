r"""Frames: a small JSON body and raw arrays in one run of bytes.

::

    b"ATOLL\0\1\n" | header length, u64 | header, padded with spaces | payload
    '--------- 16 bytes ------------'   '- to a multiple of 64 -----'

The header is ``{"body": {...}, "arrays": [{"name", "dtype", "shape", "offset"}, ...]}``. The payload
holds the arrays in listed order, little-endian, each at the next multiple of 64 bytes, zeros between
them and nothing after the last. One value has one form (the reader writes the header again and
compares), so the SHA-256 of a frame stands for what it says.

A reader checks everything against what it allows before it makes an array, and the arrays it makes
are views into the bytes it was given, so arrays cost no memory beyond the frame's own. A header has at
most 1 MiB, and the worst one found (small lists in lists) takes 40 MB and 0.3 s to read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.errors import StorageError, UpdateRefused, WireError
from atoll.core.layout import Array, dtype_name

__all__ = [
    "DTYPES",
    "HEADER_LIMIT",
    "Allowed",
    "Blob",
    "FrameError",
    "Header",
    "Slot",
    "check_finite",
    "decode",
    "encode",
    "head",
    "header_size",
    "open_frame",
    "pieces",
    "read_header",
    "write_frame",
]

MAGIC = b"ATOLL\0\1\n"
_PRELUDE = len(MAGIC) + 8
_ALIGN = 64

HEADER_LIMIT = 1 << 20
"""Most bytes of a header."""

_LETTERS = {
    "float32": "<f4",
    "float64": "<f8",
    "int64": "<i8",
    "int32": "<i4",
    "uint8": "|u1",
    "uint32": "<u4",
    "uint64": "<u8",
    "bool": "|b1",
}
DTYPES = frozenset(_LETTERS)
"""Every dtype that travels."""

_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))

_MOST_AXES = 8
_MOST_VALUES = 1 << 50
_BLOCK = 1 << 16


class FrameError(WireError):
    """A frame is not well formed, or holds what was not allowed."""


@dataclass(frozen=True)
class Blob:
    """Bytes named by what they are.

    Args:
        sha256: of all bytes, in hex.
        size: how many.
    """

    sha256: str
    size: int

    @classmethod
    def of(cls, raw: bytes | memoryview) -> Blob:
        """The name of ``raw``."""
        return cls(hashlib.sha256(raw).hexdigest(), len(raw))


@dataclass(frozen=True)
class Allowed:
    """What a reader accepts; the default allows a body and no arrays.

    Args:
        names: names that may occur; None: any.
        shape: the shape that every array must have; None: any.
        dtypes: dtypes that may occur.
        most_arrays: most arrays.
        most_bytes: most bytes of payload.
    """

    names: Collection[str] | None = None
    shape: tuple[int, ...] | None = None
    dtypes: Collection[str] = DTYPES
    most_arrays: int = 0
    most_bytes: int = 0


@dataclass(frozen=True)
class Slot:
    """Where one array lies; ``offset`` counts from the start of the payload."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * np.dtype(_LETTERS[self.dtype]).itemsize

    def to_plain(self) -> dict[str, Any]:
        """As it stands in a header."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "offset": self.offset,
        }


@dataclass(frozen=True)
class Header:
    """What a frame says before its payload.

    Args:
        body: the message.
        slots: the arrays.
        start: bytes before the payload.
        size: bytes of the whole frame.
    """

    body: dict[str, Any]
    slots: tuple[Slot, ...]
    start: int
    size: int


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _dumps(body: Mapping[str, Any], slots: list[dict[str, Any]]) -> bytes:
    return _JSON.encode({"body": body, "arrays": slots}).encode()


def _plain_array(name: str, array: Array) -> Array:
    """The array as it travels: little-endian and contiguous, copied only where it is not."""
    letters = _LETTERS.get(dtype_name(array.dtype))
    if letters is None:
        raise FrameError(
            f"array {name!r} is {array.dtype}, which does not travel",
            remedy=f"use one of {', '.join(sorted(DTYPES))}",
        )
    return np.asarray(array, dtype=letters, order="C")


def head(body: Mapping[str, Any], shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """What comes before the payload; each array begins at a multiple of 64 bytes behind it.

    Args:
        body: JSON-able, finite numbers only.
        shapes: dtype and shape of each array, in their order.

    Raises:
        FrameError: see :func:`pieces`.
    """
    slots, end = [], 0
    for name, (dtype, shape) in shapes.items():
        slot = Slot(name, dtype, shape, _aligned(end))
        slots.append(slot.to_plain())
        end = slot.offset + slot.size
    try:
        header = _dumps(body, slots)
    except (TypeError, ValueError, RecursionError) as error:
        raise FrameError(f"the body of a frame is not plain JSON: {error}") from error
    header += b" " * (_aligned(_PRELUDE + len(header)) - _PRELUDE - len(header))
    if len(header) > HEADER_LIMIT:
        raise FrameError(
            f"a frame's header has {len(header)} bytes, more than {HEADER_LIMIT}",
            remedy="send what is long as an array or as a blob",
        )
    return MAGIC + len(header).to_bytes(8, "little") + header


def pieces(
    body: Mapping[str, Any], arrays: Mapping[str, Array] | None = None
) -> Iterator[bytes | memoryview]:
    """The bytes of a frame, piece by piece, without a copy of any array.

    Args:
        body: JSON-able, finite numbers only.
        arrays: arrays by name.

    Raises:
        FrameError: a dtype that does not travel, a body that is not JSON, or too long a header.
    """
    plain = {name: _plain_array(name, array) for name, array in (arrays or {}).items()}
    yield head(
        body, {name: (dtype_name(array.dtype), array.shape) for name, array in plain.items()}
    )
    end = 0
    for array in plain.values():
        if gap := _aligned(end) - end:
            yield bytes(gap)
        end = _aligned(end) + array.nbytes
        if array.size:
            yield array.reshape(-1).view(np.uint8).data


def encode(body: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> bytes:
    """A frame as bytes; see :func:`pieces`.

    >>> raw = encode({"hello": 1}, {"x": np.arange(3.0)})
    >>> body, arrays = decode(raw, Allowed(most_arrays=1, most_bytes=24))
    >>> body, arrays["x"].tolist()
    ({'hello': 1}, [0.0, 1.0, 2.0])
    """
    return b"".join(pieces(body, arrays))


def header_size(raw: bytes | memoryview) -> int:
    """Bytes of a frame's header, as its first bytes say.

    Raises:
        FrameError: these are no frame's.
    """
    if len(raw) < _PRELUDE or raw[: len(MAGIC)] != MAGIC:
        raise FrameError("these bytes are not a frame")
    length = int.from_bytes(raw[len(MAGIC) : _PRELUDE], "little")
    if length > HEADER_LIMIT:
        raise FrameError(f"a frame's header of {length} bytes: at most {HEADER_LIMIT} are allowed")
    if (_PRELUDE + length) % _ALIGN or _PRELUDE + length > len(raw):
        raise FrameError(
            f"a frame's header of {length} bytes does not fit the {len(raw)} there are"
        )
    return length


def _parse(raw: bytes) -> tuple[dict[str, Any], list[Any]]:
    """Body and array list of a header; refuses every form but the one that is written."""
    text = raw.rstrip(b" ")
    try:
        found = json.loads(text.decode())
        body, slots = found["body"], found["arrays"]
        if (
            not isinstance(body, dict)
            or not isinstance(slots, list)
            or len(raw) - len(text) >= _ALIGN
        ):
            raise FrameError("a frame's header holds no body and list of arrays")
        # Twice the same key, NaN, 1e999, lone surrogates, blanks: none survives being written again.
        if _dumps(body, slots) != text:
            raise FrameError("a frame's header is not in canonical form")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FrameError("a frame's header is not valid JSON") from error
    return body, slots


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MOST_VALUES


def _slot(raw: object) -> Slot:
    if not isinstance(raw, dict) or list(raw) != ["name", "dtype", "shape", "offset"]:
        raise FrameError("a frame's array is not described by name, dtype, shape and offset")
    name, dtype, shape, offset = raw.values()
    if not isinstance(name, str) or not isinstance(dtype, str) or dtype not in DTYPES:
        raise FrameError(
            f"a frame's array has no name or a dtype that does not travel: {raw!r:.120}"
        )
    if not isinstance(shape, list) or len(shape) > _MOST_AXES or not all(map(_whole, shape)):
        raise FrameError(f"array {name!r:.80} has no valid shape")
    if math.prod(n or 1 for n in shape) > _MOST_VALUES or not _whole(offset):
        raise FrameError(f"array {name!r:.80} is larger than any array can be")
    return Slot(name, dtype, tuple(shape), offset)


def _check_slot(slot: Slot, allowed: Allowed) -> None:
    if allowed.names is not None and slot.name not in allowed.names:
        raise FrameError(f"array {slot.name!r:.80} is not expected here")
    if slot.dtype not in allowed.dtypes:
        raise FrameError(
            f"array {slot.name!r:.80} is {slot.dtype}, not {' or '.join(sorted(allowed.dtypes))}"
        )
    if allowed.shape is not None and slot.shape != allowed.shape:
        raise FrameError(f"array {slot.name!r:.80} has shape {slot.shape}, not {allowed.shape}")


def read_header(raw: bytes | memoryview, allowed: Allowed) -> Header:
    """Read and check a frame's header from its first bytes; the payload need not be there yet.

    Args:
        raw: at least the whole header.
        allowed: what may follow.

    Raises:
        FrameError: malformed, or not allowed.
    """
    length = header_size(raw)
    body, listed = _parse(bytes(raw[_PRELUDE : _PRELUDE + length]))
    if len(listed) > allowed.most_arrays:
        raise FrameError(
            f"a frame of {len(listed)} arrays: at most {allowed.most_arrays} are allowed"
        )
    slots, end, names = [], 0, set()
    for slot in map(_slot, listed):
        _check_slot(slot, allowed)
        if slot.name in names:
            raise FrameError(f"array {slot.name!r:.80} comes twice")
        if slot.offset != _aligned(end):
            raise FrameError(
                f"array {slot.name!r:.80} lies at {slot.offset}, not at {_aligned(end)}"
            )
        slots.append(slot)
        names.add(slot.name)
        end = slot.offset + slot.size
    if end > allowed.most_bytes:
        raise FrameError(
            f"a frame's arrays take {end} bytes: at most {allowed.most_bytes} are allowed"
        )
    return Header(body, tuple(slots), _PRELUDE + length, _PRELUDE + length + end)


def decode(
    raw: bytes | memoryview | mmap.mmap, allowed: Allowed
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Body and arrays of a frame; the arrays are read-only views into ``raw``.

    Args:
        raw: the whole frame and nothing else.
        allowed: what it may hold.

    Raises:
        FrameError: malformed, or not allowed.
    """
    view = memoryview(raw).cast("B")
    header = read_header(view, allowed)
    if header.size != len(view):
        raise FrameError(f"a frame of {len(view)} bytes says that it has {header.size}")
    arrays, end = {}, header.start
    for slot in header.slots:
        start = header.start + slot.offset
        if any(view[end:start]):
            raise FrameError(f"the gap before array {slot.name!r:.80} is not empty")
        end = start + slot.size
        array: Array = np.ndarray(slot.shape, _LETTERS[slot.dtype], view, start)
        array.flags.writeable = False
        if slot.dtype == "bool" and array.size and array.view(np.uint8).max() > 1:
            raise FrameError(
                f"array {slot.name!r:.80} holds values that are neither true nor false"
            )
        arrays[slot.name] = array
    return header.body, arrays


def open_frame(path: Path, allowed: Allowed) -> tuple[dict[str, Any], dict[str, Array]]:
    """Body and arrays of the frame in ``path``; the arrays are read-only maps of the file.

    Raises:
        FrameError: malformed, or not allowed.
        StorageError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < _PRELUDE:
                raise FrameError(f"{path} is not a frame")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    return decode(mapped, allowed)


def check_finite(arrays: Mapping[str, Array]) -> None:
    """Refuse infinities and NaN; looks at a block at a time.

    Raises:
        UpdateRefused: with the array's name and the place of the first such value.
    """
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            continue
        flat = array.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            finite = np.isfinite(flat[start : start + _BLOCK])
            if not finite.all():
                at = start + int(finite.argmin())
                raise UpdateRefused(f"array {name!r} holds {flat[at]} at {at}: not a finite number")


def write_frame(
    path: Path, body: Mapping[str, Any], arrays: Mapping[str, Array] | None = None
) -> Blob:
    """Write a frame durably: it is there in full, or not at all.

    Returns:
        its digest and size, taken while it was written.

    Raises:
        FrameError: it cannot be a frame; see :func:`pieces`.
        StorageError: the folder cannot be written.
    """
    sha, size, partial = hashlib.sha256(), 0, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        partial = Path(name)
        with os.fdopen(number, "wb") as file:
            for piece in pieces(body, arrays):
                file.write(piece)
                sha.update(piece)
                size += len(piece)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        if partial is not None:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StorageError(
                f"{path} cannot be written: {error.strerror}",
                remedy="free space or mend the folder",
            ) from error
        raise
    return Blob(sha.hexdigest(), size)


def sync_folder(folder: Path) -> None:
    """Make the folder's list of names durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
