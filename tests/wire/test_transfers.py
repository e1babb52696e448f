"""Transfers: cut anywhere, they go on from there, and what arrives is what was named."""

import hashlib
import random

import pytest

from atoll.core.errors import NotFound, StorageError, Unreachable, WireError
from atoll.wire.frames import Blob

CHUNK = 1 << 16


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr("atoll.wire.transfers.CHUNK", CHUNK)


def some(size, seed=1):
    raw = random.Random(seed).randbytes(size)
    return raw, Blob.of(raw)


def persist(step):
    """Try until it works; how often it did not."""
    for tries in range(100):
        try:
            step()
        except Unreachable:
            continue
        return tries
    raise AssertionError("a hundred tries")


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 7])
def test_a_file_goes_up_and_comes_down_unchanged(blobs, channel, tmp_path, size):
    raw, blob = some(size)
    (tmp_path / "a").write_bytes(raw)
    channel.upload(blob, tmp_path / "a", "task 1")
    assert blobs.blobs[blob.sha256] == raw
    channel.download(blob, tmp_path / "deep" / "b")
    assert (tmp_path / "deep" / "b").read_bytes() == raw
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["b"]


def test_an_upload_says_what_it_is_for(fake, blobs, channel, tmp_path):
    raw, blob = some(10)
    (tmp_path / "a").write_bytes(raw)
    channel.upload(blob, tmp_path / "a", "r.train.1.Long Beach")
    assert fake.seen[-1].query == "task=r.train.1.Long+Beach&size=10&offset=0"
    blobs.partial.clear()
    channel.upload(blob, tmp_path / "a", "")
    assert fake.seen[-1].query == "job=new&size=10&offset=0"


def test_an_upload_cut_at_20_random_places_sends_at_most_one_chunk_again_each(
    fake, blobs, channel, tmp_path
):
    raw, blob = some(40 * CHUNK + 11)
    (tmp_path / "a").write_bytes(raw)
    blobs.cuts = sorted(random.Random(7).sample(range(1, len(raw)), 20))
    assert persist(lambda: channel.upload(blob, tmp_path / "a", "t")) == 20
    assert blobs.blobs[blob.sha256] == raw
    puts = [asked for asked in fake.seen if asked.method == "PUT"]
    assert all(len(asked.body) <= CHUNK for asked in puts)  # but for the first, which was cut
    assert blobs.passed - len(raw) <= 20 * CHUNK


def test_a_download_cut_at_20_random_places_fetches_at_most_one_chunk_again_each(
    blobs, channel, tmp_path
):
    raw, blob = some(40 * CHUNK + 11)
    blobs.blobs[blob.sha256] = raw
    blobs.cuts = sorted(random.Random(8).sample(range(1, len(raw)), 20))
    assert persist(lambda: channel.download(blob, tmp_path / "a")) == 20
    assert (tmp_path / "a").read_bytes() == raw
    assert blobs.passed - len(raw) <= 20 * CHUNK


def test_an_upload_that_nothing_cuts_is_one_request_signed_with_its_own_name(
    fake, blobs, channel, tmp_path
):
    raw, blob = some(40 * CHUNK + 11)
    (tmp_path / "a").write_bytes(raw)
    channel.upload(blob, tmp_path / "a", "t")
    (put,) = [asked for asked in fake.seen if asked.method == "PUT"]
    assert put.body == raw


def test_an_upload_that_is_there_already_sends_nothing(fake, blobs, channel, tmp_path):
    raw, blob = some(3 * CHUNK)
    (tmp_path / "a").write_bytes(raw)
    channel.upload(blob, tmp_path / "a", "t")
    fake.seen.clear()
    channel.upload(blob, tmp_path / "a", "t")
    assert [asked.method for asked in fake.seen] == ["GET"]


