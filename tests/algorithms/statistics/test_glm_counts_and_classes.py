"""Negative binomial and multinomial regression over sites against statsmodels on the pooled rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.algorithms.statistics.analysis import solve
from atoll.algorithms.statistics.families_special import digamma, gammaln, trigamma
from atoll.algorithms.statistics.glm_multinomial import Multinomial
from atoll.algorithms.statistics.glm_negative import NegativeBinomialRegression
from atoll.algorithms.statistics.penalty import Penalty
from atoll.core.errors import DataError, JobError

sm = pytest.importorskip("statsmodels.api")


def split(columns, sites, seed=0):
    where = np.random.default_rng(seed).integers(0, sites, len(next(iter(columns.values()))))
    return {f"site-{i}": {n: c[where == i] for n, c in columns.items()} for i in range(sites)}


def counts(n=500, seed=4):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=n), rng.normal(40, 12, n)
    mean = np.exp(0.4 * a + 0.02 * b - 0.3)
    off = rng.normal(size=n) * 0.2
    y = rng.poisson(mean * np.exp(off) * rng.gamma(1.5, 1 / 1.5, n)).astype(float)
    return {"a": a, "b": b, "off": off, "y": y, "plain": rng.poisson(mean).astype(float)}


@pytest.mark.parametrize("offset", ["", "off"])
def test_alpha_and_coefficients_are_the_maximum_together(offset):
    columns = counts()
    model = NegativeBinomialRegression("y", ["a", "b"], offset=offset)
    result = solve(model, split(columns, 5))
    x = sm.add_constant(np.column_stack([columns["a"], columns["b"]]))
    more = {"offset": columns["off"]} if offset else {}
    oracle = sm.NegativeBinomial(columns["y"], x, **more).fit(
        disp=0, method="newton", start_params=result.table.values * 1.01, tol=1e-14, maxiter=100
    )
    assert result.table.names == ("intercept", "a", "b", "alpha")
    np.testing.assert_allclose(result.table.values, oracle.params, atol=1e-9)
    np.testing.assert_allclose(result.table.standard_errors, oracle.bse, atol=1e-8)
    assert result.log_likelihood == pytest.approx(oracle.llf, abs=1e-8)
    assert result.aic == pytest.approx(oracle.aic, abs=1e-8)
    assert result.bic == pytest.approx(oracle.bic, abs=1e-8)
    assert result.converged


def test_an_intercept_for_each_site_is_a_dummy_for_each():
    columns = counts()
    sites = split(columns, 3)
    result = solve(NegativeBinomialRegression("y", ["a"], intercept="site"), sites)
    where = np.random.default_rng(0).integers(0, 3, 500)
    x = np.column_stack([*(where == i for i in range(3)), columns["a"]]).astype(float)
    start = np.concatenate([result.site_intercepts, result.table.values]) * 1.01
    oracle = sm.NegativeBinomial(columns["y"], x).fit(
        disp=0, method="newton", start_params=start, tol=1e-14, maxiter=100
    )
    np.testing.assert_allclose(result.site_intercepts, oracle.params[:3], atol=1e-9)
    np.testing.assert_allclose(result.table.standard_errors, oracle.bse[3:], atol=1e-8)


def test_counts_without_extra_variance_are_told():
    columns = counts()
    columns["plain"] = np.minimum(columns["plain"], 3.0)  # less variance than Poisson
    result = solve(NegativeBinomialRegression("plain", ["a", "b"]), split(columns, 2))
    assert "use a Poisson model" in result.notes[-1]
    assert np.isnan(result.alpha)
    assert not result.converged


@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_any_split_gives_the_same_dispersion(sites, seed):
    columns = counts(200)
    model = NegativeBinomialRegression("y", ["a", "b"])
    one, many = solve(model, {"all": columns}), solve(model, split(columns, sites, seed))
    np.testing.assert_allclose(many.table.values, one.table.values, rtol=1e-10)
    np.testing.assert_allclose(many.table.standard_errors, one.table.standard_errors, rtol=1e-10)


@pytest.fixture(scope="module")
def wine():
    data = pytest.importorskip("sklearn.datasets").load_wine()
    names = ("alcohol", "malic", "ash", "alcalinity")
    return {n: data.data[:, i] for i, n in enumerate(names)} | {"kind": data.target.astype(float)}


@pytest.mark.filterwarnings("ignore:Maximum Likelihood optimization failed")
def test_multinomial_is_statsmodels(wine):
    names = [n for n in wine if n != "kind"]
    result = solve(Multinomial("kind", [0, 1, 2], names), split(wine, 6))
    x = sm.add_constant(np.column_stack([wine[n] for n in names]))
    oracle = sm.MNLogit(wine["kind"], x).fit(disp=0, method="newton", maxiter=100, tol=1e-14)
    values = np.column_stack([t.values for t in result.tables])
    errors = np.column_stack([t.standard_errors for t in result.tables])
    np.testing.assert_allclose(values, oracle.params, atol=1e-8)
    np.testing.assert_allclose(errors, oracle.bse, atol=1e-8)
    assert result.log_likelihood == pytest.approx(oracle.llf, abs=1e-9)
    assert result.null_log_likelihood == pytest.approx(oracle.llnull, abs=1e-6)
    assert result.aic == pytest.approx(oracle.aic, abs=1e-8)


def test_two_levels_and_a_ridge_are_scikit_learns(wine):
    linear = pytest.importorskip("sklearn.linear_model")
    names = ["alcohol", "malic"]
    x = np.column_stack([wine[n] for n in names])
    fit = linear.LogisticRegression(C=0.5, tol=1e-12, solver="newton-cg").fit(x, wine["kind"])
    penalty = Penalty(1 / (0.5 * len(x)))
    result = solve(Multinomial("kind", [0, 1, 2], names, penalty=penalty), split(wine, 4))
    # scikit-learn penalises all three levels; ours is held at zero, so compare what both must
    # fulfil: the gradient of the penalised likelihood vanishes.
    tables = np.vstack([np.zeros(3), *(t.values for t in result.tables)])
    eta = np.column_stack([np.ones(len(x)), x]) @ tables.T
    share = np.exp(eta - eta.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    rest = (wine["kind"][:, None] == [0, 1, 2]) - share
    slope = rest.T @ x - tables[:, 1:] / 0.5
    assert np.abs(slope[1:]).max() < 1e-8
    assert np.abs(rest.sum(axis=0)).max() < 1e-8
    assert (share.argmax(axis=1) == fit.predict(x)).mean() > 0.95


def test_classes_that_columns_tell_apart_are_separation(wine):
    tables = wine | {"code": wine["kind"] + 0.1 * wine["ash"]}
    result = solve(Multinomial("kind", [0, 1, 2], ["code"]), split(tables, 3))
    assert result.separated
    assert "separation" in result.notes[-1]
    assert np.isnan(result.tables[0].values).all()


def test_levels_must_be_declared_and_must_occur(wine):
    with pytest.raises(DataError, match="kind: holds 2, which is not among its levels"):
        solve(Multinomial("kind", [0, 1], ["ash"]), {"only": wine})
    with pytest.raises(DataError, match="is never 3 at any site"):
        solve(Multinomial("kind", [0, 1, 2, 3], ["ash"]), {"only": wine})
    with pytest.raises(JobError, match="two or more different levels"):
        Multinomial("kind", [1, 1], ["ash"])


@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_any_split_gives_the_same_classes(wine, sites, seed):
    model = Multinomial("kind", [0, 1, 2], ["alcohol", "malic"])
    one, many = solve(model, {"all": wine}), solve(model, split(wine, sites, seed))
    for a, b in zip(one.tables, many.tables, strict=True):
        np.testing.assert_allclose(b.values, a.values, rtol=1e-10)
        np.testing.assert_allclose(b.standard_errors, a.standard_errors, rtol=1e-10)


def test_gamma_functions_are_scipys():
    special = pytest.importorskip("scipy.special")
    x = np.concatenate([np.geomspace(1e-3, 1e6, 500), [0.5, 1.0, 2.0]])
    np.testing.assert_allclose(gammaln(x), special.gammaln(x), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(digamma(x), special.digamma(x), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(trigamma(x), special.polygamma(1, x), rtol=1e-13)
