"""``kill -9``: whenever it comes and whomever it hits, the run goes on by itself and ends in the same bits."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from federation_jobs import Task, arrays_task, own_task, table_task
from federation_kills import POINTS, Killer, history
from federation_processes import Federation, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BACK = 40.0
"""Seconds from a new start until a process is back at work, beside other tests. Measured at a quiet time, by
``python -m benchmarks.reliability``, it is a fraction of that."""


@contextmanager
def at_work(folder: Path, task: Task) -> Iterator[tuple[Federation, str]]:
    """A federation, and a run of its that has begun."""
    with Federation(folder) as federation:
        federation.admit(task.sites)
        run = federation.submit(task.job)
        federation.rounds(run, 1)
        yield federation, run


def ends_undisturbed(federation: Federation, run: str, task: Task, rounds: int) -> None:
    info = federation.wait(run)
    assert (info.status, info.reason) == ("completed", "completed")
    assert federation.result(run)["model_hash"] == task.simulated()
    assert history(federation, run, rounds, list(task.sites)) == []


def test_kills_at_random_moments(tmp_path: Path) -> None:
    task = table_task(tmp_path / "job", sites=3, rounds=20, algorithm="scaffold")
    with at_work(tmp_path, task) as (federation, run):
        killer = Killer(federation, random.Random(1))
        while len(killer.kills) < 4 and killer.at_random(run, 0.8):
            pass
        ends_undisturbed(federation, run, task, 20)
    assert len(killer.kills) >= 2
    assert [kill for kill in killer.kills if kill.seconds > BACK] == []


SMALL = [point for point in POINTS if not point.large and point.when == "often"]
LARGE = [point for point in POINTS if point.large]


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_kills_where_something_is_half_done(tmp_path: Path, large: bool) -> None:
    rounds = 12
    if large:
        task = arrays_task(tmp_path / "job", 2, rounds, features=150_000, algorithm="scaffold")
    else:
        task = table_task(tmp_path / "job", sites=2, rounds=rounds, algorithm="scaffold")
    rng = random.Random(large)
    with at_work(tmp_path, task) as (federation, run):
        killer = Killer(federation, rng)
        for point in rng.sample(LARGE if large else SMALL, 3):
            killer.at(point, lambda: run, most_skipped=1, patience=10)
        ends_undisturbed(federation, run, task, rounds)
    assert killer.kills
    assert [kill for kill in killer.kills if kill.seconds > BACK] == []


def test_asynchronous_run_counts_every_answer_at_most_once(tmp_path: Path) -> None:
    rounds, buffer = 15, 2
    task = table_task(tmp_path / "job", 3, rounds, algorithm="fedbuff")
    job = task.job.read_text()
    asynchronous = f'[rounds]\nmode = "async"\nbuffer = {buffer}\nconcurrency = 3\n'
    task.job.write_text(job.replace("[rounds]\n", asynchronous))
    with at_work(tmp_path, task) as (federation, run):
        killer = Killer(federation, random.Random(3))
        while len(killer.kills) < 2 and killer.at_random(run, 0.8):
            pass
        assert federation.wait(run).status == "completed"
        records = federation.records(run)
        question = (
            "SELECT round, count(*) FROM contributions WHERE run = ? AND round > 0 GROUP BY round"
        )
        counted = federation.rows(question, run)
        alarms = federation.rows("SELECT text FROM events WHERE kind = 'equivocation'")
    assert [len(record["contributed"]) for record in records] == [buffer] * rounds
    assert counted == [(number, buffer) for number in range(1, rounds + 1)]
    assert alarms == []


def test_worker_killed_while_idle_costs_nothing(tmp_path: Path) -> None:
    task = own_task(tmp_path / "job", 2, 6, seconds=0.2)
    idle, busy = task.sites
    with at_work(tmp_path, task) as (federation, run):
        federation.nodes[busy].signal(signal.SIGSTOP)  # so the round cannot end
        spool = federation.homes[idle].spool
        until(lambda: sent(federation, run) == {idle}, 60, f"{idle} has not answered")
        assert list(spool.rglob("*.result"))
        os.kill(federation.worker(idle), signal.SIGKILL)
        federation.nodes[busy].signal(signal.SIGCONT)
        ends_undisturbed(federation, run, task, 6)


def sent(federation: Federation, run: str) -> set[str]:
    """Who has answered in the round that is going on."""
    question = "SELECT client FROM contributions WHERE run = ? AND task LIKE ? AND round IS NULL"
    return {client for (client,) in federation.rows(question, run, f"{run}.train.%")}


def trains(federation: Federation, run: str, site: str) -> bool:
    """Whether a site is at work on a task that it has not answered."""
    home = federation.homes[site]
    tasks = home.read(home.state).get("runs", {}).get(run, {}).get("tasks", {})
    known = {
        task for (task,) in federation.rows("SELECT task FROM contributions WHERE run = ?", run)
    }
    return any(".train." in t and s == "working" and t not in known for t, s in tasks.items())


def test_worker_killed_at_work_fails_that_task_and_no_other(tmp_path: Path) -> None:
    task = own_task(tmp_path / "job", 2, 4, seconds=2.0)
    victim, _ = task.sites
    with at_work(tmp_path, task) as (federation, run):
        before = federation.committed(run)
        until(lambda: trains(federation, run, victim), 60, f"{victim} does not train")
        os.kill(federation.worker(victim), signal.SIGKILL)  # it trains for two seconds
        info = federation.wait(run)
        assert (info.status, info.reason) == ("completed", "completed")
        records = {record["round"]: record for record in federation.records(run)}
    missed = {number: r["missing"][victim] for number, r in records.items() if r["missing"]}
    assert list(missed) in ([before + 1], [before + 2])
    assert "failed: the worker process was killed from outside" in missed[next(iter(missed))]
    assert victim in records[4]["contributed"]


def test_workers_of_a_killed_node_end_with_it(tmp_path: Path) -> None:
    task = own_task(tmp_path / "job", 1, 4, seconds=60.0)
    (site,) = task.sites
    with Federation(tmp_path) as federation:
        federation.admit(task.sites)
        federation.submit(task.job)
        worker = federation.worker(site)
        federation.nodes[site].kill()
        until(lambda: not alive(worker), 45, "the worker outlives its node")


def alive(pid: int) -> bool:
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_sigterm_ends_server_and_nodes_cleanly_and_the_run_goes_on(tmp_path: Path) -> None:
    task = table_task(tmp_path / "job", sites=2, rounds=12)
    with at_work(tmp_path, task) as (federation, run):
        for process in (federation.server, *federation.nodes.values()):
            assert process.stop() == 0
            process.start()
        ends_undisturbed(federation, run, task, 12)
