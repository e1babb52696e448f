"""IDX files, the format of MNIST and its successors: four bytes of magic, sizes, then raw values.

Layout (all big-endian): two zero bytes, a type code, the number of dimensions; one uint32 per
dimension; the values. A file may be compressed with gzip.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from atoll.core.contracts import Examples
from atoll.core.errors import DataError
from atoll.core.layout import Array

__all__ = ["FASHION_MNIST", "fashion_mnist", "idx_examples", "read_idx"]

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package ``dataset-fashion-mnist`` puts its files."""

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MOST_BYTES = 1 << 34
"""A header that declares more than 16 GiB is taken for damage before anything is allocated."""


def read_idx(path: str | Path) -> Array:
    """The array in an IDX file, gzip-compressed or not, in its own type and native byte order.

    Raises:
        DataError: not an IDX file, damaged, shorter or longer than its header says.
    """
    path = Path(path)
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not packed:
                return _parse(path, raw)
            with gzip.open(raw) as stream:
                return _parse(path, cast("BinaryIO", stream))
    except OSError as error:  # gzip.BadGzipFile is one as well
        raise DataError(f"{path}: {error.strerror or error}", remedy="check the path") from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip data ({error})", remedy=_AGAIN) from error


_AGAIN = "fetch the file again"


def _parse(path: Path, stream: BinaryIO) -> Array:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or not magic[3]:
        raise DataError(
            f"{path}: bad magic {magic.hex(' ') or 'in an empty file'}",
            remedy="an IDX file begins with 00 00, a type code (08 for bytes) and its dimensions",
        )
    dimensions = magic[3]
    header = stream.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise DataError(f"{path}: truncated inside the header", remedy=_AGAIN)
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4"))
    kind = np.dtype(_TYPES[magic[2]])
    expected = math.prod(shape) * kind.itemsize
    if expected > _MOST_BYTES:
        raise DataError(f"{path}: the header declares {shape}, {expected} bytes", remedy=_AGAIN)
    body = stream.read(expected + 1)
    if len(body) != expected:
        found = f"only {len(body)}" if len(body) < expected else "more"
        raise DataError(
            f"{path}: {found} bytes where {shape} needs {expected}",
            remedy="the file is truncated: " + _AGAIN if len(body) < expected else _AGAIN,
        )
    return np.frombuffer(body, kind).reshape(shape).astype(kind.newbyteorder("="))


def idx_examples(images: str | Path, labels: str | Path) -> Examples:
    """Images and their classes from two IDX files.

    Returns:
        features ``(n, 1, height, width)`` float32, bytes scaled to [0, 1] and nothing else;
        targets ``(n,)`` int64.

    Raises:
        DataError: a damaged file, or files that do not fit each other.
    """
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or classes.ndim != 1:
        raise DataError(
            f"{images} has shape {pixels.shape} and {labels} {classes.shape}",
            remedy="images have three dimensions (n, height, width), labels one",
        )
    if len(pixels) != len(classes):
        raise DataError(f"{len(pixels)} images in {images} but {len(classes)} labels in {labels}")
    features = pixels[:, None].astype(np.float32)
    if pixels.dtype == np.uint8:
        features /= np.float32(255)
    return Examples(features, classes.astype(np.int64))


def fashion_mnist(folder: str | Path | None = None) -> tuple[Examples, Examples]:
    """Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747): 60,000 and 10,000 images.

    Args:
        folder: holds the four IDX files, ``.gz`` or not; by default that of the Debian package.

    Returns:
        The training and the test rows, see :func:`idx_examples`.

    Raises:
        DataError: a file is not there or damaged.
    """
    place = Path(folder) if folder is not None else FASHION_MNIST

    def find(stem: str) -> Path:
        options = [place / stem, place / f"{stem}.gz"]
        found = next((path for path in options if path.is_file()), None)
        if found is None:
            raise DataError(
                f"Fashion-MNIST: no {stem}[.gz] in {place}",
                remedy="on Debian or Ubuntu: apt install dataset-fashion-mnist; elsewhere: download the "
                "four files from github.com/zalandoresearch/fashion-mnist and name their folder",
            )
        return found

    def load(prefix: str) -> Examples:
        return idx_examples(
            find(f"{prefix}-images-idx3-ubyte"), find(f"{prefix}-labels-idx1-ubyte")
        )

    return load("train"), load("t10k")
