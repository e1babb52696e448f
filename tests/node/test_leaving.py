"""Attacks by jobs that train: each learns of few persons where there is no rule, and not where there is one.

An attack is a function of a folder and a rule. It says what it learned, or raises what the site said instead;
what it is after is in its name.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import telling_site as ts
from telling_site import Told

from atoll.core.errors import AtollError
from atoll.data.limbs import COUNT, decode
from atoll.data.telling import SUPPRESSED
from atoll.node.rules import Rule
from atoll.wire.metrics import metrics_from_plain

Attack = Callable[[Path, Rule], bool]
CARD: dict[str, Attack] = {}
SUMS: dict[str, Attack] = {}


def attack(test: Attack) -> Attack:
    """One that the rule stops as it is."""
    CARD[test.__name__] = test
    return test


def on_sums(test: Attack) -> Attack:
    """One on what training in the clear takes: a strict rule stops it."""
    SUMS[test.__name__] = test
    return test


def card(folder: Path, rule: Rule, table: Any, **over: Any) -> dict[str, Any]:
    found: dict[str, Any] = Told(folder, table, rule, **over).ready()["card"]
    return found


# How many there are ----------------------------------------------------------------------------------


@attack
def how_many_rows_a_tiny_site_has(folder: Path, rule: Rule) -> bool:
    return Told(folder, ts.rows(10), rule).ready()["rows"] == 6


@attack
def how_many_patients_with_many_visits_there_are(folder: Path, rule: Rule) -> bool:
    table = ts.rows(60)
    table["patient"] = [f"p{i % 5}" for i in range(60)]
    person = "patient" if rule.minimum > 1 else ""
    told = card(folder, Rule(rule.minimum, person), table)
    return told["rows"] == 60  # each of whose numbers is that of five persons


@attack
def training_on_a_few_rows(folder: Path, rule: Rule) -> bool:
    return bool(Told(folder, ts.rows(20), rule, data={"test_fraction": 0.7}).sums()["rows"][0] == 6)


@attack
def how_the_model_does_on_three_rows(folder: Path, rule: Rule) -> bool:
    found = Told(folder, ts.rows(60), rule, data={"test_fraction": 0.05}).evaluated()
    return metrics_from_plain(found)["accuracy"].value in (0, 1 / 3, 2 / 3, 1)


@attack
def the_loss_of_one_person(folder: Path, rule: Rule) -> bool:
    found = Told(folder, ts.rows(60), rule, data={"test_fraction": 1 / 60}).evaluated()
    return metrics_from_plain(found)["loss"].value == pytest.approx(np.log(2))


# Data cards ------------------------------------------------------------------------------------------


@attack
def how_many_are_sick_where_few_are(folder: Path, rule: Rule) -> bool:
    table = ts.changed(60, sick=dict.fromkeys(range(60), "no") | dict.fromkeys(range(3), "yes"))
    return card(folder, rule, table)["classes"]["yes"] == 3


@attack
def how_many_are_sick_by_subtraction(folder: Path, rule: Rule) -> bool:
    table = ts.changed(60, sick=dict.fromkeys(range(60), "no") | dict.fromkeys(range(3), "yes"))
    found = card(folder, rule, table)
    return found["classes"]["no"] != SUPPRESSED and found["rows"] - found["classes"]["no"] == 3


@attack
def labels_of_the_report(folder: Path, rule: Rule) -> bool:
    table = ts.changed(60, sick=dict.fromkeys(range(60), "no") | dict.fromkeys(range(3), "yes"))
    return card(folder, rule, table)["labels"]["yes"] == 3


@attack
def how_many_are_of_a_rare_clan(folder: Path, rule: Rule) -> bool:
    found = card(folder, rule, ts.changed(60, clan={7: "rare"}))["columns"]["clan"]["counts"]
    return found["rare"] == 1


@attack
def how_many_are_of_a_rare_clan_by_subtraction(folder: Path, rule: Rule) -> bool:
    found = card(folder, rule, ts.changed(60, clan={7: "rare"}))["columns"]["clan"]["counts"]
    others = [found[name] for name in ("north", "south", "west")]
    return SUPPRESSED not in others and 60 - sum(others) == 1


@attack
def how_many_have_no_age(folder: Path, rule: Rule) -> bool:
    found = card(folder, rule, ts.changed(60, age={3: "", 5: ""}))
    return found["columns"]["age"]["missing"] == 2 and found["missing"]["age"] == 2


@attack
def how_many_have_no_age_from_the_denominator_of_the_mean(folder: Path, rule: Rule) -> bool:
    mean = card(folder, rule, ts.changed(60, age={3: "", 5: ""}))["columns"]["age"]["mean"]
    return mean != SUPPRESSED and 58 % Fraction(mean).limit_denominator(60).denominator == 0


@attack
def how_many_have_an_age_at_all(folder: Path, rule: Rule) -> bool:
    table = ts.changed(60, dose=dict.fromkeys(range(60), "") | {4: 1.5, 9: 2.5})
    return card(folder, rule, table)["columns"]["dose"]["missing"] == 58


@attack
def the_dose_of_the_only_one_who_has_one(folder: Path, rule: Rule) -> bool:
    table = ts.changed(60, dose=dict.fromkeys(range(60), "") | {4: 17.25})
    return card(folder, rule, table)["columns"]["dose"]["mean"] == 17.25


@attack
def how_many_smoke_from_a_mean(folder: Path, rule: Rule) -> bool:
    table = ts.changed(60, smokes=dict.fromkeys(range(60), 0.0) | {4: 1.0, 9: 1.0})
    mean = card(folder, rule, table)["columns"]["smokes"]["mean"]
    return mean != SUPPRESSED and mean * 60 == pytest.approx(2)


@attack
def how_often_each_of_three_scores_occurs_from_two_moments(folder: Path, rule: Rule) -> bool:
    scores = [0.0] * 30 + [1.0] * 28 + [2.0] * 2
    found = card(folder, rule, ts.changed(60, dose=dict(enumerate(scores))))["columns"]["dose"]
    if found["mean"] == SUPPRESSED:
        return False
    total, squares = 60 * found["mean"], 60 * (found["sd"] ** 2 + found["mean"] ** 2)
    return bool((squares - total) / 2 == pytest.approx(2))


@attack
def who_is_97_by_a_code_for_missing_values(folder: Path, rule: Rule) -> bool:
    table = ts.changed(60, age={7: 97.0})
    before = card(folder / "a", rule, table)["columns"]["age"]
    coded = {"columns": {"age": {"type": "number", "missing": [97]}}}
    after = card(folder / "b", rule, table, data=coded)["columns"]["age"]
    if SUPPRESSED in (before["mean"], after["mean"]):
        return False
    return bool(60 * before["mean"] - 59 * after["mean"] == pytest.approx(97))


@attack
def the_held_out_person_by_the_difference_of_card_and_sums(folder: Path, rule: Rule) -> bool:
    told = Told(folder, ts.rows(60), rule, data={"test_fraction": 1 / 60})
    age = told.ready()["card"]["columns"]["age"]["mean"]
    total = decode(told.sums()["limbs"].reshape(-1, 2, COUNT)[0, 0])
    return bool(60 * age - float(total) == pytest.approx(round(60 * age - float(total))))


# What is wrong with cells ----------------------------------------------------------------------------


def said(folder: Path, rule: Rule, table: Any, column: str, **over: Any) -> str:
    bodies = Told(folder, table, rule, **over).survey()["cells"].get(column, [])
    return " ".join(body["message"] for body in bodies)


@attack
def how_many_are_older_than_an_age(folder: Path, rule: Rule) -> bool:
    table = ts.changed(60, age={3: 97.0, 5: 98.0})
    return said(folder, rule, table, "age", data=ts.ranged(96)).startswith("2 cells")


@attack
def how_many_are_between_two_ages(folder: Path, rule: Rule) -> bool:
    table = ts.changed(60, age={i: 70.0 + i for i in range(60)})
    words = [
        said(folder / str(t), rule, table, "age", data=ts.ranged(t)).split()[0] for t in (80, 81)
    ]
    return words == ["49", "48"]


@attack
def how_many_have_no_outcome(folder: Path, rule: Rule) -> bool:
    return "in 2 rows" in said(folder, rule, ts.changed(60, sick={3: "", 5: ""}), "sick")


@attack
def how_many_are_of_a_clan_that_is_not_declared(folder: Path, rule: Rule) -> bool:
    clans = {"columns": {"clan": {"type": "category", "categories": ["north", "south", "west"]}}}
    words = said(folder, rule, ts.changed(60, clan={3: "rare"}), "clan", data=clans)
    return words.startswith("1 cell is")


@attack
def how_many_have_a_half(folder: Path, rule: Rule) -> bool:
    whole = {"columns": {"dose": {"type": "integer"}}}
    table = ts.changed(60, dose=dict.fromkeys(range(60), 2) | {9: 2.5})
    return "1 cell is" in said(folder, rule, table, "dose", data=whole)


@attack
def how_many_are_no_flag(folder: Path, rule: Rule) -> bool:
    flag = {"columns": {"age": {"type": "boolean"}}}
    table = ts.changed(60, age={i: float(i % 2) for i in range(60)} | {9: 54.0, 11: 61.0})
    return "2 cells" in said(folder, rule, table, "age", data=flag)


@attack
def what_an_error_of_the_job_says_of_rows(folder: Path, rule: Rule) -> bool:
    folder.mkdir()
    (folder / "own.py").write_text(
        "from atoll.core.errors import JobError\n"
        "def initial(g): raise JobError('7 patients of the clan')\n"
        "def evaluate(p, d): return {}\n"
        "def fit(p, d, c): return {}\n"
    )
    own = {name: f"own.py:{name}" for name in ("initial", "fit", "evaluate")}
    with pytest.raises(AtollError) as caught:
        Told(folder, ts.rows(120), rule, model={"kind": "function", **own}).ready()
    assert "patients" in str(caught.value)
    return "7 patients" in str(caught.value)


# Inside what training in the clear takes -------------------------------------------------------------


@on_sums
def how_many_of_the_training_rows_are_of_a_clan(folder: Path, rule: Rule) -> bool:
    table = ts.changed(60, clan=dict.fromkeys((5, 7, 9), "rare"))
    found = Told(folder, table, rule, data={"test_fraction": 0.0}).sums()["levels"]
    return found.tolist().count(3) == 1


@on_sums
def how_many_of_the_training_rows_have_no_age(folder: Path, rule: Rule) -> bool:
    table = ts.changed(60, age={3: "", 5: ""})
    found = Told(folder, table, rule, data={"test_fraction": 0.0}).sums()
    return bool(found["rows"][0] - found["present"][0] == 2)


@on_sums
def the_sum_of_ones(folder: Path, rule: Rule) -> bool:
    table = ts.changed(60, smokes=dict.fromkeys(range(60), 0.0) | {4: 1.0, 9: 1.0})
    found = Told(folder, table, rule, data={"test_fraction": 0.0}).sums()
    return decode(found["limbs"].reshape(-1, 2, COUNT)[2, 0]) == 2


@on_sums
def the_dose_of_one_from_a_sum(folder: Path, rule: Rule) -> bool:
    table = ts.changed(60, dose=dict.fromkeys(range(60), "") | {4: 17.25})
    found = Told(folder, table, rule, data={"test_fraction": 0.0}).sums()
    return decode(found["limbs"].reshape(-1, 2, COUNT)[1, 0]) == Fraction(69, 4)


@on_sums
def cells_of_a_confusion_matrix(folder: Path, rule: Rule) -> bool:
    table = ts.changed(60, age=dict.fromkeys(range(60), 0.0) | dict.fromkeys(range(0, 60, 9), 9.0))
    found = Told(folder, table, rule, data={"test_fraction": 0.5}).evaluated(5.0)
    cells = np.array(found.get("confusion", {"confusion": [[0]]})["confusion"])
    return bool(((cells > 0) & (cells < 11)).any())


@on_sums
def the_score_of_each_person(folder: Path, rule: Rule) -> bool:
    found = Told(folder, ts.rows(60), rule, data={"test_fraction": 0.5}).evaluated(0.3, 0.1)
    return "auc" in found and "binned" in str(found["auc"])


@on_sums
def how_many_were_right(folder: Path, rule: Rule) -> bool:
    table = ts.changed(
        60, sick=dict.fromkeys(range(60), "yes") | dict.fromkeys(range(0, 60, 10), "no")
    )
    found = metrics_from_plain(Told(folder, table, rule, data={"test_fraction": 0.5}).evaluated())
    return "accuracy" in found and found["accuracy"].value < 0.3


@on_sums
def the_name_of_a_clan_of_one(folder: Path, rule: Rule) -> bool:
    table = ts.changed(60, clan={7: "of the lake"})
    told = Told(folder, table, rule, data={"undeclared": ["clan"]}).survey()
    return "of the lake" in told["columns"]["clan"]["levels"]


@on_sums
def the_name_of_an_outcome_of_one(folder: Path, rule: Rule) -> bool:
    told = Told(folder, ts.changed(60, sick={7: "dead"}), rule, data={"classes": []}).survey()
    return "dead" in told["columns"]["sick"]["levels"]


def learned(run: Attack, folder: Path, rule: Rule) -> bool:
    try:
        return run(folder, rule)
    except (AtollError, KeyError):  # refused; or what it wanted to read is not there
        return False


EVERY = {**CARD, **SUMS}


def test_there_are_as_many_attacks_as_we_say() -> None:
    assert len(CARD) >= 24
    assert len(SUMS) >= 9


@pytest.mark.parametrize("name", EVERY)
def test_without_a_rule_the_attack_succeeds(name: str, tmp_path: Path) -> None:
    assert EVERY[name](tmp_path / "at", ts.OFF)


@pytest.mark.parametrize("name", CARD)
def test_the_default_rule_stops_the_attack(name: str, tmp_path: Path) -> None:
    assert not learned(CARD[name], tmp_path / "at", ts.ON)


@pytest.mark.parametrize("name", EVERY)
def test_a_strict_rule_stops_the_attack(name: str, tmp_path: Path) -> None:
    assert not learned(EVERY[name], tmp_path / "at", ts.STRICT)
