"""Named tensors as one run of bytes in the safetensors format, piece by piece.

The format's own library gives a file as one ``bytes``, a second copy of every array. What is written
here it reads: a header length (u64), a JSON header, then the arrays without gaps, in the order in which
the header lists them. Same content, same bytes.

Reference: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import numpy as np

from atoll.core.errors import LayoutError
from atoll.core.layout import Array

__all__ = ["tensor_pieces"]

_NAMES = {
    "bool": "BOOL",
    "int8": "I8",
    "uint8": "U8",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "int64": "I64",
    "uint64": "U64",
    "float64": "F64",
}


def tensor_pieces(
    tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The bytes of a file that holds ``tensors``, without a copy of any little-endian array.

    Args:
        tensors: arrays by name, any shape.
        metadata: free strings.

    Raises:
        LayoutError: a dtype that the format does not know.

    >>> raw = b"".join(tensor_pieces({"w": np.arange(2, dtype=np.float32)}))
    >>> raw[8:60].decode()
    '{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]'
    """
    little = {name: _little(name, array) for name, array in tensors.items()}
    # Wide values first: then every array lies at a multiple of its own width.
    order = sorted(little, key=lambda name: (-little[name].dtype.itemsize, name))
    header: dict[str, object] = {}
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    end = 0
    for name in order:
        array = little[name]
        header[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        if little[name].size:
            yield little[name].reshape(-1).view(np.uint8).data


def _little(name: str, array: Array) -> Array:
    if array.dtype.name not in _NAMES:
        raise LayoutError(f"tensor {name!r} is {array.dtype}, which a file of tensors cannot hold")
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C")
