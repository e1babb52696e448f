"""A contestant's run: what it printed, or why it gave nothing; what it started ends with it."""

import json
import math
import sys
from pathlib import Path

import pytest

from benchmarks import turns
from benchmarks.machine import Background


def program(folder: Path, *lines: str) -> str:
    """An interpreter that does this, whatever module it is given."""
    path = folder / "program"
    path.write_text("\n".join([f"#!{sys.executable}", *lines]) + "\n")
    path.chmod(0o700)
    return str(path)


def test_the_last_result_counts_and_its_work_is_measured(tmp_path: Path) -> None:
    lines = ("import sys", "print('RESULT 1')", "sum(range(3_000_000))")
    last = "print('RESULT', '{\"words\": ' + str(len(sys.argv)) + '}')"
    found = turns.launch("x", 1, "b", interpreter=program(tmp_path, *lines, last), patience=60)
    assert found["words"] == 5  # itself, -m, the module, two words
    assert 0.0 < found["busy"] < 60.0


@pytest.mark.parametrize(
    ("line", "patience", "why"),
    [
        ("pass", 60, "no output"),
        ("raise SystemExit('a | b')", 60, "a / b"),
        ("import time; time.sleep(60)", 1, "no result in 1 s"),
    ],
)
def test_a_run_without_a_result_says_why(
    tmp_path: Path, line: str, patience: int, why: str
) -> None:
    found = turns.launch("x", interpreter=program(tmp_path, line), patience=patience)
    assert found == {"failed": why}


def test_what_a_run_has_started_ends_with_it(tmp_path: Path) -> None:
    start = "child = subprocess.Popen(['sleep', '100'], start_new_session=True)"
    tell = "print('RESULT', '{\"child\": ' + str(child.pid) + '}', flush=True)"
    found = turns.launch(
        "x", interpreter=program(tmp_path, "import subprocess, os", start, tell), patience=60
    )
    state = Path(f"/proc/{found['child']}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_ratios_are_told_with_the_least_and_the_most() -> None:
    assert turns.spread([2.0, 1.0, 4.0]) == "2 (1 to 4)"
    assert math.isnan(float(turns.spread([]).split()[0]))


def test_raw_results_are_kept_with_the_time(tmp_path: Path) -> None:
    path = tmp_path / "raw" / "all.jsonl"
    for number in (1, 2):
        turns.note(path, {"number": number})
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["number"] for line in kept] == [1, 2]
    assert kept[0]["at"] <= kept[1]["at"]


def test_the_line_below_a_table_says_how_busy_the_machine_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = Background()
    monkeypatch.setattr(Background, "share", lambda self: 0.3)
    told = turns.remark(others, "Flower 9.")
    assert told.endswith(
        "Flower 9. Other processes used 30% of the machine meanwhile: trust the ratios only."
    )
