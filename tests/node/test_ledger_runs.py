"""Nodes with a ledger at work: limits hold over jobs and researchers, through kill -9 and old copies."""

from __future__ import annotations

import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import fake_federation as ff
import ledger_process
import pytest
from doors import door_to, home_at, node_in_a_process
from private_jobs import TRUSTING, Private, Z, cost, limit
from process_copies import Copy

from atoll.data.readers import read_table
from atoll.job.load import parse_job
from atoll.job.package import spec_to_plain
from atoll.node.home import Home
from atoll.node.policy.budgets import Budgets
from atoll.node.policy.ledger import Accounts, Limit
from atoll.node.policy.ledger_file import read_ledger
from atoll.node.settings import Policy
from atoll.wire.frames import encode
from atoll.wire.identity import Identity

pytest.importorskip("dp_accounting")


@pytest.fixture
def server() -> ff.FakeServer:
    return ff.FakeServer()


def east(folder: Path, server: ff.FakeServer, **settings: object) -> ff.Running:
    given = {"policy": TRUSTING, **settings}
    return ff.Running(ff.node_at(folder, "east", server, ff.table_text(1), True, **given))


def silence(server: ff.FakeServer) -> None:
    """Let a node that was stopped in this process hang up; a process of its own would be gone."""
    server.down = True
    server.wake()
    ff.eventually(lambda: server.waiting == 0)
    server.down = False


def accounts(folder: Path) -> Accounts:
    home = Home(folder / "east")
    return read_ledger(home.ledger, Identity.load(home.identity).public_bytes)[0]


def states(folder: Path) -> list[str]:
    return [entry.state for entry in accounts(folder).entries]


def node(door: str, home: Path, point: str = "") -> Copy:
    """In a process of its own, which dies at ``point``."""
    return node_in_a_process("ledger_process", door, home, point)


def test_a_job_stops_at_the_limit_and_the_next_researcher_is_refused_by_what_is_left(
    tmp_path: Path, server: ff.FakeServer
) -> None:
    first, second = Private(server, tmp_path), Private(server, tmp_path, "r2")
    second.run.by = "ben"
    with east(tmp_path, server):
        most = limit(tmp_path, "east", 3)
        told = [server.result(first.train().id)[0] for _ in range(4)]
        assert [body.status for body in told] == ["done", "done", "done", "refused"]
        assert "round 3 of job" in told[3].reason
        refused = server.result(second.train().id)[0]
        assert refused.status == "refused"
        assert f"dataset 'sites' has epsilon 0.00 left of {most}" in refused.reason
        assert "(run r2, by ben)" in refused.reason
        limit(tmp_path, "east", 4)  # the steward allows one more round, from now on
        assert server.result(second.train().id)[0].status == "done"
        assert server.result(first.train().id)[0].status == "refused"
        server.end("r1")
        server.end("r2")
        ff.eventually(lambda: set(states(tmp_path)) == {"settled"})
    assert accounts(tmp_path).spent(most) == cost(4)
    assert {e.charge.researcher for e in accounts(tmp_path).entries} == {"ana", "ben"}


@pytest.mark.parametrize("mechanism", ["gaussian", "blt"])
def test_a_server_that_lets_a_site_rest_for_less_than_the_job_says_is_refused(
    tmp_path: Path, server: ff.FakeServer, mechanism: str
) -> None:
    asked = Private(server, tmp_path, mechanism=mechanism)
    plain = spec_to_plain(asked.run.spec)
    plain["rounds"] |= {"count": 6, "cohort": "uniform", "size": 1, "separation": 3}
    asked.run.spec = parse_job(plain)
    with east(tmp_path, server):
        told = [server.result(asked.train().id)[0] for _ in range(5)]
    assert [body.status for body in told] == ["done", "refused", "refused", "done", "refused"]
    assert "2 of 6 rounds, 3 apart" in told[1].reason
    assert {entry.charge.round for entry in accounts(tmp_path).entries} == {0, 3}


