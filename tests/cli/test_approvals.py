"""``atoll node jobs`` beside a real server: a job with code of its own waits for the steward."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

import atoll
from atoll.cli.main import main
from atoll.server import admin
from atoll.server.web.limits import Limits

sys.path.insert(0, str(Path(__file__).parent))

from live_server import live
from test_node import TABLE, started

JOB = """
name = "own"
seed = 1
[data]
source = "toy.csv"
target = "sick"
[model]
kind = "function"
initial = "own.py:initial"
fit = "own.py:fit"
evaluate = "own.py:evaluate"
[algorithm]
name = "fedavg"
[rounds]
count = 2
[evaluation]
compare = false
"""
CODE = """
import numpy as np


def initial(generator):
    return {"w": np.zeros(2)}


def fit(parameters, data, context):
    return {"w": parameters["w"] + 1}, {"loss": 0.5}


def evaluate(parameters, data):
    return {"loss": float(np.sum(parameters["w"]))}
"""


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("ATOLL_NODE_HOME", str(tmp_path / "node"))

    def run(*words):
        status = main(["node", *map(str, words)])
        return status, *capsys.readouterr()

    return run


def test_a_job_with_code_takes_part_when_the_steward_knows_its_researcher_and_has_approved_it(
    run, tmp_path
):
    home, table, job = tmp_path / "node", tmp_path / "toy.csv", tmp_path / "job.toml"
    table.write_text(TABLE)
    job.write_text(JOB)
    (tmp_path / "own.py").write_text(CODE)

    def code_for(name, role):
        return admin.invite(server, name, role, 1.0, time.time())

    with live(tmp_path / "server", Limits(wait=1.0)) as server:
        assert run("join", code_for("east", "site"))[0] == 0
        assert run("data", "add", "toy", table)[0] == 0
        (home / "node.toml").write_text('[policy]\napproval = "code"\nresearchers = "pinned"\n')
        process = started(home)
        try:
            with atoll.connect(tmp_path / "me", code=code_for("ada", "researcher")) as me:
                told = me.wait(me.submit(job, sites=["east"]))
                assert "the key of ada is not pinned here" in told.reason
                assert "atoll node peers --pin" in told.reason
                assert run("jobs", "list", "--json")[1].strip() == "[]"
                assert run("peers", "--only", "ada")[0] == 0  # which a node that runs sees at once
                told = me.wait(me.submit(job, sites=["east"]))
                (waiting,) = json.loads(run("jobs", "list", "--waiting", "--json")[1])
                digest = waiting["digest"]
                assert told.status == "failed"
                asked = f"has to approve this job first, and was asked (request {digest[:12]})"
                assert f"  - east: its steward {asked}" in told.reason
                assert "jobs         1 to approve" in run("status")[1]
                status, out, _ = run("jobs", "show", digest[:6])
                assert status == 0
                assert "dataset     toy: age, chol, sick" in out
                assert (Path(waiting["files"]) / "own.py").read_text() == CODE
                assert str(Path(waiting["files"]) / "own.py") in out
                assert '"fit": "own.py:fit"' in out
                assert run("jobs", "approve", digest[:6])[0] == 0
                assert run("jobs", "list", "--waiting", "--json")[1].strip() == "[]"
                assert me.wait(me.submit(job, sites=["east"])).status == "completed"
                status, _, err = run("jobs", "deny", digest, "--reason", "no ethics vote")
                assert (status, "is denied" in err) == (0, True)
                told = me.wait(me.submit(job, sites=["east"]))
                assert (told.status, "denied this job: no ethics vote" in told.reason) == (
                    "failed",
                    True,
                )
        finally:
            process.terminate()
            assert process.wait(30) == 0
    assert "no ethics vote" in run("jobs", "list")[1]
    lines = json.loads(run("log", "show", "--json")[1])
    decided = [(e["request"], e["decision"]) for e in lines if e["what"] == "approval"]
    assert decided == [(digest, "approved"), (digest, "denied")]
    assert f"request {digest[:12]} no ethics vote" in run("log", "show")[1]
    assert run("jobs", "approve", "zz")[0] == 9
