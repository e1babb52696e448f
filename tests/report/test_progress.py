from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from atoll.report.progress import ProgressBar, ProgressLines, progress, progress_line

Maker = Callable[..., dict[str, Any]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_tells_round_metrics_rate_and_time_left(make_record: Maker) -> None:
    line = progress_line(make_record(5), 20, seen=5, elapsed=10.0)
    assert line == "round  5/20  loss 0.2000  AUC 0.89  2.0 s/round  30.0 s left"


def test_after_a_resume_the_rate_counts_only_what_was_seen(make_record: Maker) -> None:
    line = progress_line(make_record(12), 20, seen=2, elapsed=1.0)
    assert "2.0 rounds/s  4.0 s left" in line


def test_a_line_names_who_is_missing_and_what_went_wrong(make_record: Maker) -> None:
    missing = {f"site {i}": "late: x" for i in range(5)}
    record = make_record(1, committed=False, reason="quorum 3", missing=missing)
    line = progress_line(record, 2, seen=1, elapsed=0.0)
    assert line.endswith("NOT COMMITTED: quorum 3  without site 0, site 1, site 2 and 2 more")


def test_names_cannot_forge_lines_or_move_the_cursor(make_record: Maker) -> None:
    record = make_record(1, missing={"a\nround 9/9\x1b[2J": "late"})
    line = progress_line(record, 2, seen=1, elapsed=1.0)
    assert "\n" not in line
    assert "\x1b" not in line


@pytest.mark.parametrize("empty", [None, {}, {"loss": None}])
def test_a_round_without_metrics_has_a_line(make_record: Maker, empty: Any) -> None:
    record = make_record(1, train=empty, central=empty, federated=None)
    assert progress_line(record, 2, seen=1, elapsed=1.0) == "round 1/2  1.0 rounds/s  1.0 s left"


def test_lines_come_first_last_when_bad_and_else_at_intervals(make_record: Maker) -> None:
    stream, clock = io.StringIO(), Clock()
    with ProgressLines(10, stream, interval=1.0, clock=clock) as watch:
        for number in range(1, 11):
            clock.now += 0.3
            watch(make_record(number, committed=number != 3))
    shown = [
        int(line.split("/")[0].removeprefix("round")) for line in stream.getvalue().splitlines()
    ]
    assert shown == [1, 3, 7, 10]


def test_the_time_before_the_first_round_does_not_count(make_record: Maker) -> None:
    stream, clock = io.StringIO(), Clock()
    watch = ProgressLines(4, stream, interval=0.0, clock=clock)
    clock.now = 100.25
    watch(make_record(1))
    clock.now = 100.5
    watch(make_record(2))
    first, second = stream.getvalue().splitlines()
    assert "4.0 rounds/s  750 ms left" in first
    assert "4.0 rounds/s  500 ms left" in second


def test_the_last_line_tells_how_long_it_took(make_record: Maker) -> None:
    assert progress_line(make_record(2), 2, seen=2, elapsed=90.0).endswith(
        "45.0 s/round  1 min 30 s"
    )


def test_rounds_whose_number_nobody_knows_are_counted_without_one(make_record: Maker) -> None:
    assert progress_line(make_record(3), 0, seen=3, elapsed=1.5).startswith("round 3  ")
    stream, clock, terminal = io.StringIO(), Clock(), Terminal()
    with ProgressLines(0, stream, clock=clock) as watch, ProgressBar(0, terminal) as bar:
        for number in (1, 2, 3):
            clock.now += 0.3
            watch(make_record(number))
            bar(make_record(number))
    assert len(stream.getvalue().splitlines()) == 1  # not each for the last
    assert "round 3" in terminal.getvalue()
    assert "3/" not in terminal.getvalue()


def test_a_log_gets_lines_and_a_terminal_a_bar() -> None:
    assert isinstance(progress(3, io.StringIO()), ProgressLines)
    assert isinstance(progress(3, Terminal()), ProgressBar)


def test_the_bar_shows_rounds_and_takes_names_literally(make_record: Maker) -> None:
    terminal, clock = Terminal(), Clock()
    with ProgressBar(2, terminal, title="[bold]heart", clock=clock) as watch:
        for number in (1, 2):
            clock.now += 1.0
            watch(make_record(number, missing={"[red]x": "late"}))
    output = terminal.getvalue()
    assert "[bold]heart" in output
    assert "round 2/2" in output
    assert output.endswith("\n") or "\x1b[?25h" in output


def test_no_thread_draws_before_the_first_round(make_record: Maker) -> None:
    terminal, before = Terminal(), set(threading.enumerate())
    with ProgressBar(2, terminal, title="heart") as watch:
        assert "heart" in terminal.getvalue()
        assert set(threading.enumerate()) <= before  # one of another test may end meanwhile
        watch(make_record(1))
        assert len(set(threading.enumerate()) - before) == 1


def test_the_bar_is_taken_down_when_the_run_fails(make_record: Maker) -> None:
    terminal = Terminal()

    def fail() -> None:
        with ProgressBar(2, terminal) as watch:
            watch(make_record(1))
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert terminal.getvalue().rstrip().endswith("\x1b[?25h")


def test_importing_the_report_loads_no_heavy_library() -> None:
    script = (
        "import sys, atoll.report;"
        "print([m for m in ('rich', 'matplotlib', 'tensorboardX', 'safetensors', 'pandas', 'torch')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"
