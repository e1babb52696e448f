import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import JobConflict
from atoll.privacy.dp.accounting import epsilon
from atoll.privacy.dp.distributed import SharedNoise, rounded_norm
from atoll.privacy.dp.events import DiscreteGaussian, Gaussian, Skellam
from atoll.privacy.dp.noise import SystemSource

SOURCE = SystemSource()


@pytest.mark.parametrize("kind", ["skellam", "discrete_gaussian"])
def test_noise_of_the_survivors_is_enough_whoever_drops_out(kind):
    noise = SharedNoise(sd=1e5, threshold=4, kind=kind)
    shares = [noise.draw(SOURCE, 250_000) for _ in range(5)]
    for gone in range(5):
        left = sum(s for i, s in enumerate(shares) if i != gone)
        assert left.std() == pytest.approx(1e5, rel=0.01)
    assert sum(shares).std() == pytest.approx(noise.total_sd(5), rel=0.01)
    assert noise.total_sd(5) == pytest.approx(1e5 * 1.25**0.5)


@given(st.integers(1, 50), st.integers(0, 20), st.floats(16, 1e6))
@settings(max_examples=60)
def test_honest_shares_alone_reach_the_target(threshold, colluders, sd):
    if colluders >= threshold:
        with pytest.raises(JobConflict, match="collude"):
            SharedNoise(sd, threshold, colluders=colluders)
        return
    noise = SharedNoise(sd, threshold, colluders=colluders)
    assert noise.share_sd * np.sqrt(threshold - colluders) == pytest.approx(sd)
    assert noise.excess(threshold + 3, dropout=0.5) == pytest.approx(
        (threshold + 3) / 2 / (threshold - colluders)
    )


def test_what_dropouts_cost_in_expectation():
    noise = SharedNoise(1000.0, threshold=21)  # two thirds and one of 30
    assert noise.excess(30) == pytest.approx(30 / 21)
    assert noise.excess(30, dropout=0.1) == pytest.approx(27 / 21)


def test_events_count_what_is_surely_there():
    clip, dimension = 1e5, 10_000
    l2 = rounded_norm(clip, dimension)
    assert l2 == clip + 100
    noise = SharedNoise(2e5, threshold=7, colluders=2)
    assert noise.event(l2, dimension, 0.5, 3) == Skellam(2e5**2, l2, dimension, 0.5, 3)
    other = SharedNoise(2e5, threshold=7, kind="discrete_gaussian", colluders=2)
    event = other.event(l2, dimension)
    assert event == DiscreteGaussian(2e5 / 5**0.5, 5, l2, dimension)
    central = epsilon([Gaussian(2.0)], 1e-5, method="rdp")
    assert central < epsilon([event], 1e-5) < central * 1.01
    assert central < epsilon([noise.event(l2, dimension)], 1e-5) < central * 1.01


def test_rounding_moves_a_vector_no_further_than_stated():
    rng = np.random.default_rng(0)
    x = rng.normal(size=1000) * 50
    for rounded in (np.floor(x), np.ceil(x), np.rint(x)):
        assert np.linalg.norm(rounded) <= rounded_norm(np.linalg.norm(x), 1000)


def test_noise_stays_within_the_levels_kept_free():
    noise = SharedNoise(1e4, threshold=3)
    total = sum(noise.draw(SOURCE, 200_000) for _ in range(5))
    assert np.abs(total).max() < noise.reach(5)
    assert noise.reach(5) == int(np.ceil(10 * 1e4 * (5 / 3) ** 0.5))


def test_all_faults_at_once():
    with pytest.raises(JobConflict) as refused:
        SharedNoise(2.0**30, threshold=2, kind="laplace", colluders=2)
    assert {f.place for f in refused.value.faults} == {"kind", "sd", "colluders"}
