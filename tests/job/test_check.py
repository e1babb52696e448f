"""Metrics that a job may watch are those that its model computes."""

from __future__ import annotations

import pytest

from atoll.core.errors import JobConflict, JobError
from atoll.core.metrics import values
from atoll.core.seeds import Seed
from atoll.job.check import _METRICS
from atoll.job.datasets import load_islands
from atoll.job.registry import trainer_for

REGRESSION = {
    "data": {"target": "dose", "task": "regression", "drop": ["sick"]},
    "model": {"kind": "linear"},
}


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_metrics_that_may_be_watched_are_those_a_model_computes(folder, spec_of, task):
    spec = spec_of(**(REGRESSION if task == "regression" else {}))
    islands = load_islands(spec, folder, 0)
    trainer = trainer_for(spec, islands, folder)
    found = values(trainer.evaluate(trainer.initial(Seed(0)), islands.train["east"]))
    assert set(found) - {"confusion"} == set(_METRICS[task])


@pytest.mark.parametrize("metric", ["federated.auc", "central.loss"])
def test_watched_metric_of_another_task_or_place_is_refused(spec_of, metric):
    with pytest.raises(JobError, match=r"stop\.metric"):
        spec_of(**REGRESSION, stop={"metric": metric})


def test_metric_of_a_fit_function_is_its_own(folder, spec_of):
    (folder / "theirs.py").write_text("def f(*a): ...\nstart = {}\n")
    model = {"kind": "function", "fit": "theirs.py:f", "evaluate": "theirs.py:f",
             "initial": "theirs.py:start"}  # fmt: skip
    assert spec_of(model=model, stop={"metric": "federated.surprise"}).stop.metric


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"drop": ["site"]}, "data.drop"),
        ({"features": ["sick"]}, "data.features"),
        ({"target": "site"}, "data.target"),
        ({"drop": ["age"], "columns": {"age": {}}}, "data.drop"),
        ({"options": {"rows": 3}}, "data.options"),
        ({"source": "synthetic", "site_column": ""}, "data.target"),
    ],
)
def test_keys_of_the_data_that_contradict_each_other(spec_of, data, place):
    with pytest.raises(JobConflict) as caught:
        spec_of(data=data)
    assert place in [fault.place for fault in caught.value.faults]
