"""Random-intercept models over sites against statsmodels' own likelihood, score and information."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.algorithms.statistics.analysis import solve
from atoll.algorithms.statistics.mixed import MixedModel
from atoll.core.errors import DataError, JobError

NAMES = ["ses", "male"]


def schools(seed=2, groups=30, between=1.5):
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 25, groups)
    school = np.repeat(np.arange(groups), size).astype(float)
    ses = rng.normal(size=len(school)) + rng.normal(size=groups)[school.astype(int)]
    male = rng.integers(0, 2, len(school)).astype(float)
    own = rng.normal(size=groups)[school.astype(int)] * between
    score = 12 + 2 * ses - male + own + rng.normal(size=len(school)) * 6
    return {"ses": ses, "male": male, "school": school, "score": score}


def dealt(columns, sites):
    """Whole schools dealt out to sites."""
    where = columns["school"] % sites
    return {f"site-{i}": {n: c[where == i] for n, c in columns.items()} for i in range(sites)}


@pytest.mark.parametrize("reml", [True, False])
def test_the_maximum_is_that_of_statsmodels(reml):
    sm = pytest.importorskip("statsmodels.api")
    params = pytest.importorskip("statsmodels.regression.mixed_linear_model").MixedLMParams
    columns = schools()
    model = MixedModel("score", NAMES, "school", reml=reml, information="observed")
    result = solve(model, dealt(columns, 5))
    x = sm.add_constant(np.column_stack([columns[n] for n in NAMES]))
    oracle = sm.MixedLM(columns["score"], x, groups=columns["school"])
    # statsmodels' own optimiser often stops early; its score tells whether a point is the maximum.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle.fit(reml=reml, maxiter=2, method="bfgs")
    ratio = result.group_variance / result.residual_variance
    at = params.from_components(result.table.values, np.array([[ratio]]))
    assert np.abs(oracle.score(at, profile_fe=False)).max() < 1e-9
    assert result.log_likelihood == pytest.approx(oracle.loglike(at, profile_fe=False), abs=1e-9)
    assert result.residual_variance == pytest.approx(oracle.get_scale(*_parts(at)), rel=1e-9)
    information, singular = oracle.hessian(at)
    assert not singular
    errors = np.sqrt(np.diag(np.linalg.inv(-information)))[:3]
    np.testing.assert_allclose(result.table.standard_errors, errors, rtol=1e-7)
    assert result.converged


def _parts(at):
    return at.fe_params, at.cov_re, at.vcomp


def test_expected_information_is_generalised_least_squares():
    columns = schools()
    result = solve(MixedModel("score", NAMES, "school"), dealt(columns, 4))
    same = columns["school"][:, None] == columns["school"]
    cover = result.group_variance * same + result.residual_variance * np.eye(len(same))
    x = np.column_stack([np.ones(len(same)), columns["ses"], columns["male"]])
    weight = np.linalg.inv(cover)
    spread = np.linalg.inv(x.T @ weight @ x)
    np.testing.assert_allclose(result.table.covariance, spread, rtol=1e-8)
    np.testing.assert_allclose(
        result.table.values, spread @ x.T @ weight @ columns["score"], rtol=1e-9
    )


def test_sites_as_groups_and_groups_within_sites_are_the_same():
    columns = schools()
    own = {f"{s:g}": {n: c[columns["school"] == s] for n, c in columns.items()} for s in range(30)}
    as_sites = solve(MixedModel("score", NAMES), own)
    within = solve(MixedModel("score", NAMES, "school"), dealt(columns, 7))
    np.testing.assert_allclose(as_sites.table.values, within.table.values, rtol=1e-10)
    assert as_sites.group_variance == pytest.approx(within.group_variance, rel=1e-8)
    assert (as_sites.groups, as_sites.sites, within.sites) == (30, 30, 7)


def test_balanced_groups_by_hand():
    """Two rows in each group: REML is analysis of variance."""
    y = np.array([1.0, 3, 6, 10, 8, 9])
    sites = {str(i): {"y": y[2 * i : 2 * i + 2], "x": np.zeros(2)} for i in range(3)}
    result = solve(MixedModel("y", ["x"]), sites)
    within = (2 + 8 + 0.5) / 3
    between = 2 * np.var([2, 8, 8.5], ddof=1)
    assert result.residual_variance == pytest.approx(within, rel=1e-9)
    assert result.group_variance == pytest.approx((between - within) / 2, rel=1e-9)
    assert result.dropped == ("x",)


def test_groups_that_do_not_differ_have_no_variance():
    columns = schools(between=0.0)
    columns["score"] = columns["score"] - np.array(
        [columns["score"][columns["school"] == s].mean() for s in columns["school"]]
    )
    result = solve(MixedModel("score", ["male"], "school"), dealt(columns, 3))
    assert result.group_variance == 0
    assert result.no_groups == 1
    assert "their variance is 0" in result.notes[-1]
    assert result.converged


@given(st.integers(1, 9), st.integers(0, 2**16), st.booleans())
@settings(max_examples=12, deadline=None)
def test_any_deal_of_the_groups_gives_the_same_answer(sites, seed, reml):
    columns = schools(seed)
    model = MixedModel("score", NAMES, "school", reml=reml)
    one, many = solve(model, {"all": columns}), solve(model, dealt(columns, sites))
    np.testing.assert_allclose(many.table.values, one.table.values, rtol=1e-10)
    np.testing.assert_allclose(many.table.standard_errors, one.table.standard_errors, rtol=1e-9)
    assert many.log_likelihood == pytest.approx(one.log_likelihood, rel=1e-12)


def test_permuting_sites_gives_the_same_bits():
    sites = list(dealt(schools(), 4).values())
    model = MixedModel("score", NAMES, "school")
    plain = solve(model, {str(i): s for i, s in enumerate(sites)})
    moved = solve(model, {str(i): sites[j] for i, j in enumerate([2, 0, 3, 1])})
    assert plain.table.covariance.tobytes() == moved.table.covariance.tobytes()
    assert plain.log_likelihood == moved.log_likelihood


def test_what_cannot_be_told_apart_is_refused():
    columns = schools()
    with pytest.raises(DataError, match="one group only"):
        solve(MixedModel("score", NAMES), {"only": columns})
    alone = columns | {"school": np.arange(len(columns["ses"])) * 1.0}
    with pytest.raises(DataError, match="no group with two rows"):
        solve(MixedModel("score", NAMES, "school"), {"only": alone})
    with pytest.raises(JobError, match="cannot be features"):
        MixedModel("score", ["school"], "school")


def test_columns_that_others_determine_are_left_out_and_named():
    columns = schools()
    columns["twice"] = 2 * columns["ses"]
    result = solve(MixedModel("score", [*NAMES, "twice"], "school"), dealt(columns, 3))
    plain = solve(MixedModel("score", NAMES, "school"), dealt(columns, 3))
    assert result.dropped == ("twice",)
    np.testing.assert_allclose(result.table.values[:3], plain.table.values, rtol=1e-9)
    assert result.log_likelihood == pytest.approx(plain.log_likelihood, rel=1e-12)
