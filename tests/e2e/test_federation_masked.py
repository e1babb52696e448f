"""Masked rounds between real processes: the model has the bits of the quantised simulation, kills or not."""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from federation_jobs import Task, arrays_task, table_task
from federation_processes import Federation, until

import atoll
from atoll.cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HEART = Path(__file__).resolve().parents[2] / "examples" / "heart"
MASKED = ("privacy.aggregation='masked'", "privacy.threshold=4")
QUANTISED = "privacy.aggregation='quantised'"


def heart_task(folder: Path, rounds: int) -> Task:
    """The heart job over six sites: the rows of the two largest hospitals are dealt to two sites each."""
    with (HEART / "heart.csv").open(newline="", encoding="utf-8") as file:
        columns, *rows = list(csv.reader(file))
    at = columns.index("hospital")
    large, seen = {"cleveland", "hungary"}, dict.fromkeys({row[at] for row in rows}, 0)
    for row in rows:
        seen[row[at]] += 1
        if row[at] in large:
            row[at] += " AB"[1 + seen[row[at]] % 2]
    folder.mkdir(parents=True)
    _write(folder / "heart.csv", columns, rows)
    files = {}
    for site in sorted({row[at] for row in rows}):
        own = [[cell for i, cell in enumerate(row) if i != at] for row in rows if row[at] == site]
        path = folder / "sites" / site / "heart.csv"
        path.parent.mkdir(parents=True)
        _write(path, [c for i, c in enumerate(columns) if i != at], own)
        files[site] = {"heart": path}
    job = (
        (HEART / "job.toml").read_text(encoding="utf-8").replace("count = 60", f"count = {rounds}")
    )
    (folder / "job.toml").write_text(job, encoding="utf-8")
    return Task(folder / "job.toml", files, ("evaluation.compare=false",))


def _write(path: Path, columns: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def admitted(federation: Federation, task: Task) -> None:
    """All sites, with one another's keys pinned."""
    federation.admit(task.sites)
    pin(federation)


def pin(federation: Federation) -> None:
    for home in federation.homes.values():
        assert main(["node", "peers", "--pin", "--home", str(home.path)]) == 0


def masked(federation: Federation, task: Task, *more: str) -> str:
    return federation.submit(task.job, [*task.settings, *MASKED, *more])


def test_masked_heart_federation_has_the_bits_of_the_quantised_simulation(tmp_path: Path) -> None:
    task = heart_task(tmp_path / "job", rounds=6)
    assert len(task.sites) == 6
    with Federation(tmp_path) as federation:
        admitted(federation, task)
        run = masked(federation, task)
        info = federation.wait(run)
        assert (info.status, info.reason) == ("completed", "completed")
        records = federation.records(run)
        assert federation.result(run)["model_hash"] == task.simulated(QUANTISED)
    for record in records:
        assert sorted(record["contributed"]) == sorted(task.sites)
        assert set(record["contributed"].values()) == {0}  # rows are told in total only


def test_a_job_that_says_nothing_of_masks_is_masked_at_six_sites_and_ends_in_its_simulation_s_bits(
    tmp_path: Path,
) -> None:
    """Nobody has pinned a key: those seen first do, and are noted."""
    task = heart_task(tmp_path / "job", rounds=4)
    with Federation(tmp_path) as federation:
        federation.admit(task.sites)
        run = federation.submit(task.job, task.settings)
        info = federation.wait(run)
        assert (info.status, info.reason) == ("completed", "completed")
        assert info.aggregation == "masked: 6 sites, and nothing in the job is against it"
        manifest, records = federation.result(run), federation.records(run)
        seen = {
            site: len(json.loads((home.path / "peers_seen.json").read_text(encoding="utf-8")))
            for site, home in federation.homes.items()
        }
    assert seen == dict.fromkeys(task.sites, 5)
    assert manifest["model_hash"] == task.simulated()
    assert manifest["aggregation"] == info.aggregation
    assert {entry["rows"] for entry in manifest["data"].values()} == {None}
    simulated = atoll.simulate(atoll.load_job(task.job, task.settings), executor="serial")
    assert simulated.manifest["aggregation"].startswith("quantised: as masked")
    for mine, theirs in zip(records, simulated.rounds, strict=True):
        assert mine["federated"] == theirs["federated"]
        assert mine["sites"] is None
        assert set(mine["contributed"].values()) == {0}


def test_a_server_that_is_killed_in_masked_rounds_comes_to_the_same_bits(tmp_path: Path) -> None:
    rounds = 8
    task = table_task(tmp_path / "job", sites=6, rounds=rounds, algorithm="scaffold")
    with Federation(tmp_path) as federation:
        admitted(federation, task)
        run = masked(federation, task, "algorithm.weights='uniform'")
        for number in range(4):
            federation.rounds(run, 1 + number)
            time.sleep(0.07 * number)
            federation.server.kill()
            federation.server.start()
            federation.up()
        info = federation.wait(run)
        assert (info.status, info.reason) == ("completed", "completed")
        expected = task.simulated(QUANTISED, "algorithm.weights='uniform'")
        assert federation.result(run)["model_hash"] == expected


def test_a_large_model_is_uploaded_under_masks_and_comes_to_the_same_bits(tmp_path: Path) -> None:
    task = arrays_task(tmp_path / "job", 6, 2, features=400_000)
    with Federation(tmp_path) as federation:
        admitted(federation, task)
        run = masked(federation, task)
        info = federation.wait(run)
        assert (info.status, info.reason) == ("completed", "completed")
        assert federation.result(run)["model_hash"] == task.simulated(QUANTISED)


def test_nodes_that_are_killed_drop_out_and_come_back_with_new_keys(tmp_path: Path) -> None:
    rounds = 10
    task = table_task(tmp_path / "job", sites=6, rounds=rounds)
    victims = list(task.sites)[:2]
    with Federation(tmp_path) as federation:
        admitted(federation, task)
        run = masked(federation, task)
        for number in range(3):
            federation.rounds(run, 1 + 2 * number)
            for site in victims:
                federation.nodes[site].kill()
            time.sleep(0.3)
            for site in victims:
                federation.nodes[site].start()
        info = federation.wait(run)
        assert info.status == "completed"
        records = federation.records(run)
    assert [record["round"] for record in records] == list(range(1, rounds + 1))
    for record in records:
        assert set(record["missing"]) <= set(victims)
        assert (
            set(record["contributed"]) >= set(task.sites) - set(victims) or not record["committed"]
        )
    assert sorted(records[-1]["contributed"]) == sorted(task.sites)


def test_a_site_that_has_not_pinned_the_others_takes_no_part_and_says_what_to_do(
    tmp_path: Path,
) -> None:
    task = table_task(tmp_path / "job", sites=6, rounds=2)
    stranger = next(iter(task.sites))
    with Federation(tmp_path) as federation:
        federation.admit(task.sites)
        for site, home in federation.homes.items():
            if site != stranger:
                assert main(["node", "peers", "--pin", "--home", str(home.path)]) == 0
        info = federation.wait(masked(federation, task))  # all must be in the sums of columns
        assert info.status == "failed"
        assert stranger in info.reason
        assert "atoll node peers --pin" in info.reason
        run = masked(federation, task, "preprocessing.mode='site'")
        until(lambda: federation.committed(run) >= 1, 60, "no round", check=federation.check)
        info = federation.wait(run)
        assert info.status == "completed"
        for record in federation.records(run):
            assert set(record["missing"]) == {stranger}
            assert "atoll node peers --pin" in record["missing"][stranger]
