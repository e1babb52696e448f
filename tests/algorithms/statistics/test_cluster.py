"""k-means and Gaussian mixtures over sites against scikit-learn on the pooled rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.algorithms.statistics.analysis import solve
from atoll.algorithms.statistics.cluster import KMeans, assign
from atoll.algorithms.statistics.mixture import GaussianMixture, responsibilities
from atoll.core.errors import DataError, JobError
from atoll.core.seeds import Seed

NAMES = ["a", "b", "c", "d"]


def split(columns, sites, seed=0):
    where = np.random.default_rng(seed).integers(0, sites, len(columns["a"]))
    return {f"site-{i}": {n: c[where == i] for n, c in columns.items()} for i in range(sites)}


@pytest.fixture(scope="module")
def iris():
    data = pytest.importorskip("sklearn.datasets").load_iris().data
    return {n: data[:, i] for i, n in enumerate(NAMES)}


def table(columns):
    return np.column_stack([columns[n] for n in NAMES])


def starts(columns):
    return table(columns)[[0, 60, 120]].tolist()


def test_lloyd_from_given_centres_is_scikit_learns(iris):
    learn = pytest.importorskip("sklearn.cluster")
    fit = learn.KMeans(3, init=np.array(starts(iris)), n_init=1, tol=0).fit(table(iris))
    result = solve(KMeans(NAMES, 3, centres=starts(iris)), split(iris, 5))
    order = np.argsort(-np.bincount(fit.labels_), kind="stable")
    np.testing.assert_allclose(result.centres, fit.cluster_centers_[order], rtol=1e-12)
    assert result.inertia == pytest.approx(fit.inertia_, rel=1e-12)
    assert result.sizes.tolist() == np.bincount(fit.labels_)[order].tolist()
    labels = assign(result, iris)
    assert (order[labels.astype(int)] == fit.labels_).all()


def test_four_points_by_hand():
    sites = {
        "left": {"a": np.array([0.0, 2.0])},
        "right": {"a": np.array([10.0, 14.0])},
    }
    result = solve(KMeans(["a"], 2, centres=[[0], [1]]), sites)
    assert sorted(result.centres.ravel().tolist()) == [1, 12]
    assert result.inertia == pytest.approx(1 + 1 + 4 + 4)
    assert result.converged


def test_several_starts_find_the_best_and_the_same_seed_the_same_bits(iris):
    many = solve(KMeans(NAMES, 3, seed=Seed(5), starts=8), split(iris, 4))
    assert many.inertia == pytest.approx(78.851441426146, rel=1e-9)  # the global optimum of iris
    again = solve(KMeans(NAMES, 3, seed=Seed(5), starts=8), split(iris, 4))
    assert again.centres.tobytes() == many.centres.tobytes()


def test_standardised_distances_do_not_depend_on_units(iris):
    model = KMeans(NAMES, 3, centres=starts(iris), standardise=True)
    plain = solve(model, split(iris, 3))
    scaled = iris | {"b": iris["b"] * 1000}
    model = KMeans(NAMES, 3, centres=starts(scaled), standardise=True)
    moved = solve(model, split(scaled, 3))
    np.testing.assert_allclose(moved.centres, plain.centres * [1, 1000, 1, 1], rtol=1e-9)
    assert moved.inertia == pytest.approx(plain.inertia, rel=1e-9)
    labels = assign(plain, iris)
    assert np.bincount(labels.astype(int)).tolist() == plain.sizes.tolist()


@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None)
def test_any_split_gives_the_same_clusters(iris, sites, seed):
    model = KMeans(NAMES, 3, seed=Seed(1), starts=2)
    one, many = solve(model, {"all": iris}), solve(model, split(iris, sites, seed))
    np.testing.assert_allclose(many.centres, one.centres, rtol=1e-10)
    assert many.sizes.tolist() == one.sizes.tolist()
    mixture = GaussianMixture(NAMES, 2, seed=Seed(1), most=5)
    one, many = solve(mixture, {"all": iris}), solve(mixture, split(iris, sites, seed))
    np.testing.assert_allclose(many.covariances, one.covariances, rtol=1e-9, atol=1e-10)
    assert many.log_likelihood == pytest.approx(one.log_likelihood, rel=1e-11)


def test_permuting_sites_gives_the_same_bits(iris):
    sites = list(split(iris, 4).values())
    for model in (KMeans(NAMES, 3), GaussianMixture(NAMES, 2, most=4)):
        plain = solve(model, {str(i): s for i, s in enumerate(sites)})
        moved = solve(model, {str(i): sites[j] for i, j in enumerate([3, 1, 0, 2])})
        for key in ("centres", "means", "covariances"):
            if hasattr(plain, key):
                assert getattr(plain, key).tobytes() == getattr(moved, key).tobytes()


def test_centres_without_rows_missing_values_and_too_few_rows_are_told(iris):
    far = [*starts(iris)[:2], [1e6] * 4]
    result = solve(KMeans(NAMES, 3, centres=far), split(iris, 3))
    assert "1 clusters have no rows" in result.notes
    holes = {n: c.copy() for n, c in iris.items()}
    holes["a"][:7] = np.nan
    result = solve(KMeans(NAMES, 2), split(holes, 3))
    assert (result.rows, result.excluded) == (143, 7)
    assert np.isnan(assign(result, holes)[:7]).all()
    with pytest.raises(DataError, match="2 complete rows are less than 3 clusters"):
        solve(KMeans(NAMES, 3), {"tiny": {n: c[:2] for n, c in iris.items()}})
    with pytest.raises(JobError, match="one or more"):
        KMeans(NAMES, 0)
    with pytest.raises(JobError, match=r"\(1, 2\)"):
        KMeans(NAMES, 3, centres=[[1, 2]])


@pytest.mark.filterwarnings("ignore:.*did not converge:UserWarning")
@pytest.mark.filterwarnings("ignore:Best performing initialization did not converge")
@pytest.mark.parametrize(("ours", "theirs"), [("full", "full"), ("diagonal", "diag")])
def test_twelve_steps_of_a_mixture_are_scikit_learns(iris, ours, theirs):
    learn = pytest.importorskip("sklearn.mixture")
    x, means = table(iris), np.array(starts(iris))
    own = ((x[:, None] - means) ** 2).sum(-1).argmin(1)
    parts = [x[own == j] for j in range(3)]
    covariances = [np.cov(p.T, bias=True) + 1e-6 * np.eye(4) for p in parts]
    inverse = [np.linalg.inv(c) if ours == "full" else 1 / np.diag(c) for c in covariances]
    fit = learn.GaussianMixture(
        3,
        covariance_type=theirs,
        weights_init=np.bincount(own) / len(x),
        means_init=np.array([p.mean(0) for p in parts]),
        precisions_init=np.array(inverse),
        tol=0,
        max_iter=12,
    ).fit(x)
    model = GaussianMixture(NAMES, 3, covariance=ours, means=means.tolist(), most=12)
    result = solve(model, split(iris, 5))
    order = np.argsort(-fit.weights_)
    np.testing.assert_allclose(result.weights, fit.weights_[order], rtol=1e-9)
    np.testing.assert_allclose(result.means, fit.means_[order], rtol=1e-9)
    spread = result.covariances
    if ours == "diagonal":
        spread = np.stack([np.diag(s) for s in spread])
    np.testing.assert_allclose(spread, fit.covariances_[order], rtol=1e-8)
    assert result.log_likelihood == pytest.approx(fit.score(x) * 150, rel=1e-11)
    assert result.bic == pytest.approx(fit.bic(x), rel=1e-11)
    np.testing.assert_allclose(
        responsibilities(result, iris), fit.predict_proba(x)[:, order], atol=1e-9
    )
    assert "no convergence in 12 rounds" in result.notes


def test_a_mixture_climbs_to_rest_and_says_where_it_cannot(iris):
    result = solve(GaussianMixture(NAMES, 2), split(iris, 3))
    assert result.converged
    assert result.weights.sum() == pytest.approx(1)
    twins = iris | {"b": iris["a"]}
    with pytest.raises(DataError, match="shrunk to a point or plane"):
        solve(GaussianMixture(NAMES, 2, floor=0.0), split(twins, 3))
    with pytest.raises(JobError, match="'tied'"):
        GaussianMixture(NAMES, 2, covariance="tied")
