"""Tables of a job become objects, and its parts are held against its federation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll import Availability, Clock, Cohort, Delay, Job, LocalWork, Optimizer, Stop, Weighting
from atoll.algorithms import FedAvg, FedProx
from atoll.core.contracts import Examples
from atoll.core.errors import JobError
from atoll.core.local import Schedule as RateSchedule
from atoll.core.seeds import Seed
from atoll.job import load_job
from atoll.job.from_file import job_from_spec
from atoll.job.load import parse_job
from atoll.models.function import FunctionTrainer
from atoll.models.linear import LinearTrainer
from atoll.runtime.schedule import Asynchronous, Synchronous


def places(faults):
    return [fault.place for fault in faults]


def test_tables_become_objects(job_file):
    job = load_job(
        job_file("""
[local]
epochs = 2.5
batch_size = 4
optimizer = "adam"
lr = 0.2
betas = [0.8, 0.9]
[local.schedule]
kind = "cosine"
every = 5
[algorithm]
weights = { east = 1, north = 2, south = 3.5 }
[rounds]
count = 7
cohort = "uniform"
size = 2
over_selection = 0.5
deadline = 9
quorum = 0.5
[stop]
metric = "federated.auc"
patience = 3
[evaluation]
every = 2
compare = false
[checkpoint]
every = 4
[executor]
name = "processes"
workers = 2
""")
    )
    assert job.local == LocalWork(
        epochs=2.5, batch_size=4, optimizer=Optimizer("adam", lr=0.2, betas=(0.8, 0.9)),
        schedule=RateSchedule(kind="cosine", every=5),
    )  # fmt: skip
    assert job.weighting == Weighting("given", {"east": 1.0, "north": 2.0, "south": 3.5})
    assert job.schedule == Synchronous(Cohort("uniform", 2), 0.5, 9.0, 0.5)
    assert job.stop == Stop(rounds=7, metric="federated.auc", patience=3)
    assert (job.evaluate_every, job.compare, job.checkpoint_every) == (2, False, 4)
    assert job.executor == ("processes", 2, "auto")


def test_asynchronous_rounds(job_file):
    job = load_job(job_file("[rounds]\nmode = 'async'\nbuffer = 3\nmax_staleness = 4\n"))
    assert job.schedule == Asynchronous(3, 0, 4)


def test_no_deadline_is_for_ever(job_file):
    job = load_job(job_file())
    assert job.schedule == Synchronous()
    assert job.stop.seconds == math.inf


def test_clock_with_traces(folder, job_file):
    (folder / "times.csv").write_text("client,seconds\neast,1\nnorth,2\nsouth,3\neast,4\n")
    (folder / "spans.csv").write_text("client,start,end\neast,0,5\n")
    job = load_job(
        job_file("""
