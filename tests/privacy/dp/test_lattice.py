import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

import atoll.privacy.dp.lattice as module
from atoll.core.errors import JobError
from atoll.privacy.dp.lattice import discrete_gaussian, discrete_laplace, laplace, poisson, skellam
from atoll.privacy.dp.noise import SystemSource

N = 300_000
SOURCE = SystemSource()


def fits(draws, support, probabilities):
    """p-value of the counts on ``support``, all the rest in one cell."""
    p = np.asarray(probabilities, float)
    keep = p * len(draws) > 10
    counts = np.array([(draws == k).sum() for k in np.asarray(support)[keep]])
    rest = max(1 - p[keep].sum(), 0.0)
    counts, p = np.append(counts, len(draws) - counts.sum()), np.append(p[keep], rest)
    if p[-1] * len(draws) < 10:
        counts, p = counts[:-1], p[:-1]
    return stats.chisquare(counts, p / p.sum() * counts.sum()).pvalue


@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.7])
def test_the_discrete_gaussian_has_its_probabilities(sigma):
    k = np.arange(-60, 61)
    weights = np.exp(-(k**2) / (2 * sigma**2))
    assert fits(discrete_gaussian(SOURCE, N, sigma), k, weights / weights.sum()) > 1e-6


@pytest.mark.parametrize("scale", [1, 2, 9])
def test_the_discrete_laplace_has_its_probabilities(scale):
    k = np.arange(-200, 201)
    weights = np.exp(-np.abs(k) / scale)
    assert fits(discrete_laplace(SOURCE, N, scale), k, weights / weights.sum()) > 1e-6


@pytest.mark.parametrize("mean", [0.01, 3.0, 12.0, 12.1, 40.0])
def test_poisson_has_its_probabilities(mean):
    k = np.arange(0, 150)
    assert fits(poisson(SOURCE, N, mean), k, stats.poisson.pmf(k, mean)) > 1e-6


@pytest.mark.parametrize("variance", [0.5, 6.0, 60.0])
def test_skellam_has_its_probabilities(variance):
    k = np.arange(-80, 81)
    expected = stats.skellam.pmf(k, variance / 2, variance / 2)
    assert fits(skellam(SOURCE, N, variance), k, expected) > 1e-6


@pytest.mark.parametrize(
    ("draw", "sd"),
    [
        (lambda n: discrete_gaussian(SOURCE, n, 1e6), 1e6),
        (lambda n: skellam(SOURCE, n, 1e12), 1e6),
        (lambda n: skellam(SOURCE, n, 1e15), 1e15**0.5),
        (lambda n: laplace(SOURCE, n, 0.5), 0.5 * 2**0.5),
    ],
    ids=["discrete gaussian", "skellam", "wide skellam", "laplace"],
)
def test_wide_noise_has_its_standard_deviation_within_half_a_percent(draw, sd):
    x = draw(1_000_000)
    assert x.std() == pytest.approx(sd, rel=0.005)
    assert abs(x.mean()) < 6 * sd / 1000


def test_wide_noise_is_normal_to_the_eye_of_a_test():
    for x in (discrete_gaussian(SOURCE, N, 1e9) / 1e9, skellam(SOURCE, N, 1e14) / 1e7):
        assert stats.kstest(x, "norm").pvalue > 1e-6


def test_a_close_coin_is_decided_exactly(monkeypatch):
    # Every coin is sent the slow way: the distribution must not change.
    asked = []
    decided = module._decided

    def count(source, word, gamma):
        asked.append(gamma)
        return decided(source, word, gamma)

    monkeypatch.setattr(module, "_decided", count)
    monkeypatch.setattr(module.np, "abs", lambda x: np.zeros_like(x), raising=False)
    gamma = np.full(2000, 0.5)
    fell = module._coins(SOURCE, gamma, lambda i: Fraction(1, 2))
    assert len(asked) == 2000
    p = math.exp(-0.5)
    assert abs(fell.mean() - p) < 6 * math.sqrt(p * (1 - p) / 2000)


def test_coins_at_the_edge():
    threshold = int(math.exp(-1) * 2**64)
    assert module._decided(SOURCE, threshold - 2**20, Fraction(1))
    assert not module._decided(SOURCE, threshold + 2**20, Fraction(1))
    assert module._decided(SOURCE, 2**64 - 1, Fraction(0))
    # The word's own cell holds the bar: more bits decide, either way.
    from decimal import Decimal, localcontext

    with localcontext() as context:
        context.prec = 60
        cell = int(Decimal(-1).exp() * 2**64)
    assert {module._decided(SOURCE, cell, Fraction(1)) for _ in range(200)} == {True, False}


def test_the_ladder_at_its_ends():
    assert module._whole_log(SOURCE, 2**64 - 1) == 0
    assert module._whole_log(SOURCE, 2**62) == 1
    assert module._whole_log(SOURCE, 0) >= 44


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, 2.0**50])
def test_scales_out_of_range_are_refused(sigma):
    with pytest.raises(JobError):
        discrete_gaussian(SOURCE, 1, sigma)
    with pytest.raises(JobError):
        poisson(SOURCE, 1, sigma * 8 if sigma > 1 else sigma)
    with pytest.raises(JobError):
        discrete_laplace(SOURCE, 1, sigma if sigma else 1.5)


def test_the_same_bits_give_the_same_draws(replayed):
    for draw in (lambda s: discrete_gaussian(s, 1000, 5.5), lambda s: skellam(s, 1000, 1e6)):
        assert np.array_equal(draw(replayed(4)), draw(replayed(4)))
        assert not np.array_equal(draw(replayed(4)), draw(replayed(5)))
