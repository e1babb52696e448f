"""``atoll node ledger``: limits, what is left, checks; and a job of epsilon 3 at a real server."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pytest

import atoll
from atoll.cli.main import main
from atoll.node.datasets import Datasets
from atoll.node.home import Home
from atoll.node.policy.ledger import Charge
from atoll.node.policy.ledger_file import Ledger
from atoll.server import admin
from atoll.wire.identity import Identity

sys.path.insert(0, str(Path(__file__).parent))

from live_server import live
from test_node import TABLE, started

EVENT = {"kind": "stated", "epsilon": 1.0, "delta": 0.0, "count": 1}


@pytest.fixture
def home(tmp_path) -> Home:
    made = Home(tmp_path / "node")
    made.make()
    Identity.create(made.identity)
    return made


@pytest.fixture
def run(home, capsys):
    def run(*words):
        status = main(["node", "ledger", *map(str, words), "--home", str(home.path)])
        return status, *capsys.readouterr()

    return run


def spend(home: Home, rounds: int, **more) -> Ledger:
    ledger = Ledger(home.ledger, Identity.load(home.identity), now=lambda: 0.0)
    for number in range(rounds):
        given = {"job": "ab" * 32, "run": "r1", "researcher": "ana", **more}
        ledger.reserve(Charge(f"r1.{number}", "heart", "record", (EVENT,), round=number, **given))
        ledger.release(f"r1.{number}", "c" * 64)
    return ledger


@pytest.mark.parametrize(
    "words",
    [
        ["ledger", "show"],
        ["ledger", "verify"],
        ["ledger", "limit", "heart", "--epsilon", "3", "--delta", "1e-5"],
        ["log", "show"],
        ["log", "verify"],
    ],
)
def test_a_folder_that_is_no_node_s_is_told_to_join_and_is_given_no_limit(words, tmp_path, capsys):
    assert main(["node", *words, "--home", str(tmp_path / "nowhere")]) != 0
    assert "has not joined a federation" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_a_limit_is_set_shown_and_taken_away(home, run):
    pytest.importorskip("dp_accounting")
    spend(home, 2)
    status, out, err = run("limit", "heart", "--epsilon", 3, "--delta", "1e-5")
    assert status == 0
    assert re.split(r"  +", out.splitlines()[1])[:4] == [
        "heart",
        "epsilon 3 at delta 1e-05 for one record",
        "2.00",
        "1.00",
    ]
    assert "no dataset is registered as 'heart' yet" in err
    status, out, err = run("limit", "heart", "--epsilon", 2.5, "--delta", "1e-5", "--json")
    assert "before: epsilon 3 at delta 1e-05" in err
    told = json.loads(out)
    assert (told["epsilon"], told["rounds"], told["researchers"]) == (2.5, 2, ["ana"])
    assert told["left"] == pytest.approx(0.5, abs=1e-3)
    assert json.loads(run("show", "--json")[1])["datasets"] == [told]
    assert json.loads(run("show", "lung", "--json")[1])["datasets"] == []
    assert run("limit", "heart", "--remove")[0] == 0
    assert json.loads(run("show", "--json")[1])["datasets"][0]["epsilon"] is None
    assert run("limit", "heart", "--remove")[0] == 9


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("limit", "heart"), 2),
        (("limit", "heart", "--epsilon", 3), 2),
        (("limit", "heart", "--epsilon", -3, "--delta", "1e-5"), 3),
        (("limit", "heart", "--epsilon", 3, "--delta", 2), 3),
        (("limit", "heart", "--epsilon", 3, "--delta", "1e-5", "--unit", "rows"), 3),
    ],
)
def test_what_is_no_limit_has_its_status(run, words, status):
    assert run(*words)[0] == status


def test_each_round_is_listed(home, run):
    spend(home, 2)
    lines = run("show", "--entries")[1].splitlines()
    assert lines[0].split() == [
        "when",
        "dataset",
        "unit",
        "state",
        "round",
        "run",
        "job",
        "by",
        "federation",
        "events",
    ]
    assert lines[2].split()[2:] == [
        "heart",
        "record",
        "released",
        "1",
        "r1",
        "abababababab",
        "ana",
        "stated",
    ]
    entries = json.loads(run("show", "--entries", "--json")[1])["entries"]
    assert [(e["state"], e["answer"]) for e in entries] == [("released", "c" * 64)] * 2


def test_verify_names_the_bad_line_and_knows_a_later_head(home, run):
    status, out, err = run("verify")
    assert (status, out.splitlines()[0]) == (0, "ledger   0 lines, as they were written")
    early = str(spend(home, 1).head)
    old = home.ledger.read_bytes(), home.ledger.with_name("ledger.jsonl.head").read_bytes()
    later = str(more(home))
    assert run("verify", "--seen", early)[0] == run("verify", "--seen", later)[0] == 0
    status, out, err = run("verify", "--json")
    assert json.loads(out)["ledger"] == {"lines": 4, "torn": False, "head": later}
    raw = home.ledger.read_bytes()
    home.ledger.write_bytes(raw.replace(b'"round":0', b'"round":9', 1))
    status, out, err = run("verify")
    assert (status, "line 1: was changed" in err) == (5, True)
    home.ledger.write_bytes(old[0])
    assert run("show")[0] == 5  # an old copy, beside the newest head
    home.ledger.with_name("ledger.jsonl.head").write_bytes(old[1])
    assert run("verify")[0] == 0  # nothing in the folder tells
    status, out, err = run("verify", "--seen", later)
    assert (status, "line 4 was seen elsewhere" in err) == (5, True)
    assert run("verify", "--seen", "no head")[0] == 8


def more(home: Home):
    ledger = Ledger(home.ledger, Identity.load(home.identity), now=lambda: 0.0)
    ledger.reserve(Charge("r1.5", "heart", "record", (EVENT,), "ab" * 32))
    ledger.release("r1.5", "d" * 64)
    return ledger.head


LIMIT = ("--unit", "site", "--epsilon", 3, "--delta", "1e-5")
JOB = """
name = "private"
seed = 1
[data]
source = "toy.csv"
target = "sick"
test_fraction = 0.3
[preprocessing]
mode = "site"
[model]
kind = "logistic"
[algorithm]
name = "fedavg"
weights = "uniform"
[rounds]
count = 50
[privacy]
clip = 1.0
[privacy.client]
epsilon = 3.0
delta = 1e-5
[evaluation]
federated = false
compare = false
"""


@pytest.mark.slow
def test_a_job_of_epsilon_3_over_50_rounds_stops_at_3_and_the_next_one_is_refused_by_what_is_left(
    tmp_path, capsys, monkeypatch
):
    pytest.importorskip("dp_accounting")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("ATOLL_NODE_HOME", str(tmp_path / "node"))
    home, job, table = Home(tmp_path / "node"), tmp_path / "job.toml", tmp_path / "toy.csv"
    table.write_text(TABLE)
    job.write_text(JOB)

    def node(*words):
        status = main(["node", *map(str, words)])
        return status, *capsys.readouterr()

    with live(tmp_path / "server") as server:

        def code(name, role):
            return admin.invite(server, name, role, 1.0, time.time())

        assert node("join", code("east", "site"))[0] == 0
        assert node("data", "add", "toy", table)[0] == 0
        assert node("ledger", "limit", "toy", *LIMIT)[0] == 0
        process = started(home.path)
        try:
            with atoll.connect(tmp_path / "ana", code=code("ana", "researcher")) as ana:
                untrusting = ana.wait(ana.submit(job, sites=["east"]))
                assert untrusting.status == "failed"
                assert "policy.server_noise" in untrusting.reason
            process.terminate()
            assert process.wait(45) == 0
            home.settings.write_text("[policy]\nserver_noise = true\n")
            process = started(home.path)
            with atoll.connect(tmp_path / "ana") as ana:
                done = ana.wait(ana.submit(job, sites=["east"]))
                assert (done.status, done.rounds) == ("completed", 50), done.reason
            job.write_text(JOB.replace("count = 50", "count = 1").replace("private", "next"))
            with atoll.connect(tmp_path / "ben", code=code("ben", "researcher")) as ben:
                refused = ben.wait(ben.submit(job, sites=["east"]))
            assert refused.status == "failed"
            assert "dataset 'toy' has epsilon 0.0" in refused.reason
            assert "by ben" in refused.reason
            told = json.loads(node("ledger", "show", "--json")[1])["datasets"][0]
            assert (told["rounds"], told["researchers"]) == (50, ["ana"])
            assert 2.99 < told["spent"] <= 3.0
            status, _, err = node("ledger", "verify", "--ask")
            assert (status, "asked the server" in err) == (0, True)
        finally:
            process.terminate()
            process.wait(45)


def test_a_limit_for_a_misspelt_dataset_says_which_one_it_does_not_hold_for(home, run, tmp_path):
    (tmp_path / "heart.csv").write_text("age\n50\n")
    Datasets(home.datasets).add("heart", tmp_path / "heart.csv")
    _, _, err = run("limit", "haert", "--epsilon", 3, "--delta", "1e-5")
    assert "did you mean 'heart'?" in err
    assert "did you mean" not in run("limit", "heart", "--epsilon", 3, "--delta", "1e-5")[2]
