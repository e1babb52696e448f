"""What the rule on small counts does beside stopping attacks: refusals, a worker that lies, honest jobs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import telling_site as ts
from telling_site import Told

from atoll.core.contracts import Examples
from atoll.core.errors import AtollError, PolicyError
from atoll.core.metrics import Mean
from atoll.data.readers import read_table
from atoll.data.telling import SUPPRESSED
from atoll.job import deployed
from atoll.job.load import parse_job
from atoll.node.policy.leaving import checked, discreet
from atoll.node.rules import Rule
from atoll.wire.metrics import metrics_from_plain

# Rows that are no table ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "secret"), [(np.arange(60) - 17, "-17"), (np.arange(60) * 2000, "118")]
)
def test_no_value_of_targets_without_a_table_is_told(targets: Any, secret: str) -> None:
    spec = parse_job({"name": "a", "data": {"source": "s/*.npz"}, "model": {"kind": "logistic"}})
    rows = Examples(np.zeros((60, 2)), targets)
    faults = deployed.survey(spec, "east", rows)["faults"]
    assert faults
    assert secret not in str(faults)


# Refusals --------------------------------------------------------------------------------------------


def test_a_small_site_is_refused_by_name_with_the_ways_out_and_without_its_number(
    tmp_path: Path,
) -> None:
    with pytest.raises(AtollError) as caught:
        Told(tmp_path, ts.rows(10), ts.ON).survey()
    words = str(caught.value)
    assert "east" in words
    assert "fewer than 11 persons" in words
    assert "masked" in words
    assert "10" not in words


def test_a_small_site_takes_part_where_its_numbers_are_masked(tmp_path: Path) -> None:
    told = Told(tmp_path, ts.rows(10), ts.ON, privacy={"aggregation": "masked"})
    assert deployed.discretion_of(told.spec, 5, 11).masked
    assert told.survey()["names"]


@pytest.mark.parametrize(
    "unit",
    [
        {"record": {"noise_multiplier": 1.0}},
        {"clip": 1.0, "cap": 100, "client": {"noise_multiplier": 1.0}},
    ],
)
def test_a_job_with_differential_privacy_gets_no_exact_card_and_no_hash_of_the_rows(
    tmp_path: Path, unit: dict[str, Any]
) -> None:
    """Without masks too; means and counts of all rows would be in no epsilon."""
    private = {"aggregation": "plain", **unit}
    over = {
        "privacy": private,
        "evaluation": {"federated": False},
        "preprocessing": {"mode": "site"},
    }
    told = Told(tmp_path / "private", ts.rows(120), ts.ON, **over).ready()
    assert (told["card"], told["notes"], told["fingerprint"]) == ({}, [], "")
    assert told["rows"]
    plain = Told(tmp_path / "plain", ts.rows(120), ts.ON, privacy={"aggregation": "plain"}).ready()
    assert plain["card"]["columns"]
    assert plain["fingerprint"]


def test_figures_of_few_held_out_rows_are_not_told_and_a_note_says_so(tmp_path: Path) -> None:
    found = Told(tmp_path, ts.rows(60), ts.ON, data={"test_fraction": 0.05}).ready()
    assert found["held_out"] == 0
    assert any("figures of its held-out rows are not told" in note for note in found["notes"])
    assert found["rows"] == 57


def test_the_job_may_ask_for_more_persons_than_the_site_and_not_for_fewer(tmp_path: Path) -> None:
    more = {"privacy": {"counts": {"minimum": 70}}}
    with pytest.raises(AtollError, match="fewer than 70"):
        Told(tmp_path / "a", ts.rows(60), ts.ON, **more).survey()
    fewer = {"privacy": {"counts": {"minimum": 1}}}
    with pytest.raises(AtollError, match="fewer than 11"):
        Told(tmp_path / "b", ts.rows(10), ts.ON, **fewer).survey()


def test_a_strict_refusal_names_the_column_and_no_value(tmp_path: Path) -> None:
    ages = ts.changed(60, age={3: "", 5: ""})
    with pytest.raises(AtollError) as caught:
        Told(tmp_path, ages, ts.STRICT, data={"test_fraction": 0.0}).sums()
    assert "column 'age'" in str(caught.value)


# The node does not believe its worker ----------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        {"examples": 3},
        {"answer": {"rows": 3, "card": {}, "held_out": 0}},
        {"answer": {"rows": 90, "card": {"labels": {"yes": 3}}, "held_out": 0}},
        {"answer": {"rows": 90, "card": {"columns": {"a": {"missing": 2}}}, "held_out": 0}},
        {"answer": {"rows": 90, "card": {}, "held_out": 4}},
        {"answer": {"rows": 3.0, "card": {}}},
        {"answer": {"rows": "3", "card": {"missing": {"a": 2}, "columns": ["b"]}}},
    ],
)
def test_what_a_worker_says_of_few_rows_does_not_leave(tmp_path: Path, lie: Any) -> None:
    told = Told(tmp_path, ts.rows(60), ts.ON)
    kind = "ready" if "answer" in lie else "train"
    order = told.order(kind)
    told.write(order, lie)
    with pytest.raises(PolicyError, match="few"):
        checked(order)
    told.data = replace(told.data, rule=ts.OFF)
    order = told.order(kind)
    told.write(order, lie)
    assert checked(order).status == "done"


NET = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.Linear(7, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
"""


