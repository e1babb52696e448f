"""Asynchronous runs under masks between real processes: buffers, old updates, kills of server and nodes."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from federation_jobs import Task, table_task
from federation_processes import Federation

from atoll.cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FEDBUFF = ("algorithm.name='fedbuff'", "rounds.mode='async'", "rounds.max_staleness=8")


def asynchronous(federation: Federation, task: Task, buffer: int, *more: str) -> str:
    federation.admit(task.sites)
    for home in federation.homes.values():
        assert main(["node", "peers", "--pin", "--home", str(home.path)]) == 0
    settings = [*task.settings, *FEDBUFF, f"rounds.buffer={buffer}"]
    return federation.submit(task.job, [*settings, "privacy.aggregation='masked'", *more])


def test_a_buffer_of_all_sites_has_the_bits_of_the_quantised_simulation(tmp_path: Path) -> None:
    task = table_task(tmp_path / "job", sites=6, rounds=5)
    with Federation(tmp_path) as federation:
        run = asynchronous(federation, task, 6)
        info = federation.wait(run)
        assert (info.status, info.reason) == ("completed", "completed")
        found, records = federation.result(run)["model_hash"], federation.records(run)
    quantised = (*FEDBUFF, "rounds.buffer=6", "privacy.aggregation='quantised'")
    assert found == task.simulated(*quantised)
    for record in records:
        assert sorted(record["contributed"]) == sorted(task.sites)
        assert set(record["contributed"].values()) == {0}  # rows are told in total only


def test_nine_sites_go_on_in_buffers_of_six_though_server_and_nodes_are_killed(
    tmp_path: Path,
) -> None:
    rounds = 9
    task = table_task(tmp_path / "job", sites=9, rounds=rounds)
    with Federation(tmp_path) as federation:
        run = asynchronous(federation, task, 6, "evaluation.every=3")
        victims = list(task.sites)[:2]
        for number in range(3):
            federation.rounds(run, 1 + 2 * number)
            time.sleep(0.05 * number)
            federation.nodes[victims[number % 2]].kill()
            federation.server.kill()
            federation.server.start()
            federation.up()
            federation.nodes[victims[number % 2]].start()
        info = federation.wait(run)
        assert info.status == "completed", info.reason
        records = federation.records(run)
    assert [record["round"] for record in records] == list(range(1, rounds + 1))
    for record in records:
        if record["committed"]:
            assert 5 <= len(record["contributed"]) <= 6
            assert set(record["contributed"].values()) == {0}
