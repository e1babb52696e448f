"""Trees as arrays: cells, places, sums of leaves, and XGBoost reading the same model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import DataError
from atoll.models.trees import Column, Trees, packed, unpacked
from atoll.models.trees_xgboost import to_xgboost

AGE = Column("age", np.array([40.0, 60.0]))
TOWN = Column("town", np.zeros(0), (0.0, 1.0, 2.0, 3.0))


def left(*cells: int, width: int = 5) -> np.ndarray:
    return np.isin(np.arange(width), cells)


def by_hand(loss: str = "squared") -> Trees:
    """Root: age below 60, or missing; below it town 1 or 3. The second tree is one leaf split."""
    sets = np.zeros((2, 3, 5), bool)
    sets[0, 0], sets[0, 1] = left(0, 1, 4), left(1, 3)
    sets[1, 0] = left(0, 1, 2)
    split = np.array([[0.0, 1.0, -1.0], [0.0, -1.0, -1.0]])
    value = np.array([[0, 0, 3.0, 1.0, 2.0, 0, 0], [0, 0.25, 0.5, 0, 0, 0, 0]])
    return Trees((AGE, TOWN), loss, 10.0 if loss == "squared" else 0.5, split, packed(sets), value)


ROWS = {
    "age": np.array([39.0, 40.0, 59.9, 60.0, np.nan, np.nan]),
    "town": np.array([1.0, 0.0, 3.0, 1.0, np.nan, 3.0]),
}
SUMS = np.array([11.25, 12.25, 11.25, 13.25, 12.5, 11.5])


def test_cells_of_numbers_categories_and_missing_values() -> None:
    cells = by_hand().cells(ROWS)
    assert cells.tolist() == [[0, 1, 1, 2, 4, 4], [1, 0, 3, 1, 4, 3]]


def test_sums_of_leaves_by_hand() -> None:
    np.testing.assert_array_equal(by_hand().predict(ROWS), SUMS)
    logistic = by_hand("logistic")
    np.testing.assert_allclose(logistic.predict(ROWS), 1 / (1 + np.exp(9.5 - SUMS)), rtol=1e-15)


def test_the_first_trees_alone() -> None:
    one = by_hand().first(1)
    assert len(one) == 1
    np.testing.assert_array_equal(one.margin(ROWS), [11, 12, 11, 13, 12, 11])


@given(st.lists(st.booleans(), min_size=1, max_size=100))
def test_packed_sets_are_read_back(flags: list[bool]) -> None:
    sets = np.array(flags)
    words = packed(sets)
    assert words.shape == (-(-len(flags) // 32),)
    assert unpacked(words, len(flags)).tolist() == flags


def test_numbers_are_compared_in_float32() -> None:
    """As XGBoost does: what float32 cannot tell from a cut point lies on its right."""
    cut = float(np.float32(0.1))
    column = Column("x", np.array([cut]))
    values = np.array([cut - 1e-12, np.nextafter(np.float32(cut), np.float32(0)), 1e300, -1e300])
    assert column.cell(values, 9).tolist() == [1, 0, 1, 0]


def test_what_the_trees_do_not_know_is_refused_without_its_value() -> None:
    for name, odd in (("age", np.inf), ("town", 7.0)):
        with pytest.raises(DataError, match=f"'{name}' does not fit") as caught:
            by_hand().predict({**ROWS, name: np.full(6, odd)})
        assert "7" not in caught.value.message
    with pytest.raises(DataError, match="'town' is missing"):
        by_hand().predict({"age": ROWS["age"]})


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_xgboost_reads_the_same_model(loss: str, tmp_path: Path) -> None:
    xgboost = pytest.importorskip("xgboost")
    trees = by_hand(loss)
    path = tmp_path / "model.json"
    path.write_text(json.dumps(to_xgboost(trees)))
    booster = xgboost.Booster()
    booster.load_model(path)
    rows = xgboost.DMatrix(
        np.stack([ROWS["age"], ROWS["town"]], axis=1),
        feature_names=["age", "town"],
        feature_types=["float", "c"],
        enable_categorical=True,
    )
    np.testing.assert_allclose(booster.predict(rows), trees.predict(ROWS), rtol=3e-7)
    assert booster.feature_names == ["age", "town"]


def test_a_split_off_of_missing_values_alone_is_exported(tmp_path: Path) -> None:
    xgboost = pytest.importorskip("xgboost")
    sets = left(0, 1, 2, width=4)[None, None]
    trees = Trees((AGE,), "squared", 0.0, np.zeros((1, 1)), packed(sets), np.array([[0, 1.0, 2.0]]))
    path = tmp_path / "model.json"
    path.write_text(json.dumps(to_xgboost(trees)))
    booster = xgboost.Booster()
    booster.load_model(path)
    values = np.array([1.0, 1e38, np.nan])
    rows = xgboost.DMatrix(values[:, None], feature_names=["age"])
    assert booster.predict(rows).tolist() == [1.0, 1.0, 2.0]
    assert trees.predict({"age": values}).tolist() == [1.0, 1.0, 2.0]
