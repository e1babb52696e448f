"""Tests over sites are SciPy's on the pooled rows."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from atoll.algorithms.statistics.analysis import solve
from atoll.algorithms.statistics.comparisons import Anova, ChiSquared, Fisher, TTest
from atoll.algorithms.statistics.ranks import MannWhitney
from atoll.core.errors import DataError, Forbidden
from atoll.data.disclosure import Disclosure

FREE = Disclosure(minimum=1)


def halves(pooled, name="weight"):
    return [pooled[name][(pooled["group"] == g) & ~np.isnan(pooled[name])] for g in (0, 1)]


@pytest.mark.parametrize("equal", [False, True])
def test_t_tests_are_scipy_s(sites, pooled, equal):
    mine = solve(TTest("weight", "group", equal_variances=equal), sites)
    theirs = stats.ttest_ind(*halves(pooled), equal_var=equal)
    assert mine.statistic == pytest.approx(theirs.statistic, rel=1e-9)
    assert mine.p == pytest.approx(theirs.pvalue, rel=1e-8)
    assert mine.df[0] == pytest.approx(theirs.df, rel=1e-9)
    assert mine.interval == pytest.approx(tuple(theirs.confidence_interval()), rel=1e-8)


def test_analysis_of_variance_is_scipy_s(sites, pooled):
    mine = solve(Anova("age", "kind", ("a", "b", "c")), sites)
    theirs = stats.f_oneway(*[pooled["age"][pooled["kind"] == k] for k in range(3)])
    assert (mine.statistic, mine.p) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-9)
    assert mine.df == (2, 297)


@pytest.mark.parametrize("correction", [False, True])
def test_chi_squared_is_scipy_s(sites, pooled, correction):
    table = np.histogram2d(pooled["group"], pooled["kind"], (2, 3))[0]
    mine = solve(ChiSquared("group", "kind", ("m", "f"), ("a", "b", "c")), sites)
    theirs = stats.chi2_contingency(table)
    assert (mine.statistic, mine.p) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-9)
    for site in sites.values():
        site["two"] = np.minimum(site["kind"], 1.0)
    two = np.stack([table[:, 0], table[:, 1:].sum(axis=1)], axis=1)
    mine = solve(ChiSquared("group", "two", ("m", "f"), ("a", "b"), correction), sites)
    theirs = stats.chi2_contingency(two, correction=correction)
    assert (mine.statistic, mine.p) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-9)
    exact = solve(Fisher("group", "two"), sites)
    assert exact.p == pytest.approx(stats.fisher_exact(two).pvalue, rel=1e-8)
    assert exact.estimate == pytest.approx(two[0, 0] * two[1, 1] / two[0, 1] / two[1, 0])


def test_whole_numbers_give_the_mann_whitney_test_to_the_last_bit(sites, pooled):
    mine = solve(MannWhitney("age", "group", whole=True), sites)
    theirs = stats.mannwhitneyu(*halves(pooled, "age"), method="asymptotic")
    assert mine.statistic == theirs.statistic
    assert mine.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert mine.p_range == pytest.approx((mine.p, mine.p), rel=1e-12)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([4, 16, 64, 4096]))
def test_binned_ranks_keep_their_stated_error(seed, bins):
    rng = np.random.default_rng(seed)
    x, g = rng.standard_t(3, 80), rng.integers(0, 2, 80).astype(float)
    g[:2] = 0, 1
    sites = {"a": {"x": x[:30], "g": g[:30]}, "b": {"x": x[30:], "g": g[30:]}}
    mine = solve(MannWhitney("x", "g", bins=bins, rule=FREE), sites)
    theirs = stats.mannwhitneyu(x[g == 0], x[g == 1], method="asymptotic")
    bound = float(mine.notes[0].split("within ")[1].split(" of")[0])
    assert abs(mine.statistic - theirs.statistic) <= bound + 1e-9
    low, high = mine.p_range
    assert low * (1 - 1e-9) <= theirs.pvalue <= high * (1 + 1e-9)


@pytest.mark.parametrize("offset", [1e9, -1e13])
def test_ranks_are_those_of_numbers_that_lie_close_together_far_from_zero(offset):
    """Their squares hardly differ: a standard deviation from those put all numbers into one bin."""
    rng = np.random.default_rng(3)
    x, g = offset + rng.normal(size=400), rng.integers(0, 2, 400).astype(float)
    sites = {"a": {"x": x[:100], "g": g[:100]}, "b": {"x": x[100:], "g": g[100:]}}
    mine = solve(MannWhitney("x", "g", rule=FREE), sites)
    theirs = stats.mannwhitneyu(x[g == 0], x[g == 1], method="asymptotic")
    assert mine.p == pytest.approx(theirs.pvalue, rel=0.01)
    low, high = mine.p_range
    assert low <= theirs.pvalue <= high < 1.1 * low
    assert f"p lies between {low:.3g} and {high:.3g}" in mine.notes[0]


def test_whole_numbers_that_lie_far_apart_are_binned_as_others_are():
    """One bin each, they would leave most numbers in the two bins at the ends."""
    rng = np.random.default_rng(3)
    x, g = rng.integers(0, 10**7, 400).astype(float), rng.integers(0, 2, 400).astype(float)
    sites = {"a": {"x": x[:100], "g": g[:100]}, "b": {"x": x[100:], "g": g[100:]}}
    mine = solve(MannWhitney("x", "g", whole=True, rule=FREE), sites)
    theirs = stats.mannwhitneyu(x[g == 0], x[g == 1], method="asymptotic")
    low, high = mine.p_range
    assert low <= theirs.pvalue <= high < 1.1 * low


def test_a_small_group_or_cell_is_refused(sites):
    for site in sites.values():
        site["group"] = np.where(np.arange(len(site["age"])) < 2, 1.0, 0.0)
    for test in (TTest("age", "group"), MannWhitney("age", "group")):
        with pytest.raises(Forbidden, match="fewer than 11"):
            solve(test, sites)
    with pytest.raises(Forbidden, match="cells below 11"):
        solve(ChiSquared("group", "kind", ("m", "f"), ("a", "b", "c")), sites)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TTest("x", "g", ("a", "b", "c")), "two groups"),
        (lambda: MannWhitney("x", "g", ("a",)), "not two"),
        (lambda: Fisher("x", "g", ("a", "b", "c")), "two by two"),
        (lambda: solve(TTest("x", "g", rule=FREE), {"a": flat()}), "constant in both"),
        (lambda: solve(Anova("x", "g", ("a", "b"), FREE), {"a": flat()}), "does not vary"),
        (lambda: solve(MannWhitney("x", "g", rule=FREE), {"a": flat()}), "share one bin"),
        (lambda: solve(TTest("x", "g", rule=FREE), {"a": flat(1)}), "fewer than two"),
        (
            lambda: solve(
                ChiSquared("g", "g", ("a", "b", "c"), ("a", "b", "c"), rule=FREE), {"a": flat()}
            ),
            "level 'c' of 'g' has no row",
        ),
    ],
)
def test_what_cannot_be_tested_says_why(make, message):
    with pytest.raises(DataError, match=message):
        make()


def flat(ones=2):
    return {"x": np.ones(4), "g": np.array([0.0] * (4 - ones) + [1.0] * ones)}


def test_a_table_without_a_diagonal_has_an_odds_ratio_of_zero():
    g = np.array([0.0] * 5 + [1.0] * 5)
    found = solve(Fisher("g", "h", rule=FREE), {"a": {"g": g, "h": 1 - g}})
    assert found.estimate == 0.0
    assert math.isnan(found.statistic)
