import json

import numpy as np
import pytest

from atoll.core.contracts import Examples
from atoll.data.card import data_card, examples_card, fingerprint
from atoll.data.schema import Column, Schema
from atoll.data.table import Table

SCHEMA = Schema(
    (Column("age", unit="years"), Column("cp", "category", categories=("a", "b"))),
    "y",
    classes=("no", "yes"),
)
TABLE = SCHEMA.read(
    "s", Table.of({"age": [40, 60, None], "cp": ["a", None, "a"], "y": ["no", "yes", "no"]})
)


def test_a_card_tells_rows_missing_moments_and_balance():
    card = data_card(TABLE, SCHEMA)
    assert card["rows"] == 3
    assert card["columns"] == {
        "age": {"type": "number", "unit": "years", "missing": 1, "mean": 50.0, "sd": 10.0},
        "cp": {"type": "category", "unit": "", "missing": 1, "counts": {"a": 2}},
    }
    assert card["classes"] == {"no": 2, "yes": 1}
    assert json.loads(json.dumps(card)) == card


def test_no_single_value_of_a_number_is_on_the_card():
    numbers = json.dumps(data_card(TABLE, SCHEMA)["columns"]["age"])
    assert "40" not in numbers
    assert "60" not in numbers


def test_a_boolean_target_is_counted_under_its_class_names():
    schema = Schema((Column("x"), Column("y", "boolean")), "y", classes=("well", "ill"))
    table = schema.read("s", Table.of({"x": [1, 2, 3], "y": [1, 0, 1]}))
    assert data_card(table, schema)["classes"] == {"well": 1, "ill": 2}


def test_a_regression_card_has_the_targets_moments():
    schema = Schema((Column("x"),), "y", "regression")
    table = schema.read("s", Table.of({"x": [1, 2], "y": [1, 3]}))
    assert data_card(table, schema)["target"] == {"missing": 0, "mean": 2.0, "sd": 1.0}


def test_a_column_without_values_has_no_moments():
    schema = Schema((Column("x"),), "y", "regression")
    table = schema.read("s", Table.of({"x": [None, None], "y": [1, 3]}))
    column = data_card(table, schema)["columns"]["x"]
    assert (column["missing"], column["mean"], column["sd"]) == (2, None, None)


def test_numbers_whose_squares_are_beyond_float64_have_a_mean_and_no_deviation():
    huge = Table.of({"age": [1e160, 3e160], "cp": ["a", "b"], "y": ["no", "yes"]})
    column = data_card(huge, SCHEMA)["columns"]["age"]
    assert (column["mean"], column["sd"]) == (pytest.approx(2e160), None)


def test_cards_of_arrays_count_classes_by_index():
    card = examples_card(Examples(np.zeros((3, 1, 2, 2)), np.array([0, 2, 2])), 4)
    assert (card["rows"], card["shape"]) == (3, [1, 2, 2])
    assert card["classes"] == {"0": 1, "1": 0, "2": 2, "3": 0}
    assert "target" in examples_card(Examples(np.zeros((2, 1)), np.array([0.5, 1.5])))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "bool"])
def test_class_indices_may_be_of_any_whole_type(dtype):
    card = examples_card(Examples(np.zeros((3, 2)), np.array([1, 0, 1], dtype)))
    assert card["classes"] == {"0": 1, "1": 2}


def test_whole_numbers_that_are_no_class_indices_have_moments():
    def told(targets, classes=0):
        return examples_card(Examples(np.zeros((2, 1)), np.array(targets)), classes)

    for prices in ([250_000, 350_000], [-1, 1]):
        assert told(prices)["target"]["mean"] == np.mean(prices)
        assert "classes" not in told(prices)
    assert told([3, 5], 1)["target"]["mean"] == 4.0
    assert told([0, 1500], 2000)["classes"]["1500"] == 1


def test_equal_content_has_one_fingerprint():
    again = Table({name: values.copy() for name, values in TABLE.columns.items()})
    assert fingerprint(again) == fingerprint(TABLE)
    wide = Examples(np.arange(6.0).reshape(2, 3)[:, ::2], np.arange(2))
    assert fingerprint(wide) == fingerprint(Examples(wide.features.copy(), wide.targets.copy()))


@pytest.mark.parametrize(
    "other",
    [
        {"x": [1.0, 2.0], "y": ["a", "c"]},
        {"x": [1.0, 3.0], "y": ["a", "b"]},
        {"x": [2.0, 1.0], "y": ["b", "a"]},
        {"z": [1.0, 2.0], "y": ["a", "b"]},
        {"x": [1.0, 2.0], "y": ["a", None]},
    ],
)
def test_any_change_changes_the_fingerprint(other):
    base = Table.of({"x": [1.0, 2.0], "y": ["a", "b"]})
    assert fingerprint(Table.of(other)) != fingerprint(base)


def test_none_and_the_text_none_differ():
    assert fingerprint(Table.of({"x": ["a", None]})) != fingerprint(Table.of({"x": ["a", "None"]}))
