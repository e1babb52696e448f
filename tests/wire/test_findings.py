"""What both examinations look at alike: files that hold secrets, room, durable writes."""

from __future__ import annotations

import os

import pytest

from atoll.core.errors import DataError, Fault, StorageError, Unreachable
from atoll.wire import findings
from atoll.wire.findings import (
    faults_of,
    ok,
    private_file,
    private_folder,
    room,
    together,
    trusted_file,
    user,
    writing,
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "key.pem"
    path.write_text("secret")
    path.chmod(0o600)
    return path


def test_a_key_that_others_may_read_is_a_fault_with_the_command_that_mends_it(file):
    assert private_file("files", file).state == "ok"
    file.chmod(0o640)
    found = private_file("files", file)
    assert (found.state, found.status) == ("fault", 5)
    assert "mode 0640" in found.text
    assert found.remedy == f"chmod 600 {file}"
    assert "secret" not in found.text


def test_a_file_to_be_trusted_may_be_read_by_others_and_not_changed(file):
    file.chmod(0o644)
    assert trusted_file("files", file).state == "ok"
    file.chmod(0o664)
    found = trusted_file("files", file)
    assert (found.state, found.remedy) == ("fault", f"chmod go-w {file}")


def test_a_file_that_is_gone_is_a_fault(tmp_path):
    found = private_file("files", tmp_path / "none.pem")
    assert found.state == "fault"
    assert "restore it" in found.remedy


def test_an_open_folder_is_a_warning(tmp_path):
    tmp_path.chmod(0o755)
    found = private_folder("files", tmp_path)
    assert (found.state, found.status, found.remedy) == ("warning", 0, f"chmod 700 {tmp_path}")


def test_a_folder_of_somebody_else_is_to_be_looked_at_as_that_user(tmp_path, monkeypatch):
    assert user("user", tmp_path).state == "ok"
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    found = user("user", tmp_path)
    assert found.state == "warning"
    assert "sudo -u" in found.remedy


def test_too_little_room_is_a_fault_that_says_how_much_is_needed(tmp_path):
    assert room("disk", tmp_path, 1, "here").state == "ok"
    found = room("disk", tmp_path, 2.0**60, "by the job")
    assert (found.state, found.status) == ("fault", 5)
    assert "1.05e+06 TiB needed by the job" in found.text


def test_a_write_is_timed_and_leaves_nothing_behind(tmp_path):
    found = writing("disk", tmp_path)
    assert found.state in ("ok", "warning")
    assert "ms" in found.text
    assert list(tmp_path.iterdir()) == []


def test_slow_writes_are_a_warning(tmp_path, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(findings.time, "perf_counter", lambda: float(next(clock)))
    found = writing("disk", tmp_path)
    assert found.state == "warning"
    assert "1000.0 ms" in found.text


def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path):
    found = writing("disk", tmp_path / "none")
    assert (found.state, found.status) == ("fault", StorageError.exit_status)


def test_an_error_becomes_a_line_for_each_of_its_faults():
    (one,) = faults_of("x", Unreachable("nobody there", remedy="go there"))
    assert (one.text, one.remedy, one.status) == ("nobody there", "go there", 7)
    both = list(
        faults_of(
            "x", DataError("bad", faults=[Fault("a", "is 1", "make it 2"), Fault("", "is b")])
        )
    )
    assert [(f.text, f.remedy) for f in both] == [
        ("a: is 1", "make it 2"),
        ("is b", "mend it there"),
    ]


def test_many_things_alike_are_one_line_when_all_are_well():
    bad = findings.fault("x", "is not", "do")
    assert list(together("x", [ok("x", "1"), ok("x", "2")], "both")) == [ok("x", "both")]
    assert list(together("x", [ok("x", "1"), bad], "both")) == [bad]
