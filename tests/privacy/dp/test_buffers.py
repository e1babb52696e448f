import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.privacy.dp.buffers import coefficients, inverse, root_mean_square, tuned, unit_change
from atoll.privacy.dp.events import MatrixGaussian
from atoll.privacy.dp.matrix import error, sensitivity

TWO = np.array([0.98, 0.7]), np.array([0.15, 0.3])

ORACLE = [
    # rounds, visits, apart, squared sensitivity and error of TWO, error of the best BLT of at most five:
    # jax-privacy 2.0.0 (Google DeepMind), matrix_factorization.toeplitz.minsep_sensitivity_squared,
    # per_query_error, and buffered_toeplitz.optimize(error="mean").
    (256, 1, 256, 2.0312575650213285, 2.7183355072663966, 2.6221061075488574),
    (256, 4, 64, 9.761328399723434, 5.959022456607965, 5.789272586138286),
    (256, 16, 16, 84.74173961152327, 17.557765634340736, 15.461295027716108),
    (2000, 20, 100, 45.59440777829169, 24.65809772407389, 21.374016052179545),
]


def spec_of(rounds, visits, apart, pairs):
    decays, scales = (tuple(float(v) for v in each) for each in pairs)
    return MatrixGaussian("blt", 1.0, rounds, 1, visits, apart, 1, decays, scales)


@st.composite
def pairs(draw):
    count = draw(st.integers(1, 4))
    decays = draw(st.lists(st.floats(0.01, 0.99), min_size=count, max_size=count, unique=True))
    scales = np.array(draw(st.lists(st.floats(0.01, 1.0), min_size=count, max_size=count)))
    return np.array(decays), scales / max(1.0, 1.01 * scales.sum())


@given(pairs(), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_the_inverse_undoes_the_coefficients(made, rounds):
    product = np.convolve(coefficients(*made, rounds), inverse(*made, rounds))[:rounds]
    np.testing.assert_allclose(product, np.eye(1, rounds)[0], atol=1e-9)


@given(pairs(), st.integers(2, 40))
@settings(max_examples=60, deadline=None)
def test_coefficients_fall_and_stay_above_zero(made, rounds):
    c = coefficients(*made, rounds)
    assert c[-1] > 0
    assert np.all(np.diff(c) <= 0)


@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 9), st.integers(1, 30))
@settings(max_examples=100, deadline=None)
def test_what_a_unit_changes_adds_up_column_by_column(rounds, visits, apart, bands):
    column = 0.5 ** np.arange(min(bands, rounds))
    row = np.zeros(rounds)
    for first in range(0, rounds, apart)[:visits]:
        row[first : first + len(column)] += column[: rounds - first]
    assert unit_change(column, rounds, visits, apart) == pytest.approx(np.linalg.norm(row))


@pytest.mark.parametrize(("rounds", "visits", "apart", "squared", "noise", "best"), ORACLE)
def test_sensitivity_and_error_are_those_of_jax_privacy(
    rounds, visits, apart, squared, noise, best
):
    spec = spec_of(rounds, visits, apart, TWO)
    assert sensitivity(spec) ** 2 == pytest.approx(squared, rel=1e-12)
    if rounds <= 256:
        assert error(spec) == pytest.approx(noise, rel=1e-9)
    spread = sensitivity(spec) * root_mean_square(inverse(*TWO, rounds))
    assert spread == pytest.approx(noise, rel=1e-9)


@pytest.mark.parametrize(("rounds", "visits", "apart", "squared", "noise", "best"), ORACLE)
def test_tuned_buffers_are_as_good_as_those_of_jax_privacy(
    rounds, visits, apart, squared, noise, best
):
    found = tuned(rounds, visits, apart, 4)
    spec = spec_of(rounds, visits, apart, found)
    spread = sensitivity(spec) * root_mean_square(inverse(*map(np.array, found), rounds))
    assert spread <= best * 1.001


def test_few_buffers_do_the_work_of_many_bands():
    found = tuned(256, 4, 64, 4)
    assert len(found[0]) <= 3
    bands = error(MatrixGaussian("banded", 1.0, 256, 64, 4, 64))
    alone = error(MatrixGaussian("banded", 1.0, 256, 1, 4, 64))
    assert error(spec_of(256, 4, 64, found)) < 1.04 * bands < alone / 3


@pytest.mark.parametrize("plan", [(1, 1, 1), (2, 2, 1), (3, 1, 3), (5, 5, 1)])
@pytest.mark.parametrize("most", [1, 8])
def test_the_smallest_plans_have_buffers_too(plan, most):
    decays, scales = tuned(*plan, most)
    assert 1 <= len(decays) <= most
    spec = spec_of(*plan, (decays, scales))
    assert error(spec) <= 1.001 * math.sqrt(plan[1]) * math.sqrt((plan[0] + 1) / 2)


def test_more_buffers_never_leave_more_noise():
    errors = [error(spec_of(256, 1, 256, tuned(256, 1, 256, most))) for most in (1, 2, 3)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < errors[0] * 0.96
