"""Counts as they may be told: on persons, suppressed ones no zeros, complements hidden with them."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.contracts import Examples
from atoll.data.card import data_card, examples_card
from atoll.data.columns import Column, read_cells
from atoll.data.disclosure import Disclosure
from atoll.data.schema import Schema, unlabelled
from atoll.data.table import Table
from atoll.data.telling import EXACT, SUPPRESSED, Telling

AGE = Column("age", "number", range=(0, 100))
CLAN = Column("clan", "category", categories=("north", "south", "rare"))
SICK = Column("sick", "category", categories=("no", "yes"), role="target")
SCHEMA = Schema((AGE, CLAN, SICK), "sick", "classification", ("no", "yes"))


def people(n=60, **cells):
    own = {
        "age": np.arange(n, dtype=float) + 20,
        "clan": np.array((["north"] * 30 + ["south"] * (n - 30)), object),
        "sick": np.array((["no", "yes"] * n)[:n], object),
    }
    return Table({**own, **cells})


def masks(sizes):
    ends = np.cumsum([0, *sizes])
    at = np.arange(ends[-1])
    return {str(i): (at >= a) & (at < b) for i, (a, b) in enumerate(itertools.pairwise(ends))}


def test_a_count_of_rows_stands_on_its_persons():
    visits = Telling(11, np.repeat(np.arange(10), 5))
    assert visits.number(np.ones(50, bool)) == SUPPRESSED
    assert Telling(11).number(np.ones(50, bool)) == 50


def test_zero_is_shown_and_is_not_suppressed():
    assert Telling(11).number(np.zeros(50, bool)) == 0
    assert Telling(11).number(np.arange(50) < 1) == SUPPRESSED


def test_without_a_rule_everything_is_told_as_it_is():
    assert EXACT.number(np.arange(3)) == 3
    assert EXACT.counts(masks([1, 2, 0])) == {"0": 1, "1": 2, "2": 0}
    assert EXACT.moments_told(np.array([1.0]))


def test_words_are_the_same_for_every_number_on_one_side():
    few = {Telling(11).words(np.arange(n), "cell") for n in range(1, 11)}
    many = {Telling(11).words(np.arange(n), "cell") for n in range(11, 200)}
    assert few == {"fewer than 11 cells"}
    assert many == {"11 cells or more"}


@given(st.lists(st.integers(0, 60), min_size=1, max_size=7), st.integers(2, 15))
def test_what_is_hidden_cannot_be_had_by_subtraction(sizes, minimum):
    found = Telling(minimum).counts(masks(sizes))
    hidden = [size for size, told in zip(sizes, found.values(), strict=True) if told == SUPPRESSED]
    shown = [told for told in found.values() if told != SUPPRESSED]
    assert all(n == 0 or n >= minimum for n in shown)
    others = [
        size for size, told in zip(sizes, found.values(), strict=True) if told == size and size
    ]
    if hidden and others:
        assert len(hidden) >= 2
        assert sum(hidden) >= minimum


def test_persons_who_are_in_two_hidden_cells_count_once():
    both = Telling(11, np.tile(np.arange(8), 2).repeat(1))
    found = both.counts(masks([8, 8]))
    assert set(found.values()) == {SUPPRESSED}


# Data cards -----------------------------------------------------------------------------------------


def test_a_card_hides_a_small_class_and_what_gives_it_away():
    table = people(sick=np.array(["yes"] * 3 + ["no"] * 57, object))
    card = data_card(table, SCHEMA, Telling(11))
    assert card["classes"] == {"no": SUPPRESSED, "yes": SUPPRESSED}
    assert card["rows"] == 60
    assert data_card(table, SCHEMA)["classes"] == {"no": 57, "yes": 3}


def test_a_card_hides_a_rare_category_with_the_smallest_other():
    clans = np.array(["rare"] * 2 + ["south"] * 18 + ["north"] * 40, object)
    column = data_card(people(clan=clans), SCHEMA, Telling(11))["columns"]["clan"]
    assert column["counts"] == {"north": 40, "rare": SUPPRESSED, "south": SUPPRESSED}
    assert column["missing"] == 0


def test_few_missing_cells_are_hidden_with_the_mean_whose_denominator_they_are():
    ages = people()["age"].copy()
    ages[:4] = np.nan
    column = data_card(people(age=ages), SCHEMA, Telling(11))["columns"]["age"]
    assert (column["missing"], column["mean"], column["sd"]) == (SUPPRESSED,) * 3


def test_few_known_cells_are_hidden_with_the_number_of_missing_ones():
    ages = np.full(60, np.nan)
    ages[:4] = 50.0
    column = data_card(people(age=ages), SCHEMA, Telling(11))["columns"]["age"]
    assert (column["missing"], column["mean"], column["sd"]) == (SUPPRESSED,) * 3


def test_the_mean_of_zeros_and_few_ones_is_a_count_and_is_hidden():
    flags = Schema((Column("smokes", "boolean"), SICK), "sick", "classification", ("no", "yes"))
    table = Table({"smokes": (np.arange(60) < 3).astype(float), "sick": people()["sick"]})
    assert data_card(table, flags, Telling(11))["columns"]["smokes"]["mean"] == SUPPRESSED
    half = Table({"smokes": (np.arange(60) < 30).astype(float), "sick": people()["sick"]})
    assert data_card(half, flags, Telling(11))["columns"]["smokes"]["mean"] == 0.5


def test_an_ordinary_card_is_the_same_with_the_rule_and_without():
    assert data_card(people(), SCHEMA, Telling(11)) == data_card(people(), SCHEMA)


def test_the_card_of_arrays_hides_small_classes():
    rows = Examples(np.zeros((50, 2)), np.array([0] * 30 + [1] * 2 + [2] * 18))
    assert examples_card(rows, 4, Telling(11))["classes"] == {
        "0": 30,
        "1": SUPPRESSED,
        "2": SUPPRESSED,
        "3": 0,
    }
    assert json.dumps(examples_card(rows, 4, Telling(11)))


# Faults ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "told"), [(3, "fewer than 11 cells"), (40, "11 cells or more")])
def test_a_fault_tells_no_number_of_cells(wrong, told):
    ages = np.where(np.arange(60) < wrong, 200.0, 50.0)
    fault = read_cells("a", AGE, ages, Telling(11))[1][0]
    assert fault.apart().message == f"{told} are outside [0, 100]"
    exact = read_cells("a", AGE, ages)[1][0]
    assert exact.apart().message == f"{wrong} cells are outside [0, 100]"


def test_a_fault_counts_persons_and_tells_of_no_row_without_a_target():
    goals = np.array([None] * 20 + ["no"] * 40, object)
    telling = Disclosure(11, "patient").telling(Table({"patient": np.arange(60.0) // 20}))
    fault = unlabelled("a", SICK, goals, telling)[0]
    assert fault.apart().message == "the target is missing in fewer than 11 rows"
