"""Figures of published tables (T18), closed forms, and the order that bounds must have."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import JobConflict, JobError
from atoll.privacy.dp.accounting import account, epsilon, fits, guarantee, of_part
from atoll.privacy.dp.events import (
    DiscreteGaussian,
    Gaussian,
    Geometric,
    Guarantee,
    Laplace,
    MatrixGaussian,
    Selection,
    Skellam,
    Stated,
)
from atoll.privacy.dp.losses import gaussian_delta, gaussian_epsilon
from atoll.privacy.dp.rdp import rdp_epsilon

sys.path.insert(0, str(Path(__file__).parent))

from published import TABLE


@pytest.mark.parametrize(("q", "z", "rounds", "delta", "classic", "rdp", "pld"), TABLE)
def test_published_values_are_reproduced(q, z, rounds, delta, classic, rdp, pld):
    events = [Gaussian(z, q, rounds)]
    assert epsilon(events, delta, method="pld") == pytest.approx(pld, abs=6e-4)
    # Orders here are finer than those of older tables: never above, hardly below.
    found = rdp_epsilon(events, delta)
    assert rdp * 0.998 < found < rdp * 1.0005
    if classic:
        assert rdp_epsilon(events, delta, classic=True) == pytest.approx(classic, rel=3e-3)


@pytest.mark.parametrize(("q", "z", "rounds", "delta"), [row[:4] for row in TABLE])
def test_our_curves_are_those_of_the_library(q, z, rounds, delta):
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    theirs = RdpAccountant().compose(
        dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(z)), rounds
    )
    assert rdp_epsilon([Gaussian(z, q, rounds)], delta) == pytest.approx(
        theirs.get_epsilon(delta), rel=2e-3
    )


def test_one_gaussian_release_has_its_exact_epsilon():
    assert epsilon([Gaussian(1.0)], 1e-5) == pytest.approx(4.37718, abs=1e-5)
    assert epsilon([Gaussian(5.0, count=100)], 1e-5) == pytest.approx(9.9973, abs=1e-4)
    assert epsilon([Gaussian(5.0, count=100)], 1e-5, method="rdp") == pytest.approx(
        10.7255, abs=1e-4
    )


@pytest.mark.parametrize("z", [0.5, 1.0, 3.0, 20.0])
def test_the_librarys_gaussian_is_within_one_percent_of_the_closed_form(z):
    from dp_accounting.pld import privacy_loss_distribution as library

    theirs = library.from_gaussian_mechanism(z).get_epsilon_for_delta(1e-5)
    assert theirs == pytest.approx(gaussian_epsilon(z, 1e-5), rel=1e-2)
    # Sampling every unit is no sampling.
    assert epsilon([Gaussian(z, 1 - 1e-9)], 1e-5) == pytest.approx(theirs, rel=1e-2)


@given(st.floats(0.3, 50.0), st.floats(-12, -1))
@settings(max_examples=50)
def test_epsilon_and_delta_of_a_gaussian_are_inverse(z, power):
    delta = 10.0**power
    found = gaussian_epsilon(z, delta)
    if found > 0:
        assert gaussian_delta(z, found) == pytest.approx(delta, rel=1e-6)
    else:
        assert gaussian_delta(z, 0.0) <= delta


@given(st.floats(0.8, 5.0), st.floats(0.002, 0.2), st.integers(1, 300))
@settings(max_examples=8, deadline=None)
def test_the_tight_bound_is_never_above_the_renyi_bound(z, q, rounds):
    both = account([Gaussian(z, q, rounds)], 1e-6)
    assert both.pld <= both.rdp + 1e-6


def test_more_rounds_more_sampling_or_less_noise_cost_more():
    base = epsilon([Gaussian(1.0, 0.02, 200)], 1e-5)
    assert epsilon([Gaussian(1.0, 0.02, 201)], 1e-5) > base
    assert epsilon([Gaussian(1.0, 0.021, 200)], 1e-5) > base
    assert epsilon([Gaussian(0.98, 0.02, 200)], 1e-5) > base
    assert epsilon([Gaussian(1.0, 0.02, 200)], 1e-6) > base
    assert epsilon([], 1e-5) == 0.0


def test_events_of_several_jobs_on_one_dataset_add_up_however_they_are_listed():
    jobs = [
        Gaussian(1.0, 0.02, 100),
        Laplace(4.0),
        Gaussian(1.5, 0.05, 50),
        Gaussian(1.0, 0.02, 100),
    ]
    merged = [Gaussian(1.5, 0.05, 50), Gaussian(1.0, 0.02, 200), Laplace(4.0)]
    whole = epsilon(jobs, 1e-5)
    assert whole == pytest.approx(epsilon(merged, 1e-5), rel=1e-6)
    alone = [epsilon([event], 1e-5) for event in merged]
    assert max(alone) < whole < sum(alone)


def test_an_exchanged_unit_costs_twice_the_contribution():
    assert epsilon([Gaussian(2.0)], 1e-5, "replace") == pytest.approx(4.37718, abs=1e-5)
    assert epsilon([Laplace(4.0)], 1e-9, "replace") == pytest.approx(0.5, abs=1e-3)
    assert epsilon([Geometric(4.0)], 1e-9, "replace") == pytest.approx(0.5, abs=1e-3)
    sampled = [Gaussian(1.0, 0.1, 50)]
    assert epsilon(sampled, 1e-5, "replace") > epsilon(sampled, 1e-5)


@pytest.mark.parametrize(
    "event",
    [
        Gaussian(4.0, count=3),
        Laplace(8.0),
        Geometric(16.0, 2),
        DiscreteGaussian(3.0, 4, 2.0, 10),
        Skellam(40.0, 2.0, 10),
        MatrixGaussian("tree", 6.0, 8),
    ],
    ids=lambda event: type(event).__name__,
)
def test_a_part_of_a_hidden_unit_costs_what_exchanging_the_unit_does(event):
    """A record that comes leaves its site there, with another update."""
    assert epsilon([of_part(event)], 1e-5) == pytest.approx(epsilon([event], 1e-5, "replace"), 0.01)
    assert epsilon([of_part(event)], 1e-5) > 1.5 * epsilon([event], 1e-5)


def test_a_part_is_not_hidden_by_the_draw_of_its_unit():
    assert of_part(Gaussian(4.0, 0.1)) == Gaussian(2.0)


def test_what_others_account_for_costs_a_part_twice_and_more_than_all_promises_nothing():
    """Whose epsilon is of the relation that they are listed under."""
    assert of_part(Selection(0.2, 3)) == Selection(0.4, 3)
    assert of_part(Stated(0.5)) == Stated(1.0)
    assert of_part(Stated(0.5, 1e-6)).delta == pytest.approx(1e-6 * (1 + math.exp(0.5)))
    endless = of_part(Stated(1e6, 1e-6))  # whose exponential is beyond float64
    assert (endless.epsilon, endless.delta < 1.0) == (2e6, True)


def test_pure_mechanisms_have_their_pure_epsilon():
    assert epsilon([Laplace(2.0)], 1e-12) == pytest.approx(0.5, abs=1e-3)
    assert epsilon([Geometric(2.0)], 1e-12) == pytest.approx(0.5, abs=1e-3)
    assert epsilon([Selection(0.3)], 1e-12) == pytest.approx(0.3, abs=1e-3)
    assert epsilon([Stated(0.3, 1e-6)], 1.01e-6) == pytest.approx(0.3, abs=1e-3)
    with pytest.raises(JobConflict):
        epsilon([Stated(0.3, 1e-6)], 1e-6, method="rdp")


def test_many_choices_cost_less_than_their_sum():
    # 100 choices of .1: the sum is 10, the concentration bound about 2.2.
    assert epsilon([Selection(0.1, 100)], 1e-5) < 2.2


def test_integer_noise_costs_what_continuous_noise_does_where_the_lattice_is_fine():
    normal = epsilon([Gaussian(2.0)], 1e-5, method="rdp")
    fine = DiscreteGaussian(deviation=2.0e5 / 3, shares=9, l2=1e5, dimension=1000)
    assert epsilon([fine], 1e-5) == pytest.approx(normal, rel=1e-4)
    assert epsilon([Skellam(4e10, 1e5, 1000)], 1e-5) == pytest.approx(normal, rel=1e-2)
    coarse = epsilon([Skellam(4.0, 1.0, 1000)], 1e-5)
    assert coarse > normal * 1.05


def test_sampling_integer_noise_lowers_its_cost():
    whole = epsilon([Skellam(4e10, 1e5, 1000, 1.0, 20)], 1e-5)
    part = epsilon([Skellam(4e10, 1e5, 1000, 0.1, 20)], 1e-5)
    assert epsilon([Gaussian(2.0, 0.1, 20)], 1e-5) < part < whole


def test_shares_on_a_coarse_lattice_are_refused():
    with pytest.raises(JobConflict, match="finer lattice"):
        rdp_epsilon([DiscreteGaussian(0.5, 4, 1.0, 10)], 1e-5)


def test_what_no_method_reads_together_is_refused_by_name():
    with pytest.raises(JobConflict, match="Skellam, Stated"):
        epsilon([Skellam(1e6, 100.0, 3), Stated(0.1, 1e-6)], 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0])
def test_a_delta_out_of_range_is_refused(delta):
    for method in ("pld", "rdp"):
        with pytest.raises(JobError):
            epsilon([Gaussian(1.0, 0.5)], delta, method=method)


def test_how_many_rounds_are_left_of_a_budget():
    target = Guarantee(3.0, 1e-5, "record", "add_or_remove")
    one = Gaussian(2.0)
    left = fits(target, one)
    assert (
        epsilon([Gaussian(2.0, count=left)], 1e-5)
        <= 3.0
        < epsilon([Gaussian(2.0, count=left + 1)], 1e-5)
    )
    assert fits(target, one, [Gaussian(2.0)]) == left - 1
    assert fits(target, Gaussian(0.1)) == 0
    assert fits(target, Gaussian(1e4), limit=5) == 5


def test_a_guarantee_is_made_from_events():
    made = guarantee([Gaussian(1.0)], 1e-5, "site")
    assert made.unit == "site"
    assert made.epsilon == pytest.approx(4.37718, abs=1e-5)


def test_the_library_is_imported_at_the_first_question_only():
    code = (
        "import sys; import atoll.privacy.dp.accounting as a; from atoll.privacy.dp.events import Gaussian;"
        "a.epsilon([Gaussian(1.0)], 1e-5); assert 'dp_accounting' not in sys.modules, 'early'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