@pytest.mark.parametrize("count", [14, 42])
def test_how_batches_fall_does_not_tell_how_many_rows_a_masked_site_has(
    tmp_path: Path, count: int
) -> None:
    (tmp_path / "net.py").write_text(NET)
    over = {
        "model": {"kind": "torch", "factory": "net.py:build"},
        "local": {"batch_size": 64},
        "privacy": {"aggregation": "masked"},
        "data": {"test_fraction": 0.5},
    }
    told = Told(tmp_path, ts.rows(count), ts.ON, **over).agreed()
    rows = read_table(told.data.path)
    sums = deployed.column_sums_at(told.spec, told.schema, "east", rows).vectors
    answer = told.ask("ready", sums)[0]["answer"]
    assert answer["rows"] == 0
    assert not any(str(n) in answer["way"] for n in (count, count // 2))


def test_numbers_in_words_are_taken_out_below_the_minimum_alone() -> None:
    assert discreet("3 of 7 held-out rows, in 2 files", 11) == (
        "fewer than 11 held-out rows, in 2 files"
    )
    assert discreet("11 rows", 11) == "11 rows"
    assert discreet("3 rows", 1) == "3 rows"


# Honest jobs -----------------------------------------------------------------------------------------

HONEST: dict[str, dict[str, Any]] = {
    "a_logistic_regression": {},
    "half_of_the_rows_held_out": {"data": {"test_fraction": 0.5}},
    "nothing_held_out": {"data": {"test_fraction": 0.0}},
    "declared_ranges": {"data": ts.ranged(120)},
    "undeclared_categories": {"data": {"undeclared": ["clan"]}},
    "undeclared_classes": {"data": {"classes": []}},
    "its_own_preprocessing": {"preprocessing": {"mode": "site"}},
    "constants_for_missing_values": {"preprocessing": {"impute": "constant"}},
    "ordinal_codes": {"preprocessing": {"encode": "ordinal", "impute": "constant"}},
    "a_regression": {
        "data": {
            "target": "dose",
            "task": "regression",
            "classes": [],
            "drop": ["patient", "sick"],
        },
        "model": {"kind": "linear"},
    },
}


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("rule", [ts.ON, ts.STRICT, ts.BY_PATIENT], ids=["on", "strict", "persons"])
def test_an_honest_job_is_told_the_same_with_the_rule_and_without(
    name: str, rule: Rule, tmp_path: Path
) -> None:
    table = ts.rows(120)
    with_rule = Told(tmp_path / "on", table, rule, **HONEST[name])
    without = Told(tmp_path / "off", table, ts.OFF, **HONEST[name])
    assert with_rule.agreed().schema == without.agreed().schema
    assert with_rule.ready() == without.ready()
    for key, value in with_rule.sums().items():
        np.testing.assert_array_equal(value, without.sums()[key])


def test_figures_of_an_honest_job_are_told(tmp_path: Path) -> None:
    found = metrics_from_plain(Told(tmp_path, ts.rows(120), ts.ON).evaluated(0.1))
    assert {"loss", "accuracy", "confusion", "auc"} <= set(found)
    assert isinstance(found["loss"], Mean)
    assert found["loss"].weight == 48


def test_missing_values_here_and_there_do_not_stop_training_under_the_default_rule(
    tmp_path: Path,
) -> None:
    told = Told(tmp_path, ts.changed(60, age={3: "", 5: ""}, clan={1: "", 2: "rare"}), ts.ON)
    found = told.ready()
    assert found["rows"] == 36
    assert found["card"]["columns"]["age"]["missing"] == SUPPRESSED
    assert found["card"]["columns"]["dose"]["mean"] != SUPPRESSED
