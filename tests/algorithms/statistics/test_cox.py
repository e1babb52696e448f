"""Cox regression over sites against statsmodels on the pooled rows, and against lifelines' numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.algorithms.statistics.analysis import solve
from atoll.algorithms.statistics.cox import Cox
from atoll.algorithms.statistics.survival_axis import Axis
from atoll.core.errors import DataError, JobError

WEEKS = Axis(52)
NAMES = ["fin", "age", "race", "wexp", "mar", "paro", "prio"]


def split(columns, sites, seed=0):
    where = np.random.default_rng(seed).integers(0, sites, len(columns["week"]))
    return {f"site-{i}": {n: c[where == i] for n, c in columns.items()} for i in range(sites)}


def by(columns, name):
    values = columns[name]
    return {f"{v:g}": {n: c[values == v] for n, c in columns.items()} for v in np.unique(values)}


@pytest.fixture(scope="module")
def rossi():
    path = Path(__file__).parents[2] / "data" / "statistics" / "rossi.csv"
    table = np.genfromtxt(path, delimiter=",", names=True)
    columns = {n: table[n].astype(float) for n in table.dtype.names}
    rng = np.random.default_rng(0)
    late = rng.random(len(table)) < 0.4
    entry = np.where(late, np.floor(columns["week"] * rng.random(len(table)) * 0.9), 0.0)
    inst = rng.integers(0, 5, len(table)).astype(float)
    return columns | {"inst": inst, "entry": entry}


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("strata", ["none", "inst", "site"])
@pytest.mark.parametrize("entry", ["", "entry"])
def test_ties_strata_and_late_entry_are_statsmodels(rossi, ties, strata, entry):
    hazards = pytest.importorskip("statsmodels.duration.hazard_regression")
    levels = range(5) if strata == "inst" else ()
    model = Cox("week", "arrest", NAMES, WEEKS, {}, ties, strata, levels, entry)
    result = solve(model, by(rossi, "inst") if strata == "site" else split(rossi, 6))
    # statsmodels counts a row at risk at its very entry; others do afterwards only.
    begin = np.where(rossi["entry"] > 0, rossi["entry"] + 0.5, 0.0)
    oracle = hazards.PHReg(
        rossi["week"],
        np.column_stack([rossi[n] for n in NAMES]),
        status=rossi["arrest"],
        ties=ties,
        strata=rossi["inst"] if strata != "none" else None,
        entry=begin if entry else None,
    ).fit(tol=1e-14)
    np.testing.assert_allclose(result.table.values, oracle.params, atol=1e-10)
    np.testing.assert_allclose(result.table.standard_errors, oracle.bse, atol=1e-10)
    assert result.log_likelihood == pytest.approx(oracle.llf, abs=1e-9)
    assert result.converged


def test_rossi_has_the_published_numbers(rossi):
    """lifelines 0.30.3; the same as in its documentation and in J. Fox's book."""
    result = solve(Cox("week", "arrest", NAMES, WEEKS), split(rossi, 5))
    values = [
        -0.379422166871208,
        -0.057437743013761,
        0.313899785949293,
        -0.149795697222785,
        -0.433703876690252,
        -0.084871082990836,
        0.091497079351121,
    ]
    np.testing.assert_allclose(result.table.values, values, atol=1e-9)
    errors = [
        0.191379480712809,
        0.021999470627954,
        0.307992776392937,
        0.212224296158164,
        0.381868057464922,
        0.195756671920923,
        0.028648550073471,
    ]
    np.testing.assert_allclose(result.table.standard_errors, errors, atol=1e-9)
    assert result.log_likelihood == pytest.approx(-658.7476594460859, abs=1e-9)
    assert abs(result.concordance - 0.6403292470997135) <= result.concordance_error < 0.002
    baseline = result.baseline[0]
    at = [baseline.cumulative[baseline.times == t][0] for t in (1, 11, 52)]
    np.testing.assert_allclose(at, [0.001958, 0.033988, 0.274373], atol=1e-6)
    breslow = solve(Cox("week", "arrest", NAMES, WEEKS, ties="breslow"), split(rossi, 5))
    published = [-0.379022, -0.057246, 0.314130, -0.151115, -0.432783, -0.084983, 0.091112]
    np.testing.assert_allclose(breslow.table.values, published, atol=1e-6)
    assert breslow.log_likelihood == pytest.approx(-659.120606, abs=1e-6)


