"""Spare files: written over only when nobody reads them, and no old byte ever passes for a new one."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atoll.core.errors import Unreachable
from atoll.wire.disk import RealDisk
from atoll.wire.frames import Blob
from atoll.wire.spares import LARGE, Spares, mark, marked
from atoll.wire.transfers import Write, download, partial_of

OLD = b"o" * (16 * LARGE)


@pytest.fixture(autouse=True)
def marks(tmp_path: Path) -> None:
    """Skip where the file system knows no marks."""
    probe = tmp_path / "probe"
    probe.touch()
    try:
        mark(probe, 0)
    except (OSError, AttributeError):
        pytest.skip("no marks on this file system")
    probe.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> RealDisk:
    """A disk with one spare in ``spares``."""
    made = RealDisk()
    made.write(tmp_path / "old", [OLD])
    made.retire(tmp_path / "old", tmp_path / "spares")
    return made


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_a_retired_file_is_written_over(disk: RealDisk, tmp_path: Path) -> None:
    (spare,) = (tmp_path / "spares").iterdir()
    number, new = inode(spare), tmp_path / "new"
    assert not (tmp_path / "old").exists()
    disk.reuse(new, tmp_path / "spares", len(OLD))
    assert (disk.size(new), disk.read(new), bytes(disk.view(new))) == (0, b"", b"")
    disk.write(new, [b"ne", b"wer"])
    assert (new.read_bytes(), inode(new)) == (b"newer", number)
    assert disk.names(tmp_path / "spares") == ()


def test_what_is_still_mapped_or_open_is_not_written_over(tmp_path: Path) -> None:
    disk, new, spares = RealDisk(), tmp_path / "new", tmp_path / "spares"
    disk.write(tmp_path / "old", [OLD])
    view = disk.view(tmp_path / "old")
    disk.retire(tmp_path / "old", spares)
    disk.reuse(new, spares)
    assert not new.exists()
    disk.write(new, [b"n" * len(OLD)])
    assert bytes(view) == OLD
    view.release()
    with next(spares.iterdir()).open("rb"):
        disk.reuse(tmp_path / "next", spares)
        assert not (tmp_path / "next").exists()


LOOKED_INTO = """
import fcntl, os, sys, threading
from pathlib import Path
from atoll.wire.spares import LARGE, Spares
folder, act = Path(sys.argv[1]), fcntl.fcntl
(folder / "old").write_bytes(bytes(16 * LARGE))
spares = Spares(folder / "spares", certain=False)
assert spares.keep(folder / "old")
(spare,) = (folder / "spares").iterdir()
def slowly(number, what, value):
    if what == fcntl.F_SETLEASE and value == fcntl.F_UNLCK:
        try:
            os.open(spare, os.O_RDONLY | os.O_NONBLOCK)  # as another process might, in this moment
        except BlockingIOError:
            print("met")
    return act(number, what, value)
