"""What a newcomer does in the first hour and that once told an untruth."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import atoll
from atoll.algorithms import FedBuff
from atoll.cli.main import main
from atoll.core.errors import (
    ClientError,
    DataError,
    JobConflict,
    JobError,
    NotFound,
    QuorumError,
)
from atoll.data.population import LazyClients
from atoll.models.function import FunctionTrainer
from atoll.models.linear import LinearTrainer
from atoll.models.torch import TorchTrainer
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


AUDIT = {
    "models": 4,
    "rows": 40,
    "membership": {
        "lira": {"tpr": 0.1, "fpr": 0.01, "auc": 0.6},
        "loss": {"tpr": 0.1, "fpr": 0.01, "auc": 0.6},
    },
    "one_run": {"epsilon": 0.5, "delta": 0.0, "confidence": 0.95, "reported": None},
}


def test_a_report_into_an_earlier_runs_folder_takes_nothing_over_from_it(tmp_path):
    folder, rows = tmp_path / "run", levels()
    watched = atoll.Stop(rounds=2, metric="federated.loss")
    first = atoll.simulate(linear(stop=watched), rows, held_out=rows, out=folder)
    RunFolder(folder).write_audit(AUDIT)
    first.report(folder)  # its own folder: what was found out about it stays
    assert {"audit.json", "best.safetensors", "checkpoint"} <= {p.name for p in folder.iterdir()}
    second = atoll.simulate(linear(stop=atoll.Stop(rounds=3)), rows, profile=True)
    page = second.report(folder)
    assert "Audit" not in page.read_text()
    left = {p.name for p in folder.iterdir()}
    assert left == {
        *("manifest.json", "metrics.jsonl", "model.safetensors", "profile.json", "report.html")
    }


def test_of_a_metric_of_ones_own_the_better_model_is_kept():
    def evaluate(parameters, data):
        error = data.features @ parameters["w"] - data.targets
        return {"loss": float(np.mean(error**2)), "worst_error": float(np.abs(error).max())}

    def fit(parameters, data, context):  # worse with every round
        return {"w": parameters["w"] + 1.0}, None

    trainer = FunctionTrainer({"w": np.zeros(1)}, fit, evaluate)
    watched = atoll.Stop(rounds=4, metric="federated.worst_error")
    run = atoll.simulate(linear(trainer=trainer, stop=watched), levels(), held_out=levels())
    assert run.manifest["best"]["round"] == 1


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_each_client_s_own_model_is_to_be_had_by_its_name(executor):
    personal = LinearTrainer("linear", 1, personal=("intercept",))
    run = atoll.simulate(linear(trainer=personal), levels(), executor=executor, workers=2)
    own = {site: run.parameters_of(site) for site in ("low", "high")}
    assert own["low"]["weight"] == pytest.approx(1.0, abs=1e-3) == own["high"]["weight"]
    assert float(own["low"]["intercept"]) == pytest.approx(-5.0, abs=1e-3)
    assert float(own["high"]["intercept"]) == pytest.approx(5.0, abs=1e-3)
    with pytest.raises(NotFound, match="no client 'lo'") as caught:
        run.parameters_of("lo")
    assert "did you mean 'low'?" in caught.value.remedy


def test_rows_may_come_as_lists_frames_or_tensors():
    arrays = levels()
    whole = atoll.simulate(linear(), arrays, held_out=arrays)
    for kind in (np.ndarray.tolist, pd.DataFrame, torch.from_numpy):
        given = {
            site: atoll.Examples(kind(e.features), np.asarray(e.targets).tolist())
            for site, e in arrays.items()
        }
        run = atoll.simulate(linear(), given, held_out=given, central=given["low"])
        assert run.model_hash == whole.model_hash
        assert run.manifest["cards"] == whole.manifest["cards"]
    ragged = {"low": atoll.Examples([[1.0], [1.0, 2.0]], [0.0, 1.0])}
    with pytest.raises(DataError, match="client 'low': rows are no array"):
        atoll.simulate(linear(), ragged)
    with pytest.raises(DataError, match="clients is a list") as caught:
        atoll.simulate(linear(), list(arrays.values()))
    assert "atoll.Examples" in caught.value.remedy


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: linear(stop=5), "5 does not belong there"),
        (lambda: linear(algorithm="fedavg"), "'fedavg' is no algorithm"),
        (lambda: linear(algorithm=FedBuff), "is no algorithm"),
        (lambda: linear(trainer=LinearTrainer), "is no trainer"),
        (lambda: linear(trainer="logistic"), "'logistic' is no trainer"),
        (lambda: linear(trainer=torch.nn.Linear(1, 1)), "a Linear is a module, and no trainer"),
        (
            lambda: linear(trainer=SimpleNamespace(evaluate=1, fit=1)),
            "lacks layout, corrects, init",
        ),
        (lambda: linear(seed=-1), r"-1 is not in \[0, inf\)"),
        (lambda: atoll.LocalWork(epochs="1"), "'1' is not a number"),
        (lambda: atoll.LocalWork(schedule="cosine"), "'cosine' is no Schedule"),
        (lambda: LazyClients(10, make=print, seed=1), "the population's seed is 1"),
        (lambda: atoll.LocalWork(optimizer="adam"), "'adam' is no Optimizer"),
        (lambda: atoll.LocalWork(epochs=0), "give a number, above 0"),
        (lambda: atoll.LocalWork(batch_size=-8), "-8 is not in"),
        (lambda: atoll.Optimizer(lr=-0.1), "-0.1 is not in"),
        (lambda: atoll.Cohort("unifrom", 2), "did you mean 'uniform'"),
        (lambda: atoll.Delay("exponental", 1.0), "did you mean 'exponential'"),
        (lambda: atoll.simulate("job.toml", levels()), "atoll.load_job"),
        (lambda: atoll.simulate(linear(), levels(), workers=-1), "-1 workers"),
        (lambda: atoll.simulate(linear(), levels(), seed="a"), "'a' is not a number"),
    ],
)
def test_what_is_of_another_kind_is_named_before_anything_runs(make, told):
    with pytest.raises(JobError, match=told):
        make()


def _classified(trainer, targets):
    rows = {s: atoll.Examples(np.eye(3), targets) for s in ("low", "high")}
    return atoll.simulate(linear(trainer=trainer), rows)


@pytest.mark.parametrize(
    ("trainer", "targets", "told"),
    [
        (
            LinearTrainer("multinomial", 3, classes=3),
            np.eye(3),
            r"of shape \(3, 3\), and the model",
        ),
        (LinearTrainer("linear", 3), np.eye(3), r"of shape \(3, 3\), and the model has one a row"),
        (LinearTrainer("multinomial", 3, classes=3), [1, 2, 3], "target 3 in row 2 is not a class"),
        (LinearTrainer("logistic", 3), [1, 1, 2], "target 2 in row 2 is not a class in 0..1"),
        (LinearTrainer("logistic", 3), [-1, 1, 1], "target -1 in row 0 is not a class in 0..1"),
        (
            TorchTrainer(torch.nn.Linear(3, 2), classes=2),
            [0, 1, 2],
            "target 2 in row 2 is not a class",
        ),
    ],
)
def test_targets_that_are_no_classes_of_the_model_are_refused_before_training(
    trainer, targets, told
):
    """Some were trained on all the same, and runs went on without the clients that failed."""
    with pytest.raises(JobConflict, match=told):
        _classified(trainer, np.array(targets))


def test_a_column_of_targets_is_one_target_a_row():
    column = LinearTrainer("logistic", 3)
    assert _classified(column, np.array([[0], [1], [1]])).status.startswith("completed")


class Plain(LinearTrainer):
    """A trainer of one's own whose figures are plain numbers."""

    def evaluate(self, parameters, data):
        return {name: figure.value for name, figure in super().evaluate(parameters, data).items()}


