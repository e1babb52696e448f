"""Disks, real and lossy: what is kept is there, and what was not synced may be gone."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from random import Random
from threading import Barrier, Event

import pytest

from atoll.core.errors import StorageError
from atoll.wire import disk as module
from atoll.wire.disk import Disk, RealDisk, keep
from atoll.wire.lossy_disk import LossyDisk


@pytest.fixture(params=[RealDisk, LossyDisk])
def disk(request: pytest.FixtureRequest) -> Disk:
    return request.param()


@pytest.fixture
def folder(disk: Disk, tmp_path: Path) -> Path:
    disk.make_folder(tmp_path / "a" / "b")
    return tmp_path / "a" / "b"


class TestEveryDisk:
    def test_files_are_written_read_and_listed(self, disk: Disk, folder: Path) -> None:
        disk.write(folder / "y", [b"0123", memoryview(b"45")])
        disk.write(folder / "x", [])
        assert disk.names(folder) == ("x", "y")
        assert disk.names(folder.parent) == ("b",)
        assert disk.names(folder / "none") == ()
        assert (disk.size(folder / "y"), disk.size(folder / "x")) == (6, 0)
        assert disk.size(folder / "none") is None
        assert disk.read(folder / "y") == b"012345"
        assert disk.read(folder / "y", 1, 3) == b"12"
        assert disk.read(folder / "y", 4) == b"45"
        assert disk.read(folder / "y", 4, 99) == b"45"
        assert bytes(disk.view(folder / "y")) == b"012345"
        assert bytes(disk.view(folder / "x")) == b""

    def test_view_is_read_only_and_outlives_the_file(self, disk: Disk, folder: Path) -> None:
        disk.write(folder / "y", [b"0123"])
        view = disk.view(folder / "y")
        disk.remove(folder / "y")
        assert bytes(view) == b"0123"
        assert view.readonly

    def test_append_continues_and_cuts(self, disk: Disk, folder: Path) -> None:
        path = folder / "part"
        disk.append(path, 0, b"0123")
        disk.append(path, 4, b"4567")
        assert disk.read(path) == b"01234567"
        disk.append(path, 2, memoryview(b"xy"))
        assert disk.read(path) == b"01xy"
        with pytest.raises(StorageError, match="left out"):
            disk.append(path, 5, b"z")
        assert disk.read(path) == b"01xy"

    def test_pieces_may_be_of_numbers_longer_than_a_byte(self, disk: Disk, folder: Path) -> None:
        numbers = memoryview(bytes(range(24))).cast("d")
        disk.write(folder / "x", [b"first", numbers, b"last"])
        assert disk.read(folder / "x") == b"first" + bytes(range(24)) + b"last"

    def test_rename_replaces(self, disk: Disk, folder: Path) -> None:
        disk.make_folder(folder / "c")
        disk.write(folder / "old", [b"old"])
        disk.write(folder / "new", [b"new"])
        disk.rename(folder / "new", folder / "old")
        assert (disk.names(folder), disk.read(folder / "old")) == (("c", "old"), b"new")
        disk.rename(folder / "old", folder / "c" / "there")
        assert (disk.names(folder), disk.read(folder / "c" / "there")) == (("c",), b"new")

    def test_removing_nothing_is_fine(self, disk: Disk, folder: Path) -> None:
        disk.remove(folder / "none")
        disk.write(folder / "x", [b"1"])
        disk.remove(folder / "x")
        assert disk.names(folder) == ()

    def test_missing_file_is_an_error_with_its_path(self, disk: Disk, folder: Path) -> None:
        for ask in (disk.read, disk.view, disk.fsync, disk.fsync_named):
            with pytest.raises(StorageError, match="none"):
                ask(folder / "none")
        with pytest.raises(StorageError, match="none"):
            disk.begin_fsync(folder / "none")()
        with pytest.raises(StorageError):
            disk.write(folder / "no" / "folder", [b""])

    def test_kept_file_has_its_digest_and_nothing_beside_it(self, disk: Disk, folder: Path) -> None:
        for raw in (b"first", b"second one"):
            blob = keep(disk, folder / "x", [raw[:2], raw[2:]])
            assert blob.sha256 == hashlib.sha256(raw).hexdigest()
            assert blob.size == len(raw)
            assert disk.read(folder / "x") == raw
        assert disk.names(folder) == ("x",)

    def test_failed_keep_leaves_what_was_there(self, disk: Disk, folder: Path) -> None:
        keep(disk, folder / "x", [b"first"])

        def broken():
            yield b"sec"
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            keep(disk, folder / "x", broken())
        assert (disk.names(folder), disk.read(folder / "x")) == (("x",), b"first")


class TestRealDisk:
    def test_full_disk_is_said_with_a_remedy(self) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("this system has no /dev/full")
        with pytest.raises(StorageError, match=r"No space left.*\n.*free space"):
            RealDisk().write(Path("/dev/full"), [b"x"])

    def test_every_step_to_durability_is_taken_in_order(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[str] = []
        sync, replace = os.fsync, os.replace
        monkeypatch.setattr(
            os,
            "fsync",
            lambda n: (done.append(os.readlink(f"/proc/self/fd/{n}")), sync(n))[1],
        )
        monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), replace(a, b))[1])
        keep(RealDisk(), tmp_path / "x", [b"1"])
        assert done == [str(tmp_path / ".x.partial"), "rename", str(tmp_path)]

    def test_a_file_and_its_name_are_waited_for_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        both, done = Barrier(2, timeout=10), list[str]()

        def sync(number: int) -> None:
            both.wait()  # neither is done before the other has begun
            done.append(os.readlink(f"/proc/self/fd/{number}"))

        (tmp_path / "x").write_bytes(b"1")
        monkeypatch.setattr(os, "fsync", sync)
        RealDisk().fsync_named(tmp_path / "x")
        assert sorted(done) == [str(tmp_path), str(tmp_path / "x")]

    def test_a_sync_that_was_begun_is_waited_for_later(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done, may = list[str](), Event()

        def sync(number: int) -> None:
            assert may.wait(10)
            done.append(os.readlink(f"/proc/self/fd/{number}"))

        (tmp_path / "x").write_bytes(b"1")
        monkeypatch.setattr(os, "fsync", sync)
        wait = RealDisk().begin_fsync(tmp_path / "x")
        assert done == []
        may.set()
        wait()
        assert done == [str(tmp_path / "x")]

    @pytest.mark.parametrize("fails", ["x", "."])
    def test_a_name_that_is_not_durable_is_said_as_a_file_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
    ) -> None:
        def sync(number: int) -> None:
            if Path(os.readlink(f"/proc/self/fd/{number}")) == tmp_path / fails:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        (tmp_path / "x").write_bytes(b"1")
        monkeypatch.setattr(os, "fsync", sync)
        with pytest.raises(StorageError, match="Input/output error"):
            RealDisk().fsync_named(tmp_path / "x")

    @pytest.mark.parametrize("size", [1000, 300_000, 1 << 20])
    def test_disk_begins_with_what_is_complete_and_with_nothing_twice(
        self, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun: list[tuple[int, int]] = []
        monkeypatch.setattr(module, "_AHEAD", 1 << 16)
        monkeypatch.setattr(
            module, "_beginning", lambda: lambda n, start, size, how: begun.append((start, size))
        )
        raw, disk = Random(size).randbytes(size), RealDisk()
        cut = size // 3
        disk.append(tmp_path / "parts", 0, raw[:cut])
        disk.append(tmp_path / "parts", cut, raw[cut:])
        parts, begun[:] = list(begun), []
        disk.write(tmp_path / "whole", [raw[:cut], b"", raw[cut:]])
        assert begun == parts
        assert [start for start, _ in begun] == [
            sum(n for _, n in begun[:i]) for i in range(len(begun))
        ]
        assert sum(length for _, length in begun) == size >> 16 << 16
        assert disk.read(tmp_path / "parts") == disk.read(tmp_path / "whole") == raw

    def test_long_piece_is_kept_whole_and_named_by_its_digest(self, tmp_path: Path) -> None:
        raw = Random(1).randbytes(700_001)
        blob = keep(RealDisk(), tmp_path / "x", [raw[:3], memoryview(raw)[3:]])
        assert (blob.sha256, blob.size) == (hashlib.sha256(raw).hexdigest(), len(raw))
        assert (tmp_path / "x").read_bytes() == raw


class TestPowerFailure:
    def test_only_a_synced_file_with_a_synced_name_is_safe(self) -> None:
        disk, folder = LossyDisk(), Path("/f")
        disk.make_folder(folder)
        for name in ("nothing", "bytes", "name", "both"):
            disk.write(folder / name, [b"42"])
            if name in ("bytes", "both"):
                disk.fsync(folder / name)
            if name in ("name", "both"):
                disk.fsync_folder(folder)
            if name == "name":
                disk.crash()
        # "nothing" and "bytes" were named by the folder's sync at "name"; only "bytes" had bytes.
        assert disk.names(folder) == ("both", "bytes", "name", "nothing")
        assert [disk.read(folder / n) for n in disk.names(folder)] == [b"42", b"42", b"", b""]
        disk.write(folder / "late", [b"1"])
        disk.fsync(folder / "late")
        disk.crash()
        assert disk.names(folder) == ("both", "bytes", "name", "nothing")

    def test_program_crash_loses_nothing(self) -> None:
        disk = LossyDisk()
        disk.make_folder(Path("/f"))
        disk.write(Path("/f/x"), [b"42"])
        assert disk.read(Path("/f/x")) == b"42"

    def test_removed_file_may_come_back(self) -> None:
        disk = LossyDisk()
        disk.make_folder(Path("/f"))
        keep(disk, Path("/f/x"), [b"42"])
        disk.remove(Path("/f/x"))
        disk.crash()
        assert disk.read(Path("/f/x")) == b"42"

    @pytest.mark.parametrize("seed", range(50))
    def test_keep_is_all_or_nothing_at_every_step(self, seed: int) -> None:
        random = Random(seed)
        steps = iter(range(random.randint(0, 6), -1, -1))

        def fail(operation: str, path: Path) -> None:
            if next(steps, None) == 0:
                raise SystemError(operation)

        disk, path = LossyDisk(), Path("/f/x")
        disk.make_folder(path.parent)
        keep(disk, path, [b"old model"])
        disk.before = fail
        done = False
        try:
            keep(disk, path, [b"new ", b"model, longer"])
            done = True
        except SystemError:
            pass
        disk.before = lambda operation, path: None
        disk.crash(random)
        left = disk.read(path)
        assert (
            left == b"new model, longer" if done else left in (b"old model", b"new model, longer")
        )

    def test_write_without_sync_is_torn_in_many_ways(self) -> None:
        seen = set()
        for seed in range(100):
            disk, path = LossyDisk(), Path("/f/x")
            disk.make_folder(path.parent)
            keep(disk, path, [b"old"])
            disk.write(path, [b"0123456789"])
            disk.crash(Random(seed))
            seen.add(disk.read(path))
        assert {b"old", b"0123456789"} < seen
        assert any(0 < len(s) < 10 and s != b"old" for s in seen)
        assert any(s.endswith(b"\0") and len(s) == 10 for s in seen)

    def test_hook_plays_a_full_disk(self) -> None:
        def full(operation: str, path: Path) -> None:
            if operation == "torn":
                raise OSError(errno.ENOSPC, "No space left on device")

        disk = LossyDisk(full)
        disk.make_folder(Path("/f"))
        with pytest.raises(StorageError, match="No space left"):
            keep(disk, Path("/f/x"), [b"42"])
        assert disk.names(Path("/f")) == ()


def test_a_file_is_written_over_in_place_and_ends_where_its_bytes_do(tmp_path: Path) -> None:
    disk, path = RealDisk(), tmp_path / "result"
    disk.write_over(path, [b"a long", b" one"])
    there = path.stat().st_ino
    disk.write_over(path, [b"sho", b"rt"])
    assert (path.read_bytes(), path.stat().st_ino) == (b"short", there)
