"""Boosted trees over sites: those of the pooled rows to the bit, and XGBoost's on the same cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

from atoll.algorithms.statistics.analysis import solve
from atoll.algorithms.statistics.boosting import Boosted, GradientBoosting
from atoll.algorithms.statistics.boosting_rows import drawn, shares
from atoll.core.errors import DataError, Forbidden, JobError
from atoll.data.disclosure import Disclosure
from atoll.models.trees import places, unpacked

NAMES = ("a", "b", "c", "d")
LEVELS = {"d": (0.0, 1.0, 2.0, 3.0, 4.0)}


def rows(n: int, seed: int, loss: str) -> dict[str, np.ndarray]:
    """Numbers, ties, five categories, and a tenth of the values missing."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, 4))
    x[:, 1] = np.round(x[:, 1])
    x[:, 3] = draw.integers(0, 5, n)
    true = 2 * x[:, 0] * (x[:, 1] > 0) + (x[:, 3] == 2) - 0.5 * x[:, 2]
    x[draw.random(x.shape) < 0.1] = np.nan
    chance = draw.random(n) < 1 / (1 + np.exp(-true))
    y = chance.astype(float) if loss == "logistic" else 40 + 3 * true + draw.normal(size=n)
    return {name: x[:, i] for i, name in enumerate(NAMES)} | {"y": y}


def analysis(loss: str, **options: Any) -> GradientBoosting:
    settings_ = {"trees": 8, "depth": 3, "rate": 0.3, "bins": 16} | options
    return GradientBoosting(NAMES, "y", LEVELS, loss, **settings_)


def split_up(data: Mapping[str, np.ndarray], site: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    return {f"s{k}": {n: v[site == k] for n, v in data.items()} for k in np.unique(site)}


def same(one: Boosted, other: Boosted) -> bool:
    names = ("split", "left", "value")
    return (
        all(np.array_equal(getattr(one.trees, n), getattr(other.trees, n)) for n in names)
        and one.trees.base == other.trees.base
        and np.array_equal(one.losses, other.losses)
        and np.array_equal(one.kept_losses, other.kept_losses)
    )


@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from(["logistic", "squared"]))
@settings(max_examples=15, deadline=None)
def test_any_split_of_the_rows_gives_the_same_bits(seed: int, sites: int, loss: str) -> None:
    """Identity 7, to the last bit; the rows kept aside are the same ones too."""
    data = rows(300, seed, loss)
    site = np.random.default_rng(seed + 1).integers(0, sites, 300)
    pooled = solve(analysis(loss, kept=0.2), {"all": data})
    assert same(pooled, solve(analysis(loss, kept=0.2), split_up(data, site)))


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_the_trees_are_those_of_xgboost_on_the_same_cells(loss: str) -> None:
    xgboost = pytest.importorskip("xgboost")
    data = rows(3000, 5, loss)
    data["d"] = np.where(np.isnan(data["d"]), 3.0, data["d"])
    # Missing categories, and those below the least weight, XGBoost does not try on all sides.
    site = np.random.default_rng(6).integers(0, 6, 3000)
    found = solve(analysis(loss, trees=20, depth=4, weight=0.0), split_up(data, site))
    cells = found.trees.cells(data).T.astype(float)
    cells[cells == found.trees.width - 1] = np.nan
    base = found.trees.base
    table = xgboost.DMatrix(
        cells, data["y"], feature_types=["float"] * 3 + ["c"], enable_categorical=True
    )
    options = {
        "objective": "binary:logistic" if loss == "logistic" else "reg:squarederror",
        "base_score": 1 / (1 + np.exp(-base)) if loss == "logistic" else base,
        "max_depth": 4,
        "eta": 0.3,
        "min_child_weight": 0,
        "tree_method": "hist",
        "max_cat_to_onehot": 1,
        "nthread": 1,
    }
    theirs = xgboost.train(options, table, 20).predict(table)
    np.testing.assert_allclose(found.trees.predict(data), theirs, rtol=2e-6)