fcntl.fcntl = slowly
print(spares.place(folder / "new", 0))
"""


def test_whoever_opens_a_spare_just_when_it_is_taken_ends_nobody(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOOKED_INTO, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, ["met", "True"]), done


def test_a_spare_that_somebody_has_a_lease_on_is_given_up_at_once(tmp_path: Path) -> None:
    spares = Spares(tmp_path / "spares", certain=False)
    (tmp_path / "old").write_bytes(OLD)
    assert spares.keep(tmp_path / "old")
    (spare,) = (tmp_path / "spares").iterdir()
    with spare.open("rb") as file:
        fcntl.fcntl(file.fileno(), fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file.fileno(), fcntl.F_SETLEASE, fcntl.F_RDLCK)
        began = time.monotonic()
        assert not spares.place(tmp_path / "new", 0)
        assert time.monotonic() - began < 5.0  # a lease may be held for 45 s


def test_a_file_with_another_name_is_removed_and_not_kept(tmp_path: Path) -> None:
    disk, spares = RealDisk(), tmp_path / "spares"
    disk.write(tmp_path / "old", [OLD])
    os.link(tmp_path / "old", tmp_path / "other")
    disk.retire(tmp_path / "old", spares)
    assert not (tmp_path / "old").exists()
    disk.reuse(tmp_path / "new", spares)
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "other").read_bytes() == OLD


def test_a_short_file_is_not_worth_it(tmp_path: Path) -> None:
    disk, spares = RealDisk(), tmp_path / "spares"
    disk.write(tmp_path / "old", [b"short"])
    disk.retire(tmp_path / "old", spares)
    assert (disk.names(tmp_path), disk.names(spares)) == ((), ())


def test_an_upload_over_a_spare_goes_on_after_a_kill(disk: RealDisk, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    disk.reuse(path, tmp_path / "spares", len(OLD))
    disk.append(path, 0, b"n" * 1000)
    disk.append(path, 1000, b"e" * 1000)
    again = RealDisk()  # another process: what it knows is on the disk
    assert again.size(path) == 2000
    assert again.read(path) == b"n" * 1000 + b"e" * 1000
    again.append(path, 2000, b"w" * 1000)
    again.fsync(path)
    assert path.read_bytes() == b"n" * 1000 + b"e" * 1000 + b"w" * 1000
    assert marked(path) is None


def test_a_download_over_a_spare_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    raw = bytes(i % 251 for i in range(8 * LARGE + 7))
    path, blob, spares = tmp_path / "model", Blob.of(raw), Spares(tmp_path / "spares")
    (tmp_path / "old").write_bytes(OLD)
    assert spares.keep(tmp_path / "old")
    assert spares.place(partial_of(path), blob.size)
    asked = []

    def fetch(at: int, write: Write) -> int:
        asked.append(at)
        write(raw[at : at + 600_000])
        if len(asked) == 1:
            raise Unreachable("cut")
        return len(raw[at : at + 600_000])

    with pytest.raises(Unreachable):
        download(blob, path, fetch)
    assert not path.exists()
    download(blob, path, fetch)
    assert asked == [0, 600_000]
    assert path.read_bytes() == raw
    assert marked(path) is None


def test_no_more_is_kept_than_allowed(tmp_path: Path) -> None:
    spares = Spares(tmp_path / "spares", most=len(OLD) * 3 // 2)
    for name in "ab":
        (tmp_path / name).write_bytes(OLD)
    assert spares.keep(tmp_path / "a")
    assert not spares.keep(tmp_path / "b")
    assert (tmp_path / "b").exists()
    assert len(list((tmp_path / "spares").iterdir())) == 1
    spares.clear()
    assert list((tmp_path / "spares").iterdir()) == []
    assert not spares.place(tmp_path / "c", 0)


def test_spares_of_an_earlier_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / "spares").mkdir()
    (tmp_path / "spares" / "1-7").write_bytes(OLD)
    (tmp_path / "a").write_bytes(OLD)
    spares = Spares(tmp_path / "spares")
    assert spares.keep(tmp_path / "a")
    assert [p.name for p in (tmp_path / "spares").iterdir()] == [f"{os.getpid()}-0"]


def test_the_spare_that_fits_best_is_taken(tmp_path: Path) -> None:
    spares = Spares(tmp_path / "spares", certain=False)
    sizes = (4 * LARGE, 2 * LARGE, 3 * LARGE)
    for size in sizes:
        path = tmp_path / str(size)
        path.write_bytes(b"x")
        os.truncate(path, size)
        assert spares.keep(path)
    taken = []
    for size in (2 * LARGE + 1, 9 * LARGE, LARGE):
        assert spares.place(tmp_path / "new", size)
        taken.append((tmp_path / "new").stat().st_size // LARGE)
    assert taken == [3, 4, 2]


def test_a_short_spare_waits_until_its_old_name_is_gone_for_good(tmp_path: Path) -> None:
    disk, spares, new = RealDisk(), tmp_path / "spares", tmp_path / "new"
    short = b"s" * (2 * LARGE)
    disk.write(tmp_path / "old", [short])
    disk.retire(tmp_path / "old", spares)
    disk.reuse(new, spares, len(short))
    assert not new.exists(), "the folder may still come back with its old name"
    disk.fsync_folder(tmp_path / "spares")
    disk.reuse(new, spares, len(short))
    assert not new.exists(), "another folder"
    number = inode(next(spares.iterdir()))
    disk.write(tmp_path / "beside", [b"1"])
    disk.fsync_named(tmp_path / "beside")
    disk.reuse(new, spares, len(short))
    assert inode(new) == number
    disk.write(new, [b"n" * (LARGE + 3)])
    assert (new.read_bytes(), marked(new)) == (b"n" * (LARGE + 3), None)


def test_what_leaves_a_folder_while_that_is_synced_is_not_gone_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, spares, new = RealDisk(), tmp_path / "spares", tmp_path / "new"
    for name in ("early", "late"):
        disk.write(tmp_path / name, [b"s" * (2 * LARGE)])
    disk.retire(tmp_path / "early", spares)
    sync, late = os.fsync, inode(tmp_path / "late")

    def slow(number: int) -> None:
        sync(number)
        if (tmp_path / "late").exists():
            disk.retire(tmp_path / "late", spares)

    monkeypatch.setattr(os, "fsync", slow)
    disk.fsync_folder(tmp_path)
    disk.reuse(new, spares, LARGE)
    assert inode(new) != late
    disk.reuse(tmp_path / "next", spares, LARGE)
    assert not (tmp_path / "next").exists()


def test_a_long_spare_is_worth_a_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, spares, synced = RealDisk(), tmp_path / "spares", list[str]()
    disk.write(tmp_path / "old", [b"l" * (1 << 20)])
    disk.retire(tmp_path / "old", spares)
    sync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda n: (synced.append(os.readlink(f"/proc/self/fd/{n}")), sync(n))[1]
    )
    disk.reuse(tmp_path / "new", spares, 1 << 20)
    assert (tmp_path / "new").exists()
    assert synced == [str(tmp_path)]


def test_a_spare_that_is_much_too_large_is_left_for_a_large_file(tmp_path: Path) -> None:
    spares = Spares(tmp_path / "spares", certain=False)
    (tmp_path / "old").write_bytes(b"x" * (16 * LARGE))
    assert spares.keep(tmp_path / "old")
    assert not spares.place(tmp_path / "new", LARGE)
    assert spares.place(tmp_path / "new", 2 * LARGE)


def test_a_spare_is_made_while_nobody_waits(tmp_path: Path) -> None:
    disk, spares, new = RealDisk(), tmp_path / "spares", tmp_path / "new"
    disk.foresee(spares, 3 * LARGE + 5)
    (made,) = spares.iterdir()
    number = inode(made)
    assert made.stat().st_size == 3 * LARGE + 5
    disk.reuse(new, spares, 3 * LARGE)
    assert (inode(new), disk.size(new)) == (number, 0)
    disk.write(new, [b"n" * (3 * LARGE)])
    assert new.read_bytes() == b"n" * (3 * LARGE)
    assert marked(new) is None


def test_no_spare_is_made_where_there_is_no_room(tmp_path: Path) -> None:
    spares = Spares(tmp_path / "spares", most=LARGE)
    spares.make(2 * LARGE)
    assert not (tmp_path / "spares").exists()
