"""The least noise that keeps a goal, in epsilon or in what an attack finds."""

from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import JobConflict, JobError
from atoll.privacy.dp.accounting import epsilon, permitted
from atoll.privacy.dp.calibration import Goal, calibrate
from atoll.privacy.dp.events import Gaussian, Laplace, MatrixGaussian

NORMAL = NormalDist()


@pytest.mark.parametrize(("target", "q", "rounds"), [(1.0, 1.0, 10), (3.0, 0.02, 100)])
def test_calibration_keeps_the_target_and_wastes_little(target, q, rounds):
    z = calibrate(Goal(target), rounds, q)
    assert epsilon([Gaussian(z, q, rounds)], 1e-5) <= target
    assert epsilon([Gaussian(z * 0.998, q, rounds)], 1e-5) > target


def test_calibration_leaves_room_for_what_else_is_released():
    metrics = [Laplace(10.0, count=10)]
    z = calibrate(Goal(3.0), 50, others=metrics)
    assert z > calibrate(Goal(3.0), 50)
    assert epsilon([Gaussian(z, count=50), *metrics], 1e-5) <= 3.0
    with pytest.raises(JobConflict, match="by itself"):
        calibrate(Goal(0.5), 50, others=metrics)


def test_calibration_of_other_mechanisms():
    z = calibrate(
        Goal(2.0),
        1,
        shape=lambda z: MatrixGaussian(
            "banded", z, rounds=64, bands=8, participations=4, separation=16
        ),
    )
    spec = MatrixGaussian("banded", z, rounds=64, bands=8, participations=4, separation=16)
    assert epsilon([spec], 1e-5) == pytest.approx(2.0, rel=2e-3)
    assert z > spec.noise_multiplier


@pytest.mark.parametrize(("found", "fpr"), [(0.03, 0.01), (0.2, 0.1), (0.011, 0.01)])
def test_noise_without_sampling_is_that_of_the_best_test_in_closed_form(found, fpr):
    # Ten releases tell N(0, z^2) from N(sqrt 10, z^2), and the best test finds Phi(Phi^-1(fpr) + sqrt(10) / z).
    exact = 10**0.5 / (NORMAL.inv_cdf(found) - NORMAL.inv_cdf(fpr))
    z = calibrate(Goal(found=found, fpr=fpr), 10)
    assert exact <= z <= 1.002 * exact


@pytest.mark.parametrize(("q", "rounds", "z"), [(0.25, 100, 5.7048), (0.05, 500, 2.6347)])
def test_sampled_noise_is_that_of_riskcal(q, rounds, z):
    # riskcal 1.5.1, find_noise_multiplier_for_err_rates(alpha=0.01, beta=0.97).
    goal = Goal(found=0.03)
    found = calibrate(goal, rounds, q)
    assert found == pytest.approx(z, rel=3e-3)
    assert permitted([Gaussian(found, q, rounds)]) <= 0.03
    assert permitted([Gaussian(0.997 * found, q, rounds)]) > 0.03


def test_an_attack_named_directly_takes_less_noise_than_an_epsilon_that_promises_the_same():
    # An epsilon of log((.03 - delta) / .01) keeps any attack to 3 %, and so it is with a third less noise.
    through = calibrate(Goal(1.0983), 100, 0.25)
    assert calibrate(Goal(found=0.03), 100, 0.25) < 0.67 * through


def test_what_else_is_released_is_in_what_an_attack_finds():
    figures = [Gaussian(20.0, count=3)]
    goal = Goal(found=0.05)
    z = calibrate(goal, 20, 0.2, others=figures)
    assert z > calibrate(goal, 20, 0.2)
    assert permitted([Gaussian(z, 0.2, 20), *figures]) <= 0.05
    with pytest.raises(JobConflict, match="5 % found"):
        calibrate(goal, 20, 0.2, others=[Gaussian(1.0)])


def test_a_share_is_a_share_of_what_is_found_beyond_guessing():
    z = calibrate(Goal(found=0.05), 4, share=0.25)
    assert permitted([Gaussian(z, count=4)]) == pytest.approx(0.02, abs=2e-5)


@pytest.mark.parametrize("goal", [Goal(), Goal(found=0.01), Goal(found=0.005)])
def test_a_goal_that_is_none_is_refused(goal):
    with pytest.raises(JobError, match="no goal"):
        calibrate(goal, 10)


def test_a_goal_that_no_noise_keeps_is_told():
    with pytest.raises(JobConflict, match="no noise below"):
        calibrate(Goal(found=0.01000001), 1_000_000)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.02, 0.5), st.floats(0.001, 0.015), st.integers(1, 50))
def test_a_goal_is_kept_by_its_noise_and_not_by_a_little_less(found, fpr, rounds):
    goal = Goal(found=found, fpr=fpr)
    z = calibrate(goal, rounds)
    assert goal.spent([Gaussian(z, count=rounds)]) <= goal.most
    assert goal.spent([Gaussian(0.998 * z, count=rounds)]) > goal.most
