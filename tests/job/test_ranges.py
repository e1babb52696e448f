"""Parts of a job refuse what a job file refuses, whoever makes them."""

from __future__ import annotations

import dataclasses
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from atoll import Availability, Clock, Cohort, Delay, Job, LocalWork, Optimizer, Stop, Weighting
from atoll.core.errors import JobError
from atoll.core.local import Schedule as RateSchedule
from atoll.core.seeds import Seed
from atoll.job import schema
from atoll.job.declared import ClientPrivacy, MetricsPrivacy, Privacy, RowPrivacy
from atoll.job.load import parse_job
from atoll.models.linear import LinearTrainer
from atoll.runtime.schedule import Asynchronous, Synchronous

WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (Asynchronous, {"max_staleness": -1}, "rounds.max_staleness"),
    (Asynchronous, {"buffer": 1.5}, "rounds.buffer"),
    (Asynchronous, {"concurrency": -1}, "rounds.concurrency"),
    (Asynchronous, {"patience": 0.0}, "rounds.patience"),
    (Synchronous, {"quorum": nan}, "rounds.quorum"),
    (Synchronous, {"quorum": "all"}, "rounds.quorum"),
    (Synchronous, {"over_selection": nan}, "rounds.over_selection"),
    (Synchronous, {"deadline": 0}, "rounds.deadline"),
    (Synchronous, {"cohort": 5}, "rounds.cohort"),
    (Cohort, {"kind": "uniform", "size": 2.5}, "rounds.size"),
    (Cohort, {"kind": "poisson", "rate": nan}, "rounds.rate"),
    (Cohort, {"kind": "weighted", "weights": {"a": 1.0, "b": -1.0}}, "rounds.cohort_weights.b"),
    (Cohort, {"kind": "weighted", "weights": [1.0, 2.0]}, "rounds.cohort_weights"),
    (Weighting, {"kind": "given", "given": {"a": -1.0}}, "algorithm.weights.a"),
    (Weighting, {"kind": "exmaples"}, "algorithm.weights"),
    (Privacy, {"clip": nan}, "privacy.clip"),
    (Privacy, {"clip": -1}, "privacy.clip"),
    (Privacy, {"aggregation": "maskd"}, "privacy.aggregation"),
    (Privacy, {"client": 1.0}, "privacy.client"),
    (Privacy, {"bits": 16}, "privacy.bits"),
    (ClientPrivacy, {"where": "srv"}, "privacy.client.where"),
    (ClientPrivacy, {"noise_multiplier": -1.0}, "privacy.client.noise_multiplier"),
    (RowPrivacy, {"delta": 0}, "privacy.record.delta"),
    (MetricsPrivacy, {"every": 0}, "privacy.metrics.every"),
    (MetricsPrivacy, {"evaluations": -1}, "privacy.metrics.evaluations"),
    (LocalWork, {"batch_size": 2.5}, "local.batch_size"),
    (LocalWork, {"steps": 0}, "local.steps"),
    (LocalWork, {"epochs": nan}, "local.epochs"),
    (LocalWork, {"drop_last": "no"}, "local.drop_last"),
    (Optimizer, {"momentum": 1.5}, "local.momentum"),
    (Optimizer, {"weight_decay": -1}, "local.weight_decay"),
    (Optimizer, {"lr": inf}, "local.lr"),
    (Optimizer, {"betas": (0.9, 1.0)}, "local.betas"),
    (Optimizer, {"betas": 0.9}, "local.betas"),
    (RateSchedule, {"kind": "step", "gamma": 0}, "local.schedule.gamma"),
    (Clock, {"delay": 1.0}, "clock.delay"),
    (Clock, {"dropout": 1}, "clock.dropout"),  # an asynchronous run waited for somebody for ever
    (Availability, {"probability": "0.5"}, "clock.availability"),
    (Clock, {"availability": 0.5}, "clock.availability"),
    (Availability, {"intervals": {"a": (0, 5)}}, "clock.availability_trace.a"),
    (Availability, {"intervals": {"a": ((5, 0),)}}, "clock.availability_trace.a"),
    (Availability, {"intervals": {"a": ((0, 5), (8,))}}, "clock.availability_trace.a"),
    (Delay, {"kind": "trace", "trace": {"a": (1.0,), "b": ()}}, "clock.delay.trace.b"),
    (Delay, {"kind": "trace", "trace": {"a": ("1",)}}, "clock.delay.trace.a"),
    (Delay, {"kind": "trace", "trace": {"a": 1.0}}, "clock.delay.trace.a"),
    (Delay, {"kind": "trace", "trace": [1.0]}, "clock.delay.trace"),
    (Delay, {"kind": "trace", "trace": None}, "clock.delay.trace"),
    (Availability, {"intervals": [(0, 5)]}, "clock.availability_trace"),
    (Cohort, {"kind": np.array(["all", "uniform"])}, "rounds.cohort"),
    (LocalWork, {"schedule": "cosine"}, "local.schedule"),
    (Optimizer, {"name": 3}, "local.optimizer"),
    (Stop, {"metric": 5}, "stop.metric"),
    (LinearTrainer, {"kind": "logistic", "features": 3, "l2": -1}, "model.l2"),
    (LinearTrainer, {"kind": "logistik", "features": 3}, "model.kind"),
    (Stop, {"rounds": 0}, "stop.rounds"),
    (Stop, {"patience": -1}, "stop.patience"),
    (Stop, {"seconds": nan}, "stop.seconds"),
]


