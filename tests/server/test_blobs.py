"""Blobs of every kind: whole or not there, durable when acknowledged, continued where they stood."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from atoll.core.errors import NotFound, StateError, StorageError, TooLarge, WireError
from atoll.server.blobs.contract import Blobs
from atoll.server.blobs.folder import FolderBlobs
from atoll.server.blobs.near import NearBlobs
from atoll.server.blobs.opening import open_blobs
from atoll.server.store.memory import MemoryStore
from atoll.wire.disk import RealDisk
from atoll.wire.frames import Blob
from atoll.wire.lossy_disk import LossyDisk

sys.path.insert(0, str(Path(__file__).parent))

from object_store import ObjectStore, object_store

RAW = bytes(range(256)) * 40
Reopen = Callable[[], Blobs]


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture(params=["folder", "lossy", "s3", "near", "near and far"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Reopen:
    """Opens one and the same place again, as after a restart."""
    folder = tmp_path / "blobs"
    if request.param == "s3":
        found: ObjectStore = request.getfixturevalue("s3")
        url = found.url(found.new_bucket())
        return lambda: open_blobs(url, folder)
    if request.param.startswith("near"):
        small = 1 << 20 if request.param == "near" else 5000
        store = MemoryStore()
        return lambda: NearBlobs(store, FolderBlobs(folder), small)
    disk = RealDisk() if request.param == "folder" else LossyDisk()
    return lambda: FolderBlobs(folder, disk)


@pytest.fixture
def blobs(reopen: Reopen) -> Blobs:
    return reopen()


class TestKeeping:
    def test_bytes_come_back_under_their_digest(self, reopen: Reopen) -> None:
        blobs = reopen()
        blob = blobs.put(RAW)
        assert blob == Blob(hashlib.sha256(RAW).hexdigest(), len(RAW))
        for some in (blobs, reopen()):
            assert some.has(blob.sha256)
            assert some.size(blob.sha256) == len(RAW)
            assert some.read(blob.sha256) == RAW
            assert some.read(blob.sha256, 10, 300) == RAW[10:300]
            assert some.read(blob.sha256, len(RAW) - 3) == RAW[-3:]
            assert some.read(blob.sha256, 5, 10**9) == RAW[5:]
            assert some.read(blob.sha256, len(RAW)) == b""
            assert bytes(some.view(blob.sha256)) == RAW
            assert list(some.digests()) == [blob.sha256]

    def test_pieces_and_bytes_make_the_same_blob(self, blobs: Blobs) -> None:
        blob = blobs.put_pieces(iter([RAW[:7], memoryview(RAW)[7:]]))
        assert blob == blobs.put(memoryview(RAW)) == Blob.of(RAW)
        assert blobs.read(blob.sha256) == RAW
        assert blobs.put(b"") == Blob.of(b"")
        assert bytes(blobs.view(Blob.of(b"").sha256)) == b""

    def test_pieces_that_break_off_leave_nothing(self, blobs: Blobs) -> None:
        def broken() -> Iterator[bytes]:
            yield RAW
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            blobs.put_pieces(broken())
        assert list(blobs.digests()) == []

    def test_missing_blob_is_not_found(self, blobs: Blobs) -> None:
        sha256 = "0" * 64
        assert not blobs.has(sha256)
        assert blobs.size(sha256) is None
        for ask in (blobs.read, blobs.view):
            with pytest.raises(NotFound, match="000000000000"):
                ask(sha256)
        blobs.delete(sha256)

    @pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
    def test_only_digests_name_blobs(self, name: str, blobs: Blobs) -> None:
        for ask in (blobs.has, blobs.read, blobs.view, blobs.delete, blobs.received, blobs.abandon):
            with pytest.raises(NotFound):
                ask(name)
        with pytest.raises(NotFound):
            blobs.append(Blob(name, 1), 0, b"x")

    def test_view_outlives_its_blob(self, blobs: Blobs) -> None:
        blob = blobs.put(RAW)
        view = blobs.view(blob.sha256)
        blobs.delete(blob.sha256)
        assert not blobs.has(blob.sha256)
        assert bytes(view) == RAW
        assert view.readonly

    def test_file_moves_in(self, tmp_path: Path) -> None:
        near = NearBlobs(MemoryStore(), FolderBlobs(tmp_path / "near"))
        path = tmp_path / "file"
        for blobs in (FolderBlobs(tmp_path / "folder"), near):
            self.moves_in(blobs, path)
        near.put(RAW)
        near.delete(Blob.of(RAW).sha256)
        assert list(near.digests()) == []

    def moves_in(self, blobs: Blobs, path: Path) -> None:
        path.write_bytes(RAW)
        with pytest.raises(WireError, match="10240 bytes, not 3"):
            blobs.put_file(path, Blob(Blob.of(RAW).sha256, 3))
        blobs.put_file(path, Blob.of(RAW))
        assert not path.exists()
        assert blobs.read(Blob.of(RAW).sha256) == RAW


class TestUploads:
    def test_chunks_gather_and_the_blob_appears_with_the_last(self, blobs: Blobs) -> None:
        blob = Blob.of(RAW)
        for at in range(0, len(RAW), 1000):
            assert blobs.received(blob.sha256, "ulm") == at
            assert not blobs.has(blob.sha256)
            held = blobs.append(blob, at, RAW[at : at + 1000], "ulm")
            assert held == min(at + 1000, len(RAW))
        assert blobs.received(blob.sha256, "ulm") == len(RAW)
        assert blobs.received(blob.sha256, "bern") == len(RAW)
        assert blobs.read(blob.sha256) == RAW
        assert blobs.append(blob, 0, RAW[:10], "bern") == len(RAW)

    def test_upload_continues_after_a_restart(self, reopen: Reopen) -> None:
        blob = Blob.of(RAW)
        reopen().append(blob, 0, RAW[:5000])
        again = reopen()
        again.sweep()
        assert again.received(blob.sha256) == 5000
        assert again.append(blob, 5000, RAW[5000:]) == len(RAW)
        assert again.read(blob.sha256) == RAW

    def test_repeated_and_overlapping_chunks_do_no_harm(self, blobs: Blobs) -> None:
        blob = Blob.of(RAW)
        assert blobs.append(blob, 0, RAW[:600]) == 600
        assert blobs.append(blob, 0, RAW[:600]) == 600
        assert blobs.append(blob, 100, RAW[100:200]) == 600
        assert blobs.append(blob, 300, RAW[300:900]) == 900
        assert blobs.append(blob, 900, RAW[900:]) == len(RAW)
        assert blobs.read(blob.sha256) == RAW

    def test_gap_is_refused_with_the_place_to_continue(self, blobs: Blobs) -> None:
        blob = Blob.of(RAW)
        with pytest.raises(StateError, match="continue at 0"):
            blobs.append(blob, 1, RAW[1:])
        blobs.append(blob, 0, RAW[:10])
        with pytest.raises(StateError, match="continue at 10"):
            blobs.append(blob, 11, RAW[11:20])
        assert blobs.received(blob.sha256) == 10

    def test_what_a_server_that_lost_the_store_still_wrote_is_no_gap(self, reopen: Reopen) -> None:
        """It may take a chunk after its successor has begun: the upload goes on behind that."""
        blob, before, now = Blob.of(RAW), reopen(), reopen()
        assert now.append(blob, 0, RAW[:400]) == 400
        assert before.append(blob, 400, RAW[400:1200]) == 1200
        assert now.received(blob.sha256) == 1200
        assert now.append(blob, 1200, RAW[1200:]) == len(RAW)
        assert now.read(blob.sha256) == RAW

    def test_wrong_bytes_are_refused_and_start_again(self, blobs: Blobs) -> None:
        blob = Blob.of(RAW)
        blobs.append(blob, 0, b"x" * 100)
        with pytest.raises(WireError, match="not blob"):
            blobs.append(blob, 100, RAW[100:])
        assert not blobs.has(blob.sha256)
        assert blobs.received(blob.sha256) == 0
        assert blobs.append(blob, 0, RAW) == len(RAW)

    def test_more_than_declared_is_refused_before_it_is_written(self, blobs: Blobs) -> None:
        blob = Blob(Blob.of(RAW).sha256, 100)
        with pytest.raises(TooLarge):
            blobs.append(blob, 0, RAW[:101])
        with pytest.raises(TooLarge):
            blobs.append(blob, 99, RAW[:2])
        assert blobs.received(blob.sha256) == 0

    def test_smaller_claim_later_does_not_name_a_part(self, blobs: Blobs) -> None:
        blob = Blob.of(RAW)
        blobs.append(blob, 0, RAW[:500])
        with pytest.raises(WireError):
            blobs.append(Blob(blob.sha256, 400), 0, RAW[:400])
        assert not blobs.has(blob.sha256)

    def test_nobody_spoils_the_upload_of_another(self, blobs: Blobs) -> None:
        blob = Blob.of(RAW)
        blobs.append(blob, 0, RAW[:5000], "ulm")
        blobs.append(blob, 0, b"lies" * 100, "mallory")
        blobs.abandon(blob.sha256, "mallory")
        assert blobs.received(blob.sha256, "mallory") == 0
        assert blobs.received(blob.sha256, "ulm") == 5000
        assert blobs.append(blob, 5000, RAW[5000:], "ulm") == len(RAW)
        assert blobs.read(blob.sha256) == RAW

    def test_empty_blob_is_one_empty_chunk(self, blobs: Blobs) -> None:
        blob = Blob.of(b"")
        assert blobs.append(blob, 0, b"") == 0
        assert blobs.has(blob.sha256)

    def test_owners_in_parallel_all_end_whole(self, blobs: Blobs) -> None:
        raws = [Random(seed).randbytes(50_000) for seed in range(3)]
        failed: list[BaseException] = []

        def send(raw: bytes, owner: str) -> None:
            try:
                for at in range(0, len(raw), 7000):
                    blobs.append(Blob.of(raw), at, raw[at : at + 7000], owner)
            except BaseException as error:
                failed.append(error)

        threads = [
            threading.Thread(target=send, args=(raw, owner)) for raw in raws for owner in ("a", "b")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert [blobs.read(Blob.of(raw).sha256) for raw in raws] == raws


class TestPowerFailure:
    @pytest.mark.parametrize("way", ["put", "pieces", "file", "append"])
    @pytest.mark.parametrize("seed", range(12))
    def test_acknowledged_blob_is_there_and_no_other_is_torn(self, way: str, seed: int) -> None:
        """The power fails at any step; then the same is sent again."""
        random, disk, folder = Random(seed), LossyDisk(), Path("/blobs")
        blobs = FolderBlobs(folder, disk)
        steps = iter(range(random.randint(0, 9), -1, -1))

        def fail(operation: str, path: Path) -> None:
            if next(steps, None) == 0:
                raise SystemError(operation)

        def send(blobs: FolderBlobs) -> None:
            if way == "put":
                blobs.put(RAW)
            elif way == "pieces":
                blobs.put_pieces([RAW[:9], RAW[9:]])
            elif way == "file":
                disk.write(folder / "file", [RAW])
                blobs.put_file(folder / "file", Blob.of(RAW))
            else:
                at = 0
                while at < len(RAW):
                    at = max(at, blobs.received(Blob.of(RAW).sha256))
                    at = blobs.append(Blob.of(RAW), at, RAW[at : at + 4000])

        disk.before = fail
        sent = False
        try:
            send(blobs)
            sent = True
        except SystemError:
            pass
        disk.before = lambda operation, path: None
        disk.crash(random)
        again = FolderBlobs(folder, disk)
        again.sweep()
        for sha256 in again.digests():
            assert hashlib.sha256(again.read(sha256)).hexdigest() == sha256
        assert again.has(Blob.of(RAW).sha256) or not sent
        try:
            send(again)
        except WireError:
            send(again)
        disk.crash(random)
        assert FolderBlobs(folder, disk).read(Blob.of(RAW).sha256) == RAW

    def test_blob_named_before_a_crash_of_the_program_is_made_durable_when_sent_again(self) -> None:
        disk = LossyDisk()

        def crash(operation: str, path: Path) -> None:
            if operation == "fsync_folder":
                raise SystemError

        blobs = FolderBlobs(Path("/blobs"), disk)
        disk.before = crash
        with pytest.raises(SystemError):
            blobs.put(RAW)
        disk.before = lambda operation, path: None
        again = FolderBlobs(Path("/blobs"), disk)
        assert again.has(Blob.of(RAW).sha256)
        again.put(RAW)
        disk.crash()
        assert FolderBlobs(Path("/blobs"), disk).read(Blob.of(RAW).sha256) == RAW

    def test_blob_that_a_replaced_server_has_named_is_durable_before_it_is_here(self) -> None:
        disk, blob = LossyDisk(), Blob.of(RAW)
        replaced, blobs = FolderBlobs(Path("/blobs"), disk), FolderBlobs(Path("/blobs"), disk)

        def fail(operation: str, path: Path) -> None:
            if operation == "fsync_folder":
                raise OSError(5, "Input/output error")

        disk.before = fail
        with pytest.raises(StorageError, match="Input/output"):
            replaced.append(blob, 0, RAW)
        with pytest.raises(StorageError, match="Input/output"):
            blobs.has(blob.sha256)
        disk.before = lambda operation, path: None
        assert blobs.has(blob.sha256)
        disk.crash()
        assert FolderBlobs(Path("/blobs"), disk).read(blob.sha256) == RAW

    def test_full_disk_leaves_the_upload_to_be_continued(self) -> None:
        full = False

        def fill(operation: str, path: Path) -> None:
            if full and operation == "torn":
                raise OSError(28, "No space left on device")

        blobs = FolderBlobs(Path("/blobs"), LossyDisk(fill))
        blob = Blob.of(RAW)
        blobs.append(blob, 0, RAW[:1000])
        full = True
        with pytest.raises(StorageError, match="No space"):
            blobs.append(blob, 1000, RAW[1000:3000])
        full = False
        at = blobs.received(blob.sha256)
        assert at == 2000
        assert blobs.append(blob, at, RAW[at:]) == len(RAW)
        assert blobs.read(blob.sha256) == RAW

    def test_half_written_blobs_are_swept_and_uploads_stay(self, tmp_path: Path) -> None:
        blobs = FolderBlobs(tmp_path)
        (tmp_path / "new" / "77-1").write_bytes(RAW)
        blobs.append(Blob.of(RAW), 0, RAW[:10])
        blobs.sweep()
        assert list((tmp_path / "new").iterdir()) == []
        assert blobs.received(Blob.of(RAW).sha256) == 10


def test_what_is_put_is_written_over_a_file_that_was_foreseen_and_an_upload_is_not(
    tmp_path: Path,
) -> None:
    if not hasattr(os, "setxattr"):
        pytest.skip("no marks on this system")
    blobs, size = FolderBlobs(tmp_path), 1 << 18
    NearBlobs(MemoryStore(), blobs).foresee(size, 1)
    (made,) = (tmp_path / "ahead").iterdir()
    number = made.stat().st_ino
    raw = Random(1).randbytes(size)
    blob = Blob.of(raw)
    blobs.append(blob, 0, raw, "somebody")
    assert (tmp_path / blob.sha256).stat().st_ino != number
    other = blobs.put_pieces([raw[1:]])
    assert (tmp_path / other.sha256).stat().st_ino == number
    assert blobs.read(other.sha256) == raw[1:]
    blobs.foresee(size, 2)
    FolderBlobs(tmp_path).sweep()
    assert not list((tmp_path / "ahead").iterdir())


def test_uploads_of_members_are_found_again_and_those_of_others_are_gone(reopen: Reopen) -> None:
    blobs, first, second = reopen(), Blob.of(RAW), Blob.of(RAW[1:])
    blobs.append(first, 0, RAW[:300], "ann")
    blobs.append(first, 0, RAW[:200], "bea")
    blobs.append(second, 0, RAW[1:101], "ann")
    blobs.append(second, 0, RAW[1:], "cleo")
    again = reopen()
    assert again.unfinished(["ann", "cleo"]) == [("ann", Blob(first.sha256, 300))]
    assert again.received(first.sha256, "ann") == 300
    assert again.received(first.sha256, "bea") == 0
    assert again.has(second.sha256)
    assert again.append(first, 300, RAW[300:], "ann") == len(RAW)