[clock]
availability = 0.9
availability_trace = "spans.csv"
dropout = 0.1
partial = 0.2
partial_low = 0.3
[clock.delay]
kind = "trace"
trace = "times.csv"
""")
    )
    trace = {"east": (1.0, 4.0), "north": (2.0,), "south": (3.0,)}
    assert job.clock == Clock(
        Delay("trace", trace=trace), Availability(0.9, {"east": ((0.0, 5.0),)}), 0.1, 0.2, 0.3
    )


@pytest.mark.parametrize("kind", ["constant", "exponential", "half_normal", "log_normal"])
def test_drawn_delays(job_file, kind):
    job = load_job(job_file(f"[clock.delay]\nkind = '{kind}'\nscale = 2\nper = 'client'\n"))
    assert job.clock == Clock(Delay(kind, 2.0, per="client"))


def rows(n):
    return Examples(np.zeros((n, 1)), np.zeros(n))


TRAINER = LinearTrainer("linear", 1)


def test_federation_that_fits_has_no_faults():
    job = Job(TRAINER, weighting=Weighting("given", {"a": 1.0, "b": 0.0}))
    assert job.faults(TRAINER, {"a": rows(2), "b": rows(1)}, {}) == []


def test_all_conflicts_with_a_federation_come_together():
    job = Job(
        TRAINER,
        weighting=Weighting("given", {"a": 1.0, "stranger": 1.0}),
        schedule=Synchronous(Cohort("weighted", 5, weights={"c": 1.0})),
        clock=Clock(Delay("trace", trace={"a": (1.0,)})),
        stop=Stop(metric="federated.loss"),
    )
    found = places(job.faults(TRAINER, {"a": rows(2), "b": rows(0)}, {}))
    assert sorted(set(found)) == [
        "algorithm.weights", "clock.delay.trace", "data", "rounds", "rounds.cohort_weights",
        "stop.metric"]  # fmt: skip
    assert found.count("algorithm.weights") == 2


def test_weights_that_are_all_zero_and_a_federation_of_nobody():
    job = Job(TRAINER, weighting=Weighting("given", {"a": 0.0}))
    assert places(job.faults(TRAINER, {"a": rows(1)})) == ["algorithm.weights"]
    assert places(Job(TRAINER).faults(TRAINER, {})) == ["data"]


def test_python_job_has_a_canonical_form_of_its_own():
    one, same = Job(TRAINER, FedProx(mu=0.5)), Job(TRAINER, FedProx(mu=0.5))
    assert one.hash() == same.hash()
    assert one.hash() != Job(TRAINER, FedProx(mu=0.6)).hash()
    assert one.hash() != Job(TRAINER, FedAvg()).hash()
    assert one.hash() == Job(TRAINER, FedProx(mu=0.5), executor=("processes", 3, "spawn")).hash()
    assert one.describe()["stop"]["seconds"] == "inf"


def fitted(parameters, data, context):
    return parameters, None


def fitted_otherwise(parameters, data, context):
    return parameters, {"loss": 0.0}


def scored(parameters, data):
    return {"loss": 0.0}


def own(fit, **more):
    return FunctionTrainer({"w": np.zeros(1)}, fit, scored, **more)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Job(LinearTrainer("linear", 2)), Job(LinearTrainer("logistic", 2))),
        (Job(LinearTrainer("linear", 2)), Job(LinearTrainer("linear", 2, l2=0.5))),
        (Job(own(fitted)), Job(own(fitted_otherwise))),
        (Job(own(fitted)), Job(own(fitted, corrects=True))),
        (Job(TRAINER, stop=Stop(np.int64(3))), Job(TRAINER, stop=Stop(np.int64(4)))),
    ],
    ids=["kind", "penalty", "function", "flag", "numpy"],
)
def test_another_trainer_of_the_same_layout_is_another_job(one, other):
    assert one.hash() != other.hash()


def test_what_a_trainer_builds_on_the_way_is_no_part_of_the_job():
    job = Job(own(fitted))
    before = job.hash()
    made = job.trainer.initial(Seed(0))
    job.trainer.evaluate(made, rows(3))
    assert job.hash() == before == Job(own(fitted)).hash()
    assert Job(TRAINER, stop=Stop(np.int64(3))).hash() == Job(TRAINER, stop=Stop(3)).hash()


@pytest.mark.parametrize(
    ("algorithm", "told"),
    [
        ({"name": "fedsgd"}, "takes a gradient"),
        ({"name": "qfedavg"}, "takes the mean loss"),
        ({"name": "scaffold", "option": 1}, "takes a gradient"),
        ({"name": "scaffold", "option": 2}, ""),
        ({"name": "fedavg"}, ""),
        ({"name": "feddyn"}, ""),
    ],
)
def test_an_algorithm_that_asks_rows_for_more_than_training_has_no_account_of_rows(
    algorithm: dict[str, Any], told: str
) -> None:
    """Epsilon is that of the steps of local training; a loss or a gradient beside them would be outside."""
    spec = parse_job(
        {
            "data": {"source": "sites/*.csv", "target": "y"},
            "model": {"kind": "logistic"},
            "evaluation": {"federated": False},
            "algorithm": algorithm,
            "privacy": {"record": {"noise_multiplier": 1.0}},
        }
    )
    found = [fault.message for fault in job_from_spec(spec, Path()).privacy_faults]
    assert len(found) == bool(told)
    assert all(told in message for message in found)


@pytest.mark.parametrize(
    ("how", "outside"),
    [
        ({}, "sums of the columns"),
        ({"mode": "site"}, "each site's preprocessing"),
        ({"mode": "site", "impute": "constant"}, "each site's preprocessing"),
        ({"mode": "site", "impute": "constant", "scale": "none"}, ""),
    ],
)
def test_what_is_fitted_to_all_rows_is_named_outside_the_epsilon_of_one(
    how: dict[str, Any], outside: str
) -> None:
    tables = {
        "data": {"source": "sites/*.csv", "target": "y"},
        "model": {"kind": "logistic"},
        "preprocessing": how,
        "privacy": {"record": {"noise_multiplier": 1.0}},
    }
    told = job_from_spec(parse_job(tables), Path()).outside
    assert len(told) == bool(outside)
    assert all(text.startswith(outside) for text in told)


@pytest.mark.parametrize(
    ("optimizer", "place"),
    [
        (Optimizer("sgdd"), "local.optimizer"),
        (Optimizer("nadam"), "local.optimizer"),
        (Optimizer("adam", momentum=0.9), "local.momentum"),
        (Optimizer("sgd", nesterov=True), "local.nesterov"),
    ],
)
def test_an_optimiser_that_the_trainer_does_not_know_is_told_when_the_job_is_made(
    optimizer: Optimizer, place: str
) -> None:
    """Its name was told by clients of the first round, and momentum of Adam by nobody."""
    local = LocalWork(optimizer=optimizer)
    with pytest.raises(JobError) as caught:
        Job(TRAINER, local=local)
    assert places(caught.value.faults) == [place]
    late = Job(lambda islands: TRAINER, local=local)  # a trainer that is made of the data
    assert places(late.faults(TRAINER)) == [place]
    own = FunctionTrainer({"w": np.zeros(1)}, lambda *a: ({}, None), lambda *a: {})
    assert not Job(own, local=local).faults(own)  # a fit function reads them as it likes


def test_what_a_linear_model_offers_in_python_it_offers_in_a_file(
    folder: Path, job_file: Any
) -> None:
    job = load_job(job_file('[local]\noptimizer = "adagrad"'))
    assert job.local.optimizer.name == "adagrad"


def test_a_trainer_whose_layout_cannot_be_made_says_why() -> None:
    """It was said to lack a layout: an AttributeError inside is no missing method."""

    class Broken(LinearTrainer):
        @property
        def layout(self) -> Any:
            raise AttributeError("no such layer")

    trainer = Broken("linear", 1)
    assert Job(trainer).trainer is trainer