@pytest.mark.parametrize(
    ("part", "options", "place"), WRONG, ids=[f"{p.__name__}-{o}" for p, o, _ in WRONG]
)
def test_an_option_out_of_range_is_refused_where_the_part_is_made(part, options, place):
    with pytest.raises(JobError) as caught:
        part(**options)
    (fault,) = caught.value.faults
    assert fault.place == place
    assert fault.message
    assert fault.remedy


def test_all_that_is_wrong_with_a_part_is_told_together_with_value_reason_and_remedy():
    with pytest.raises(JobError) as caught:
        LocalWork(epochs=0, batch_size=2.5, optimizer="adam", clip_norm=-1)
    assert str(caught.value).splitlines() == [
        "options of LocalWork: 4 faults",
        "  - local.epochs: 0 is not in (0, inf) (give a number, above 0)",
        "  - local.batch_size: 2.5 is not a whole number (give a whole number, at least 0)",
        "  - local.optimizer: 'adam' is no Optimizer (give an object of that class, such as Optimizer())",
        "  - local.clip_norm: -1 is not in [0, inf) (give a number, at least 0)",
    ]


def test_a_job_tells_its_own_options_beside_the_parts_that_do_not_belong_to_it():
    wrong: Any = {"stop": 5, "seed": -1, "name": 3, "evaluate_every": 1.5, "checkpoint_every": -1}
    wrong |= dict.fromkeys(("central", "federated", "compare"), 1)
    wrong |= dict.fromkeys(("cluster", "definition", "islands", "study", "start", "aggregation"), 5)
    wrong["executor"] = "serial"
    with pytest.raises(JobError) as caught:
        Job(LinearTrainer("linear", 1), **wrong)
    assert {fault.place for fault in caught.value.faults} == set(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        ("serial",),
        ("serial", "2", "auto"),
        ("serial", -1, "auto"),
        ("serial", 0, "frok"),
        (1, 0, "auto"),
    ],
)
def test_an_executor_that_is_no_name_workers_and_method_is_refused_and_shown_how(
    wrong: Any,
) -> None:
    with pytest.raises(JobError) as caught:
        Job(LinearTrainer("linear", 1), executor=wrong)
    (fault,) = caught.value.faults
    assert fault.place == "executor"
    assert "('processes', 0, 'auto')" in fault.remedy
    assert Job(LinearTrainer("linear", 1), executor=("processes", 0, "spawn")).executor[1] == 0


def test_numbers_of_numpy_are_numbers():
    assert LocalWork(np.float32(2), np.int64(3), np.int32(8)).steps == 3
    assert Optimizer(lr=np.float64(0.1), nesterov=np.bool_(False)).lr == 0.1
    assert Delay("trace", trace={"a": np.array([1.0, 2.0])}).draw(Seed(0), "a", 1, 1) == 2.0
    assert Availability(intervals={"a": (), "b": np.array([[0.0, 5.0]])}).awake(1.0) == 1.0


