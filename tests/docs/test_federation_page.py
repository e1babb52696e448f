"""The how-to of a federation on one machine, run by a shell as it stands, at another port."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from free_ports import free_port

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "federation-on-one-machine.md"
LAST = "kill $(jobs -p)"


def script(page: Path, port: int) -> str:
    """All ``sh`` blocks of a page in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return "set -eu\ntrap 'kill $(jobs -p)' EXIT\n" + "\n".join(blocks).replace("7443", str(port))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="the page uses curl")
def test_the_page_s_commands_found_a_federation_that_survives_its_server(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    text = script(PAGE, free_port())
    assert LAST in text
    process = subprocess.Popen(
        ["bash", "-c", text],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=240)
    except subprocess.TimeoutExpired as late:
        # What a command in the background has said is the reason, and the page waits for it.
        pytest.fail(f"the page does not come to its end:\n{(late.output or b'').decode()}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert "again\n" in out, out
    assert "the server answers again" in out, out
    assert out.count("status     completed") == 2, out
    manifest = json.loads((tmp_path / "pilot" / "result" / "manifest.json").read_text())
    assert manifest["rounds"] == 20
    assert (tmp_path / "pilot" / "result" / "report.html").is_file()
