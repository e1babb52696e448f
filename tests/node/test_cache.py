"""Downloaded blobs: used when they are what they are called, dropped when room is needed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atoll.core.errors import Unreachable
from atoll.node.cache import Cache
from atoll.wire.frames import Blob
from atoll.wire.spares import LARGE


class Source:
    """Gives blobs and counts them."""

    def __init__(self) -> None:
        self.given = 0

    def __call__(self, blob: Blob, path: Path) -> None:
        self.given += 1
        path.write_bytes(raw(blob.size))


def raw(size: int) -> bytes:
    return bytes(i % 251 for i in range(size))


def blob(size: int) -> Blob:
    return Blob.of(raw(size))


def test_a_blob_is_downloaded_once(tmp_path: Path) -> None:
    cache, source = Cache(tmp_path, 1000), Source()
    for _ in range(2):
        assert cache.fetch(blob(10), source).read_bytes() == raw(10)
    assert source.given == 1
    assert Cache(tmp_path, 1000).fetch(blob(10), source).read_bytes() == raw(10)
    assert source.given == 1


def test_a_damaged_blob_is_downloaded_again(tmp_path: Path) -> None:
    source = Source()
    path = Cache(tmp_path, 1000).fetch(blob(10), source)
    path.write_bytes(raw(9))
    assert Cache(tmp_path, 1000).fetch(blob(10), source).read_bytes() == raw(10)
    assert source.given == 2


def test_bytes_that_came_along_are_there(tmp_path: Path) -> None:
    cache, source = Cache(tmp_path, 1000), Source()
    cache.put(blob(10), raw(10))
    assert cache.has(blob(10))
    assert cache.fetch(blob(10), source).read_bytes() == raw(10)
    assert source.given == 0


def test_what_was_used_longest_ago_goes_first_and_nothing_in_use(tmp_path: Path) -> None:
    cache, source = Cache(tmp_path, 100), Source()
    for size in (40, 41, 42):
        cache.fetch(blob(size), source)
    cache.fetch(blob(40), source)  # used again: younger than 41
    cache.trim({blob(41).sha256})
    assert [cache.has(blob(n)) for n in (40, 41, 42)] == [True, True, False]
    cache.trim(())
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 100


def test_a_failed_download_leaves_nothing_that_counts(tmp_path: Path) -> None:
    def broken(blob: Blob, path: Path) -> None:
        raise Unreachable("cut")

    cache = Cache(tmp_path, 1000)
    with pytest.raises(Unreachable):
        cache.fetch(blob(10), broken)
    assert not cache.has(blob(10))
    assert cache.fetch(blob(10), Source()).read_bytes() == raw(10)


def test_a_model_that_came_along_is_written_over_the_one_before_the_last(tmp_path: Path) -> None:
    cache, models = Cache(tmp_path, 1 << 30), [blob(LARGE + n) for n in range(3)]
    cache.put(models[0], raw(models[0].size))
    number = cache.path(models[0]).stat().st_ino
    if not hasattr(os, "setxattr"):
        pytest.skip("no marks on this system")
    cache.put(models[1], raw(models[1].size))
    cache.drop(models[0].sha256)
    cache.put(models[2], raw(models[2].size))
    path = cache.path(models[2])
    assert path.stat().st_ino == number
    assert path.read_bytes() == raw(models[2].size)
    assert Cache(tmp_path, 1 << 30).has(models[2])
    assert not cache.has(models[0])
