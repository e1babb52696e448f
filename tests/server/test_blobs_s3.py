"""What is particular to blobs in an object store: copies, breaks half-way, and errors in words."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.core.errors import MissingExtra, StorageError
from atoll.server.blobs.folder import FolderBlobs
from atoll.server.blobs.opening import open_blobs
from atoll.server.blobs.s3 import S3Blobs, open_s3
from atoll.wire.frames import Blob

sys.path.insert(0, str(Path(__file__).parent))

from object_store import ObjectStore, object_store

RAW = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture
def url(s3: ObjectStore) -> str:
    return s3.url(s3.new_bucket())


def test_another_machine_sees_what_was_acknowledged(url: str, tmp_path: Path) -> None:
    one, two = open_blobs(url, tmp_path / "one"), open_blobs(url, tmp_path / "two")
    blob = one.put(RAW)
    assert two.size(blob.sha256) == len(RAW)
    assert two.read(blob.sha256, 5, 9) == RAW[5:9]
    assert not FolderBlobs(tmp_path / "two").has(blob.sha256)
    assert bytes(two.view(blob.sha256)) == RAW
    assert FolderBlobs(tmp_path / "two").has(blob.sha256)


def test_large_blob_travels_in_parts(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atoll.server.blobs.s3._RANGE", 1 << 20)
    raw = RAW * 1200
    assert len(raw) > 11 << 20
    blob = open_blobs(url, tmp_path / "one").put(raw)
    two = open_blobs(url, tmp_path / "two")
    assert two.read(blob.sha256, 1_000_000, 3_500_000) == raw[1_000_000:3_500_000]
    assert two.view(blob.sha256) == raw


def test_least_recently_used_copies_leave(url: str, tmp_path: Path) -> None:
    here = FolderBlobs(tmp_path)
    blobs = open_s3(url, here, cache_bytes=2500)
    first, second, third = (blobs.put(bytes([n]) * 1000).sha256 for n in range(3))
    assert set(here.digests()) == {second, third}
    blobs.view(second)
    assert bytes(blobs.view(first)) == b"\0" * 1000
    assert set(here.digests()) == {second, first}
    assert set(blobs.digests()) == {first, second, third}
    again = open_s3(url, here, cache_bytes=2500)
    again.put(RAW)
    assert list(here.digests()) == [Blob.of(RAW).sha256]


def test_upload_whole_here_and_not_there_is_sent_on(url: str, tmp_path: Path) -> None:
    here = FolderBlobs(tmp_path)
    blob = here.put(RAW)
    blobs = open_s3(url, here)
    assert not blobs.has(blob.sha256)
    assert blobs.received(blob.sha256) == len(RAW)
    assert open_blobs(url, tmp_path / "other").read(blob.sha256) == RAW


def test_damaged_object_is_found_before_it_is_used(url: str, tmp_path: Path) -> None:
    import obstore

    one = open_blobs(url, tmp_path / "one")
    assert isinstance(one, S3Blobs)
    blob = one.put(RAW)
    obstore.put(one._store, f"blobs/{blob.sha256}", RAW[:-1] + b"!")
    two = open_blobs(url, tmp_path / "two")
    with pytest.raises(StorageError, match="damaged"):
        two.view(blob.sha256)
    assert list(FolderBlobs(tmp_path / "two").digests()) == []


@pytest.mark.parametrize(
    "place", ["ftp://bucket/x", "s3:///x", "s3://bucket?key=1", "s3://bucket/x?endpoint=a&secret=b"]
)
def test_url_that_is_none_is_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="write s3://bucket"):
        open_blobs(place, tmp_path)


def test_keys_in_the_url_are_refused_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="environment") as caught:
        open_blobs("s3://key:geheim@bucket/x", tmp_path)
    assert "geheim" not in str(caught.value)


def test_missing_bucket_is_said_at_once(s3: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="s3://nowhere"):
        open_blobs(s3.url("nowhere"), tmp_path)


def test_object_store_out_of_reach_is_said(tmp_path: Path) -> None:
    from datetime import timedelta

    from obstore.store import S3Store

    options = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}
    store = S3Store(
        bucket="b",
        endpoint="http://127.0.0.1:9",
        client_options={"allow_http": True},
        retry_config=options,
        access_key_id="x",
        secret_access_key="y",
        region="us-east-1",
    )
    blobs = S3Blobs(store, FolderBlobs(tmp_path), place="s3://b/")
    with pytest.raises(StorageError, match="s3://b/ cannot be used") as caught:
        blobs.put(RAW)
    assert "endpoint" in caught.value.remedy


def test_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(MissingExtra, match=r"atoll\[s3\]"):
        open_blobs("s3://bucket/x", tmp_path)