def test_tests_of_proportional_hazards_are_lifelines(rossi):
    result = solve(Cox("week", "arrest", NAMES, WEEKS), split(rossi, 5))
    expected = {
        "identity": [0.056171, 12.061383, 1.486088, 6.934835, 0.754401, 0.122042, 0.010892],
        "log": [0.491365, 13.073811, 1.031124, 5.539754, 1.029274, 0.010496, 0.384019],
        "km": [0.019130, 11.030294, 1.437456, 7.475471, 0.600874, 0.115721, 0.022546],
    }
    for test in result.proportionality:
        np.testing.assert_allclose(test.statistics, expected.pop(test.clock), atol=1e-6)
    assert not expected


def test_strata_of_sites_and_a_column_of_strata_are_the_same(rossi):
    inside = solve(Cox("week", "arrest", NAMES, WEEKS, strata="site"), by(rossi, "inst"))
    model = Cox("week", "arrest", NAMES, WEEKS, strata="inst", strata_levels=range(5))
    outside = solve(model, split(rossi, 3))
    np.testing.assert_allclose(inside.table.values, outside.table.values, rtol=1e-11)
    for a, b in zip(inside.proportionality, outside.proportionality, strict=True):
        np.testing.assert_allclose(a.statistics, b.statistics, rtol=1e-9)
        assert a.together.statistic == pytest.approx(b.together.statistic, rel=1e-9)
    gap = abs(inside.concordance - outside.concordance)
    assert gap <= inside.concordance_error + outside.concordance_error
    assert inside.baseline == ()
    assert [b.stratum for b in outside.baseline] == [0, 1, 2, 3, 4]


def test_the_three_tests_agree_and_count_their_freedom(rossi):
    result = solve(Cox("week", "arrest", NAMES, WEEKS), split(rossi, 2))
    # R: coxph(Surv(week, arrest) ~ ., rossi): likelihood ratio 33.27, Wald 32.11, score 33.53
    assert result.likelihood_ratio.statistic == pytest.approx(33.27, abs=0.005)
    assert result.wald.statistic == pytest.approx(32.11, abs=0.005)
    assert result.score.statistic == pytest.approx(33.53, abs=0.005)
    assert {t.df for t in (result.likelihood_ratio, result.wald, result.score)} == {7}
    assert (result.rows, result.events) == (432, 114)


def pairs(risk, time, event):
    """Concordance by the definition, pair by pair."""
    right = comparable = 0.0
    for i in np.flatnonzero(event):
        later = (time > time[i]) | ((time == time[i]) & (event == 0))
        comparable += later.sum()
        right += (risk[later] < risk[i]).sum() + 0.5 * (risk[later] == risk[i]).sum()
    return right / comparable


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_the_true_concordance_lies_within_the_stated_error(seed):
    rng = np.random.default_rng(seed)
    columns = {
        "week": rng.integers(1, 40, 120).astype(float),
        "arrest": (rng.random(120) < 0.7) * 1.0,
        "x": rng.normal(size=120),
    }
    result = solve(Cox("week", "arrest", ["x"], WEEKS), split(columns, 3, seed))
    risk = result.table.values[0] * columns["x"]
    truth = pairs(risk, columns["week"], columns["arrest"])
    assert abs(result.concordance - truth) <= result.concordance_error + 1e-12


