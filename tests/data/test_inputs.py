"""New rows become what a model takes, and its outputs words and units."""

import json

import numpy as np
import pandas as pd
import pytest

from atoll.core.errors import DataError, LayoutError
from atoll.data.columns import Column
from atoll.data.inputs import Inputs
from atoll.data.preprocessing import CategoryRule, NumberRule, Preprocessor

COLUMNS = (
    Column("age", "integer", "years", (0, 120)),
    Column("pain", "category", categories=("none", "some"), missing=("?",)),
    Column("fit", "boolean"),
)
RULES = (
    NumberRule("age", 50.0, 40.0, 10.0, indicate=True),
    CategoryRule("pain", ("none", "some"), True, "none"),
    NumberRule("fit", 0.5),
)
INPUTS = Inputs(COLUMNS, Preprocessor(RULES, "ill", ("no", "yes")))
ROWS = {"other": [9, 9], "fit": ["yes", None], "pain": ["some", "?"], "age": [60, None]}
FEATURES = [[2.0, 0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0, 0.5]]


def test_rows_of_any_kind_become_the_same_features(tmp_path):
    assert INPUTS.names == ("age", "age is missing", "pain=none", "pain=some", "fit")
    frame = pd.DataFrame(ROWS)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    for rows in (ROWS, frame, tmp_path / "rows.csv", str(tmp_path / "rows.csv")):
        found = INPUTS.features(rows)
        assert found.tolist() == FEATURES
        assert found.dtype == np.float32


def test_all_faults_of_new_rows_come_together():
    with pytest.raises(DataError) as caught:
        INPUTS.features({"age": [60, 600], "pain": ["sme", "none"]})
    assert [fault.place for fault in caught.value.faults] == [
        "column 'age'",
        "column 'pain'",
        "column 'fit'",
    ]
    assert "600" in caught.value.faults[0].message
    assert "sme" in caught.value.faults[1].message
    with pytest.raises(DataError, match="a list is no table"):
        INPUTS.features([1, 2])


def test_outputs_become_classes_whatever_their_shape():
    wide = np.array([[0.0, np.log(3)], [2000.0, 0.0]])
    for outputs in (wide, wide[:, 1] - wide[:, 0], (wide[:, 1] - wide[:, 0])[:, None]):
        assert INPUTS.probabilities(outputs) == pytest.approx(np.array([[0.25, 0.75], [1.0, 0.0]]))
        assert INPUTS.labels(outputs).tolist() == ["yes", "no"]
    with pytest.raises(LayoutError, match="for 2 classes"):
        INPUTS.probabilities(np.zeros((2, 3)))


def test_endless_outputs_are_sure_and_those_that_are_no_numbers_tell_no_class():
    found = INPUTS.probabilities(np.array([np.inf, -np.inf, 0.0]))
    assert found.tolist() == [[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]
    for outputs in (np.array([1.0, np.nan]), np.array([[0.0, 1.0], [np.nan, 0.0]])):
        with pytest.raises(DataError, match="the outputs of row 2 are no numbers"):
            INPUTS.labels(outputs)


def test_a_regression_s_outputs_get_their_unit_back():
    price = NumberRule("price", None, 100.0, 20.0)
    inputs = Inputs(COLUMNS[:1], Preprocessor(RULES[:1], "price", (), price))
    assert inputs.restored(np.array([[1.0], [-2.0]])).tolist() == [120.0, 60.0]
    with pytest.raises(LayoutError, match="for 0 classes"):
        inputs.probabilities(np.zeros((2, 2)))


def test_written_down_and_read_again_they_are_equal(tmp_path):
    text = INPUTS.to_json()
    assert json.loads(text)["inputs"] == list(INPUTS.names)
    assert Inputs.from_json(text) == INPUTS
    (tmp_path / "inputs.json").write_text(text)
    assert Inputs.read(tmp_path) == Inputs.read(tmp_path / "inputs.json") == INPUTS


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"columns": [], "preprocessor": {}}'])
def test_what_is_something_else_is_refused(text):
    with pytest.raises(DataError):
        Inputs.from_json(text)


def test_a_folder_without_them_says_which_have_them(tmp_path):
    with pytest.raises(DataError, match="cannot be read") as caught:
        Inputs.read(tmp_path)
    assert "trained on tables" in caught.value.remedy


def test_labels_are_what_the_column_holds_so_that_the_two_can_be_compared():
    logits = np.array([-1.0, 2.0, 3.0])
    for classes, column in (
        (("0", "1"), pd.Series([0, 1, 0])),
        (("3", "4"), pd.Series([3, 4, 3])),
        (("false", "true"), pd.Series([False, True, False])),
        (("false", "true"), pd.Series([0, 1, 0])),
        (("007", "7"), pd.Series(["007", "7", "007"])),
    ):
        inputs = Inputs(COLUMNS, Preprocessor(RULES, "ill", classes))
        assert (inputs.labels(logits) == column).tolist() == [True, True, False], classes


def test_targets_of_new_rows_are_those_of_training():
    assert INPUTS.targets(ROWS | {"ill": ["yes", "no"]}).tolist() == [1, 0]
    assert INPUTS.targets({"ill": [0, 1]}).tolist() == [0, 1]  # names given to false and true
    flags = Inputs(COLUMNS, Preprocessor(RULES, "ill", ("false", "true")))
    assert flags.targets({"ill": ["Yes", 0]}).tolist() == [1, 0]
    scaled = Preprocessor(RULES, "cost", goal=NumberRule("cost", None, 100.0, 10.0))
    assert Inputs(COLUMNS, scaled).targets({"cost": [120]}).tolist() == [2.0]
    for rows, told in (
        ({"ill": ["yes", None]}, "the target is missing in row 2"),
        ({"ill": ["yes", "maybe"]}, "unknown category 'maybe' in row 2"),
        ({"il": ["yes"]}, "did you mean 'il'"),
    ):
        with pytest.raises(DataError, match="target") as caught:
            INPUTS.targets(rows)
        assert told in str(caught.value)
