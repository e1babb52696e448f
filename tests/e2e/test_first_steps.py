"""What a newcomer does in the first hour and that once told an untruth."""

from __future__ import annotations

import json

import numpy as np
import pytest

import atoll
from atoll.algorithms import FedBuff
from atoll.cli.main import main
from atoll.models.linear import LinearTrainer
from atoll.report.folder import RunFolder


def levels(rows=40):
    """y = x + a level of the site: only a personal intercept can fit both sites."""
    rng = np.random.default_rng(3)
    made = {}
    for site, level in {"low": -5.0, "high": 5.0}.items():
        x = rng.normal(size=(rows, 1))
        made[site] = atoll.Examples(x, x[:, 0] + level)
    return made


def linear(**options):
    chosen = {"stop": atoll.Stop(rounds=40), "compare": True} | options
    work = atoll.LocalWork(batch_size=0, epochs=5, optimizer=atoll.Optimizer(lr=0.2))
    return atoll.Job(local=work, **{"trainer": LinearTrainer("linear", 1)} | chosen)


def test_a_model_trained_alone_is_judged_with_its_personal_entries():
    rows = levels()
    personal = LinearTrainer("linear", 1, personal=("intercept",))
    run = atoll.simulate(linear(trainer=personal), rows, held_out=rows)
    low = run.manifest["comparison"]["sites"]["low"]
    assert low["alone"]["loss"] < 1e-6
    assert low["federated"]["loss"] < 1e-6
    assert low["pooled"]["loss"] == pytest.approx(
        25, rel=0.05
    )  # one intercept, near 0, misses by 5


def test_reporting_twice_into_a_folder_keeps_one_record_per_round(tmp_path):
    run = atoll.simulate(linear(), levels())
    for _ in range(2):
        page = run.report(tmp_path / "run")
    assert page.is_file()
    assert [r["round"] for r in RunFolder.open(tmp_path / "run").read_rounds()] == [*range(1, 41)]


def test_a_client_still_at_work_in_an_asynchronous_run_is_not_called_lost():
    clock = atoll.Clock(delay=atoll.Delay("exponential", scale=1.0))
    schedule = atoll.Asynchronous(buffer=1)
    job = linear(algorithm=FedBuff(), schedule=schedule, clock=clock)
    run = atoll.simulate(job, levels())
    assert len(run.rounds[-1]["contributed"]) < len(run.rounds[-1]["invited"])
    assert run.status == "completed"


def test_a_client_that_left_for_good_is_named():
    spans = {"low": ((0.0, 1e9),), "high": ((0.0, 4.5),)}
    clock = atoll.Clock(delay=atoll.Delay(scale=1.0), availability=atoll.Availability(1.0, spans))
    run = atoll.simulate(linear(clock=clock, stop=atoll.Stop(rounds=10)), levels())
    assert run.status.startswith("completed without high from round ")


def test_the_printed_json_is_json_where_a_metric_is_undefined(tmp_path, capsys):
    rows = ["site,x,y"]
    for site, count in {"few": 2, "many": 20}.items():
        rows += [f"{site},{i},{2 * i}" for i in range(count)]
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "job.toml").write_text(
        '[data]\nsource = "rows.csv"\nsite_column = "site"\ntarget = "y"\ntask = "regression"\n'
        '[model]\nkind = "linear"\n'
    )
    out = tmp_path / "run"
    assert main(["run", str(tmp_path / "job.toml"), "--out", str(out), "--quiet", "--json"]) == 0

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    printed = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert printed["comparison"]["sites"]["few"]["alone"]["r2"] is None


def test_the_manifest_names_the_executor_that_ran(tmp_path):
    run = atoll.simulate(linear(compare=False), levels(), executor="processes", workers=1)
    assert run.manifest["executor"] == "processes"
    assert run.job.hash() == linear(compare=False).hash()
