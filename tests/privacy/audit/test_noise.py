"""Tests of emitted noise notice what is wrong with it."""

import math

import numpy as np
import pytest
from scipy.stats import chi2

from atoll.core.errors import DataError
from atoll.privacy.audit.noise import chi_squared_tail, normal_noise

DRAW = np.random.default_rng(1)
GOOD = DRAW.normal(0, 3.0, 200_000)


@pytest.mark.parametrize(("statistic", "freedom"), [(1.0, 2), (95.0, 100), (160.0, 100), (9.0, 4)])
def test_tail_is_that_of_the_distribution(statistic, freedom):
    assert chi_squared_tail(statistic, freedom) == pytest.approx(chi2.sf(statistic, freedom))


def test_declared_noise_passes():
    found = normal_noise(GOOD, 3.0)
    assert abs(found.ratio - 1) < 0.005
    assert found.p > 1e-3
    assert (found.freedom, found.draws) == (100, 200_000)


@pytest.mark.parametrize(
    "wrong",
    [
        GOOD * 1.03,
        GOOD + 0.1,
        DRAW.laplace(0, 3 / math.sqrt(2), 200_000),
        DRAW.uniform(-3 * math.sqrt(3), 3 * math.sqrt(3), 200_000),
        np.tile(GOOD[:1000], 200),
        np.zeros(200_000),
    ],
    ids=["scale", "mean", "laplace", "uniform", "repeated", "none"],
)
def test_other_noise_does_not(wrong):
    assert normal_noise(wrong, 3.0).p < 1e-6


def test_noise_on_a_grid_is_tested_on_its_grid():
    grid = np.rint(DRAW.normal(0, 20.0, 200_000))
    assert normal_noise(grid, 20.0, step=1.0).p > 1e-3
    assert normal_noise(grid * 1.05 // 1, 20.0, step=1.0).p < 1e-6


def test_what_cannot_be_tested_is_refused():
    for values, sd, cells in ((GOOD, 0.0, 101), (GOOD, 1.0, 100), (GOOD[:500], 1.0, 101)):
        with pytest.raises(DataError):
            normal_noise(values, sd, cells)
    with pytest.raises(DataError):
        chi_squared_tail(1.0, 3)
