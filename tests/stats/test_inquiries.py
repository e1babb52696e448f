"""One definition of each analysis, for job files and for people who ask from Python."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from atoll import stats
from atoll.core.errors import DataError, JobError
from atoll.job.inquiries import tables, tests
from atoll.job.inquiries.book import Codebook
from atoll.job.inquiries.registry import KINDS, as_options, inquiry_of

SURVIVAL = {"time": "days", "event": "died", "horizon": 400.0}
MODEL = {"outcome": "y", "features": ["age", "sex"]}

WRITTEN = {
    "table_one": {"by": "sex", "columns": ["age"]},
    "describe": {"columns": ["age"], "quantiles": [0.5], "tolerance": 0.0},
    "histogram": {"column": "age", "edges": [30.0, 60.0]},
    "cross_table": {"row": "sex", "column": "arm"},
    "correlation": {"columns": ["age", "bmi"]},
    "principal_components": {"columns": ["age", "bmi"], "standardise": False},
    "frequent": {"column": "code", "least": 20, "bits": 40},
    "t_test": {"column": "age", "by": "sex", "equal_variances": True},
    "anova": {"column": "age", "by": "arm"},
    "chi_squared": {"row": "sex", "column": "arm", "correction": False},
    "fisher": {"row": "sex", "column": "arm"},
    "mann_whitney": {"column": "age", "by": "sex", "bins": 100, "whole": True},
    "linear": {**MODEL, "intercept": "site", "covariance": "hc1", "weights": "w"},
    "logistic": {**MODEL, "penalty": [0.1, 0.5], "level": 0.9},
    "poisson": {**MODEL, "offset": "exposure"},
    "gamma": MODEL,
    "negative_binomial": {**MODEL, "intercept": "site"},
    "multinomial": MODEL,
    "mixed": {**MODEL, "group": "ward", "reml": False},
    "kaplan_meier": {**SURVIVAL, "by": "sex", "level": 0.9},
    "log_rank": {**SURVIVAL, "by": "sex", "strata": "site"},
    "cox": {"time": "t", "event": "e", "features": ["age"], "times": [1.0, 2.5], "ties": "breslow"},
    "gradient_boosting": {**MODEL, "loss": "squared", "trees": 7, "kept": 0.2, "patience": 2},
    "k_means": {"columns": ["age", "bmi"], "clusters": 3, "seed": 5},
    "gaussian_mixture": {"columns": ["age"], "components": 2, "covariance": "diagonal"},
    "standardise": {"columns": ["age"], "ddof": 1},
    "combat": {"columns": ["u", "v"], "covariates": ["age", "sex"], "by_site": False},
}
"""Options of every kind, as they stand in a job file."""


def made(kind, options):
    inquiry, faults = inquiry_of(kind, options, "here")
    assert faults == []
    return inquiry


def test_every_kind_is_written_here():
    assert list(WRITTEN) == list(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_an_inquiry_and_its_table_in_a_job_file_are_the_same(kind):
    inquiry = made(kind, WRITTEN[kind])
    assert as_options(inquiry) == {"kind": kind, **WRITTEN[kind]}
    assert made(kind, WRITTEN[kind]) == inquiry
    assert hash(made(kind, WRITTEN[kind])) == hash(inquiry)


def test_python_and_the_job_file_make_the_same_inquiry():
    axis = stats.Axis(horizon=400)
    assert stats.LogisticRegression("y", ["age", "sex"], penalty=(0.1, 0.5), level=0.9) == made(
        "logistic", WRITTEN["logistic"]
    )
    assert stats.KaplanMeier("days", "died", axis, by="sex", level=0.9) == made(
        "kaplan_meier", WRITTEN["kaplan_meier"]
    )
    times = stats.Axis(times=[1, 2.5])
    assert stats.CoxRegression("t", "e", ["age"], times, ties="breslow") == made(
        "cox", WRITTEN["cox"]
    )


@pytest.mark.parametrize("features", [["age"], ("age",), pd.Index(["age"]), {"age": 1}])
def test_several_names_may_come_as_anything_that_lists_them(features):
    assert stats.MixedModel("y", features).features == ("age",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stats.LinearRegression("y", "age"), "features is the text 'age'"),
        (lambda: tables.Describe("age"), "columns is the text 'age'"),
        (lambda: stats.LinearRegression("y", ["age"], intercept="sites"), "intercept is 'sites'"),
        (lambda: stats.PoissonRegression("y", ["age"], covariance="hc3"), "covariance is 'hc3'"),
        (lambda: stats.MixedModel("y", ["age"], level=95), "level is 95"),
        (lambda: stats.CoxRegression("t", "e", ["a"], stats.Axis(9), ties="exact"), "ties is"),
        (lambda: stats.KaplanMeier("t", "e", stats.Axis()), "both must be positive"),
        (lambda: stats.KMeans(["age"], 2.5), "clusters is 2.5"),
        (lambda: stats.GradientBoosting("y", ["age"], kept="a"), "kept is 'a'"),
        (lambda: stats.GradientBoosting(["y"], ["age"]), "outcome is \\['y'\\]"),
        (lambda: stats.ComBat(["u"], by_site="no"), "by_site is 'no'"),
        (lambda: tables.Frequent("code", least=10.5), "least is 10.5"),
        (lambda: tests.RankTest("age", "sex", bins=2.5), "bins is 2.5"),
        (lambda: stats.KMeans(["age"], 0), "0 clusters"),
        (lambda: stats.GaussianMixture(["age"], -1), "-1 components"),
        (lambda: stats.GradientBoosting("y", ["age"], depth=0), "depth must be from 1"),
        (lambda: stats.LinearRegression("y", ["age"], penalty=(-1, 0)), "penalty alpha -1"),
        (lambda: stats.LogisticRegression("y", ["age", "age"]), "named twice: age, age"),
        (lambda: stats.NegativeBinomialRegression("y", ["y"]), "'y' is among the features"),
        (lambda: stats.MultinomialRegression("y", ["y"]), "'y' is among the features"),
        (lambda: stats.CoxRegression("t", "e", ["t"], stats.Axis(9)), "different columns"),
        (lambda: stats.CoxRegression("t", "e", ["a"], 730), "axis is 730"),
        (lambda: stats.KaplanMeier("t", "t", stats.Axis(9)), "cannot be time and event"),
    ],
)
def test_an_option_that_means_nothing_is_refused_before_anybody_is_asked(make, message):
    with pytest.raises(JobError, match=message):
        make()


BOOK = Codebook(("age", "sex", "died"), {"sex": ("f", "m")}, frozenset({"died"}))


@pytest.mark.parametrize(
    "asked",
    [
        tests.TTest("sex", "sex"),
        tests.Anova("sex", "died"),
        tests.RankTest("sex", "died"),
        stats.KMeans(["age", "sex"], 2),
        stats.GaussianMixture(["sex"], 2),
        stats.KaplanMeier("sex", "died", stats.Axis(horizon=9)),
        stats.CoxRegression("sex", "died", ["age"], stats.Axis(horizon=9)),
        stats.Standardisation(["sex"]),
        stats.MixedModel("sex", ["age"]),
        stats.NegativeBinomialRegression("sex", ["age"]),
        tables.Describe(["sex"]),
    ],
    ids=lambda asked: type(asked).__name__,
)
def test_codes_of_categories_are_not_taken_for_numbers(asked):
    with pytest.raises(DataError, match="'sex' holds categories"):
        asked.analysis(BOOK)


def test_no_columns_are_all_of_them_only_where_that_is_said():
    assert tables.Describe(quantiles=[]).analysis(BOOK).columns() == ("age", "died")
    for make in (lambda: stats.ComBat([]), lambda: stats.KMeans([], 2)):
        with pytest.raises(JobError, match="columns is empty"):
            make()


def test_a_seed_that_sites_could_not_use_is_refused_here():
    with pytest.raises(JobError, match="seed must be from 0"):
        stats.GradientBoosting("died", ["age"], seed=-1)


def test_a_job_file_that_asks_for_nonsense_is_refused_with_the_place():
    asked, faults = inquiry_of("k_means", {"columns": ["age"], "clusters": 0}, "here")
    assert asked is None
    assert [(fault.place, fault.message[:10]) for fault in faults] == [("here", "0 clusters")]


@pytest.mark.parametrize("wanted", [(1,), (1, 2, 3)])
def test_a_range_has_two_ends(wanted):
    with pytest.raises(DataError, match="is no range"):
        BOOK.selection({"age": wanted})


def test_numbers_of_numpy_are_the_numbers_that_they_are():
    asked = stats.KMeans(["age"], np.int64(3), seed=np.uint8(5))
    assert asked == made("k_means", {"columns": ["age"], "clusters": 3, "seed": 5})
    assert json.loads(json.dumps(as_options(asked)))["clusters"] == 3
    assert as_options(tables.Describe(quantiles=np.array([0.5], np.float32)))["quantiles"] == [0.5]


def test_an_inquiry_of_one_s_own_is_of_the_kind_it_extends_or_of_none():
    @dataclass(frozen=True)
    class Mine(stats.LogisticRegression):
        title = "Mine"

    assert as_options(Mine("y", ["age"])) == {
        "kind": "logistic",
        "outcome": "y",
        "features": ["age"],
    }
    with pytest.raises(JobError, match="a job file has no kind for object"):
        as_options(object())
