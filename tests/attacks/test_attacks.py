"""Each attack succeeds with the protection off, and fails with it on.

The figures of ``docs/privacy.md`` come from the same functions with more trials.
"""

import pytest

from atoll.privacy.dp.calibration import Goal
from benchmarks.privacy import inversion, masking, membership, noise, one_run
from benchmarks.privacy.training import Setting


def held(figures):
    assert figures
    return [f"{f.what}: {f.found}" for f in figures if not f.holds]


@pytest.mark.parametrize(
    "row",
    [
        masking.lies,
        masking.collusion,
        masking.overflow,
        noise.emitted,
        noise.control,
        inversion.closed_form,
    ],
    ids=lambda row: row.__name__,
)
def test_promises_hold_at_a_small_size(row):
    assert held(row(True)) == []


@pytest.mark.slow
def test_optimised_inversion_finds_an_unprotected_row_and_no_other():
    pytest.importorskip("torch")
    assert held(inversion.optimised(True)) == []


@pytest.mark.slow
def test_one_run_proves_less_than_is_reported_and_much_where_nothing_protects():
    setting = Setting(one_run.noise_for(Goal(4.0)), steps=50)
    assert setting.epsilon <= 4.0
    assert one_run.bound_of(setting, 0).epsilon <= setting.epsilon
    assert one_run.bound_of(Setting(0.0, steps=50), 0).epsilon >= 4


def test_one_run_notices_noise_that_is_a_tenth_of_the_declared():
    declared = Setting(one_run.noise_for(Goal(1.0)))
    weak = Setting(declared.noise_multiplier / 10)
    assert one_run.bound_of(weak, 0).epsilon > declared.epsilon


@pytest.mark.slow
def test_membership_shows_without_protection_and_hides_with_it():
    off, *_ = membership.risks(Setting(0.0, steps=300, clip=1e9, lr=1.0), 16)
    on, *_ = membership.risks(Setting(one_run.noise_for(Goal(1.0)), lr=1.0), 16)
    assert off.tpr > 0.08
    assert on.tpr <= 0.03
    assert off.auc - on.auc > 0.15
