"""Looking at a store changes nothing in it, in either database."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from atoll.core.errors import NotFound, StorageError
from atoll.server.store.contract import Contribution, Invite, RunRow
from atoll.server.store.looking import look_at
from atoll.server.store.migrations import HEAD
from atoll.server.store.opening import open_store

ENDED = ("completed",)


def run(id: str, status: str) -> RunRow:
    return RunRow(id, "toy", "0" * 64, "{}", {}, ("bern", "ulm"), "ada", 50.0, status)


def answer(run: str, client: str, received: float) -> Contribution:
    task = f"{run}.train.1.{client}"
    return Contribution(run, task, client, "0" * 64, 10, "done", 1, 1.0, received)


def test_members_lock_and_answers_are_told(url: str) -> None:
    with_lock = open_store(url)
    try:
        for number, (name, role) in enumerate((("ulm", "site"), ("ada", "researcher"))):
            secret = str(number) * 64
            with_lock.add_invite(Invite(secret, name, role, 100.0))  # type: ignore[arg-type]
            with_lock.join(secret, "", bytes([number]) * 32, 7.0)
        epoch = with_lock.acquire("me", 40.0)
        for row in (run("r1", "open"), run("r2", "completed")):
            with_lock.add_run(epoch, row)
        with_lock.contribute(epoch, answer("r1", "ulm", 60.0))
        with_lock.contribute(epoch, answer("r2", "bern", 70.0))
        look = look_at(url, ENDED)
        assert (look.shape, look.up_to_date, look.held) == (HEAD, True, True)
        assert look.lease is not None
        assert (look.lease.epoch, look.lease.holder, look.lease.since) == (1, "me", 40.0)
        assert look.sites == {"ulm": 7.0}
        assert look.open_runs == {"r1": {"bern": 50.0, "ulm": 60.0}}
        assert look.answered == {"ulm": 60.0, "bern": 70.0}
    finally:
        with_lock.close()
    until = time.monotonic() + 30
    while look_at(url, ENDED).held:  # PostgreSQL sees a moment later that somebody has gone
        assert time.monotonic() < until


def test_a_store_of_another_version_is_told_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "atoll.db"
    open_store(str(path)).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    look = look_at(str(path), ENDED)
    assert (look.shape, look.up_to_date, look.sites) == ("9999", False, None)
    assert look_at(str(path), ENDED).shape == "9999"


def test_a_database_of_nobody_s_is_told(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE x (y)")
    raw.close()
    assert look_at(str(path), ENDED).shape == ""


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no store"):
        look_at(str(tmp_path / "none.db"), ENDED)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_store_says_so(tmp_path: Path) -> None:
    path = tmp_path / "atoll.db"
    path.write_bytes(b"no database at all, but long enough to be one" * 100)
    with pytest.raises(StorageError, match="damaged") as caught:
        look_at(str(path), ENDED)
    assert "backup" in caught.value.remedy


def test_a_database_that_does_not_run_is_told_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read") as caught:
        look_at(f"postgresql://ada:geheim@/atoll?host={tmp_path}", ENDED)
    assert "geheim" not in str(caught.value)
    assert "does the database run?" in caught.value.remedy
