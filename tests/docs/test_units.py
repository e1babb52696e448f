"""The units of the how-to on systemd are valid, as far as systemd itself says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "systemd.md"
UNITS = dict(
    re.findall(
        r"^```\{code-block\} ini\n:caption: (\S+)\n\n(.*?)^```$",
        PAGE.read_text(encoding="utf-8"),
        re.M | re.S,
    )
)


def test_the_page_holds_a_unit_for_each_side() -> None:
    assert set(UNITS) == {"atoll-server.service", "atoll-node.service"}


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_a_unit_is_valid(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    program = Path(sys.executable).with_name("atoll")
    path.write_text(UNITS[name].replace("/opt/atoll/bin/atoll", str(program)))
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True, check=False
    )
    told = [line for line in found.stderr.splitlines() if name in line]
    assert (found.returncode, told) == (0, [])