def test_other_bytes_than_named_are_refused_and_the_next_try_begins_anew(blobs, channel, tmp_path):
    raw, blob = some(3 * CHUNK)
    blobs.blobs[blob.sha256] = raw[:-1] + b"\0"
    with pytest.raises(WireError, match="gave other bytes than"):
        channel.download(blob, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    blobs.blobs[blob.sha256] = raw
    channel.download(blob, tmp_path / "a")
    assert hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest() == blob.sha256


@pytest.mark.parametrize("left", [b"x" * 10, b"x" * 10 * CHUNK])
def test_what_a_crash_left_wrong_or_too_long_does_no_harm(blobs, channel, tmp_path, left):
    raw, blob = some(3 * CHUNK)
    blobs.blobs[blob.sha256] = raw
    (tmp_path / "a.partial").write_bytes(left)
    channel.download(blob, tmp_path / "a")  # at once: it is not the server's fault
    assert (tmp_path / "a").read_bytes() == raw


def test_what_is_left_is_not_fetched_again(fake, blobs, channel, tmp_path):
    raw, blob = some(3 * CHUNK)
    blobs.blobs[blob.sha256] = raw
    (tmp_path / "a.partial").write_bytes(raw[: 2 * CHUNK])
    channel.download(blob, tmp_path / "a")
    (asked,) = fake.seen
    assert asked.headers["range"] == f"bytes={2 * CHUNK}-{3 * CHUNK - 1}"
    assert (tmp_path / "a").read_bytes() == raw


@pytest.mark.parametrize(
    ("status", "headers", "cut"),
    [
        (206, {}, 0),
        (206, {"content-range": "bytes 0-9/10"}, 1),
        (206, {"content-range": "bytes 1-10/10"}, 0),
        (206, {"content-range": "bytes 0-9/11"}, 0),
        (206, {"content-range": "bytes 0-10/10"}, 0),
        (206, {"content-range": "bytes 0-/10"}, 0),
        (200, {}, 1),
        (204, {}, 10),
    ],
)
def test_a_range_that_was_not_asked_for_is_refused(fake, channel, tmp_path, status, headers, cut):
    raw, blob = some(10)
    fake.answer = lambda asked: (status, raw[: 10 - cut], headers)
    with pytest.raises(WireError):
        channel.download(blob, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_server_that_knows_no_ranges_is_enough_for_a_first_try(fake, channel, tmp_path):
    raw, blob = some(10)
    fake.answer = lambda asked: (200, raw, {})
    channel.download(blob, tmp_path / "a", source="/v1/jobs/1/files/a")
    assert (tmp_path / "a").read_bytes() == raw
    assert fake.seen[0].path == "/v1/jobs/1/files/a"


def test_a_part_of_a_range_is_taken_and_the_rest_asked_for(fake, channel, tmp_path):
    raw, blob = some(10)

    def answer(asked):
        start = int(asked.headers["range"].split("=")[1].split("-")[0])
        piece = raw[start : start + 4]
        return 206, piece, {"content-range": f"bytes {start}-{start + len(piece) - 1}/10"}

    fake.answer = answer
    channel.download(blob, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == raw
    assert len(fake.seen) == 3


def test_blobs_need_no_signature_as_their_name_is_their_digest(fake, blobs, channel, tmp_path):
    raw, blob = some(10)
    blobs.blobs[blob.sha256] = raw
    channel.call("GET", f"/v1/blobs/{blob.sha256}")
    fake.sign = None
    channel.download(blob, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == raw


def test_a_blob_that_is_not_there_is_an_error_of_its_own(fake, channel, tmp_path):
    fake.answer = lambda asked: (404, b'{"code":"state.missing","message":"no such blob"}', {})
    with pytest.raises(NotFound, match="no such blob"):
        channel.download(some(10)[1], tmp_path / "a")
    with pytest.raises(NotFound, match="no such blob"):
        channel.upload(some(10)[1], tmp_path / "a", "t")


def test_files_that_cannot_be_read_or_written_are_told_so(blobs, channel, tmp_path):
    raw, blob = some(10)
    blobs.blobs[blob.sha256] = raw
    (tmp_path / "file").write_bytes(b"other length")
    with pytest.raises(StorageError, match="cannot be written"):
        channel.download(blob, tmp_path / "file" / "a")
    with pytest.raises(StorageError, match="cannot be read"):
        channel.upload(blob, tmp_path / "missing", "t")
    with pytest.raises(StorageError, match="has 12 bytes, not the 10"):
        channel.upload(blob, tmp_path / "file", "t")


def test_a_server_that_does_not_count_what_it_takes_is_given_up(fake, channel, tmp_path):
    raw, blob = some(10)
    (tmp_path / "a").write_bytes(raw)
    fake.answer = lambda asked: (200, b'{"received":0}', {})
    with pytest.raises(WireError, match="took 10 bytes and still has 0"):
        channel.upload(blob, tmp_path / "a", "t")
