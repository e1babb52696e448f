"""Forty attacks on single persons that must be refused, and twenty honest analyses that must not.

An attack is a list of questions; what it is after must not come out: the last question is refused, or the
number in question is suppressed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from atoll import stats
from atoll.algorithms.statistics.moments import Moments
from atoll.algorithms.statistics.tables import HeavyHitters
from atoll.core.errors import AtollError, Forbidden
from atoll.stats import Federation

sys.path.insert(0, str(Path(__file__).parent))

from clinics import AXIS, federation, frame, mean

REFUSED: dict = {}


def attack(test):
    REFUSED[test.__name__] = test
    return test


# Differencing: everybody, then everybody but a few.


@attack
def everybody_and_everybody_but_the_oldest(f):
    mean(f)
    mean(f.where(age=(None, 97)))


@attack
def everybody_but_the_oldest_and_then_everybody(f):
    mean(f.where(age=(None, 97)))
    mean(f)


@attack
def all_but_the_one_of_a_clan(f):
    mean(f)
    mean(f.where(dose=(None, 99)))


@attack
def two_ranges_that_differ_by_one(f):
    mean(f.where(age=(40, 97)))
    mean(f.where(age=(40, 98)))


@attack
def a_tracker_of_three_questions(f):
    low, high = f.where(age=(None, 55)), f.where(age=(55, 97))
    mean(low)
    mean(high)
    mean(f)


@attack
def a_tracker_by_sex(f):
    mean(f.where(sex="f"))
    mean(f.where(sex="m"))
    mean(f.where(age=(None, 97)))


@attack
def the_difference_of_two_regressions(f):
    stats.LinearRegression("dose", ["age"]).fit(f)
    stats.LinearRegression("dose", ["age"]).fit(f.where(age=(None, 97)))


@attack
def a_mean_after_a_regression(f):
    stats.LogisticRegression("sick", ["age", "dose"]).fit(f)
    mean(f.where(age=(None, 97)), "dose")


@attack
def the_gap_of_a_column_with_one_missing_value(f):
    mean(f, "age")
    stats.correlation(f, ["age", "bmi"])


@attack
def complete_rows_without_the_victim(f):
    mean(f)
    mean(f.complete("bmi"))


@attack
def survival_with_and_without_one(f):
    stats.KaplanMeier("days", "dead", AXIS).fit(f)
    stats.KaplanMeier("days", "dead", AXIS).fit(f.where(age=(None, 97)))


@attack
def a_log_rank_test_without_one(f):
    stats.log_rank(f, "days", "dead", "arm", AXIS)
    stats.log_rank(f.where(age=(None, 97)), "days", "dead", "arm", AXIS)


@attack
def a_t_test_without_one(f):
    stats.t_test(f, "age", "sex")
    stats.t_test(f.where(dose=(None, 99)), "age", "sex")


@attack
def quantiles_without_one(f):
    stats.describe(f, ["dose"])
    stats.describe(f.where(dose=(None, 99)), ["dose"])


@attack
def components_without_one(f):
    stats.principal_components(f, ["age", "dose"])
    stats.principal_components(f.where(age=(None, 97)), ["age", "dose"])


@attack
def a_difference_of_ten(f):
    oldest = np.sort(f.sites["b"].holding.table["age"])[-10]
    mean(f)
    mean(f.where(age=(None, float(oldest))))


@attack
def a_moved_cut_point(f):
    stats.histogram(f, "age", [40, 60, 97])
    stats.histogram(f, "age", [40, 60, 98])


@attack
def a_cut_point_moved_by_one_year(f):
    stats.histogram(f, "age", [30, 50])
    stats.histogram(f, "age", [31, 50])


# Small selections and tiny sites.


@attack
def the_victim_alone(f):
    mean(f.where(clan="rare"))


@attack
def a_selection_of_few(f):
    mean(f.where(age=(84, None)))


@attack
def few_at_one_site(f):
    mean(f.where(dose=(16.5, None)))


@attack
def a_regression_on_few(f):
    stats.LinearRegression("dose", ["bmi"]).fit(f.where(age=(82, None)))


@attack
def a_tiny_site(f):
    data = frame()
    data.loc[:4, "clinic"] = "tiny"
    mean(federation(data))


@attack
def a_site_of_ten_persons_with_many_rows(f):
    data = frame()
    data["patient"] = np.arange(len(data)) % 10
    mean(federation(data, person="patient"))


@attack
def many_visits_of_few_patients(f):
    g = federation(person="patient")
    mean(g.where(age=(72, None)))


@attack
def a_column_that_one_site_hardly_has(f):
    data = frame()
    data.loc[(data["clinic"] == "b") & (np.arange(len(data)) > 127), "bmi"] = np.nan
    mean(federation(data), "bmi")


@attack
def a_saturated_model(f):
    data = frame(rows=(14, 14, 14))
    for i in range(33):
        data[f"x{i}"] = np.random.default_rng(i).normal(size=len(data))
    stats.LinearRegression("age", [f"x{i}" for i in range(33)]).fit(federation(data))


@attack
def correlations_of_as_many_columns_as_rows(f):
    data = frame(rows=(12, 12, 12))
    for i in range(30):
        data[f"x{i}"] = np.random.default_rng(i).normal(size=len(data))
    stats.correlation(federation(data), [f"x{i}" for i in range(30)])


# Extremes and quantiles.


@attack
def the_largest_value(f):
    stats.describe(f, ["age"], quantiles=[1.0])


@attack
def the_smallest_value(f):
    stats.describe(f, ["dose"], quantiles=[0.0, 0.5])


@attack
def an_extreme_quantile(f):
    found = stats.describe(f, ["age"], quantiles=[0.999])
    suppressed(found["0.999"])


@attack
def a_quantile_among_few_of_the_largest(f):
    found = stats.describe(f, ["age"], quantiles=[1 - 10 / 360])
    suppressed(found.iloc[:, -1])


# Cells of tables.


@attack
def a_small_cell(f):
    suppressed(stats.cross_table(f, "clan", "sex").loc["rare", ["f", "m"]].replace(0, np.nan))


@attack
def a_small_margin(f):
    suppressed(stats.cross_table(f, "clan", "sex").loc["rare", ["all"]])


@attack
def a_margin_less_the_other_cells(f):
    table = stats.cross_table(f, "clan", "sex")
    for column in ("f", "m"):
        hidden = table.loc[["north", "south", "west", "rare"], column].isna()
        assert hidden.sum() != 1
    suppressed([np.nan if table["all"].isna().sum() >= 2 else 0.0])


@attack
def a_small_bin(f):
    suppressed(stats.histogram(f, "age", [40, 60, 90])["count"].iloc[-1:])


@attack
def the_mean_of_a_small_group(f):
    found = stats.table_one(f, by="clan", columns=["age"])
    suppressed([np.nan if found["rare"].iloc[0] == "suppressed" else 0.0])


@attack
def the_other_groups_taken_from_the_whole(f):
    found = stats.table_one(f, by="clan", columns=["age"])
    suppressed([np.nan if (found.iloc[0] == "suppressed").sum() >= 2 else 0.0])


@attack
def a_test_that_would_give_a_cell_away(f):
    stats.chi_squared(f, "clan", "sex")


@attack
def fisher_s_test_of_a_small_cell(f):
    data = frame()
    data["rare"] = (np.arange(len(data)) < 6) * 1.0
    stats.fisher(federation(data), "rare", "sick")


@attack
def a_rare_code(f):
    found = stats.frequent(f, "code")
    suppressed([np.nan if 424242 not in set(found["code"]) else 0.0])


@attack
def a_frequency_asked_below_the_minimum(f):
    f.solve(HeavyHitters("code", 1, rule=f.rule))


@attack
def a_number_of_missing_values(f):
    suppressed(stats.describe(f, ["bmi"], quantiles=())["missing"])


@attack
def the_time_of_a_single_death(f):
    fit = stats.KaplanMeier("days", "dead", AXIS).fit(f)
    exits = fit.curves[0].events + fit.curves[0].censored
    suppressed([np.nan if (exits >= 11).all() else 0.0])


# Trees: a leaf, a class, a held-out part of few persons.


@attack
def a_leaf_for_one_category(f):
    """The victim's dose is far from all others', so a leaf of its own would gain most."""
    fit = stats.GradientBoosting("dose", ["clan"], trees=1, rate=1.0, weight=0.0).fit(f)
    rare, *others = fit.predict({"clan": ["rare", "north", "south", "west"]})
    suppressed([np.nan if rare in others else 0.0])


@attack
def a_leaf_beyond_the_last_cut(f):
    fit = stats.GradientBoosting("dose", ["age"], trees=50, depth=6, bins=256, weight=0.0).fit(f)
    ages = frame()["age"].to_numpy()
    victim, *others = fit.predict({"age": [97.0, *np.sort(ages)[-11:-1]]})
    suppressed([np.nan if set(others) == {victim} else 0.0])


@attack
def leaves_of_one_person_with_many_rows(f):
    data = frame()
    data.loc[:29, "patient"] = 0
    data.loc[:29, "dose"] = 500.0
    data["mark"] = (np.arange(len(data)) < 30) * 1.0
    f = federation(data, person="patient")
    fit = stats.GradientBoosting("dose", ["mark"], trees=1, depth=1).fit(f)
    suppressed([np.nan if len(set(fit.predict({"mark": [0.0, 1.0]}))) == 1 else 0.0])


@attack
def trees_for_a_class_of_few(f):
    data = frame()
    data["rare"] = (np.arange(len(data)) < 6) * 1.0
    stats.GradientBoosting("rare", ["age"]).fit(federation(data))


@attack
def the_loss_of_few_rows_kept_aside(f):
    stats.GradientBoosting("dose", ["age"], kept=0.005).fit(f)


@attack
def trees_of_everybody_and_of_everybody_but_the_oldest(f):
    model = stats.GradientBoosting("dose", ["sex"], trees=1, depth=1)
    model.fit(f)
    model.fit(f.where(age=(None, 97)))


# Regressions: the coefficient of a category that one person has is what that person's outcome is.


@attack
def the_dose_of_the_only_one_of_a_clan(f):
    stats.LinearRegression("dose", ["clan"], intercept="none").fit(f)


@attack
def the_same_under_masks(f):
    stats.PoissonRegression("days", ["age", "clan"]).fit(federation(masked=True))


@attack
def the_same_by_a_column_of_0_and_1(f):
    data = frame()
    data["mark"] = (data["clan"] == "rare") * 1.0
    stats.LinearRegression("dose", ["mark"]).fit(federation(data))


@attack
def the_outcome_of_few(f):
    data = frame()
    data["rare"] = (np.arange(len(data)) < 6) * 1.0
    stats.LogisticRegression("rare", ["age"]).fit(federation(data))


@attack
def the_hazard_of_one(f):
    stats.CoxRegression("days", "dead", ["age", "clan"], AXIS).fit(f)


@attack
def the_shift_of_one(f):
    stats.MixedModel("dose", ["clan"]).fit(f)


class Suppressed(AtollError):
    """Stands for a refusal where a number is left out of an answer."""


def suppressed(numbers):
    assert np.isnan(np.asarray(numbers, np.float64)).all(), f"released: {list(numbers)}"
    raise Suppressed("not released")


def test_there_are_forty_attacks_or_more():
    assert len(REFUSED) >= 40


@pytest.mark.parametrize("name", REFUSED)
def test_the_attack_is_refused(name):
    with pytest.raises((Forbidden, Suppressed)):
        REFUSED[name](federation())


def test_logs_and_records_tell_no_small_number(tmp_path):
    data = frame()
    data.loc[:4, "clinic"] = "tiny"
    with pytest.raises(Forbidden) as caught:
        federation(data).solve(Moments(("age",)), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert "5" not in str(caught.value)


def test_a_log_on_disk_remembers_after_a_restart(tmp_path):
    mean(Federation.of(frame(), site="clinic", logs=tmp_path))
    again = Federation.of(frame(), site="clinic", logs=tmp_path)
    with pytest.raises(Forbidden, match="isolate fewer than 11"):
        mean(again.where(age=(None, 97)))
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(line)["columns"] for line in lines] == [["age"]]


def test_a_refused_question_is_noted_at_no_site():
    f = federation()
    with pytest.raises(Forbidden):
        mean(f.where(age=(84, None)))
    assert [len(site.log) for site in f.sites.values()] == [0, 0, 0]


def test_rows_that_changed_close_the_log(tmp_path):
    mean(Federation.of(frame(), site="clinic", logs=tmp_path))
    fewer = frame().drop(index=7)
    with pytest.raises(Forbidden, match="rows have changed"):
        mean(Federation.of(fewer, site="clinic", logs=tmp_path))


def test_masked_sums_let_small_sites_take_part_and_still_refuse_differences():
    data = frame()
    data.loc[:4, "clinic"] = "tiny"
    f = federation(data, masked=True)
    assert mean(f)["count"].iloc[0] == 360
    with pytest.raises(Forbidden, match="isolate"):
        mean(f.where(age=(None, 97)))


HONEST = {
    "describe": lambda f: stats.describe(f, ["age", "dose"]),
    "describe all": lambda f: stats.describe(f, quantiles=[0.1, 0.5, 0.9]),
    "table 1 by arm": lambda f: stats.table_one(f, "arm", ["age", "dose", "sex", "sick"]),
    "table 1": lambda f: stats.table_one(f, columns=["age", "sex", "clan"]),
    "correlation": lambda f: stats.correlation(f, ["age", "dose", "bmi"]),
    "components": lambda f: stats.principal_components(f, ["age", "dose", "bmi"]),
    "histogram": lambda f: stats.histogram(f, "age", [40, 50, 60, 70]),
    "cross table": lambda f: stats.cross_table(f, "sex", "clan"),
    "codes": lambda f: stats.frequent(f, "code"),
    "t test": lambda f: stats.t_test(f, "age", "sex"),
    "anova": lambda f: stats.anova(f.where(), "dose", "arm"),
    "chi-squared": lambda f: stats.chi_squared(f, "sex", "arm"),
    "fisher": lambda f: stats.fisher(f, "sex", "arm"),
    "mann-whitney": lambda f: stats.mann_whitney(f, "dose", "arm"),
    "linear": lambda f: stats.LinearRegression("dose", ["age", "sex"]).fit(f).summary(),
    "logistic": lambda f: stats.LogisticRegression("sick", ["age", "arm", "bmi"]).fit(f).table,
    "poisson": lambda f: stats.PoissonRegression("days", ["age"], covariance="hc0").fit(f).table,
    "cox": lambda f: stats.CoxRegression("days", "dead", ["age", "arm"], AXIS).fit(f).table,
    "kaplan-meier": lambda f: stats.KaplanMeier("days", "dead", AXIS, by="arm").fit(f).table,
    "log-rank": lambda f: stats.log_rank(f, "days", "dead", "arm", AXIS).p_value,
    "trees": lambda f: stats.GradientBoosting("sick", ["age", "arm", "bmi"], kept=0.2).fit(f).table,
    "the women": lambda f: stats.describe(f.where(sex="f"), ["age"]),
    "the men": lambda f: stats.describe(f.where(sex="m"), ["age"]),
}


def honest():
    return federation(frame().dropna(subset="bmi").reset_index(drop=True))


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_analysis_is_answered(name):
    assert HONEST[name](honest()) is not None


def test_all_honest_analyses_are_answered_one_after_another():
    f = honest()
    for ask in HONEST.values():
        assert ask(f) is not None
    assert len(HONEST) >= 20
