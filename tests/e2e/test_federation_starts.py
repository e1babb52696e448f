"""A study goes on from an earlier run of the same federation, over real nodes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import atoll

sys.path.insert(0, str(Path(__file__).parent))

from federation_jobs import Task, own_task, table_task
from federation_processes import Federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SECOND = ("seed=21", "name='second'")


def continued(task: Task, first: Path, *settings: str) -> str:
    """The model's hash of the simulation that begins at what lies in ``first``."""
    job = atoll.load_job(task.job, settings)
    return atoll.simulate(job, executor="serial", initial=first).model_hash


@pytest.mark.parametrize("masked", [False, True])
def test_a_run_from_an_earlier_one_ends_in_the_bits_of_the_simulation(
    tmp_path: Path, masked: bool
) -> None:
    task = table_task(tmp_path / "job", sites=5 if masked else 3, rounds=2)
    way = () if masked else ("privacy.aggregation='plain'",)  # by itself, five sites use masks
    with Federation(tmp_path) as federation:
        federation.admit(task.sites)
        first = federation.submit(task.job, way)
        assert federation.wait(first).status == "completed"
        model = federation.result(first)["model_hash"]
        second = federation.submit(task.job, (*SECOND, *way), initial=first)
        info = federation.wait(second)
        assert info.status == "completed", info.reason
        manifest = federation.result(second)
        assert manifest["start"]["model_hash"] == model
        folder = tmp_path / "results" / first
        assert manifest["aggregation"].startswith("masked" if masked else "plain")
        assert manifest["model_hash"] == continued(task, folder, *SECOND, *way)


def test_a_network_of_a_file_of_the_job_s_own_begins_at_a_given_model(tmp_path: Path) -> None:
    task = own_task(tmp_path / "job", 2, 2)
    with Federation(tmp_path) as federation:
        federation.admit(task.sites)
        run = federation.submit(task.job)
        assert federation.wait(run).status == "completed"
        federation.result(run)
        again = federation.submit(task.job, SECOND, initial=tmp_path / "results" / run)
        info = federation.wait(again)
        assert info.status == "completed", info.reason
        found = federation.result(again)
        assert found["model_hash"] == continued(task, tmp_path / "results" / run, *SECOND)
        log = "".join(path.read_text() for path in tmp_path.rglob("*.log"))
        assert "begins at a model that came with it" in log
        assert json.loads((tmp_path / "results" / run / "manifest.json").read_text())
