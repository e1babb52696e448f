"""Generalised linear models over sites against statsmodels and scikit-learn on the pooled rows."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.algorithms.statistics.analysis import solve
from atoll.algorithms.statistics.glm import GLM
from atoll.algorithms.statistics.penalty import Penalty
from atoll.core.errors import DataError, JobError

sm = pytest.importorskip("statsmodels.api")

ROOT = Path(__file__).parents[3]
HEART = ["age", "trestbps", "thalach", "oldpeak", "male", "exang"]
FAMILIES = {
    "gaussian": sm.families.Gaussian(),
    "binomial": sm.families.Binomial(),
    "poisson": sm.families.Poisson(),
    "negative_binomial": sm.families.NegativeBinomial(alpha=0.5),
    "gamma": sm.families.Gamma(sm.families.links.Log()),
}


def split(columns, sites, seed=0):
    """Rows dealt out at random."""
    where = np.random.default_rng(seed).integers(0, sites, len(next(iter(columns.values()))))
    return {f"site-{i}": {n: c[where == i] for n, c in columns.items()} for i in range(sites)}


def made(n=600, seed=1):
    """Columns on very different scales, and an outcome for each family."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)) * [1, 10, 0.01] + [0, 50, 2]
    eta = x @ [0.5, 0.03, 5] - 11.5
    return {
        "a": x[:, 0],
        "b": x[:, 1],
        "c": x[:, 2],
        "offset": rng.normal(size=n) * 0.3,
        "weight": rng.uniform(0.5, 2, n),
        "times": rng.integers(1, 4, n).astype(float),
        "gaussian": eta + rng.normal(size=n),
        "binomial": (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(float),
        "poisson": rng.poisson(np.exp(eta)).astype(float),
        "negative_binomial": rng.poisson(np.exp(eta) * rng.gamma(2, 0.5, n)).astype(float),
        "gamma": rng.gamma(2, np.exp(eta) / 2) + 1e-3,
    }


def pooled(columns, names):
    return sm.add_constant(np.column_stack([columns[n] for n in names]))


def same(result, oracle, errors=True):
    """Coefficients to 1e-8; errors, likelihood and deviance to 1e-6 and better."""
    np.testing.assert_allclose(result.table.values, oracle.params, rtol=1e-9, atol=1e-9)
    if errors:
        np.testing.assert_allclose(result.table.standard_errors, oracle.bse, rtol=1e-7)
    assert result.log_likelihood == pytest.approx(oracle.llf, rel=1e-11)
    assert result.deviance == pytest.approx(oracle.deviance, rel=1e-10)
    assert result.null_deviance == pytest.approx(oracle.null_deviance, rel=1e-10)
    assert result.dispersion == pytest.approx(oracle.scale, rel=1e-10)
    assert result.converged


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("covariance", ["model", "hc0"])
@pytest.mark.parametrize("parts", [(), ("offset",), ("weight",), ("offset", "weight", "times")])
def test_each_family_with_weights_and_offset_is_that_of_the_pooled_rows(family, covariance, parts):
    columns = made()
    model = GLM(
        family,
        ["a", "b", "c"],
        family=family,
        alpha=0.5,
        offset="offset" if "offset" in parts else "",
        weights="weight" if "weight" in parts else "",
        frequencies="times" if "times" in parts else "",
        covariance=covariance,
    )
    keys = {"offset": "offset", "weight": "var_weights", "times": "freq_weights"}
    oracle = sm.GLM(
        columns[family],
        pooled(columns, "abc"),
        family=FAMILIES[family],
        **{keys[p]: columns[p] for p in parts},
    ).fit(
        tol=1e-14,
        tol_criterion="params",
        maxiter=300,
        cov_type={"model": "nonrobust", "hc0": "HC0"}[covariance],
    )
    # Sandwiches of frequency weights: statsmodels squares the weights, equal rows do not.
    same(solve(model, split(columns, 5)), oracle, not ("times" in parts and covariance == "hc0"))


def test_a_frequency_is_as_many_equal_rows():
    columns = made(80)
    times = columns["times"].astype(int)
    long = {n: np.repeat(c, times) for n, c in columns.items()}
    short = solve(
        GLM("poisson", ["a", "b"], family="poisson", frequencies="times", covariance="hc1"),
        split(columns, 3),
    )
    full = solve(GLM("poisson", ["a", "b"], family="poisson", covariance="hc1"), split(long, 4))
    np.testing.assert_allclose(short.table.standard_errors, full.table.standard_errors, rtol=1e-10)
    assert short.aic == pytest.approx(full.aic, rel=1e-12)
    assert short.bic == pytest.approx(full.bic, rel=1e-12)


@pytest.mark.filterwarnings("ignore:The InversePower link")
def test_the_inverse_link_of_gamma_stays_in_its_range():
    columns = made()
    rate = 1 + 0.25 * columns["a"] + 0.002 * columns["b"]
    columns["gamma"] = np.random.default_rng(3).gamma(2, 1 / (2 * rate))
    result = solve(GLM("gamma", ["a", "b"], family="gamma", link="inverse"), split(columns, 3))
    inverse = sm.families.Gamma(sm.families.links.InversePower())
    oracle = sm.GLM(columns["gamma"], pooled(columns, "ab"), family=inverse)
    same(result, oracle.fit(tol=1e-14, tol_criterion="params", maxiter=300))


def test_linear_regression_on_diabetes_has_the_published_numbers():
    data = pytest.importorskip("sklearn.datasets").load_diabetes()
    names = list(data.feature_names)
    columns = {n: data.data[:, i] for i, n in enumerate(names)} | {"y": data.target}
    result = solve(GLM("y", names), split(columns, 6))
    oracle = sm.OLS(data.target, sm.add_constant(data.data)).fit()
    same(result, sm.GLM(data.target, sm.add_constant(data.data)).fit())
    np.testing.assert_allclose(result.table.p_values, oracle.pvalues, rtol=1e-8)
    np.testing.assert_allclose(
        np.column_stack([result.table.lower, result.table.upper]), oracle.conf_int(), rtol=1e-9
    )
    assert result.r_squared == pytest.approx(0.5177484222, abs=1e-10)
    assert result.aic == pytest.approx(oracle.aic, rel=1e-12)
    assert result.bic == pytest.approx(oracle.bic, rel=1e-12)
    robust = solve(GLM("y", names, covariance="hc1"), split(columns, 6)).table
    expected = sm.OLS(data.target, sm.add_constant(data.data)).fit(cov_type="HC1")
    np.testing.assert_allclose(robust.standard_errors, expected.bse, rtol=1e-9)


@pytest.fixture(scope="module")
def hospitals():
    """Heart disease at four hospitals: numbers, with NaN for what is missing."""
    rows = defaultdict(lambda: defaultdict(list))
    with (ROOT / "examples" / "heart" / "heart.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            site = rows[row["hospital"]]
            for name in ("age", "trestbps", "thalach", "oldpeak", "ca"):
                site[name].append(float(row[name] or "nan"))
            site["male"].append(float(row["sex"] == "male"))
            exang = {"true": 1.0, "false": 0.0}
            site["exang"].append(exang.get(row["exang"], np.nan))
            kinds = ["asymptomatic", "non-anginal", "atypical angina", "typical angina"]
            site["cp"].append(float(kinds.index(row["cp"])))
            site["disease"].append(float(row["disease"] == "yes"))
    return {s: {n: np.array(v) for n, v in c.items()} for s, c in rows.items()}


def complete(sites, names):
    table = np.column_stack([np.concatenate([s[n] for s in sites.values()]) for n in names])
    where = np.repeat(np.arange(len(sites)), [len(s[names[0]]) for s in sites.values()])
    whole = ~np.isnan(table).any(axis=1)
    return table[whole], where[whole]


def test_heart_disease_at_four_hospitals(hospitals):
    table, where = complete(hospitals, [*HEART, "disease"])
    x, y = sm.add_constant(table[:, :-1]), table[:, -1]
    result = solve(GLM("disease", HEART, family="binomial"), hospitals)
    oracle = sm.Logit(y, x).fit(disp=0, tol=1e-14)
    np.testing.assert_allclose(result.table.values, oracle.params, atol=1e-10)
    np.testing.assert_allclose(result.table.standard_errors, oracle.bse, atol=1e-10)
    np.testing.assert_allclose(result.table.p_values, oracle.pvalues, rtol=1e-8)
    assert result.log_likelihood == pytest.approx(oracle.llf, abs=1e-9)
    assert result.r_squared == pytest.approx(oracle.prsquared, abs=1e-9)
    assert result.excluded == 920 - len(y)
    assert any("missing" in note for note in result.notes)
    clustered = solve(GLM("disease", HEART, family="binomial", covariance="site"), hospitals)
    expected = sm.GLM(y, x, family=sm.families.Binomial()).fit(
        tol=1e-14, cov_type="cluster", cov_kwds={"groups": where}
    )
    np.testing.assert_allclose(clustered.table.standard_errors, expected.bse, rtol=1e-7)
    assert "4 sites are few" in clustered.notes[-1]


def test_an_intercept_for_each_hospital_is_a_dummy_for_each(hospitals):
    table, where = complete(hospitals, [*HEART, "disease"])
    order = np.argsort(sorted(hospitals))  # positions are those of the sorted names
    assert order.shape == (4,)
    names = list(hospitals)
    dummies = np.stack([where == names.index(s) for s in sorted(hospitals)], axis=1).astype(float)
    result = solve(GLM("disease", HEART, family="binomial", intercept="site"), hospitals)
    oracle = sm.Logit(table[:, -1], np.column_stack([dummies, table[:, :-1]])).fit(
        disp=0, tol=1e-14
    )
    np.testing.assert_allclose(result.site_intercepts, oracle.params[:4], atol=1e-9)
    np.testing.assert_allclose(result.table.values, oracle.params[4:], atol=1e-9)
    np.testing.assert_allclose(result.table.standard_errors, oracle.bse[4:], atol=1e-9)
    assert result.aic == pytest.approx(oracle.aic, abs=1e-8)


def test_a_category_is_dummies_of_its_declared_levels(hospitals):
    result = solve(
        GLM("disease", ["age", "cp"], family="binomial", categories={"cp": [0, 1, 2, 3]}), hospitals
    )
    table, _ = complete(hospitals, ["age", "cp", "disease"])
    dummies = (table[:, [1]] == [1, 2, 3]).astype(float)
    oracle = sm.Logit(table[:, -1], sm.add_constant(np.column_stack([table[:, 0], dummies])))
    assert result.table.names == ("intercept", "age", "cp[1]", "cp[2]", "cp[3]")
    np.testing.assert_allclose(result.table.values, oracle.fit(disp=0, tol=1e-14).params, atol=1e-9)
    with pytest.raises(DataError, match=r"cp: holds 3, which is not among its levels") as caught:
        solve(GLM("disease", ["cp"], family="binomial", categories={"cp": [0, 1, 2]}), hospitals)
    assert caught.value.site == "cleveland"


@pytest.mark.parametrize(("alpha", "ratio"), [(1.0, 0.5), (5.0, 1.0), (0.1, 0.0)])
def test_a_penalised_line_is_scikit_learns(alpha, ratio):
    sklearn = pytest.importorskip("sklearn.linear_model")
    columns = made()
    x = np.column_stack([columns[n] for n in ("a", "b", "weight")])
    fit = sklearn.ElasticNet(alpha=alpha, l1_ratio=ratio, tol=1e-15, max_iter=10**6)
    if not ratio:
        fit = sklearn.Ridge(alpha=alpha * len(x), tol=1e-15, solver="cholesky")
    fit.fit(x, columns["gaussian"])
    model = GLM("gaussian", ["a", "b", "weight"], penalty=Penalty(alpha, ratio))
    result = solve(model, split(columns, 4))
    np.testing.assert_allclose(result.table.values[0], fit.intercept_, atol=1e-9)
    np.testing.assert_allclose(result.table.values[1:], fit.coef_, atol=1e-10)
    assert np.isnan(result.table.standard_errors).all()
    assert "no standard errors" in result.notes[-1]


def test_a_lasso_logistic_regression_keeps_the_columns_that_scikit_learn_keeps():
    sklearn = pytest.importorskip("sklearn")
    data = pytest.importorskip("sklearn.datasets").load_breast_cancer()
    x = ((data.data - data.data.mean(0)) / data.data.std(0))[:, :10]
    names = [f"x{i}" for i in range(10)]
    columns = {n: x[:, i] for i, n in enumerate(names)} | {"y": data.target.astype(float)}
    fit = sklearn.linear_model.LogisticRegression(
        C=0.05, l1_ratio=1.0, solver="saga", tol=1e-10, max_iter=100_000
    ).fit(x, data.target)
    penalty = Penalty(1 / (0.05 * len(x)), 1.0)
    result = solve(GLM("y", names, family="binomial", penalty=penalty), split(columns, 3))
    np.testing.assert_allclose(result.table.values[1:], fit.coef_[0], atol=1e-6)
    assert ((result.table.values[1:] == 0) == (fit.coef_[0] == 0)).all()


def optimal(result, columns, names, l1, l2):
    """How far the gradient of the penalised likelihood is from allowing this point."""
    x = pooled(columns, names)
    b = result.table.values
    mean = 1 / (1 + np.exp(-x @ b))
    slope = (x.T @ (columns["binomial"] - mean))[1:] - l2 * b[1:]
    at_zero = np.maximum(np.abs(slope) - l1, 0)
    return np.where(b[1:] == 0, at_zero, np.abs(slope - l1 * np.sign(b[1:]))).max()


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_the_penalised_point_fulfils_the_conditions_of_an_optimum(ratio):
    columns = made()
    model = GLM("binomial", ["a", "b", "c"], family="binomial", penalty=Penalty(0.02, ratio))
    result = solve(model, split(columns, 3))
    strength = 0.02 * 600
    assert optimal(result, columns, "abc", strength * ratio, strength * (1 - ratio)) < 1e-8


@given(st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from(sorted(FAMILIES)))
@settings(max_examples=25, deadline=None)
def test_any_split_of_the_rows_gives_the_same_answer(sites, seed, family):
    columns = made(150)
    model = GLM(family, ["a", "b", "c"], family=family, covariance="hc0")
    one, many = solve(model, {"all": columns}), solve(model, split(columns, sites, seed))
    for key in ("values", "standard_errors", "p_values"):
        np.testing.assert_allclose(
            getattr(many.table, key), getattr(one.table, key), rtol=1e-10, atol=1e-10
        )
    assert many.log_likelihood == pytest.approx(one.log_likelihood, rel=1e-11)
    assert many.deviance == pytest.approx(one.deviance, rel=1e-10)


@given(st.permutations(range(5)))
@settings(max_examples=10, deadline=None)
def test_permuting_sites_gives_the_same_bits(order):
    sites = list(split(made(100), 5).values())
    model = GLM("poisson", ["a", "b"], family="poisson", covariance="site")
    plain = solve(model, {str(i): s for i, s in enumerate(sites)})
    moved = solve(model, {str(i): sites[j] for i, j in enumerate(order)})
    assert moved.table.values.tobytes() == plain.table.values.tobytes()
    assert moved.table.covariance.tobytes() == plain.table.covariance.tobytes()
    assert moved.log_likelihood == plain.log_likelihood


def test_columns_that_others_determine_are_left_out_and_named():
    columns = made()
    columns |= {"double": 2 * columns["a"] - columns["b"] + 7, "one": np.ones(600)}
    result = solve(GLM("gaussian", ["a", "b", "double", "one", "c"]), split(columns, 3))
    assert result.dropped == ("double", "one")
    assert "column 'double' is left out: it is a combination of a, b" in result.notes
    assert "column 'one' is left out: it is constant" in result.notes
    assert np.isnan([result.table["double"], result.table["one"]]).all()
    oracle = sm.OLS(columns["gaussian"], pooled(columns, "abc")).fit()
    np.testing.assert_allclose(result.table.values[[0, 1, 2, 5]], oracle.params, rtol=1e-9)
    assert result.df_residual == oracle.df_resid


@pytest.mark.parametrize("value", [60.0, 0.1, 0.0])
def test_an_outcome_that_never_varies_is_refused(value):
    columns = made() | {"level": np.full(600, value)}
    with pytest.raises(DataError, match="outcome 'level' is the same in all rows"):
        solve(GLM("level", ["a", "b"]), split(columns, 3))


def test_where_nothing_is_left_over_there_are_no_standard_errors():
    columns = made()
    columns |= {"line": 3 * columns["a"] + 7}
    for covariance in ("model", "hc1"):
        result = solve(GLM("line", ["a", "b"], covariance=covariance), split(columns, 3))
        np.testing.assert_allclose(result.table.values, [7, 3, 0], atol=1e-9)
        assert np.isnan(result.table.standard_errors).all()
        assert "no standard errors" in result.notes[0]


def test_separation_is_named_whether_complete_or_not():
    columns = made()
    columns["gives_away"] = (columns["a"] > 1.0) * 1.0
    columns["y"] = np.where(columns["gives_away"] > 0, 1.0, columns["binomial"])
    result = solve(GLM("y", ["b", "gives_away"], family="binomial"), split(columns, 4))
    assert result.separated == ("gives_away",)
    assert result.table["gives_away"] == np.inf
    assert np.isnan(result.table["b"])
    assert not result.converged
    assert "separation: gives_away tells" in result.notes[-1]
    columns["y"] = (columns["a"] > 0) * 1.0
    assert "a" in solve(GLM("y", ["a", "b"], family="binomial"), split(columns, 4)).separated
    held = GLM("y", ["a", "b"], family="binomial", penalty=Penalty(0.01))
    assert solve(held, split(columns, 4)).converged


def test_a_count_that_is_always_zero_in_a_group_is_separation_too():
    columns = made()
    columns["never"] = (columns["a"] > 0.5) * 1.0
    columns["y"] = np.where(columns["never"] > 0, 0.0, columns["poisson"])
    result = solve(GLM("y", ["b", "never"], family="poisson"), split(columns, 2))
    assert result.separated == ("never",)
    assert result.table["never"] == -np.inf


def test_a_site_of_one_class_a_site_of_one_row_and_an_empty_site_are_no_harm():
    columns = made(200)
    y = columns["binomial"]
    parts = {"ones": y == 1, "rest": (y == 0) & (np.arange(200) > 0), "single": np.arange(200) == 0}
    if y[0] == 1:
        parts["ones"][0] = False
    sites = {s: {n: c[m] for n, c in columns.items()} for s, m in parts.items()}
    sites["nobody"] = {n: c[:0] for n, c in columns.items()}
    result = solve(GLM("binomial", ["a", "b"], family="binomial"), sites)
    oracle = sm.Logit(y, pooled(columns, "ab")).fit(disp=0, tol=1e-14)
    np.testing.assert_allclose(result.table.values, oracle.params, atol=1e-9)
    assert result.sites == 3


def test_with_an_intercept_for_each_site_a_site_of_one_class_tells_nothing():
    columns = made(300)
    sites = split(columns, 3)
    sites["site-1"]["binomial"][:] = 1.0
    model = GLM("binomial", ["a", "b"], family="binomial", intercept="site")
    result = solve(model, sites)
    others = solve(model, {s: c for s, c in sites.items() if s != "site-1"})
    np.testing.assert_allclose(result.table.values, others.table.values, rtol=1e-10)
    assert result.site_intercepts[1] == np.inf
    assert "1 sites have one outcome only" in result.notes[0]


def test_a_column_that_is_empty_at_a_site_is_told():
    sites = split(made(100), 4)
    sites["site-2"]["b"] = np.full(len(sites["site-2"]["b"]), np.nan)
    result = solve(GLM("gaussian", ["a", "b"]), sites)
    assert "column 'b' is empty at 1 of 4 sites; their rows are left out" in result.notes
    assert result.excluded == len(sites["site-2"]["b"])


def test_what_cannot_be_analysed_is_refused_by_name():
    sites = split(made(60), 2)
    for site in sites.values():
        site["flat"] = np.ones(len(site["a"]))
    with pytest.raises(DataError, match="is 1 in all 60 rows of all sites"):
        solve(GLM("flat", ["a"], family="binomial"), sites)
    with pytest.raises(DataError, match=r"gaussian: holds -?\d.*no binomial model") as caught:
        solve(GLM("gaussian", ["a"], family="binomial"), sites)
    assert caught.value.site.startswith("site-")
    sites["site-1"]["a"][0] = np.inf
    with pytest.raises(DataError, match="a: holds an infinite value") as caught:
        solve(GLM("poisson", ["a"], family="poisson"), sites)
    assert caught.value.site == "site-1"
    sites["site-1"]["weight"][0] = -1
    with pytest.raises(DataError, match="negative weight"):
        solve(GLM("poisson", ["b"], family="poisson", weights="weight"), sites)
    nothing = {s: c | {"b": np.full(len(c["b"]), np.nan)} for s, c in sites.items()}
    with pytest.raises(DataError, match=r"no site has a complete row; .* somewhere: b"):
        solve(GLM("poisson", ["b"], family="poisson"), nothing)


def test_as_many_coefficients_as_rows_have_no_errors():
    columns = {n: c[:3] for n, c in made(60).items()}
    result = solve(GLM("gaussian", ["a", "b"]), {"only": columns})
    assert np.isnan(result.table.standard_errors).all()
    assert any("as many coefficients as rows" in note for note in result.notes)


def test_options_that_do_not_go_together_are_refused():
    with pytest.raises(JobError, match="no family 'poison'") as caught:
        GLM("y", ["x"], family="poison")
    assert "poisson" in caught.value.remedy
    with pytest.raises(JobError, match="has no link 'probit'"):
        GLM("y", ["x"], family="binomial", link="probit")
    with pytest.raises(JobError, match="needs an intercept"):
        GLM("y", ["x"], family="gamma", link="inverse", intercept="none")
    with pytest.raises(JobError, match="is among the features"):
        GLM("y", ["y"])
    with pytest.raises(JobError, match=r"ratio in 0\.\.1"):
        Penalty(1.0, 2.0)


def test_exposures_of_any_size_are_no_trouble_and_impossible_ones_are_told():
    columns = made()
    columns["exposure"] = columns["offset"] + 60  # e^60 times as many as there are
    model = GLM("poisson", ["a"], family="poisson", offset="exposure")
    plain = GLM("poisson", ["a"], family="poisson", offset="offset")
    far, near = solve(model, split(columns, 3)), solve(plain, split(columns, 3))
    assert far.table["a"] == pytest.approx(near.table["a"], rel=1e-10)
    assert far.table["intercept"] == pytest.approx(near.table["intercept"] - 60, rel=1e-10)
    assert far.null_deviance == pytest.approx(near.null_deviance, rel=1e-10)
    bare = GLM("poisson", ["a"], family="poisson", offset="exposure", intercept="none")
    with pytest.raises(DataError, match="first point of the poisson model"):
        solve(bare, split(columns, 3))


def test_a_few_distant_rows_are_not_taken_for_separation():
    """Large values all say yes, and only small ones say no: a steep slope, but a finite one."""
    x = np.concatenate([np.full(40, 300.0), np.linspace(-1, 1, 200)])
    y = np.concatenate([np.ones(40), (np.arange(200) % 2).astype(float)])
    result = solve(GLM("y", ["x"], family="binomial"), split({"x": x, "y": y}, 3))
    oracle = sm.Logit(y, sm.add_constant(x)).fit(disp=0, tol=1e-14, maxiter=200)
    assert result.converged
    assert not result.separated
    np.testing.assert_allclose(result.table.values, oracle.params, atol=1e-7)
