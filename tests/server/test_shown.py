"""Frames that are shown from memory: the bytes of a file, any part of them, and no copy of a vector."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.server.blobs.shown import Shown
from atoll.wire.frames import Blob, encode

BODY = {"run": "heart-1", "version": 3}
ARRAYS = {"parameters": np.arange(37, dtype=np.float32), "control": np.arange(5.0)}
RAW = encode(BODY, dict(sorted(ARRAYS.items())))


@given(st.integers(0, len(RAW) + 9), st.integers(0, len(RAW) + 9))
def test_any_part_is_that_of_the_frame(start: int, stop: int) -> None:
    shown = Shown(BODY, ARRAYS)
    assert shown.blob == Blob.of(RAW)
    assert shown.sha.hexdigest() == shown.blob.sha256
    assert shown.read(start, stop) == RAW[start:stop]


def test_vectors_in_another_order_are_the_same_frame() -> None:
    """A checkpoint may give them back in any order; a model is one model all the same."""
    other = dict(reversed(ARRAYS.items()))
    assert list(other) != list(ARRAYS)
    assert Shown(BODY, other).blob == Shown(BODY, ARRAYS).blob


def test_it_holds_the_vectors_themselves() -> None:
    vector = np.zeros(1 << 16, np.float32)
    shown = Shown(BODY, {"parameters": vector})
    vector[-1] = 1.0
    assert np.frombuffer(shown.read(shown.blob.size - 4, shown.blob.size), np.float32) == 1.0
    vector.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 1.0