def test_breast_cancer_over_three_sites_reaches_the_pooled_fit_of_xgboost() -> None:
    """The gate of FATE's quality benchmark (T21): within 1 % of XGBoost's AUC, 10 trees of depth 3."""
    loaded = load_breast_cancer()
    names = tuple(f"x{i}" for i in range(30))
    data = {n: loaded.data[:, i] for i, n in enumerate(names)}
    data["y"] = loaded.target.astype(float)
    site = np.arange(569) % 3
    found = solve(
        GradientBoosting(names, "y", trees=10, depth=3, rate=0.3, bins=32), split_up(data, site)
    )
    assert roc_auc_score(data["y"], found.trees.predict(data)) > 0.99 * 0.999353


def test_one_split_by_hand() -> None:
    """Eight rows: -G / (H + l2) on either side of the best cut, equations (5) and (7)."""
    x = np.arange(8.0)
    y = np.array([0.0, 0, 0, 1, 1, 1, 1, 1])
    one = GradientBoosting(
        ("x",), "y", loss="squared", trees=1, depth=1, rate=0.5, cuts={"x": x[1:]}, l2=1.0
    )
    found = solve(one, {"all": {"x": x, "y": y}})
    base = found.trees.base
    assert base == pytest.approx(5 / 8, abs=1e-6)
    left, right = 3 * base, 5 * (base - 1)
    assert found.trees.predict({"x": x}) == pytest.approx(
        [base - 0.5 * left / 4] * 3 + [base - 0.5 * right / 6] * 5, abs=1e-6
    )
    whole = left + right
    assert found.gain[0, 0] == pytest.approx(left**2 / 4 + right**2 / 6 - whole**2 / 9, abs=1e-5)
    assert found.losses == pytest.approx(
        [np.mean((y - base) ** 2), np.mean((y - found.trees.predict({"x": x})) ** 2)], abs=1e-6
    )


def test_no_leaf_has_fewer_persons_than_the_minimum() -> None:
    data = rows(600, 3, "squared")
    rule = Disclosure(minimum=40)
    found = solve(analysis("squared", rule=rule, depth=4), {"all": data})
    cells = found.trees.cells(data)
    sizes = [
        np.bincount(places(s, unpacked(b, found.trees.width), cells))
        for s, b in zip(found.trees.split, found.trees.left, strict=True)
    ]
    smallest = min(int(n[n > 0].min()) for n in sizes)
    assert 40 <= smallest < 80


def test_persons_with_many_rows_count_once_in_a_leaf() -> None:
    """Twenty rows of two persons cannot be split from the rest by a minimum of five persons."""
    draw = np.random.default_rng(0)
    person = np.concatenate([np.repeat([100.0, 101.0], 10), np.arange(80.0)])
    x = np.concatenate([np.full(20, 5.0), draw.random(80)])
    y = np.concatenate([np.full(20, 50.0), draw.random(80)])
    data = {"x": x, "y": y, "who": person}
    options: dict[str, Any] = {"loss": "squared", "trees": 1, "depth": 1, "cuts": {"x": (0.5, 2.0)}}
    by_row = solve(GradientBoosting(("x",), "y", rule=Disclosure(5), **options), {"all": data})
    assert by_row.trees.left[0, 0, 0] == 0b0011
    rule = Disclosure(5, person="who")
    by_person = solve(GradientBoosting(("x",), "y", rule=rule, **options), {"all": data})
    assert by_person.trees.left[0, 0, 0] == 0b0001


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_shares_never_add_up_to_more_than_the_persons(persons: list[int]) -> None:
    own = shares(np.array(persons, float), len(persons))
    assert len(set(persons)) - 1e-6 < own.sum() <= len(set(persons))


