"""Descriptive statistics over sites are those of the pooled rows, however the rows are spread."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.algorithms.statistics.analysis import solve
from atoll.algorithms.statistics.moments import Components, Covariance, Moments
from atoll.algorithms.statistics.quantiles import CUTS, Quantiles, _cuts
from atoll.algorithms.statistics.tables import CrossTable, HeavyHitters, Histogram
from atoll.algorithms.statistics.together import Together
from atoll.core.errors import DataError, Forbidden
from atoll.data.disclosure import Disclosure

FREE = Disclosure(minimum=1)
LEVELS = (0.0, 0.05, 0.25, 0.5, 0.9, 1.0)
numbers = st.one_of(
    st.floats(-1e6, 1e6, allow_subnormal=False), st.sampled_from([0.0, -0.0, 1.0, 1e-9, math.nan])
)
columns = st.lists(numbers, min_size=1, max_size=40)


def test_moments_equal_numpy_s_on_the_pooled_rows(sites, pooled):
    found = solve(Moments(("age", "weight"), rule=FREE), sites)
    for i, name in enumerate(("age", "weight")):
        x = pooled[name]
        assert found.count[i, 0] == np.count_nonzero(~np.isnan(x))
        assert found.missing[i, 0] == np.count_nonzero(np.isnan(x))
        assert found.mean[i, 0] == pytest.approx(np.nanmean(x), rel=1e-14)
        assert found.variance[i, 0] == pytest.approx(np.nanvar(x, ddof=1), rel=1e-10)


@pytest.mark.parametrize(
    "analysis", [Moments(("x",), rule=FREE), Covariance(("x", "y"), FREE)], ids=["moments", "pairs"]
)
def test_numbers_whose_squares_would_be_rounded_away_are_refused(analysis):
    """They had a standard deviation of 0, and tests called them constant."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 60))

    def asked(unit):
        return solve(
            analysis,
            {"a": {"x": unit * x[:20], "y": y[:20]}, "b": {"x": unit * x[20:], "y": y[20:]}},
        )

    for unit in (1e-16, 1e-20, 1e-150):
        with pytest.raises(DataError, match="'x' holds numbers whose squares are too small"):
            asked(unit)
    found = asked(1e-9)
    variance = found.variance[0, 0] if isinstance(analysis, Moments) else found.covariance[0, 0]
    assert variance == pytest.approx(1e-18 * x.var(ddof=1), rel=1e-12)


def test_moments_by_group_leave_out_rows_without_a_group(sites, pooled):
    sites["site-1"]["group"][:5] = np.nan
    pooled["group"] = np.concatenate([s["group"] for s in sites.values()])
    found = solve(Moments(("age",), "group", ("a", "b"), FREE), sites)
    for g in (0, 1):
        x = pooled["age"][pooled["group"] == g]
        assert found.count[0, g] == len(x)
        assert found.mean[0, g] == pytest.approx(x.mean(), rel=1e-14)
        assert found.sd[0, g] == pytest.approx(x.std(ddof=1), rel=1e-12)


def test_quantiles_are_exact_where_no_tolerance_is_given(sites, pooled):
    found = solve(Quantiles(("age", "weight"), LEVELS, 0.0, FREE), sites)
    for i, name in enumerate(("age", "weight")):
        assert found.value[i] == pytest.approx(np.nanquantile(pooled[name], LEVELS), rel=1e-15)
    assert not found.bound.any()


@given(columns, st.integers(1, 4))
def test_quantiles_of_any_values_are_numpy_s(values, parts):
    sites = {str(i): {"x": part} for i, part in enumerate(np.array_split(np.array(values), parts))}
    found = solve(Quantiles(("x",), LEVELS, 0.0, FREE), sites)
    known = np.array([v for v in values if not math.isnan(v)])
    if not len(known):
        assert np.isnan(found.value).all()
        return
    rounding = 4e-16 * np.abs(known).max()  # of neighbours that nearly cancel
    assert found.value[0] == pytest.approx(np.quantile(known, LEVELS), rel=1e-14, abs=rounding)