def test_plain_numbers_of_a_trainer_of_one_s_own_are_means_over_rows():
    """They ended the run after its first round, in an error of Python."""
    rows = levels()
    given = {"clients": rows, "held_out": rows, "central": rows["low"]}
    own = atoll.simulate(linear(trainer=Plain("linear", 1)), **given)
    usual = atoll.simulate(linear(), **given)
    pd.testing.assert_series_equal(own.metrics["federated.loss"], usual.metrics["federated.loss"])
    assert own.metrics["central.mae"].iloc[-1] == usual.metrics["central.mae"].iloc[-1]


def test_targets_that_are_words_are_refused_with_their_client():
    words = {"low": atoll.Examples(np.zeros((3, 1)), np.array(["yes", "no", "no"]))}
    with pytest.raises(DataError, match="client 'low': targets of dtype <U3 are no numbers"):
        atoll.simulate(linear(), words)


def test_rows_with_gaps_are_named_as_what_keeps_rounds_from_committing():
    def fit(parameters, data, context):
        return {"w": parameters["w"] + data.features.mean(axis=0)}, None

    own = FunctionTrainer({"w": np.zeros(1)}, fit, lambda parameters, data: {"loss": 0.0})
    gaps = {s: atoll.Examples(e.features * np.nan, e.targets) for s, e in levels().items()}
    with pytest.raises(QuorumError, match="low refused") as caught:
        atoll.simulate(linear(trainer=own, stop=atoll.Stop(rounds=2)), gaps)
    assert "missing or infinite values" in caught.value.remedy


def test_a_central_test_that_cannot_be_evaluated_is_no_error_of_atoll_s_own():
    rows = SimpleNamespace(features=[[0.0], [0.0]], targets=[0.0, 0.0])
    with pytest.raises(ClientError, match="on the central test rows failed: TypeError"):
        atoll.simulate(linear(), levels(), central=rows)


def test_a_run_shows_itself_in_a_line(tmp_path):
    run = atoll.simulate(linear(name="study"), levels(), out=tmp_path / "run")
    assert repr(run) == (
        f"<Run 'study': completed, 40 rounds, {run.model_hash[:12]}, in {tmp_path / 'run'}>"
    )


def test_a_target_that_sites_write_as_0_and_as_no_is_told_how_to_be_declared(tmp_path):
    for site, words in {"a": ("0", "1"), "b": ("no", "Yes")}.items():
        lines = ["age,ill", *(f"{20 + i},{words[i % 2]}" for i in range(40))]
        (tmp_path / f"{site}.csv").write_text("\n".join(lines))
    job = tmp_path / "job.toml"
    job.write_text('[data]\nsource = "*.csv"\ntarget = "ill"\n[rounds]\ncount = 1\n')
    with pytest.raises(JobError, match="4 classes") as caught:
        atoll.simulate(atoll.load_job(job))
    (fault,) = caught.value.faults
    assert "[data.columns.ill] type = 'boolean'" in fault.remedy
    with job.open("a") as file:
        file.write('[data.columns.ill]\ntype = "boolean"\n')
    run = atoll.simulate(atoll.load_job(job))
    assert run.inputs.classes == ("false", "true")
