"""Numbers as ring words: no overflow at the extremes, no bias, exact counts, no bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import UpdateRefused
from atoll.privacy.secagg.fixed import averages, quantised, signed_values, weighted
from atoll.privacy.secagg.terms import Lane, usual_threshold


@settings(max_examples=300, deadline=None)
@given(
    st.integers(3, 5000),
    st.sampled_from([32, 64]),
    st.floats(1e-30, 1e30),
    st.sampled_from([0, 1, 2**31, 2**32 - 1]),
    st.lists(st.sampled_from([-1.0, 1.0, -1.5, 1.5, 1.0 - 2**-53]), min_size=1, max_size=20),
)
def test_a_full_cohort_at_the_extremes_never_wraps_around(sites, bits, bound, draw, units):
    lane = Lane("w", len(units), bound, bits)
    draws = np.full(len(units), draw, np.uint32)
    one = quantised(lane, sites, np.array(units) * bound, draws)
    reach = sites * lane.levels(sites)
    assert reach <= 2 ** (bits - 1) - 1
    assert max(abs(int(v)) for v in one) <= lane.levels(sites)
    total = (one * np.array(sites, one.dtype)).astype(one.dtype)  # as the ring adds them
    assert [int(v) for v in total] == [sites * int(v) for v in one]


def test_a_million_extreme_sums_do_not_overflow():
    rng = np.random.default_rng(0)
    for sites in (3, 5, 16, 100, 1000):
        lane = Lane("w", 200_000, 0.3)
        ends = rng.choice(np.array([-0.3, 0.3, np.nextafter(0.3, 1), 9.0]), 200_000)
        draws = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
        one = quantised(lane, sites, ends, draws).astype(np.int64)
        assert np.abs(one * sites).max() < 2**31


def test_one_level_more_would_overflow():
    lane = Lane("w", 1)
    assert (lane.limit(5) + 1) * 5 > 2**31 - 1
    assert Lane("n", 1, bound=2.0**31 / 5 + 1, step=1.0).faults(5)
    assert not Lane("n", 1, bound=2.0**28, step=1.0).faults(5)


def test_rounding_is_right_on_average_and_off_by_less_than_one_level():
    lane, sites = Lane("w", 200_000, 1.0), 2**24  # few levels: 127, so that rounding shows
    value = 0.3
    draws = np.random.default_rng(1).integers(0, 2**32, 200_000, dtype=np.uint32)
    words = quantised(lane, sites, np.full(200_000, value), draws)
    exact = value * lane.scale(sites)
    assert set(words.tolist()) == {int(exact), int(exact) + 1}
    assert abs(words.mean() - exact) < 4 * 0.5 / 200_000**0.5


def test_a_hundred_sites_lose_at_most_what_is_promised():
    lane, sites, clip = Lane("w", 1000, 2.5), 100, 2.5
    x = np.random.default_rng(2).uniform(-clip, clip, 1000)
    back = signed_values(lane, sites, 1, quantised(lane, sites, x, None))
    assert np.abs(back - x).max() <= 4.7e-8 * clip


def test_counts_are_exact_and_too_large_ones_refuse():
    lane = Lane("n", 3, 1e12, 64, step=1.0, excess="refuse")
    counts = np.array([0, 7, 999_999_999_999])
    words = quantised(lane, 100, counts, None)
    assert words.tolist() == counts.tolist()
    with pytest.raises(UpdateRefused, match="declared were"):
        quantised(lane, 100, np.array([1e12 + 1, 0, 0]), None)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_refuses_the_input(bad):
    with pytest.raises(UpdateRefused, match="drops out"):
        quantised(Lane("w", 2), 5, np.array([0.0, bad]), None)


def test_a_finite_value_however_large_is_clipped():
    lane = Lane("w", 3, 1e-3)
    words = quantised(lane, 5, np.array([1e308, -1e308, 5e-4]), None)
    levels = lane.levels(5)
    assert words.tolist() == [levels, -levels, round(levels / 2)]


def test_a_sum_that_so_few_sites_cannot_reach_is_refused():
    lane = Lane("w", 1)
    reach = 2 * lane.levels(5)
    assert signed_values(lane, 5, 2, np.array([reach])) == pytest.approx([2.0])
    with pytest.raises(UpdateRefused, match="beyond 2 sites"):
        signed_values(lane, 5, 2, np.array([-reach - 1]))


def test_a_weighted_mean_needs_no_weight_in_the_clear():
    sites = [weighted({"w": np.array([x])}, n, cap=100) for x, n in ((1.0, 50), (4.0, 1000))]
    totals = {lane: sum(site[lane] for site in sites) for lane in ("w", "weight")}
    assert averages(totals, ("w",))["w"] == pytest.approx([(1 * 50 + 4 * 100) / 150])
    with pytest.raises(UpdateRefused, match="add up to 0"):
        averages({"weight": np.array([0.0]), "w": np.array([0.0])}, ("w",))


@pytest.mark.parametrize("examples", [0, -1, np.nan, np.inf])
def test_a_weight_that_is_none_is_refused(examples):
    with pytest.raises(UpdateRefused, match="must be above 0"):
        weighted({}, examples, 100)


@pytest.mark.parametrize(("sites", "threshold"), [(3, 3), (4, 3), (5, 4), (30, 21), (100, 67)])
def test_usual_threshold_is_above_two_thirds(sites, threshold):
    assert usual_threshold(sites) == threshold