def test_a_server_that_asks_for_more_rounds_than_the_job_plans_is_refused_without_any_limit(
    tmp_path: Path, server: ff.FakeServer
) -> None:
    asked = Private(server, tmp_path)
    plain = spec_to_plain(asked.run.spec)
    plain["rounds"]["count"] = 3  # for which its noise is made
    asked.run.spec = parse_job(plain)
    with east(tmp_path, server):
        told = [server.result(asked.train().id)[0] for _ in range(4)]
    assert [body.status for body in told] == ["done", "done", "done", "refused"]
    assert "3 of 3 rounds" in told[3].reason
    assert len(accounts(tmp_path).entries) == 3


def test_a_job_without_noise_is_refused_by_the_rule_and_unlimited_data_are_counted_too(
    tmp_path: Path, server: ff.FakeServer
) -> None:
    plain, private = ff.Solo(server, tmp_path), Private(server, tmp_path, "r2")
    with east(tmp_path, server):
        assert server.result(plain.train().id)[0].status == "done"
        assert server.result(private.train().id)[0].status == "done"
        limit(tmp_path, "east", 3)
        body = server.result(plain.train().id)[0]
        assert (body.status, "policy.private" in body.reason) == ("refused", True)
    found = accounts(tmp_path)
    assert found.spent(Limit("sites", 1.0, 1e-5, "site")) == cost(
        1
    )  # though there was no limit then


def test_work_that_fails_or_is_withdrawn_costs_nothing(
    tmp_path: Path, server: ff.FakeServer
) -> None:
    private = Private(server, tmp_path)
    with east(tmp_path, server) as agent:
        limit(tmp_path, "east", 1)
        slow = private.train(60.0)
        ff.eventually(lambda: states(tmp_path) == ["reserved"])
        ff.eventually(lambda: agent._runs["r1"].state()["tasks"].get(slow.id) == "working")
        server.withdraw(slow.id)
        ff.eventually(lambda: states(tmp_path) == ["returned"])
        assert server.result(private.train().id)[0].status == "done"
    assert accounts(tmp_path).spent(Limit("sites", 1.0, 1e-5, "site")) == cost(1)


def test_an_old_copy_of_the_whole_folder_takes_on_no_more_rounds(
    tmp_path: Path, server: ff.FakeServer
) -> None:
    private, copy = Private(server, tmp_path), tmp_path / "copy"
    limit(tmp_path, "east", 9)
    with east(tmp_path, server):
        server.result(private.train().id)
    silence(server)
    place = Home(tmp_path / "east").ledger.parent
    shutil.copytree(place, copy)
    with east(tmp_path, server):
        server.result(private.train().id)
    silence(server)
    newest = len(accounts(tmp_path).entries)
    shutil.rmtree(place)
    shutil.copytree(copy, place)
    with east(tmp_path, server):
        body = server.result(private.train().id)[0]
        assert body.status == "failed"
        assert "the privacy ledger of this site is not the newest" in body.reason
        assert str(tmp_path) not in body.reason
    assert len(accounts(tmp_path).entries) < newest


def ends_killed(process: Copy, server: ff.FakeServer, ask: Any) -> None:
    """Give a node work until it dies at its point."""
    until = time.monotonic() + 60
    while process.poll() is None:
        assert time.monotonic() < until, "it never came there"
        if not server.tasks:
            ask()
        time.sleep(0.05)
    assert process.returncode == -signal.SIGKILL


def counted(folder: Path, server: ff.FakeServer) -> int:
    """Releases in the ledger; whatever has left is among them, and one in flight at most besides."""
    states = {e.charge.task: e.state for e in accounts(folder).entries}
    left = {charged_as(name) for name, _ in server.deliveries if ".ready." not in name}
    released = {task for task, state in states.items() if state in ("released", "settled")}
    found = {task for task, state in states.items() if state != "returned"}
    assert left <= released <= found
    assert len(found) <= len(left) + 1
    return len(found)


def charged_as(task: str) -> str:
    """What a task's answer is called in the ledger: an evaluation's without its model."""
    return re.sub(r"(\.evaluate\.[0-9]+)-[0-9a-f]{8}", r"\1", task)


