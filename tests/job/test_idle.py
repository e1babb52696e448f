"""A key of a job file that another key leaves without effect is refused."""

from __future__ import annotations

from typing import Any

import pytest

from atoll.core.errors import JobConflict, JobError
from atoll.job import schema
from atoll.job.idle import _ONLY_BESIDE, _ONLY_WITH
from atoll.job.load import parse_job

VAIN: list[tuple[str, dict[str, Any]]] = [
    ("rounds.size", {"rounds": {"size": 2}}),
    ("rounds.size", {"rounds": {"cohort": "poisson", "rate": 0.5, "size": 2}}),
    ("rounds.rate", {"rounds": {"rate": 0.5}}),
    ("rounds.cohort_weights", {"rounds": {"cohort_weights": {"east": 1.0}}}),
    ("rounds.quorum", {"rounds": {"mode": "async", "quorum": 2}}),
    ("rounds.size", {"rounds": {"mode": "async", "size": 2}}),
    ("rounds.deadline", {"rounds": {"mode": "async", "deadline": 2}}),
    ("rounds.buffer", {"rounds": {"buffer": 2}}),
    ("rounds.max_staleness", {"rounds": {"max_staleness": 0}}),
    ("rounds.over_selection", {"rounds": {"mode": "async", "over_selection": 0.1}}),
    ("local.momentum", {"local": {"optimizer": "adam", "momentum": 0.9}}),
    ("local.nesterov", {"local": {"nesterov": True}}),
    ("local.nesterov", {"local": {"optimizer": "adam", "nesterov": True}}),
    ("local.betas", {"local": {"betas": [0.5, 0.9]}}),
    ("local.eps", {"local": {"eps": 1e-6}}),
    ("local.epochs", {"local": {"epochs": 2.0, "steps": 3}}),
    ("local.schedule.every", {"local": {"schedule": {"every": 5}}}),
    ("local.schedule.floor", {"local": {"schedule": {"kind": "step", "floor": 0.1}}}),
    ("preprocessing.fill", {"preprocessing": {"fill": 3.0}}),
    ("privacy.clip_by", {"privacy": {"clip_by": "layer"}}),
    ("privacy.quantile", {"privacy": {"clip": 1.0, "quantile": 0.9}}),
    ("clock.delay.kind", {"clock": {"delay": {"kind": "exponential"}}}),
    ("clock.delay.sigma", {"clock": {"delay": {"scale": 1.0, "sigma": 2.0}}}),
    ("clock.partial_low", {"clock": {"partial_low": 0.3}}),
    ("stop.min_delta", {"stop": {"min_delta": 0.1}}),
    (
        "data.stratify",
        {
            "data": {"task": "regression", "target": "dose", "stratify": True},
            "model": {"kind": "linear"},
        },
    ),
    ("data.stratify", {"data": {"test_fraction": 0.0, "stratify": True}}),
    ("data.central_test", {"data": {"test_fraction": 0.0, "central_test": True}}),
    (
        "data.partition.alpha",
        {"data": {"site_column": "", "drop": ["site"], "partition": {"alpha": 0.1}}},
    ),
]


@pytest.mark.parametrize(
    ("place", "tables"), VAIN, ids=[f"{p}-{i}" for i, (p, _) in enumerate(VAIN)]
)
def test_a_key_without_effect_is_refused_with_its_place(spec_of, place, tables):
    with pytest.raises(JobConflict) as caught:
        spec_of(**tables)
    assert [fault.place for fault in caught.value.faults] == [place]


def test_a_table_with_a_fault_does_not_hide_what_is_said_in_vain_in_another(spec_of):
    with pytest.raises(JobError) as caught:
        spec_of(rounds={"count": 0, "size": 2}, local={"nesterov": True})
    assert {fault.place for fault in caught.value.faults} == {"rounds.count", "local.nesterov"}


def test_words_and_places_are_those_of_the_schema(spec_of):
    spec = spec_of()
    plain = spec.model_dump() | {"privacy": spec.privacy.model_dump() | {"client": {}}}
    sections = {
        "data.partition": schema.PartitionSpec,
        "local.schedule": schema.ScheduleSpec,
        "privacy.client": schema.ClientPrivacySpec,
        "clock.delay": schema.DelaySpec,
    }
    for place in {p for row in (*_ONLY_WITH, *_ONLY_BESIDE) for p in row[:2]}:
        table, _, key = place.rpartition(".")
        fields = sections[table].model_fields if table in sections else plain[table]
        assert key in fields
    for _, other, words in _ONLY_WITH:
        table, _, key = other.rpartition(".")
        section = sections.get(table) or type(getattr(spec, table))
        allowed = set(section.model_fields[key].annotation.__args__)
        assert set(words) < allowed


@pytest.mark.parametrize(
    "tables",
    [
        {"rounds": {"size": 0, "rate": 1.0, "quorum": 1}},
        {"local": {"epochs": 1.0, "steps": 3}},
        {"local": {"momentum": 0.9, "nesterov": True}},
        {"clock": {"delay": {"kind": "exponential", "scale": 1.0}}},
        {"rounds": {"mode": "async", "max_aborts": 3, "size": 0, "over_selection": 0.0}},
        {
            "data": {
                "site_column": "",
                "drop": ["site"],
                "partition": {"kind": "iid", "alpha": 0.1, "min_rows": 2},
            }
        },
        {"rounds": {"buffer": 1}, "model": {"loss": "", "lanes": 1}},
    ],
)
def test_what_means_something_or_is_the_default_is_accepted(spec_of, tables):
    assert spec_of(**tables)


def test_a_fit_function_of_ones_own_gets_all_of_the_local_work(folder, spec_of):
    (folder / "vain.py").write_text("def f(*a): ...\nstart = {}\n")
    model = {"kind": "function", **dict.fromkeys(("fit", "evaluate"), "vain.py:f")}
    spec = spec_of(
        model={**model, "initial": "vain.py:start"}, local={"optimizer": "adam", "momentum": 0.9}
    )
    assert spec.local.momentum == 0.9


@pytest.mark.parametrize(
    ("tables", "place"),
    [
        ({"data": {"source": "fcube", "test_fraction": 0.5}}, "data.test_fraction"),
        ({"data": {"source": "synthetic", "central_test": True}}, "data.central_test"),
        ({"data": {"source": "fcube"}, "preprocessing": {"scale": "minmax"}}, "preprocessing"),
    ],
)
def test_rows_that_come_made_are_neither_cut_nor_scaled(tmp_path, tables, place):
    with pytest.raises(JobError) as caught:
        parse_job(tables, folder=tmp_path)
    assert [fault.place for fault in caught.value.faults] == [place]
