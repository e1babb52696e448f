"""One process at a time in a folder, and looking does not get in its way."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from atoll.core.errors import StorageError
from atoll.wire.presence import alone, is_taken


def test_the_second_is_refused_and_told_what_to_do(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with alone(lock, "another runs", "stop it"):
        assert is_taken(lock)
        with (
            pytest.raises(StorageError, match="another runs") as caught,
            alone(lock, "another runs", "stop it"),
        ):
            pass
        assert caught.value.remedy == "stop it"
    assert not is_taken(lock)


def test_looking_makes_nothing_and_needs_no_right_to_write(tmp_path: Path) -> None:
    """A command run as root must not leave a lock that the server's own user cannot open."""
    assert not is_taken(tmp_path / "lock")
    assert not list(tmp_path.iterdir())
    (tmp_path / "lock").touch(0o400)
    before = (tmp_path / "lock").stat()
    assert not is_taken(tmp_path / "lock")
    assert (tmp_path / "lock").stat().st_mtime_ns == before.st_mtime_ns


def test_whoever_looks_at_the_moment_of_a_start_does_not_keep_it_from_starting(
    tmp_path: Path,
) -> None:
    import fcntl

    lock = tmp_path / "lock"
    number = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(number, fcntl.LOCK_SH)

    def look() -> None:
        time.sleep(0.1)
        os.close(number)

    looking = threading.Thread(target=look)
    looking.start()
    with alone(lock, "another runs", "stop it"):
        assert is_taken(lock)
    looking.join()


def test_a_folder_that_cannot_be_used_is_said_in_words(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match="cannot be used"),
        alone(tmp_path / "no" / "lock", "", ""),
    ):
        pass
