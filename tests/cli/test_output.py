"""What others have written is shown, and cannot move the cursor or pass for a line of ours."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from atoll.cli import doctor, remote
from atoll.cli.output import data_line, table_of, talk, talk_error
from atoll.connection import RunInfo
from atoll.core.errors import StateError
from atoll.wire.findings import warning

HOSTILE = "out of memory\x1b[2K\x1b[1A\x9b1Jstatus     completed\r\x07"


@pytest.mark.parametrize(
    "tell", [data_line, talk, lambda text: talk_error(StateError(text, remedy=text))]
)
def test_no_control_character_reaches_the_terminal(tell: Any, capsys: Any) -> None:
    tell(HOSTILE)
    shown = "".join(capsys.readouterr())
    assert "out of memory" in shown
    assert not [c for c in shown if not c.isprintable() and c not in "\n\t"]


def test_colours_of_our_own_stay_and_those_of_others_go(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    talk_error(StateError(HOSTILE))
    shown = capsys.readouterr().err
    assert shown.startswith("\x1b[1;31merror\x1b[0m")
    assert "\x1b[2K" not in shown


def test_a_cell_is_one_line() -> None:
    assert len(table_of(("run", "remark"), [("a", "one\nb-2  two")]).splitlines()) == 2


def test_a_reason_cannot_pass_for_a_line_of_a_run() -> None:
    made = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    info = RunInfo(
        id="r-1",
        name="toy",
        job_hash="0" * 64,
        by="ann",
        created=made,
        sites=("east",),
        status="failed",
        phase="",
        reason="east said no\nstatus     completed",
        rounds=0,
    )
    lines = remote._text(info).splitlines()
    assert [line for line in lines if line.startswith("status")] == [
        "status     failed: east said no"
    ]
    assert "           status     completed" in lines


def test_a_finding_is_one_line_and_its_next_step_another() -> None:
    found = warning("node", "not connected: refused\n  next: check the address", "see its log")
    first, second = doctor._line(found, colour=False).splitlines()
    assert first.endswith("not connected: refused; next: check the address")
    assert second.strip() == "next: see its log"