def test_rows_kept_aside_are_a_part_and_persons_stay_together() -> None:
    draw = np.random.default_rng(1)
    cells, y = draw.integers(0, 16, (3, 4000)), draw.random(4000)
    kept = drawn(cells, y, None, 0.25, seed=0)
    assert 0.22 < kept.mean() < 0.28
    assert not np.array_equal(kept, drawn(cells, y, None, 0.25, seed=1))
    person = draw.integers(0, 900, 4000).astype(float)
    own = drawn(cells, y, person, 0.25, seed=0)
    assert all(len(np.unique(own[person == p])) == 1 for p in np.unique(person))
    assert 0.2 < own.mean() < 0.3


def test_patience_keeps_the_best_trees() -> None:
    """An outcome of pure noise: the rows kept aside stop it early, and the best count is kept."""
    data = rows(400, 9, "squared")
    data["y"] = np.random.default_rng(2).normal(size=400)
    found = solve(analysis("squared", trees=200, kept=0.3, patience=5), {"all": data})
    assert len(found.trees) == int(np.argmin(found.kept_losses)) < 50
    assert len(found.losses) == len(found.trees) + 1
    assert any("lowered the loss no more" in note for note in found.notes)


def test_trees_end_where_nothing_gains() -> None:
    x = np.repeat([0.0, 1.0], 50)
    found = solve(
        GradientBoosting(("x",), "y", loss="squared", rate=1.0, l2=0.0),
        {"all": {"x": x, "y": 3 * x}},
    )
    assert len(found.trees) == 1
    assert found.losses[-1] == pytest.approx(0, abs=1e-9)
    assert any("no split was left" in note for note in found.notes)


def test_rows_without_outcome_and_columns_without_values_are_told() -> None:
    data = rows(200, 1, "logistic")
    data["y"][:7] = np.nan
    data["c"][:] = np.nan
    found = solve(analysis("logistic"), {"all": data})
    assert (found.rows, found.excluded) == (193, 7)
    assert "7 rows have no outcome and were left out" in found.notes
    assert "column 'c' has too few values to be cut" in found.notes


def test_an_empty_site_changes_nothing() -> None:
    data = rows(200, 1, "logistic")
    empty = {name: np.zeros(0) for name in data}
    both = solve(analysis("logistic"), {"a": data, "b": empty})
    assert same(both, solve(analysis("logistic"), {"a": data}))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"y": np.zeros(50)}, "one class"),
        ({"y": np.full(50, 2.0)}, "does not fit"),
        ({"y": np.full(50, np.nan)}, "empty at all sites"),
        ({"a": np.full(50, np.inf)}, "infinite"),
        ({"d": np.full(50, 9.0)}, "does not fit"),
    ],
)
def test_rows_that_do_not_fit_are_refused(change: dict[str, np.ndarray], why: str) -> None:
    data = rows(50, 1, "logistic") | change
    with pytest.raises(DataError, match=why):
        solve(analysis("logistic"), {"all": data})


def test_a_constant_outcome_is_refused() -> None:
    data = rows(50, 1, "squared") | {"y": np.full(50, 0.1)}
    with pytest.raises(DataError, match="constant"):
        solve(analysis("squared"), {"all": data})


def test_a_class_of_few_and_few_rows_aside_are_refused() -> None:
    data = rows(60, 1, "logistic")
    data["y"] = (np.arange(60) < 4).astype(float)
    with pytest.raises(Forbidden, match="class of 'y' has fewer than 5"):
        solve(analysis("logistic", rule=Disclosure(5)), {"all": data})
    data = rows(60, 1, "logistic")
    with pytest.raises(Forbidden, match="kept aside"):
        solve(analysis("logistic", rule=Disclosure(11), kept=0.02), {"all": data})


@pytest.mark.parametrize(
    "options",
    [{"trees": 0}, {"depth": 11}, {"bins": 1}, {"rate": 0}, {"kept": 1.0}, {"patience": 3}],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(JobError, match=next(iter(options))):
        analysis("logistic", **options)


def test_more_sums_than_a_round_can_carry_are_refused() -> None:
    names = [f"x{i}" for i in range(100)]
    with pytest.raises(JobError, match="would take 9,868,800 sums"):
        GradientBoosting(names, "y", depth=9, bins=256)
