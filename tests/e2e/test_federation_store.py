"""Where a server keeps what it must not lose: PostgreSQL and an object store, and never two servers on one."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "server"))
sys.path.insert(0, str(Path(__file__).parents[1] / "server" / "store"))

import postgres_cluster
from federation_jobs import arrays_task, table_task
from federation_measures import FENCED, second_server
from federation_processes import Federation, Process, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def postgres() -> Iterator[postgres_cluster.Cluster]:
    if postgres_cluster.programs() is None:
        pytest.skip("PostgreSQL is not installed: no initdb on this machine")
    with postgres_cluster.cluster() as cluster:
        yield cluster


def refused(second: Process) -> str:
    second.start()
    until(lambda: second.status is not None, 60, "the second server is not refused")
    assert second.status == FENCED, second.said()
    return second.said()


def test_postgresql_and_an_object_store_give_the_same_bits(
    postgres: postgres_cluster.Cluster, tmp_path: Path
) -> None:
    pytest.importorskip("moto.server")
    from object_store import object_store

    tasks = [
        table_task(tmp_path / "table", 3, 6, algorithm="scaffold"),
        arrays_task(tmp_path / "arrays", 3, 3, features=400_000),
    ]
    with object_store() as s3:
        url = s3.url(s3.new_bucket())
        with Federation(tmp_path, store=postgres.new_database(), blobs=url) as federation:
            federation.admit({s: {**d, **tasks[1].sites[s]} for s, d in tasks[0].sites.items()})
            runs = [federation.submit(task.job) for task in tasks]
            until(lambda: federation.researcher.show(runs[0]).rounds >= 2, 120, "no second round")
            federation.server.kill()
            federation.server.start()
            for task, run in zip(tasks, runs, strict=True):
                info = federation.wait(run)
                assert info.reason == "completed", info
                assert federation.result(run)["model_hash"] == task.simulated()
        assert not (federation.home / "atoll.db").exists()


def test_second_server_on_a_store_is_refused_and_the_first_does_not_notice(tmp_path: Path) -> None:
    task = table_task(tmp_path / "job", 2, 40)
    with Federation(tmp_path) as federation:
        federation.admit(task.sites)
        run = federation.submit(task.job)
        federation.rounds(run, 1)
        same = Process("again", federation.server.command, tmp_path / "again.log")
        assert "another server" in refused(same)
        said = refused(second_server(federation, tmp_path / "second"))
        assert str(federation.server.pid) in said  # who has it
        info = federation.wait(run)
        assert info.reason == "completed"
        assert federation.result(run)["model_hash"] == task.simulated()


def test_server_that_has_lost_its_store_to_another_stops(
    postgres: postgres_cluster.Cluster, tmp_path: Path
) -> None:
    """The database has cut the first server's connections, as after a change of its network."""
    task = table_task(tmp_path / "job", 2, 400)
    with Federation(tmp_path, store=postgres.new_database()) as federation:
        federation.admit(task.sites)
        federation.submit(task.job)
        until(lambda: federation.researcher.jobs()[0].rounds >= 1, 120, "no first round")
        second = second_server(federation, tmp_path / "second")
        assert str(federation.server.pid) in refused(second)
        first, database = federation.server, federation.charter.store.split("/")[3].split("?")[0]
        # Else it would be back, with its lock, before the second has begun.
        first.signal(signal.SIGSTOP)
        try:
            postgres.execute(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
            )
            second.start()
            until(lambda: "listening on port" in second.said(), 60, "the second server is refused")
            first.signal(signal.SIGCONT)
            until(lambda: first.status is not None, 60, "the first server goes on")
            assert first.status == FENCED, first.said()
            assert "another server" in first.said()
            assert second.alive
        finally:
            second.kill()


def test_database_that_is_restarted_in_the_middle_of_a_run_costs_nothing(
    postgres: postgres_cluster.Cluster, tmp_path: Path
) -> None:
    """The run waits and goes on, and the server holds its lock again: nobody else may take the store."""
    task = table_task(tmp_path / "job", 2, 60)
    with Federation(tmp_path, store=postgres.new_database()) as federation:
        federation.admit(task.sites)
        run = federation.submit(task.job)
        for rounds, away in ((5, 0.0), (15, 2.5)):
            until(
                lambda least=rounds: federation.researcher.show(run, patience=60).rounds >= least,
                120,
                f"no {rounds} rounds",
            )
            postgres.stop()
            time.sleep(away)
            postgres.start()
        info = federation.wait(run)
        assert info.reason == "completed", info
        assert federation.result(run)["model_hash"] == task.simulated()
        until(lambda: "lock is taken again" in federation.server.said(), 90, "no lock")
        second = second_server(federation, tmp_path / "second")
        assert str(federation.server.pid) in refused(second)
        assert federation.server.alive


def test_server_whose_database_is_away_says_so_and_starts_when_it_is_back(
    postgres: postgres_cluster.Cluster, tmp_path: Path
) -> None:
    task = table_task(tmp_path / "job", 2, 2)
    with Federation(tmp_path, store=postgres.new_database()) as federation:
        federation.admit(task.sites)
        federation.connected()
        federation.server.stop()
        postgres.stop()
        try:
            federation.server.start()
            until(lambda: federation.server.status is not None, 60, "the server started without it")
            assert federation.server.status == FENCED, federation.server.said()
            assert "check that the database runs" in federation.server.said()
            assert "Traceback" not in federation.server.said()
        finally:
            postgres.start()
        federation.server.start()
        federation.up()
        run = federation.submit(task.job)
        assert federation.wait(run).reason == "completed"
