"""An answer with news: the blob that comes first, the frame behind it, and one pass over both."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from atoll.wire.frames import FrameError, encode
from atoll.wire.news import First, alone, digests, joined, opened

MODEL, CODE = bytes(range(256)) * 40, b"def fit(): ..."


def named(*blobs: bytes) -> dict[str, np.ndarray]:
    return {hashlib.sha256(b).hexdigest(): np.frombuffer(b, np.uint8) for b in blobs}


def told(*blobs: bytes) -> bytes:
    """An answer to which the last of the blobs comes first."""
    *rest, model = blobs or (None,)
    first = None if model is None else First(model)
    return joined(first, encode({"hello": 1}, named(*rest)))[0]


@pytest.mark.parametrize("blobs", [(), (MODEL,), (CODE, MODEL)])
def test_what_was_told_is_what_is_opened(blobs: tuple[bytes, ...]) -> None:
    raw = told(*blobs)
    body, along = opened(raw)
    assert body == {"hello": 1}
    assert {name: found.tobytes() for name, found in along.items()} == {
        name: found.tobytes() for name, found in named(*blobs).items()
    }


def test_one_pass_gives_the_name_and_the_digest_of_the_whole() -> None:
    first = First(MODEL)
    for body in ({"to": "a"}, {"to": "b"}):  # the same beginning serves many answers
        raw, digest = joined(first, encode(body))
        assert digest == hashlib.sha256(raw).digest()
        assert digests(raw) == (digest, hashlib.sha256(MODEL).digest())
    raw, digest = joined(None, encode({}))
    assert digests(raw) == (hashlib.sha256(raw).digest(), hashlib.sha256(b"").digest())


def test_a_blob_that_is_not_what_it_is_called_is_refused() -> None:
    lie = {hashlib.sha256(CODE).hexdigest(): np.frombuffer(CODE + b"!", np.uint8)}
    with pytest.raises(FrameError, match="bytes called"):
        alone(encode({}, lie))
    with pytest.raises(FrameError, match="bytes called"):
        opened(joined(First(MODEL), encode({}, lie))[0])


def test_the_first_blob_has_the_name_of_its_bytes_and_no_other() -> None:
    raw = bytearray(told(MODEL))
    raw[0] ^= 1
    assert set(opened(bytes(raw))[1]) != set(named(MODEL))


@pytest.mark.parametrize("size", [0, 1, len(MODEL) - 64, len(MODEL) + 1, 1 << 63])
def test_another_size_of_the_first_blob_is_no_other_news(size: int) -> None:
    raw = told(MODEL)[:-8] + size.to_bytes(8, "little")
    with pytest.raises(FrameError):
        opened(raw)


@pytest.mark.parametrize("raw", [b"", b"1234567", b"\0" * 8, encode({}), b"\xff" * 64])
def test_what_is_no_news_is_refused(raw: bytes) -> None:
    with pytest.raises(FrameError):
        opened(raw)
    if len(raw) < 8 or raw == b"\xff" * 64:
        with pytest.raises(FrameError):
            digests(raw)
