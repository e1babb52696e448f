"""Attacks from column to column: how many rows are looked at is told whatever is asked of them.

Each is a list of questions, of which the last must be refused.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from atoll import stats
from atoll.core.errors import Forbidden
from atoll.data.query_log import QueryLog, Released

sys.path.insert(0, str(Path(__file__).parent))

from clinics import federation, frame, mean

REFUSED: dict = {}


def attack(test):
    REFUSED[test.__name__] = test
    return test


def hunted():
    """Of the clinic's people of 97 there is one. Is that one sick?"""
    data = frame()
    data.loc[7, "sick"] = 1.0
    data.loc[data["age"].isna(), "age"] = 50.0
    return federation(data)


@attack
def one_person_counted_by_asking_about_other_columns(f):
    f = hunted()
    mean(f.where(sick=1), "dose")
    mean(f.where(sick=1, age=(None, 97)), "days")


@attack
def everybody_by_one_column_and_all_but_one_by_another(f):
    mean(f, "dose")
    mean(f.where(age=(None, 97)), "days")


@attack
def all_but_one_and_then_everybody_by_another_column(f):
    mean(f.where(age=(None, 97)), "days")
    mean(f, "dose")


@attack
def a_tracker_over_three_columns(f):
    mean(f.where(age=(None, 55)), "dose")
    mean(f.where(age=(55, 97)), "days")
    mean(f, "sick")


@attack
def a_cell_of_a_table_and_a_selection_without_the_victim(f):
    f = hunted()
    stats.cross_table(f, "sex", "sick")
    sex = frame()["sex"][7]
    mean(f.where(sex=sex, sick=1, age=(None, 97)), "dose")


@attack
def a_table_of_the_rows_and_the_same_table_of_some(f):
    """Of a cell of many only the oldest are left out; which of them are in it the difference tells."""
    data = frame()
    stats.cross_table(f, "sex", "arm")
    old = float(np.sort(data.loc[data["clinic"] == "a", "age"])[-14])
    stats.cross_table(f.where(age=(None, old)), "sex", "arm")


@attack
def a_selection_and_a_cut_point_beside_its_end(f):
    mean(f.where(age=(None, 55)))
    stats.histogram(f, "age", [56])


@attack
def cut_points_of_two_selections(f):
    stats.histogram(f, "age", [45, 55])
    young = f.where(age=(None, 62))
    stats.histogram(young, "age", [45, 56])


@attack
def a_combination_of_three_groups_behind_ten_decoys(f):
    """Small groups of one person come first in every order; the three that are hunted have two each."""
    people = np.arange(400)
    log, decoys, start = QueryLog(11), 10, 0

    def released(*parts):
        rows = np.zeros(400, bool)
        for first, count in parts:
            rows[first : first + count] = True
        log.admit([Released(("age",), rows)], people)

    def trio(at, a, b, c):
        d, e = (at + 20, 12), (at + 35, 12)
        released((at, a), d, e)
        released((at + a, b), d)
        released((at + a + b, c), e)

    for _ in range(decoys // 2):
        trio(start, 1, 1, 9)
        start += 50
    trio(start, 2, 2, 2)


@attack
def the_effect_of_a_category_of_one_on_columns_that_are_put_on_one_scale(f):
    stats.ComBat(["dose", "days"], ["clan"]).fit(f)


def marked():
    data = frame().dropna(subset="age").reset_index(drop=True)
    data["mark"] = (data["clan"] == "rare") * 1.0
    return federation(data)


@attack
def the_correlation_with_a_column_in_which_one_person_has_a_1(f):
    stats.correlation(marked(), ["dose", "mark"])


@attack
def components_of_such_a_column(f):
    stats.principal_components(marked(), ["dose", "age", "mark"])


# A weight of 0 leaves a row out, as a condition does.


def weighed(keep):
    data = frame()
    data["keep"] = np.where(keep(data), 1.0, 0.0)
    return federation(data)


@attack
def everybody_and_everybody_whose_weight_is_not_0(f):
    f = weighed(lambda data: data["clan"] != "rare")
    stats.LinearRegression("dose", ["sex"]).fit(f)
    stats.LinearRegression("dose", ["sex"], weights="keep").fit(f)


@attack
def everybody_whose_weight_is_not_0_and_then_everybody(f):
    f = weighed(lambda data: data["clan"] != "rare")
    with pytest.raises(Forbidden, match="'keep' is 0 are left out"):
        stats.LinearRegression("dose", [], weights="keep").fit(f)
    stats.LinearRegression("dose", []).fit(f)


@attack
def a_category_of_one_among_those_whose_weight_is_not_0(f):
    data = frame().replace({"clan": "rare"}, "south")
    first = data.index[data["clan"] == "north"][0]
    data["keep"] = np.where((data["clan"] != "north") | (data.index == first), 1.0, 0.0)
    stats.LinearRegression("dose", ["clan"], weights="keep").fit(federation(data))


@pytest.mark.parametrize("name", REFUSED)
def test_the_attack_is_refused(name):
    with pytest.raises(Forbidden):
        REFUSED[name](federation())
