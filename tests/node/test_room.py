"""A site's disk is full: nothing that was done is lost, nothing fails, all goes on when there is room."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.core.errors import StorageError
from atoll.node.room import process, rooms, sandbox, workplace
from atoll.node.room.workplace import _with_room
from atoll.node.settings import Limits


def full() -> StorageError:
    error = StorageError("x cannot be written: No space left on device", remedy="free space")
    error.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return error


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(workplace.time, "sleep", waited.append)
    return waited


def failing(times: int, error: Callable[[], Exception]) -> Callable[[], str]:
    left = [times]

    def act() -> str:
        if left[0]:
            left[0] -= 1
            raise error()
        return "done"

    return act


def test_a_worker_waits_for_room_and_longer_each_time(
    waits: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    assert _with_room(failing(8, full)) == "done"
    assert waits == sorted(waits)
    assert waits[0] < 1 < waits[-1] <= 10
    assert capfd.readouterr().err.count("waiting for the disk") == 1


def test_any_other_trouble_is_told_at_once(waits: list[float]) -> None:
    for error in (
        StorageError("it is a symbolic link"),
        OSError(errno.EFBIG, "File too large"),
        OSError(errno.EACCES, "Permission denied"),
    ):
        with pytest.raises(type(error)):
            _with_room(failing(1, lambda error=error: error))
    assert not waits


def test_a_result_is_written_once_there_is_room(
    waits: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = workplace.RealDisk.write_over, [2]

    def write(disk: object, path: Path, given: object) -> None:
        if left[0]:
            left[0] -= 1
            list(given)  # half of it was written
            raise full()
        real(disk, path, given)

    monkeypatch.setattr(workplace.RealDisk, "write_over", write)
    workplace._write(tmp_path / "result", {"task": "t"}, {})
    assert len(waits) == 2
    assert (tmp_path / "result").stat().st_size > 0


def test_a_worker_s_result_is_copied_once_there_is_room(
    waits: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = failing(2, full)
    monkeypatch.setattr(process, "taken", lambda path, place, most: copy())
    worker = process.Worker.__new__(process.Worker)
    worker._limits, worker._why = Limits(), ""
    assert worker._copied("from", "to")
    assert len(waits) == 2

    copy = failing(2, full)
    worker._why = "took longer than it may"
    with pytest.raises(EOFError):
        worker._copied("from", "to")


@pytest.mark.skipif(bool(sandbox.trouble()), reason=sandbox.trouble() or "none")
@pytest.mark.parametrize("trial", ["kill -9 $$", "kill -1 $$", "exec sleep 60"])
def test_a_trial_of_rooms_that_came_to_no_end_does_not_open_them(
    trial: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trial").write_text(f"#!/bin/sh\n{trial}\n")
    (tmp_path / "trial").chmod(0o700)
    sandbox.trouble.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(sandbox.sys, "executable", str(tmp_path / "trial"))
        patch.setattr(sandbox, "_TRIAL", 0.3)
        with pytest.raises(sandbox.Untried, match="the trial of a sandbox"):
            sandbox.trouble()
        found = rooms.finding(Limits())
        assert (found.state, found.remedy) == ("warning", "look again")
    assert sandbox.trouble() == ""
