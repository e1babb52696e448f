"""Sites come, go, and fall behind: every run tells who took part, and the others' runs do not notice."""

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from federation_jobs import names, own_task, table_task
from federation_processes import ATOLL, Federation, Process, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PLAIN = "privacy.aggregation='plain'"
"""A node that is stopped loses the keys of a masked round, and here none may be missing from any."""
THREE = {
    "fedavg": ("rounds.count=8", "name='first'", PLAIN),
    "scaffold": ("rounds.count=10", "name='second'", "algorithm.name='scaffold'", PLAIN),
    "fedbuff": (
        "rounds.count=8",
        "name='third'",
        "algorithm.name='fedbuff'",
        "rounds.mode='async'",
        "rounds.buffer=8",
        "rounds.concurrency=8",
        "seed=11",
    ),
}
"""Settings of three jobs. FedBuff waits for all that are at work, so that arrivals do not matter."""


def test_three_jobs_at_once_over_eight_sites_that_come_and_go(tmp_path: Path) -> None:
    task = table_task(tmp_path / "job", sites=8, rounds=8)
    alone = {name: task.simulated(*settings) for name, settings in THREE.items()}
    assert len(set(alone.values())) == 3
    with Federation(tmp_path) as federation:
        federation.admit(task.sites)
        runs = {name: federation.submit(task.job, own) for name, own in THREE.items()}
        for number, site in enumerate(("site-02", "site-05", "site-08")):
            federation.rounds(runs["fedavg"], 1 + number)
            assert federation.nodes[site].stop() == 0
            if number == 1:
                time.sleep(0.5)
            federation.nodes[site].start()
        ended = {name: federation.wait(run) for name, run in runs.items()}
        assert {(i.status, i.reason) for i in ended.values()} == {("completed", "completed")}
        found = {name: federation.result(run)["model_hash"] for name, run in runs.items()}
        for run in runs.values():
            for record in federation.records(run):
                assert sorted(record["contributed"]) == names(8), record
    assert found == alone


def leave(federation: Federation, site: str) -> None:
    """``atoll node leave``."""
    federation.nodes.pop(site).stop()
    command = [ATOLL, "node", "leave", "--yes", "--home", str(federation.homes[site].path)]
    going = Process("leave", command, federation.folder / "leave.log")
    going.start()
    until(lambda: going.status is not None, 60, "leaving takes too long")
    assert going.status == 0, going.said()


def test_run_goes_on_without_a_site_that_leaves_and_takes_it_in_again(tmp_path: Path) -> None:
    task = own_task(tmp_path / "job", 3, 7, seconds=0.5)
    gone = names(3)[2]
    with Federation(tmp_path) as federation:
        federation.admit(task.sites)
        first = federation.submit(task.job)
        second = federation.submit(task.job, ["rounds.count=30", "name='second'"])
        federation.rounds(first, 2)
        leave(federation, gone)
        info = federation.wait(first)
        found = re.fullmatch(rf"completed without {gone} from round (\d+)", info.reason)
        assert info.status == "completed"
        assert found is not None, info.reason
        assert federation.result(first)["status"] == info.reason
        missing = {r["round"]: r["missing"] for r in federation.records(first) if r["missing"]}
        assert list(missing) == list(range(int(found[1]), 8))
        for why in missing.values():
            assert list(why) == [gone]
            assert "it has left the federation" in why[gone]
        federation.admit({gone: task.sites[gone]})
        ended = federation.wait(second)
        records = federation.records(second)
        assert (ended.status, ended.reason) == ("completed", "completed")
        assert gone in records[0]["contributed"]
        assert gone in records[-1]["contributed"]
        assert any("it has left" in r["missing"].get(gone, "") for r in records)


def test_rounds_end_by_their_deadline_without_those_who_are_slow(tmp_path: Path) -> None:
    task = own_task(tmp_path / "job", 10, 5, seconds=0.05)
    slow = names(10)[:3]
    settings = ["rounds.deadline=4.0", "rounds.quorum=7"]
    with Federation(tmp_path) as federation:
        federation.admit(task.sites)
        run = federation.submit(task.job, settings)
        federation.rounds(run, 1)
        for site in slow:
            federation.nodes[site].signal(signal.SIGSTOP)
        info = federation.wait(run)
        records = federation.records(run)
        for site in slow:
            federation.nodes[site].signal(signal.SIGCONT)
    assert info.status == "completed"
    since = re.fullmatch(
        rf"completed without {', '.join(f'{s} from round (?:2|3)' for s in slow)}", info.reason
    )
    assert since, info.reason
    late = [r for r in records if r["missing"]]
    assert len(late) >= 3
    for record in late:
        assert sorted(record["missing"]) == slow
        assert record["committed"]
        assert record["seconds"] < 4.0 + 2.0
        for why in record["missing"].values():
            assert re.match(r"(late|dropped|unavailable): ", why)


def test_run_below_its_quorum_fails_by_name(tmp_path: Path) -> None:
    task = own_task(tmp_path / "job", 3, 50, seconds=0.05)
    settings = ["rounds.deadline=1.5", "rounds.quorum=3", "rounds.max_aborts=2"]
    with Federation(tmp_path) as federation:
        federation.admit(task.sites)
        run = federation.submit(task.job, settings)
        federation.rounds(run, 1)
        federation.nodes["site-02"].signal(signal.SIGSTOP)
        info = federation.wait(run)
        federation.nodes["site-02"].signal(signal.SIGCONT)
        manifest = federation.result(run)
    assert info.status == "failed"
    for text in (info.reason, manifest["status"]):
        assert "site-02" in text
        assert "quorum" in text
