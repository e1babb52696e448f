"""Between real processes: whatever the server holds of a site stands in that site's audit log, in its form."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from federation_jobs import table_task
from federation_processes import Federation
from test_federation_masked import admitted

from atoll.cli.main import main
from atoll.node.audit.reading import check, entries
from atoll.wire.identity import Identity

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FORMS = {"plain": {"plain"}, "masked": {"plain", "masked", "step"}}
FORMS["encrypted"] = {"plain", "encrypted", "opened", "step"}


def answers(home: Any) -> list[dict[str, Any]]:
    key = Identity.load(home.identity).public_bytes
    assert check(home.audit, key).behind == 0
    return [e for e in entries(home.audit, key) if e["what"] == "answer"]


@pytest.mark.parametrize("how", ["plain", "masked", "encrypted"])
def test_what_the_server_holds_stands_in_the_site_s_log(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if how == "encrypted":
        pytest.importorskip("tenseal")
    task = table_task(tmp_path / "job", sites=5, rounds=3)
    with Federation(tmp_path) as federation:
        admitted(federation, task)
        run = federation.submit(task.job, [*task.settings, f"privacy.aggregation='{how}'"])
        federation.rounds(run, 1)
        next(iter(federation.nodes.values())).kill()
        for node in federation.nodes.values():
            if not node.alive:
                node.start()
        assert federation.wait(run).status == "completed"
        held = federation.rows("select task, sha256, size from contributions where run = ?", run)
    assert len(held) >= 5 * 6
    for site, home in federation.homes.items():
        found = answers(home)
        lines = Counter((e["task"], e["answer"], e["bytes"]) for e in found)
        mine = {tuple(row) for row in held if row[0].split(".")[3] == site}
        assert mine
        assert mine <= lines.keys()
        assert set(lines.values()) == {1}
        assert {e["form"] for e in found} == FORMS[how]
        assert {e["form"] for e in found if e["kind"] == "train"} == {how}
        assert {(e["by"], e["aggregation"]) for e in found} == {("ada", how)}
    assert main(["node", "log", "verify", "--home", str(home.path)]) == 0
    assert "as they were written" in capsys.readouterr().out
