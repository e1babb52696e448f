"""Small blobs in the store: no wait of their own, durable with the row that names them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from atoll.server.blobs.folder import FolderBlobs
from atoll.server.blobs.near import NearBlobs
from atoll.server.store.memory import MemoryDatabase, MemoryStore
from atoll.server.store.sql import SqlStore
from atoll.wire.frames import Blob

sys.path.insert(0, str(Path(__file__).parent / "store"))

from store_rows import answer, started

RAW = b"model" * 1000


def test_small_blob_is_durable_with_the_answer_that_names_it(tmp_path: Path) -> None:
    database = MemoryDatabase()
    store = MemoryStore(database)
    blobs = NearBlobs(store, FolderBlobs(tmp_path))
    epoch = started(store)
    named, unnamed = blobs.put(RAW), b"nobody's"
    store.contribute(epoch, answer("r1.train.0.Ulm", named.sha256))
    blobs.put(unnamed)
    store.crash()
    after = NearBlobs(MemoryStore(database), FolderBlobs(tmp_path))
    assert after.read(named.sha256) == RAW
    assert not after.has(Blob.of(unnamed).sha256)
    assert list(FolderBlobs(tmp_path).digests()) == []


def test_large_blob_does_not_go_through_the_store(tmp_path: Path) -> None:
    store = MemoryStore()
    blobs = NearBlobs(store, FolderBlobs(tmp_path), small=len(RAW) - 1)
    for blob in (blobs.put(RAW), blobs.put_pieces([RAW[:9], RAW[9:]])):
        assert store.holdings() == {}
        assert FolderBlobs(tmp_path).read(blob.sha256) == RAW


def test_blob_in_both_places_is_deleted_from_both(tmp_path: Path) -> None:
    blobs = NearBlobs(MemoryStore(), FolderBlobs(tmp_path))
    blobs.append(Blob.of(RAW), 0, RAW)
    blobs.put(RAW)
    assert list(blobs.digests()) == [Blob.of(RAW).sha256]
    blobs.delete(Blob.of(RAW).sha256)
    assert not blobs.has(Blob.of(RAW).sha256)


def test_memory_is_bounded_and_the_store_still_has_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atoll.server.blobs.near._REMEMBERED", 3 * len(RAW))
    store = SqlStore(str(tmp_path / "store.db"))
    blobs = NearBlobs(store, FolderBlobs(tmp_path / "blobs"))
    raws = [RAW + bytes([n]) for n in range(5)]
    names = [blobs.put(raw).sha256 for raw in raws]
    started(store)
    assert len(blobs._lately) == 2
    assert sum(map(len, blobs._lately.values())) == blobs._lately_bytes
    assert [blobs.read(name) for name in names] == raws
    for name in names:
        blobs.delete(name)
    assert (blobs._lately_bytes, len(blobs._lately)) == (0, 0)
    store.close()


def test_who_says_that_a_small_blob_is_a_large_one_does_not_hide_it(tmp_path: Path) -> None:
    blobs = NearBlobs(MemoryStore(), FolderBlobs(tmp_path), small=len(RAW))
    claimed = Blob(Blob.of(RAW).sha256, len(RAW) + 1)
    before = NearBlobs(blobs._store, FolderBlobs(tmp_path), small=len(RAW))
    before.append(claimed, 0, b"x", "liar")
    before.put(RAW)
    before.append(claimed, 1, b"x", "liar")
    before._lately.clear()
    assert before.read(claimed.sha256) == RAW
    blobs.append(claimed, 0, b"x", "another")
    blobs._lately.clear()
    assert blobs.read(claimed.sha256) == RAW


def test_a_large_upload_asks_the_store_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, asked = MemoryStore(), []
    held = store.held
    monkeypatch.setattr(store, "held", lambda sha: asked.append(sha) or held(sha))
    blobs = NearBlobs(store, FolderBlobs(tmp_path), small=10)
    blob = Blob.of(RAW)
    for start in range(0, len(RAW), 500):
        blobs.append(blob, start, RAW[start : start + 500])
        blobs.has(blob.sha256)
    assert len(asked) == 1
    assert blobs.read(blob.sha256) == RAW
    blobs.delete(blob.sha256)
    assert not blobs.has(blob.sha256)