@given(columns, st.floats(1e-9, 0.3))
def test_a_quantile_lies_within_its_stated_bound(values, tolerance):
    known = np.array([v for v in values if not math.isnan(v)] or [1.0])
    found = solve(Quantiles(("x",), LEVELS, tolerance, FREE), {"a": {"x": known}})
    slack = 1e-12 * np.abs(known).max()
    assert (np.abs(found.value[0] - np.quantile(known, LEVELS)) <= found.bound[0] + slack).all()


@given(st.floats(-1e308, 1e308), st.floats(-1e308, 1e308))
def test_cut_points_lie_inside_their_bracket_in_order(a, b):
    low, high = np.array([min(a, b)]), np.array([max(a, b)])
    cuts = _cuts(low, high)
    assert cuts.shape == (1, CUTS)
    assert (np.diff(cuts[0]) >= 0).all()
    assert low[0] <= cuts[0, 0]
    assert cuts[0, -1] <= high[0]
    assert low[0] == high[0] or np.nextafter(low, np.inf)[0] == high[0] or (cuts > low).any()


@settings(max_examples=25)
@given(columns, st.lists(st.integers(0, 3), min_size=40, max_size=40))
def test_any_split_of_the_rows_over_sites_gives_the_same_answer(values, homes):
    x, home = np.array(values), np.array(homes[: len(values)])
    every = Together({"m": Moments(("x",), rule=FREE), "q": Quantiles(("x",), LEVELS, 0.0, FREE)})
    one = solve(every, {"a": {"x": x}})
    many = solve(every, {str(i): {"x": x[home == i]} for i in range(4)})
    size = max(1.0, float(np.nanmax(np.abs(x), initial=0.0)))
    assert np.array_equal(one["m"].count, many["m"].count)
    assert many["m"].mean == pytest.approx(one["m"].mean, abs=1e-13 * size, nan_ok=True)
    assert many["m"].variance == pytest.approx(one["m"].variance, abs=1e-12 * size**2, nan_ok=True)
    assert np.array_equal(one["q"].value, many["q"].value, equal_nan=True)


def test_the_order_of_sites_changes_no_bit(sites):
    every = Together(
        {
            "m": Moments(("age", "weight"), "kind", ("a", "b", "c")),
            "c": Covariance(("age", "weight", "kind")),
            "h": Histogram("weight", (1e6 - 5, 1e6, 1e6 + 5)),
        }
    )
    one = solve(every, sites)
    other = solve(every, dict(reversed(sites.items())))
    assert one["m"].variance.tobytes() == other["m"].variance.tobytes()
    assert one["c"].covariance.tobytes() == other["c"].covariance.tobytes()
    assert one["h"].counts.values.tobytes() == other["h"].counts.values.tobytes()


def test_covariance_correlation_and_components_are_those_of_complete_rows(sites, pooled):
    names = ("age", "weight", "kind")
    whole = np.stack([pooled[n] for n in names], axis=1)
    whole = whole[~np.isnan(whole).any(axis=1)]
    found = solve(Covariance(names), sites)
    assert found.covariance == pytest.approx(np.cov(whole.T), rel=1e-9, abs=1e-9)
    assert found.correlation == pytest.approx(np.corrcoef(whole.T), abs=1e-12)
    pca = solve(Components(names), sites)
    assert pca.variance == pytest.approx(np.linalg.eigvalsh(np.corrcoef(whole.T))[::-1], abs=1e-10)
    assert pca.loadings @ pca.loadings.T == pytest.approx(np.eye(3), abs=1e-12)
    assert pca.share.sum() == pytest.approx(1)


@pytest.mark.parametrize("value", [1.0, 0.1, 60.3, 1e9 + 0.1])
def test_a_constant_column_has_no_correlation_and_no_component(sites, value):
    for site in sites.values():
        site["same"] = np.full(len(site["age"]), value)
    correlation = solve(Covariance(("age", "same")), sites).correlation
    assert np.isnan(correlation[1]).all()
    with pytest.raises(DataError, match="'same' is constant"):
        solve(Components(("age", "same")), sites)


