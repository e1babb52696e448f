"""What others say stays on its own line of the log."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.cli.log import OneLine

FORGED = "gone\n2026-01-01 00:00:00,000 ERROR all keys revoked\r\x1b[2K\x9b1A\u2028end"


def logged(*, traceback: bool = False) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneLine())
    log = logging.Logger("of a test")
    log.addHandler(handler)
    try:
        raise ValueError(FORGED)
    except ValueError as error:
        log.error("run %s: %s", "r1", error, exc_info=traceback)
    return stream.getvalue()


def test_a_record_is_one_line_whatever_others_have_put_into_it() -> None:
    said = logged()
    assert said.endswith("\n")
    assert len(said.splitlines()) == 1
    assert r"run r1: gone\n2026-01-01 00:00:00,000 ERROR all keys revoked\r\x1b[2K" in said


def test_no_line_of_a_traceback_looks_like_one_of_the_log() -> None:
    first, *rest = logged(traceback=True).removesuffix("\n").split("\n")
    assert " ERROR run r1: gone" in first
    assert rest
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


BEGUN = """
import logging, sys
from atoll.cli.main import main

main(sys.argv[1:])  # there is nothing in its folder that it could start with
logging.getLogger("atoll.wire").warning("%s", "a\\nb")
"""


@pytest.mark.parametrize("program", [["node", "start", "--home"], ["server", "start"]])
def test_programs_that_run_for_long_log_so(program: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", BEGUN, *program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "next: " in done.stderr  # it got as far as looking into its folder
    assert done.stderr.endswith("WARNING a\\nb\n")
