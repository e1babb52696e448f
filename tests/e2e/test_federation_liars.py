"""A member of the federation that lies: it is refused and named, and the model is that of the others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import federation_liar
from federation_jobs import names, own_task
from federation_processes import Federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_whatever_a_site_sends_the_model_is_that_of_the_others(tmp_path: Path) -> None:
    rounds = len(federation_liar.LIES)
    task = own_task(tmp_path / "job", 3, rounds, size=50)
    honest = own_task(tmp_path / "honest", 2, rounds, size=50)
    liar = names(3)[2]
    with Federation(tmp_path) as federation:
        federation.admit({site: task.sites[site] for site in honest.sites})
        federation.join(liar, task.sites[liar])
        node = federation.node(liar)
        node.command = [sys.executable, federation_liar.__file__, *node.command[1:]]
        node.start()
        run = federation.submit(task.job)
        info = federation.wait(run)
        records = federation.records(run)
        found = federation.result(run)
        federation.check()
    assert info.reason == f"completed without {liar} from round 1"
    taken = [
        lie
        for lie, record in zip(federation_liar.LIES, records, strict=True)
        if not record["missing"].get(liar, "").startswith("refused: ")
    ]
    assert taken == []
    assert found["model_hash"] == honest.simulated()