@pytest.mark.slow
def test_a_node_killed_at_every_point_around_a_release_never_counts_too_little(
    tmp_path: Path, server: ff.FakeServer
) -> None:
    private, home = Private(server, tmp_path), home_at(tmp_path, "east", ff.table_text(1))
    most = limit(tmp_path, "east", 50)
    with door_to(server, tmp_path) as door:
        for point in ledger_process.POINTS:
            ends_killed(node(door, home, point), server, private.train)
            assert accounts(tmp_path).spent(most) == cost(counted(tmp_path, server)), point
        last = node(door, home)
        answered = [server.result(private.train().id)[0] for _ in range(2)]
        last.terminate()
        assert last.wait(45) == 0
    assert [body.status for body in answered] == ["done", "done"]
    assert accounts(tmp_path).spent(most) == cost(len(server.received))


@pytest.mark.slow
def test_a_node_killed_at_every_point_around_figures_with_noise_never_counts_too_little(
    tmp_path: Path, server: ff.FakeServer
) -> None:
    """What was kept is sent again with the noise it had: a second drawing would be another release."""
    over = {
        "algorithm": {"name": "fedavg"},
        "rounds": {"count": 20},  # a node gives no more evaluations than a job plans
        "privacy": {"record": {"noise_multiplier": 2.0}, "metrics": {"noise_multiplier": Z}},
    }
    spec = parse_job(ff.job_tables(**over), folder=tmp_path)
    run, home = (
        ff.Deployed(spec, {"east": server}, tmp_path),
        home_at(tmp_path, "east", ff.table_text(1)),
    )
    run.alone(read_table(tmp_path / "east.csv"))
    most = Limit("sites", 100.0, 1e-5)
    Budgets(Home(home).budgets).set(most)
    with door_to(server, tmp_path) as door:
        first = node(door, home)
        model = encode(
            {"version": 1}, {"parameters": run.ask("ready", initial=True)["east"][1]["initial"]}
        )

        def evaluate() -> str:
            run.number += 1
            with server.changed:
                server.unsettled.clear()  # what came before is committed
            task = run.task("evaluate", "east", broadcast=model, version=run.number)
            name = f"r1.evaluate.{run.number}-c0ffee12.east"
            return server.offer(task.model_copy(update={"id": name})).id

        first.terminate()
        assert first.wait(45) == 0
        for point in ledger_process.POINTS:
            ends_killed(node(door, home, point), server, evaluate)
            assert accounts(tmp_path).spent(most) == cost(counted(tmp_path, server)), point
        last = node(door, home)
        answered = [server.result(evaluate())[0] for _ in range(2)]
        last.terminate()
        assert last.wait(45) == 0
    assert [body.status for body in answered] == ["done", "done"]
    assert len(dict(server.deliveries)) == len(set(server.deliveries))


def test_dp_sgd_is_counted_by_each_site_from_its_own_rows(tmp_path: Path) -> None:
    (tmp_path / "sites").mkdir()
    rows = {"east": 60, "west": 120}
    for seed, site in enumerate(rows):
        (tmp_path / "sites" / f"{site}.csv").write_text(ff.table_text(seed, rows[site]))
    over = {
        "algorithm": {"name": "fedavg"},
        "privacy": {"record": {"clip": 1.0, "noise_multiplier": 1.2}},
        "evaluation": {"federated": False},
    }
    spec = parse_job(ff.job_tables(**over), folder=tmp_path)
    servers = {site: ff.FakeServer() for site in rows}
    rules = Policy(open_figures=True)  # the column sums of this job
    nodes = [
        ff.Running(
            ff.node_at(tmp_path, site, server, ff.table_text(seed, rows[site]), True, policy=rules)
        )
        for seed, (site, server) in enumerate(servers.items())
    ]
    for site in rows:
        Budgets(Home(tmp_path / site).budgets).set(Limit("sites", 100.0, 1e-5))
    with nodes[0], nodes[1]:
        ff.Deployed(spec, servers, tmp_path).prepare().run()
    spent = {}
    for site, count in rows.items():
        home = Home(tmp_path / site)
        found, _ = read_ledger(home.ledger, Identity.load(home.identity).public_bytes)
        assert [e.charge.unit for e in found.entries] == ["record"] * 3
        (event,) = found.entries[0].charge.events
        training = 0.7 * count
        assert event["sampling"] == pytest.approx(8 / training, rel=0.03)
        assert event["count"] == pytest.approx(training / 8, abs=1)
        spent[site] = found.spent(Limit("sites", 100.0, 1e-5))
    assert spent["west"] < spent["east"]  # more rows hide each of them better
