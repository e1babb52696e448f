"""Errors of files, in words that say what to do at night."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from atoll.core.errors import StorageError
from atoll.wire.disk import RealDisk
from atoll.wire.trouble import cramped, fails, remedy_of, takes_nothing, unreadable


@pytest.mark.parametrize(
    ("number", "reading", "said"),
    [
        (errno.ENOSPC, False, "free space"),
        (errno.EDQUOT, False, "free space"),
        (errno.EROFS, False, "mounted read-only"),
        (errno.EACCES, False, "let the user that runs this program write there"),
        (errno.EACCES, True, "run this as the user whom the folder belongs to"),
        (errno.EIO, True, "check the disk"),
    ],
)
def test_each_error_has_a_remedy_of_its_own(number: int, reading: bool, said: str) -> None:
    assert said in remedy_of(OSError(number, os.strerror(number)), reading=reading)


def test_a_full_disk_is_seen_behind_the_error_that_it_became() -> None:
    full, other = OSError(errno.ENOSPC, "full"), OSError(errno.EACCES, "closed")
    for cause, found in ((full, True), (other, False)):
        became = StorageError("it cannot be written")
        became.__cause__ = cause
        assert takes_nothing(became) is found
    assert not takes_nothing(StorageError("the spool holds 16 GiB, its limit"))
    full.__cause__ = full  # as a handler leaves it that raises what it was given
    assert takes_nothing(full)
    other.__cause__ = other
    assert not takes_nothing(other)
    assert (fails(full), fails(other)) == (True, False)


def test_a_disk_that_reports_errors_is_no_full_one() -> None:
    broken = StorageError("it cannot be written")
    broken.__cause__ = OSError(errno.EIO, "Input/output error")
    assert (takes_nothing(broken), fails(broken)) == (False, True)


def test_what_cannot_be_read_is_told_from_what_is_damaged(tmp_path: Path) -> None:
    closed = unreadable(tmp_path, PermissionError(errno.EACCES, "Permission denied"))
    assert "sudo -u USER" in closed.remedy
    assert unreadable(tmp_path, ValueError("no JSON")).remedy == "restore it from a backup"


def test_only_a_disk_without_room_is_cramped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cramped(tmp_path) == cramped(tmp_path / "none") == ""
    found = os.statvfs(tmp_path)
    empty = os.statvfs_result([*found[:4], 0, *found[5:]])
    monkeypatch.setattr(os, "statvfs", lambda path: empty)
    assert "free space there" in cramped(tmp_path)


def test_the_disk_tells_reading_from_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(StorageError) as caught:
        RealDisk().read(tmp_path / "x")
    assert "run this as the user" in caught.value.remedy
