"""The tables of the peer benchmark on made-up results: ratios, the check of losses, what is left out."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atoll import Job, LocalWork, Optimizer
from atoll.models.linear import LinearTrainer
from benchmarks import one
from benchmarks.peers import contestants, environments, given, page, table, watch


def result(name, peer, workers, turn, round, loss=0.5, rounds=20, **more):
    about = {"name": name, "peer": peer, "workers": workers, "rounds": rounds, "turn": turn}
    return {**about, "round": round, "first": 1.0, "loss": loss, **more}


def by_name(rows):
    return {(row.name, row.workers): row for row in rows}


def two_turns(flower_loss=0.5):
    return [
        result("plain loop", "plain", 2, 1, 0.20),
        result("centralised loop", "central", 2, 1, 0.40, loss=0.9),
        result("atoll", "atoll", 1, 1, 0.30),
        result("atoll", "atoll", 2, 1, 0.10),
        result("Flower", "flower", 2, 1, 1.00, loss=flower_loss),
        result("plain loop", "plain", 2, 2, 0.40),
        result("centralised loop", "central", 2, 2, 0.80, loss=0.9),
        result("atoll", "atoll", 1, 2, 0.60),
        result("atoll", "atoll", 2, 2, 0.20),
        result("Flower", "flower", 2, 2, 4.00, loss=flower_loss),
    ]


def test_ratios_are_taken_within_a_turn_against_the_faster_number_of_our_workers():
    rows = by_name(table.rows(two_turns()))
    assert rows["Flower", 2].round == 2.5
    assert rows["Flower", 2].ratio == pytest.approx((15.0, 10.0, 20.0))
    assert rows["atoll", 2].ratio == pytest.approx((1.0, 1.0, 1.0))
    assert rows["atoll", 1].ratio == pytest.approx((3.0, 3.0, 3.0))


def test_a_loss_that_differs_in_the_third_digit_is_marked_and_reported():
    rows = table.rows(two_turns(flower_loss=0.501))
    assert [row.name for row in rows if row.same is False] == ["Flower"]
    assert table.check(rows, "W1", "fedavg") == [
        "W1, fedavg: Flower, 2 workers: final loss 0.501000 differs: not the same work"
    ]
    assert sum("**differs**" in line for line in table.lines(rows, "W1", "fedavg")) == 1


def test_a_loss_that_differs_in_the_fifth_digit_passes():
    assert table.check(table.rows(two_turns(flower_loss=0.50002)), "W1", "fedavg") == []


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_differs(loss):
    assert len(table.check(table.rows(two_turns(flower_loss=loss)), "W1", "fedavg")) == 1


def test_one_bad_turn_is_enough_to_fail():
    results = two_turns()
    results[-1]["loss"] = 0.7
    assert len(table.check(table.rows(results), "W1", "fedavg")) == 1


def test_the_centralised_loop_learns_something_else_and_is_not_compared():
    row = by_name(table.rows(two_turns()))["centralised loop", 2]
    assert row.same is None
    assert math.isnan(row.loss)


def test_low_precision_shows_its_loss_and_may_differ():
    low = result("atoll-bf16", "atoll", 2, 1, 0.05, loss=0.52, exact=False)
    rows = table.rows([*two_turns(), low])
    assert (by_name(rows)["atoll-bf16", 2].loss, by_name(rows)["atoll-bf16", 2].same) == (
        0.52,
        None,
    )
    assert table.check(rows, "W2", "fedavg") == []


def test_a_short_run_is_compared_with_a_reference_as_short_which_is_not_shown():
    short = [
        result("NVFlare", "nvflare", 5, 1, 2.5, loss=0.69, rounds=6),
        result("plain loop", "plain", 2, 1, 9.0, loss=0.69, rounds=6, extra=True, timed=False),
    ]
    rows = by_name(table.rows(two_turns() + short))
    assert rows["NVFlare", 5].same is True
    assert rows["plain loop", 2].round == pytest.approx(0.3)
    alone = table.rows(two_turns() + short[:1])
    assert by_name(alone)["NVFlare", 5].same is False


def test_runs_made_for_memory_count_for_memory_only():
    looked = result("Flower", "flower", 2, 0, 99.0, loss=7.0, rounds=3, timed=False, memory=1465.0)
    row = by_name(table.rows([*two_turns(), looked]))["Flower", 2]
    assert (row.round, row.memory, row.same, row.rounds) == (2.5, 1465.0, True, 20)


def test_a_failed_run_is_shown_with_its_reason_and_fails():
    about = {"name": "FedJAX", "peer": "fedjax", "workers": 1, "rounds": 20, "turn": 1}
    rows = table.rows([*two_turns(), {**about, "failed": "no backend"}])
    assert table.check(rows, "W1", "fedavg") == ["W1, fedavg: FedJAX, 1 workers: no backend"]
    assert "**failed**: no backend" in table.lines(rows, "W1", "fedavg")[-1]


def test_the_summary_counts_only_peers_that_did_the_same_work():
    fast = [result("FedJAX", "fedjax", 1, turn, 0.05, loss=0.4) for turn in (1, 2)]
    line = table.summary({("W1", "fedavg"): [*two_turns(), *fast]})[-1]
    assert line == "| W1 | fedavg | atoll | Flower (2) | 15.0 | 15.0 | 0.25 |"


def test_the_summary_has_a_line_for_each_row_of_ours():
    ours = [result("atoll-compiled", "atoll", 2, turn, 0.05 * turn) for turn in (1, 2)]
    lines = table.summary({("W1", "fedavg"): [*two_turns(), *ours]})
    assert lines[-1] == "| W1 | fedavg | atoll-compiled | Flower (2) | 30.0 | 30.0 | 0.12 |"
    assert len(lines) == 4


def test_only_installed_peers_run_and_ours_always_do():
    field = contestants.contestants("W1", "fedavg", 20, {"pfl": Path("/somewhere/python")})
    assert {c.peer for c in field} == {"plain", "central", "atoll", "pfl"}
    two = next(c for c in field if c.peer == "pfl" and c.workers == 2)
    assert two.command[:7] == (
        *("/somewhere/python", "-m", "torch.distributed.run"),
        *("--standalone", "--nproc_per_node", "2", "-m"),
    )


def test_a_method_runs_at_the_peers_that_ship_it():
    everybody = dict.fromkeys(environments.ENVIRONMENTS, Path("python"))
    field = contestants.contestants("W1", "scaffold", 20, everybody)
    assert {(c.peer, c.workers) for c in field} == {("atoll", 2), ("pfl", 1)}


@pytest.mark.parametrize("method", given.LOCAL)
def test_another_local_optimiser_runs_at_all_who_keep_up_and_is_the_same_one(method):
    everybody = dict.fromkeys(environments.ENVIRONMENTS, Path("python"))
    field = contestants.contestants("W1", method, 20, everybody)
    ran = [(c.peer, c.workers) for c in field]
    assert ran[-4:] == [(peer, 2) for peer in ("flower", "pfl", "blazefl", "fedjax")]
    assert set(ran[:-4]) == {("atoll", 2)}
    pytest.importorskip("torch")
    from benchmarks.peers import torch_work

    theirs = given.Given("W1", method, 1, 1, "", "")
    vars(theirs)["facts"] = {"lr": 0.05}
    got = torch_work.optimizer(
        theirs, torch_work.Network("W1").parameters(), theirs.optimizer["lr"]
    )
    plain = Job(
        LinearTrainer("multinomial", 2, classes=2), local=LocalWork(1, optimizer=Optimizer(lr=0.05))
    )
    own = one.chosen(plain, method, (), ()).local.optimizer
    assert type(got).__name__.lower() == own.name
    assert got.defaults["lr"] == own.lr == {"momentum": 0.05, "adam": 0.001}[method]
    assert got.defaults.get("momentum", 0.0) == own.momentum
    assert got.defaults.get("betas", own.betas) == own.betas


def test_a_peer_that_does_not_install_is_named_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "HOME", tmp_path)
    monkeypatch.setattr(environments, "_call", lambda *command: "ERROR: no matching distribution")
    assert environments.ensure(["pfl"]) == ({}, {"pfl": "ERROR: no matching distribution"})
    assert not (tmp_path / "pfl" / ".made").exists()


def test_every_package_of_a_peer_is_pinned():
    wanted = [p for e in environments.ENVIRONMENTS.values() for p in e.packages]
    assert all("==" in package for package in wanted)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_left_its_tree_is_found_by_its_tag_and_ended():
    tag = f"test-{time.monotonic_ns()}"
    leave = "import os, time; os.fork() and os._exit(0); os.setsid(); time.sleep(60)"
    subprocess.run([sys.executable, "-c", leave], env={watch.TAG: tag}, check=True)
    assert len(watch.tagged(tag)) == 1
    assert watch.held(tag) > 0
    watch.end(tag, patience=0.1)
    assert watch.tagged(tag) == []


def test_the_page_keeps_the_tables_of_workloads_that_were_not_run_again(tmp_path):
    pytest.importorskip("matplotlib")
    store, picture = tmp_path / "tables.json", tmp_path / "figures" / "peers.svg"
    page.keep(store, "W4", "fedavg", two_turns(flower_loss=0.6), "first")
    page.keep(store, "W1", "fedavg", two_turns(flower_loss=0.6), "second")
    page.keep(store, "W1", "fedavg", two_turns(), "third")
    text = "\n".join(page.section(page.kept(store), picture))
    assert [text.find(word) >= 0 for word in ("first", "second", "third")] == [True, False, True]
    assert text.find("| W1, fedavg |") < text.find("| W4, fedavg |")
    assert text.count("Not as it should be") == 1
    assert "(figures/peers.svg)" in text
    assert picture.read_text().count(">Flower, 2<") == 2
