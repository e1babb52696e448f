"""Boosted trees from Python and as a job: the pooled trees, a file that XGBoost reads, disclosure control."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import atoll
from atoll import stats
from atoll.core.errors import DataError, Forbidden, JobError, StateError
from atoll.data.readers import as_table
from atoll.job.inquiries.trees import predicted

FEATURES = ["age", "dose", "town", "smokes"]


def frame(n=900, sites=6, seed=0):
    draw = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "site": draw.choice([f"s{i}" for i in range(sites)], n),
            "age": draw.normal(60, 9, n).round(),
            "dose": draw.random(n),
            "town": draw.choice(["bern", "lyon", "oslo", "rome"], n),
            "smokes": draw.integers(0, 2, n),
        }
    )
    risk = 0.1 * (table["age"] - 60) + 2 * (table["town"] == "lyon") * table["smokes"]
    table["ill"] = (draw.random(n) < 1 / (1 + np.exp(1 - risk))).astype(int)
    table["score"] = risk + draw.normal(0, 0.5, n)
    return table


def test_sites_grow_the_trees_of_the_pooled_rows():
    rows = frame()
    model = stats.GradientBoosting("ill", FEATURES, trees=15)
    over = model.fit(stats.Federation.of(rows, site="site"))
    pooled = model.fit(stats.Federation.of({"all": rows.drop(columns="site")}))
    assert over.predict(rows).tolist() == pooled.predict(rows).tolist()
    assert over.records() == pooled.records()
    assert over.result.trees.loss == "logistic"
    assert over.facts()["loss"] < over.facts()["loss before"]


def test_the_columns_that_matter_come_first():
    fit = stats.GradientBoosting("score", FEATURES, trees=30, kept=0.2).fit(
        stats.Federation.of(frame(), site="site")
    )
    assert fit.result.trees.loss == "squared"
    assert set(fit.table.index[:3]) == {"age", "town", "smokes"}
    assert fit.table["share"].sum() == pytest.approx(1)
    facts = fit.facts()
    assert facts["rows"] + facts["rows kept aside"] == 900
    assert facts["loss, rows kept aside"] < 0.5 * facts["loss before, rows kept aside"]


def test_a_file_that_xgboost_reads(tmp_path):
    xgboost = pytest.importorskip("xgboost")
    rows = frame()
    fit = stats.GradientBoosting("ill", FEATURES, trees=15).fit(
        stats.Federation.of(rows, site="site")
    )
    fit.save(tmp_path / "new" / "trees.json")
    booster = xgboost.Booster(model_file=tmp_path / "new" / "trees.json")
    towns = json.loads(booster.attributes()["categories"])["town"]
    coded = rows[FEATURES].assign(town=pd.Categorical(rows["town"], towns))
    table = xgboost.DMatrix(coded, enable_categorical=True)
    np.testing.assert_allclose(booster.predict(table), fit.predict(rows), rtol=1e-6)


def test_rows_to_predict_may_lack_values_and_know_other_categories():
    rows = frame()
    fit = stats.GradientBoosting("ill", FEATURES).fit(stats.Federation.of(rows, site="site"))
    odd = {"age": [60, None], "dose": [0.5, np.nan], "town": ["lyon", "Paris"], "smokes": [1, None]}
    assert np.isfinite(fit.predict(odd)).all()
    with pytest.raises(DataError, match="'dose' is missing"):
        fit.predict({"age": [60]})
    with pytest.raises(DataError, match="'age' holds something"):
        fit.predict({**odd, "age": ["old", "young"]})


def test_rows_to_predict_are_read_as_rows_of_sites_are(tmp_path):
    rows = frame()
    codes = {"bern": "03000", "lyon": "069", "oslo": "0150", "rome": "00100"}
    rows["zip"] = rows["town"].map(codes)
    federation = stats.Federation.of(rows, site="site")
    fit = stats.GradientBoosting("ill", ["age", "dose", "zip", "smokes"], trees=8).fit(federation)
    wanted = fit.predict(rows)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    rows["dose"] = rows["dose"].astype("Float64")
    read = pd.read_csv(tmp_path / "rows.csv")  # zip codes are numbers there
    for given in (rows, tmp_path / "rows.csv", as_table(rows), read, dict(read)):
        np.testing.assert_allclose(fit.predict(given), wanted, rtol=1e-12)
    rows.loc[3, "dose"] = pd.NA
    assert fit.predict(rows)[3] == fit.predict(rows.assign(dose=np.nan))[3]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"age": 60, "dose": 1, "town": "bern", "smokes": 0}, "column 'age' is 60, and no list"),
        ({"age": [60], "dose": [1, 2], "town": ["bern"], "smokes": [0]}, "different lengths"),
        (pd.concat([frame(20), frame(20)[["age"]]], axis=1), "column 'age' appears twice"),
        (3, "no table"),
    ],
    ids=["one value", "lengths", "doubled", "number"],
)
def test_what_are_no_rows_to_predict_is_refused(wrong, told):
    federation = stats.Federation.of(frame(), site="site")
    fit = stats.GradientBoosting("ill", FEATURES, trees=1).fit(federation)
    with pytest.raises(DataError, match=told):
        fit.predict(wrong)


@pytest.mark.parametrize("outcome", ["ill", "score"])
def test_exported_trees_predict_what_the_trees_do(outcome):
    rows = frame()
    rows.loc[::7, ["dose", "town"]] = None
    fit = stats.GradientBoosting(outcome, FEATURES, trees=25, depth=4).fit(
        stats.Federation.of(rows, site="site")
    )
    exported = json.loads(json.dumps(fit.exported()))
    odd = {"age": [60, None], "dose": [0.5, np.nan], "town": ["lyon", "Paris"], "smokes": [1, None]}
    for some in (rows, odd, {**odd, "age": [-1e9, 1e9], "dose": [1e9, -1e9]}):
        np.testing.assert_allclose(predicted(exported, some), fit.predict(some), rtol=1e-13)
    with pytest.raises(DataError, match="'dose' is missing"):
        predicted(exported, {"age": [60]})


def test_an_ensemble_without_a_split_predicts_the_mean():
    rows = frame()
    fit = stats.GradientBoosting("score", ["smokes"], trees=3, gain=1e9).fit(
        stats.Federation.of(rows, site="site")
    )
    assert predicted(fit.exported(), rows).tolist() == fit.predict(rows).tolist()


@pytest.mark.parametrize("broken", ["learner", "attributes", "trees", "children", "deep", "loop"])
def test_what_are_no_trees_is_refused(broken):
    rows = frame(n=300)
    fit = stats.GradientBoosting("score", ["age"], trees=2).fit(
        stats.Federation.of(rows, site="site", rule=stats.Disclosure(1))
    )
    told = fit.exported()
    tree = told["learner"]["gradient_booster"]["model"]["trees"][0]
    if broken == "learner":
        del told["learner"]
    elif broken == "attributes":
        told["learner"]["attributes"] = {"categories": "["}
    elif broken == "trees":
        told["learner"]["gradient_booster"]["model"]["trees"] = [{}]
    elif broken == "children":
        tree["right_children"].pop()
    elif broken == "loop":
        tree["left_children"][0] = 0
    else:  # eleven splits, each on the right of the one before
        tree["left_children"] = [i + 1 if i % 2 == 0 and i < 22 else -1 for i in range(23)]
        tree["right_children"] = [i + 2 if i % 2 == 0 and i < 22 else -1 for i in range(23)]
        for name in ("split_indices", "split_type", "default_left"):
            tree[name] = [0] * 23
        tree["split_conditions"] = [60.0] * 23
    with pytest.raises(DataError, match="these are no trees"):
        predicted(told, rows)


JOB = """
name = "trees"
[data]
source = "rows.csv"
site_column = "site"
[privacy]
aggregation = "{aggregation}"
[[statistics.analyses]]
kind = "gradient_boosting"
outcome = "ill"
features = ["age", "dose", "town", "smokes"]
trees = 6
depth = 2
kept = 0.2
[[statistics.analyses]]
kind = "describe"
columns = ["age"]
"""


@pytest.mark.parametrize(
    ("aggregation", "executor"), [("plain", "processes"), ("masked", "serial")]
)
def test_a_job_grows_the_same_trees(tmp_path, aggregation, executor):
    rows = frame(sites=5)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "job.toml").write_text(JOB.format(aggregation=aggregation))
    job = atoll.load_job(tmp_path / "job.toml")
    run = atoll.simulate(job, executor=executor, workers=2, out=tmp_path / "run")
    found = run.findings["gradient_boosting"]
    fit = stats.GradientBoosting("ill", FEATURES, trees=6, depth=2, kept=0.2).fit(
        stats.Federation.of(pd.read_csv(tmp_path / "rows.csv"), site="site")
    )
    assert found.records() == fit.records()
    assert found.predict(rows).tolist() == fit.predict(rows).tolist()
    told = stats.read_results(tmp_path / "run")
    np.testing.assert_allclose(
        told["gradient_boosting"].predict(rows), fit.predict(rows), rtol=1e-14
    )
    with pytest.raises(StateError, match="'describe' holds no model that predicts"):
        told["describe"].predict(rows)
    assert told["gradient_boosting"].facts() == found.facts()
    assert told["gradient_boosting"].exported() == found.exported() == fit.exported()
    assert told["describe"].exported() is None
    written = json.loads((tmp_path / "run" / "models" / "gradient_boosting.json").read_text())
    assert written == fit.exported()
    assert "loss before" in (tmp_path / "run" / "report.html").read_text()


def test_what_may_not_be_explained_is_refused():
    federation = stats.Federation.of(frame(), site="site")
    with pytest.raises(DataError, match="4 categories"):
        stats.GradientBoosting("town", ["age"]).fit(federation)
    with pytest.raises(DataError, match="no column 'agee'"):
        stats.GradientBoosting("ill", ["agee"]).fit(federation)
    with pytest.raises(JobError, match="depth must be"):
        stats.GradientBoosting("ill", ["age"], depth=0).fit(federation)
    rows = frame()
    rows["ill"] = (np.arange(900) < 7).astype(int)
    with pytest.raises(Forbidden, match="class of 'ill' has fewer than 11"):
        stats.GradientBoosting("ill", ["age"]).fit(stats.Federation.of(rows, site="site"))


def test_leaves_of_a_federation_have_the_minimum_of_persons():
    rule = stats.Disclosure(minimum=150)
    fit = stats.GradientBoosting("score", FEATURES, trees=5, depth=4).fit(
        stats.Federation.of({"all": frame().drop(columns="site")}, rule=rule)
    )
    assert len(fit.result.trees) == 5
    deep = (fit.result.trees.split[:, 7:] >= 0).any()
    values, counts = np.unique(fit.predict(frame()), return_counts=True)
    assert not deep
    assert len(values) > 5
    assert counts.sum() == 900