@given(st.integers(1, 8), st.integers(0, 2**32 - 1), st.sampled_from(["efron", "breslow"]))
@settings(max_examples=12, deadline=None)
def test_any_split_gives_the_same_answer(rossi, sites, seed, ties):
    model = Cox("week", "arrest", ["fin", "age", "prio"], WEEKS, ties=ties)
    one, many = solve(model, {"all": rossi}), solve(model, split(rossi, sites, seed))
    np.testing.assert_allclose(many.table.values, one.table.values, rtol=1e-10)
    np.testing.assert_allclose(many.table.standard_errors, one.table.standard_errors, rtol=1e-10)
    assert many.log_likelihood == pytest.approx(one.log_likelihood, rel=1e-12)


@given(st.permutations(range(4)))
@settings(max_examples=6, deadline=None)
def test_permuting_sites_gives_the_same_bits(rossi, order):
    sites = list(split(rossi, 4).values())
    for strata in ("none", "site"):
        model = Cox("week", "arrest", ["fin", "age"], WEEKS, strata=strata)
        plain = solve(model, {str(i): s for i, s in enumerate(sites)})
        moved = solve(model, {str(i): sites[j] for i, j in enumerate(order)})
        assert moved.table.covariance.tobytes() == plain.table.covariance.tobytes()
        assert moved.log_likelihood == plain.log_likelihood


def test_sites_without_events_or_rows_add_what_they_have(rossi):
    quiet = rossi["arrest"] == 0
    sites = {"events": {n: c[~quiet] for n, c in rossi.items()}}
    sites["quiet"] = {n: c[quiet] for n, c in rossi.items()}
    sites["empty"] = {n: c[:0] for n, c in rossi.items()}
    sites["one"] = {n: c[:1] for n, c in rossi.items()}
    one = {"all": {n: np.append(c, c[:1]) for n, c in rossi.items()}}
    model = Cox("week", "arrest", NAMES, WEEKS)
    np.testing.assert_allclose(
        solve(model, sites).table.values, solve(model, one).table.values, rtol=1e-9
    )
    inside = solve(Cox("week", "arrest", NAMES, WEEKS, strata="site"), sites)
    assert inside.events == 115


def test_columns_that_others_determine_are_left_out_and_named(rossi):
    more = rossi | {"twice": 2 * rossi["age"] - 1, "one": np.ones(432)}
    result = solve(Cox("week", "arrest", ["age", "twice", "one", "fin"], WEEKS), split(more, 3))
    assert result.dropped == ("twice", "one")
    assert "column 'twice' is left out: it is a combination of age" in result.notes
    plain = solve(Cox("week", "arrest", ["age", "fin"], WEEKS), split(rossi, 3))
    np.testing.assert_allclose(result.table.values[[0, 3]], plain.table.values, rtol=1e-10)


def test_a_monotone_likelihood_is_named(rossi):
    more = rossi | {"never": ((rossi["arrest"] == 0) & (rossi["age"] > 25)) * 1.0}
    result = solve(Cox("week", "arrest", ["fin", "never"], WEEKS), split(more, 3))
    assert result.separated == ("never",)
    assert result.table["never"] == -np.inf
    assert np.isnan(result.table["fin"])
    assert "monotone likelihood: never" in result.notes[-1]
    assert not result.converged


def test_what_cannot_be_analysed_is_refused(rossi):
    with pytest.raises(DataError, match="no event at any site"):
        solve(Cox("week", "arrest", ["age"], WEEKS), {"a": rossi | {"arrest": np.zeros(432)}})
    with pytest.raises(DataError, match="beyond the axis' end 10") as caught:
        solve(Cox("week", "arrest", ["age"], Axis(10)), {"far": rossi})
    assert caught.value.site == "far"
    with pytest.raises(JobError, match="needs its levels"):
        Cox("week", "arrest", ["age"], WEEKS, strata="inst")
    with pytest.raises(JobError, match="'exact'"):
        Cox("week", "arrest", ["age"], WEEKS, ties="exact")
    with pytest.raises(JobError, match="needs a feature"):
        Cox("week", "arrest", [], WEEKS)
