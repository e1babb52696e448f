"""The bound of an account on membership inference, against the curve of one Gaussian release."""

from statistics import NormalDist

import pytest

from atoll.core.errors import JobError
from atoll.privacy.audit.permitted import permitted
from atoll.privacy.dp.events import Gaussian, Stated

NORMAL = NormalDist()


@pytest.mark.parametrize("z", [0.5, 1.0, 4.0])
def test_one_gaussian_release_permits_what_the_best_test_finds(z):
    # Dong, Roth, Su 2022: the best test between N(0, z^2) and N(1, z^2).
    best = NORMAL.cdf(NORMAL.inv_cdf(0.01) + 1 / z)
    found = permitted([Gaussian(z)])
    assert best <= found <= 1.02 * best


def test_a_stated_epsilon_permits_its_factor():
    assert permitted([Stated(1.0, 0.0)]) == pytest.approx(0.0272, rel=0.01)


def test_more_releases_permit_more_and_never_less_than_guessing():
    few, many = (permitted([Gaussian(5.0, sampling=0.1, count=n)]) for n in (10, 1000))
    assert 0.01 <= few < many < 1
    assert permitted([Gaussian(1e4)]) == pytest.approx(0.01, abs=1e-4)


@pytest.mark.parametrize("fpr", [0.0, 1.0])
def test_rates_out_of_range_are_refused(fpr):
    with pytest.raises(JobError, match="false positive rate"):
        permitted([Gaussian(1.0)], fpr)