def test_a_histogram_counts_below_between_and_from_the_edges_on():
    sites = {"a": {"x": np.array([0.0, 1.0, 1.5, math.nan])}, "b": {"x": np.array([2.0, 5.0])}}
    found = solve(Histogram("x", (1.0, 2.0), FREE), sites)
    assert found.counts.values.tolist() == [1, 2, 2, 5]


def test_a_cross_table_counts_rows_where_both_are_known(sites, pooled):
    found = solve(CrossTable("group", "kind", ("m", "f"), ("a", "b", "c"), FREE), sites)
    for g in (0, 1):
        for k in (0, 1, 2):
            both = (pooled["group"] == g) & (pooled["kind"] == k)
            assert found.counts.values[g, k] == both.sum()
    assert found.counts.values[-1, -1] == 300


def test_persons_count_and_not_rows():
    # Thirty visits of three patients: three persons.
    patient = np.repeat([0.0, 1.0, 2.0], 10)
    sites = {"a": {"x": np.arange(30.0), "patient": patient}}
    rule = Disclosure(minimum=11, person="patient")
    assert solve(Moments(("x",), rule=rule), sites).hidden.all()
    assert np.isnan(solve(Quantiles(("x",), (0.5,), rule=rule), sites).value).all()
    with pytest.raises(Forbidden, match="fewer than 11"):
        solve(Histogram("x", (15.0,), rule), sites)


@given(st.lists(st.sampled_from([3, 3, 3, 255, 256, 65536, 2**31, 2**32 - 1]), max_size=120))
def test_heavy_hitters_are_all_numbers_frequent_enough(values):
    whole = np.array(values, np.float64)
    sites = {str(i): {"code": part} for i, part in enumerate(np.array_split(whole, 3))}
    found = solve(HeavyHitters("code", 11), sites)
    counts = {v: values.count(v) for v in set(values) if values.count(v) >= 11}
    assert {int(v): n for v, n in zip(found.values, found.counts, strict=True)} == counts
    assert sorted(found.counts, reverse=True) == list(found.counts)


@pytest.mark.parametrize(
    ("analysis", "columns", "message"),
    [
        (Moments(("x",)), {"x": np.array([math.inf])}, "'x' holds an infinite value"),
        (Moments(("x",), "g", ("a",)), {"x": np.ones(2), "g": np.array([0.0, 1.0])}, "'g'"),
        (Moments(("x",), "g", ("a",)), {"x": np.ones(1), "g": np.array([0.5])}, "'g' holds"),
        (Moments(("x",)), {"y": np.ones(2)}, "'x' is missing"),
        (HeavyHitters("x"), {"x": np.array([2.0**32])}, r"no whole number from 0 to 2\^32"),
        (HeavyHitters("x"), {"x": np.array([-1.0])}, "no whole number"),
        (HeavyHitters("x"), {"x": np.array([0.5])}, "no whole number"),
    ],
)
def test_bad_input_names_site_and_column(analysis, columns, message):
    with pytest.raises(DataError, match=message) as caught:
        solve(analysis, {"zurich": columns})
    assert caught.value.site == "zurich"


def test_empty_and_single_rows_and_empty_columns_are_answered():
    sites = {
        "none": {"x": np.zeros(0)},
        "one": {"x": np.array([4.0])},
        "blank": {"x": np.full(3, math.nan)},
    }
    found = solve(Moments(("x",), rule=FREE), sites)
    assert (found.count[0, 0], found.missing[0, 0], found.mean[0, 0]) == (1, 3, 4.0)
    assert math.isnan(found.variance[0, 0])
    assert solve(Quantiles(("x",), (0.5,), 0.0, FREE), sites).value[0, 0] == 4.0
    with pytest.raises(DataError, match="no sites"):
        solve(Moments(("x",)), {})