PARTS: dict[type, tuple[type[schema.Section], ...]] = {
    Optimizer: (schema.LocalSpec,),
    LocalWork: (schema.LocalSpec,),
    RateSchedule: (schema.ScheduleSpec,),
    Cohort: (schema.RoundsSpec,),
    Synchronous: (schema.RoundsSpec,),
    Asynchronous: (schema.RoundsSpec,),
    Delay: (schema.DelaySpec,),
    Availability: (schema.ClockSpec,),
    Clock: (schema.ClockSpec,),
    Stop: (schema.StopSpec, schema.RoundsSpec),
    Privacy: (schema.PrivacySpec,),
    ClientPrivacy: (schema.ClientPrivacySpec,),
    RowPrivacy: (schema.RowPrivacySpec,),
    MetricsPrivacy: (schema.MetricsPrivacySpec,),
}
KEYS = {
    (Cohort, "kind"): "cohort",
    (Cohort, "weights"): "cohort_weights",
    (Availability, "probability"): "availability",
    (Stop, "rounds"): "count",
    (Stop, "seconds"): "virtual_seconds",
}
OTHERWISE = {  # objects, files and names that are checked elsewhere
    (LocalWork, "optimizer"), (LocalWork, "schedule"), (Optimizer, "name"), (Synchronous, "cohort"),
    (Delay, "trace"), (Clock, "delay"), (Clock, "availability"), (Stop, "metric"), (Privacy, "client"),
    (Privacy, "record"), (Privacy, "metrics"),
}  # fmt: skip
WIDER = {  # in Python: no step at all; what a file says by leaving a key out
    (Optimizer, "lr"): (0,),
    (Synchronous, "deadline"): (inf,),
    (Stop, "seconds"): (inf,),
}
NARROWER = {(Synchronous, "quorum"): (1.5, 9.5)}  # a file's by what it becomes
NONE = {(Synchronous, "deadline"), (Stop, "seconds")}
NUMBERS = (-inf, -1, -0.5, 0, 0.5, 1, 1.0, 1.5, 8, 9, 9.5, inf, nan)
VALUES = (
    *NUMBERS,
    True,
    False,
    "1",
    "plain",
    None,
    {"a": 1.0},
    {"a": -1.0},
    {"a": "1"},
    (0.5, 1.0),
    (0, 0.5),
    (0.5,),
)

SHARED = [
    (part, field.name, section, key)
    for part, sections in PARTS.items()
    for field in dataclasses.fields(part)
    for section in sections
    if (key := KEYS.get((part, field.name), field.name)) in section.model_fields
    and (part, field.name) not in OTHERWISE
]


def accepts(make: Any, name: str, value: object) -> bool:
    try:
        make(**{name: value})
    except (JobError, ValidationError):
        return False
    return True


@pytest.mark.parametrize(
    ("part", "name", "section", "key"), SHARED, ids=[f"{p.__name__}.{n}" for p, n, _, _ in SHARED]
)
def test_a_part_and_a_job_file_accept_the_same_values(part, name, section, key):
    apart = (*WIDER.get((part, name), ()), *NARROWER.get((part, name), ()))
    for value in VALUES:
        if value in apart or (value is None and (part, name) in NONE):
            continue
        assert accepts(part, name, value) == accepts(section, key, value), value


def test_every_option_that_a_file_has_too_is_compared():
    shared = {(part, name) for part, name, _, _ in SHARED}
    fields = {(part, f.name) for part in PARTS for f in dataclasses.fields(part)}
    alone = {(RowPrivacy, "beside"), (Privacy, "bits"), (Availability, "intervals")}
    alone |= {
        (MetricsPrivacy, "every"),
        (MetricsPrivacy, "evaluations"),
        (Asynchronous, "patience"),
    }
    assert fields - shared == alone | OTHERWISE


@pytest.mark.parametrize("quorum", [1.5, 2.5])
def test_a_quorum_of_a_file_that_is_no_number_of_updates_is_told_before_data_are_read(quorum):
    raw = {"data": {"source": "nowhere.csv", "target": "y"}, "rounds": {"quorum": quorum}}
    with pytest.raises(JobError, match="neither a whole number nor a share"):
        parse_job(raw, folder=Path("."))
