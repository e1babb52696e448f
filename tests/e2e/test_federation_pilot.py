"""``make federation``: the very commands that people type at five institutions, on one machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEART = ROOT / "examples" / "heart"


@pytest.mark.slow
def test_four_hospitals_end_in_the_bits_of_the_simulation(tmp_path: Path) -> None:
    shutil.copy(HEART / "heart.csv", tmp_path)
    text = (HEART / "job.toml").read_text()
    assert "count = 60" in text
    (tmp_path / "job.toml").write_text(text.replace("count = 60", "count = 12"))
    pilot = ROOT / "examples" / "federation" / "pilot.py"
    home = tmp_path / "federation"
    done = subprocess.run(
        [sys.executable, str(pilot), "--home", str(home), "--job", str(tmp_path / "job.toml")],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    hashes = re.findall(r"^(?:federation|simulation) +([0-9a-f]{64})$", done.stdout, re.MULTILINE)
    assert len(hashes) == 2
    assert hashes[0] == hashes[1]
    assert (home / "result" / "report.html").is_file()
