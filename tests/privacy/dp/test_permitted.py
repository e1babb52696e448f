"""The bound of an account on membership inference, against the curve of one Gaussian release."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import JobConflict, JobError
from atoll.privacy.dp.accounting import epsilon, permitted
from atoll.privacy.dp.events import (
    DiscreteGaussian,
    Gaussian,
    Laplace,
    MatrixGaussian,
    Selection,
    Skellam,
    Stated,
)
from atoll.privacy.dp.rdp import rdp_permitted

NORMAL = NormalDist()


def best(z, fpr=0.01):
    """Dong, Roth, Su 2022: the best test between N(0, z^2) and N(1, z^2)."""
    return NORMAL.cdf(NORMAL.inv_cdf(fpr) + 1 / z)


@pytest.mark.parametrize("z", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("fpr", [0.001, 0.01, 0.3])
def test_gaussian_releases_permit_what_the_best_test_finds(z, fpr):
    assert permitted([Gaussian(z)], fpr) == pytest.approx(best(z, fpr), rel=1e-12)
    assert permitted([Gaussian(3 * z, count=9)], fpr) == pytest.approx(best(z, fpr), rel=1e-12)
    assert permitted([MatrixGaussian("tree", 3 * z, 1)], fpr) == pytest.approx(best(3 * z, fpr))
    assert permitted([Gaussian(2 * z)], fpr, "replace") == pytest.approx(best(z, fpr))


@pytest.mark.parametrize("z", [0.5, 1.0, 4.0])
def test_composed_losses_come_to_the_closed_form_and_never_below(z):
    # A sampling rate of all but one sends the same release through the library.
    found = permitted([Gaussian(z, 1 - 1e-12)])
    assert best(z) <= found <= 1.002 * best(z)


def test_laplace_noise_permits_its_known_curve():
    # Noise of scale 1: up to fpr = 1/(2e) the best test finds e times as many.
    assert permitted([Laplace(1.0)]) == pytest.approx(0.01 * np.e, rel=2e-3)


def test_a_stated_epsilon_permits_its_factor():
    assert permitted([Stated(1.0, 0.0)]) == pytest.approx(0.0272, rel=0.01)


@pytest.mark.parametrize(("q", "steps"), [(0.25, 100), (0.05, 500)])
def test_every_epsilon_of_the_account_bounds_it(q, steps):
    events = [Gaussian(4.0, q, steps)]
    found = permitted(events)
    for delta in (1e-1, 1e-2, 1e-3, 1e-5):
        grown = np.exp(epsilon(events, delta))
        assert found <= 1.001 * min(grown * 0.01 + delta, 1 - (0.99 - delta) / grown)


@pytest.mark.parametrize("z", [1.0, 4.0, 20.0])
def test_the_renyi_bound_lies_above_the_best_test_and_not_far(z):
    found = rdp_permitted([Gaussian(z)], 0.01)
    assert best(z) <= found <= 0.01 + 1.45 * (best(z) - 0.01)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.3, 30), st.floats(0.001, 0.9), st.integers(1, 20))
def test_the_renyi_bound_is_one(z, fpr, count):
    assert best(z / count**0.5, fpr) <= rdp_permitted([Gaussian(z, count=count)], fpr) <= 1


def test_integer_noise_is_bounded_by_renyi_divergence_alone():
    shares = Skellam(variance=1e8, l2=1e4, dimension=100)
    assert best(1.0) <= permitted([shares]) <= 0.15
    together = [shares, Stated(0.1, 1e-3)]
    with pytest.raises(JobConflict, match="accounted for together"):
        permitted(together)
    assert permitted([DiscreteGaussian(1e4, 1, 1e4, 100)]) < 0.15


def test_the_smaller_of_two_bounds_is_taken():
    picks = [Selection(0.1, count=200)]
    both = permitted(picks, method="pld"), permitted(picks, method="rdp")
    assert permitted(picks) == min(both)


def test_a_share_that_is_shown_without_noise_is_found_and_no_more():
    # One row in fifty is in the step and told by it; among the others an attack can only guess.
    assert permitted([Gaussian(0.05, 0.02)]) == pytest.approx(0.02 + 0.98 * 0.01, rel=0.01)


def test_more_releases_permit_more_and_never_less_than_guessing():
    few, many = (permitted([Gaussian(5.0, sampling=0.1, count=n)]) for n in (10, 1000))
    assert 0.01 <= few < many < 1
    assert permitted([Gaussian(1e4)]) == pytest.approx(0.01, abs=1e-4)
    assert permitted([]) == 0.01


@pytest.mark.parametrize("fpr", [0.0, 1.0])
def test_rates_out_of_range_are_refused(fpr):
    with pytest.raises(JobError, match="false positive rate"):
        permitted([Gaussian(1.0)], fpr)
