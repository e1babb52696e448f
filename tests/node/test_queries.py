"""The lock of a query log: whoever cannot have it sends nothing, and says why."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from atoll.core.errors import StorageError
from atoll.node.policy.queries import locked


def test_a_folder_without_locks_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*given: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    path, told = tmp_path / "queries" / "heart.jsonl", "'heart' cannot be opened: No locks"
    with pytest.raises(StorageError, match=told), locked(path):
        raise AssertionError("the log is read without its lock")


def test_trouble_inside_is_not_taken_for_trouble_with_the_lock(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk") as caught, locked(tmp_path / "heart.jsonl"):
        raise OSError("the disk is gone")
    assert not isinstance(caught.value, StorageError)
