import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from atoll.core.errors import JobConflict, JobError, UpdateRefused
from atoll.privacy.dp.accounting import epsilon
from atoll.privacy.dp.clipping import (
    AdaptiveClip,
    clip,
    clip_layers,
    indicator,
    layer_bounds,
    noise_for_vectors,
    norm,
)
from atoll.privacy.dp.events import Gaussian

VECTORS = hnp.arrays(
    st.sampled_from([np.float32, np.float64]),
    st.integers(1, 40),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


def exact_square(vector):
    """|v|^2 without rounding."""
    return sum(Fraction(float(x)) ** 2 for x in vector)


@given(VECTORS, st.floats(1e-20, 1e20))
@settings(max_examples=300)
def test_a_clipped_vector_is_never_longer_than_the_bound(vector, bound):
    short = clip(vector, bound)
    assert short.dtype == vector.dtype
    assert exact_square(short) <= Fraction(bound) ** 2


@given(VECTORS, st.floats(1e-20, 1e20))
def test_a_vector_that_is_short_enough_is_left_alone(vector, bound):
    short = clip(vector, bound)
    if norm(vector) <= bound:
        assert short is vector
    else:
        assert np.array_equal(clip(short, bound), short)


def test_clipping_keeps_the_direction_and_nearly_the_whole_bound():
    v = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    short = clip(v, 1.0)
    assert 1 - 1e-6 < float(np.linalg.norm(short.astype(np.float64))) <= 1.0
    np.testing.assert_allclose(short, v / np.linalg.norm(v), rtol=1e-5)


def test_norms_neither_overflow_nor_vanish():
    assert norm(np.array([3e300, 4e300])) == pytest.approx(5e300)
    assert norm(np.array([3e-300, 4e-300])) == pytest.approx(5e-300)
    assert norm(np.zeros(3)) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad):
    with pytest.raises(UpdateRefused):
        clip(np.array([1.0, bad]), 1.0)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
def test_a_bound_out_of_range_is_refused(bound):
    with pytest.raises(JobError):
        clip(np.ones(2), bound)


@given(st.integers(1, 12), st.floats(1e-3, 1e3))
def test_layers_together_keep_the_bound_of_the_whole(layers, bound):
    bounds = layer_bounds(bound, layers)
    assert sum(Fraction(b) ** 2 for b in bounds) <= Fraction(bound) ** 2 * (1 + Fraction(1, 2**50))
    v = np.random.default_rng(layers).normal(size=layers * 3) * 1e3
    parts = [slice(3 * i, 3 * i + 3) for i in range(layers)]
    short = clip_layers(v, parts, bounds)
    assert norm(short) <= bound * (1 + 1e-12)
    for part, own in zip(parts, bounds, strict=True):
        assert norm(short[part]) <= own


def test_layers_that_leave_a_gap_are_refused():
    with pytest.raises(JobError, match="tile"):
        clip_layers(np.ones(4), [slice(0, 2), slice(3, 4)], [1.0, 1.0])
    with pytest.raises(JobError, match="tile"):
        clip_layers(np.ones(4), [slice(0, 4)], [1.0, 1.0])


def test_the_adaptive_bound_finds_the_quantile_of_the_norms():
    norms = np.random.default_rng(0).lognormal(1.0, 0.7, size=2000)
    state = AdaptiveClip(bound=0.1, quantile=0.8, rate=0.2)
    for _ in range(200):
        total = float(np.where(norms <= state.bound, 0.5, -0.5).sum())
        state = state.after(total, len(norms))
    assert state.bound == pytest.approx(np.quantile(norms, 0.8), rel=0.02)


def test_one_step_of_the_adaptive_bound_by_hand():
    # 3 of 4 below, gamma 1/2, eta .2: C <- 2 exp(-.2 (.75 - .5)).
    after = AdaptiveClip(2.0).after(total=3 * 0.5 - 0.5, units=4)
    assert after.bound == pytest.approx(2 * math.exp(-0.05))
    # Noise may push the share out of [0, 1]; nobody's round moves the bound by more than a step.
    assert AdaptiveClip(2.0).after(1e9, 4).bound == pytest.approx(2 * math.exp(-0.1))
    assert AdaptiveClip(1.0, least=1.0).after(4.0, 4).bound == 1.0
    assert AdaptiveClip(2.0).after(5.0, 0).bound == 2.0


def test_an_indicator_says_on_which_side():
    assert indicator(np.array([3.0, 4.0]), 5.1) == 0.5
    assert indicator(np.array([3.0, 4.0]), 4.9) == -0.5


@given(st.floats(0.3, 5.0), st.floats(1.05, 100.0))
@settings(max_examples=20, deadline=None)
def test_count_and_vectors_together_cost_one_release(z, factor):
    count = z / 2 * factor
    left = noise_for_vectors(z, count)
    # One unit moves the sum of indicators by 1/2: the count's multiplier is twice its deviation.
    both = epsilon([Gaussian(left), Gaussian(2 * count)], 1e-5)
    assert both == pytest.approx(epsilon([Gaussian(z)], 1e-5), rel=1e-6)


@pytest.mark.parametrize("deviation", [0.0, 0.4, 0.5])
def test_a_count_that_costs_everything_is_refused(deviation):
    with pytest.raises(JobConflict, match="nothing"):
        noise_for_vectors(1.0, deviation)


@pytest.mark.parametrize(
    "fields", [{"bound": 0.0}, {"bound": 1.0, "quantile": 2.0}, {"bound": 1.0, "rate": 0.0}]
)
def test_adaptive_values_out_of_range_are_refused(fields):
    with pytest.raises(JobError):
        AdaptiveClip(**fields)
