"""Files of tensors, read back by the format's own library."""

from __future__ import annotations

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from atoll.core.errors import LayoutError
from atoll.core.tensors import tensor_pieces

DTYPES = ["bool", "int8", "uint16", "float16", "int32", "uint32", "float32", "int64", "float64"]
ANY = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0))
)


@given(st.dictionaries(st.text(min_size=1, max_size=5).filter("__metadata__".__ne__), ANY))
def test_the_formats_own_library_reads_every_bit(tensors: dict[str, np.ndarray]) -> None:
    names = {name: t for name, t in tensors.items() if _plain(name)}
    found = load(b"".join(bytes(p) for p in tensor_pieces(names, {"b": "2", "a": "1"})))
    assert found.keys() == names.keys()
    for name, tensor in names.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].tobytes() == tensor.tobytes()


def _plain(name: str) -> bool:
    """Half of a surrogate pair is no UTF-8."""
    return all(not 0xD800 <= ord(letter) <= 0xDFFF for letter in name)


def test_the_same_content_gives_the_same_bytes_in_any_order() -> None:
    a, b = np.arange(3, dtype=np.float32), np.arange(4, dtype=np.float64)
    one = b"".join(bytes(p) for p in tensor_pieces({"a": a, "b": b}, {"x": "1", "y": "2"}))
    two = b"".join(bytes(p) for p in tensor_pieces({"b": b, "a": a}, {"y": "2", "x": "1"}))
    assert one == two


def test_big_endian_and_strided_arrays_are_written_as_the_format_wants_them() -> None:
    odd = np.arange(6, dtype=">f4").reshape(2, 3).T
    found = load(b"".join(bytes(p) for p in tensor_pieces({"odd": odd})))["odd"]
    assert found.tolist() == odd.tolist()


def test_an_array_is_handed_on_without_a_copy() -> None:
    array = np.arange(1000, dtype=np.float32)
    *_, piece = tensor_pieces({"w": array})
    array[0] = 5.0
    assert np.frombuffer(piece, np.float32)[0] == 5.0


def test_a_dtype_that_the_format_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(LayoutError, match="'z' is complex128"):
        list(tensor_pieces({"z": np.zeros(2, complex)}))
