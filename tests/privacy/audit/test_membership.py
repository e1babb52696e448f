"""Membership scores by hand, and LiRA on models that remember."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import DataError
from atoll.privacy.audit.membership import confidence, lira, lira_risk, loss_risk, risk_of


def test_rates_by_hand():
    members, others = np.array([5.0, 4.0, 1.0, 0.0]), np.array([3.0, 2.0, 1.0, -1.0])
    found = risk_of(members, others, fpr=0.25)  # one false positive is allowed: above 2
    assert found.tpr == 0.5
    assert found.auc == (4 + 4 + 1.5 + 1) / 16
    assert risk_of(members, others, fpr=0.01).tpr == 0.5  # above 3
    assert (found.members, found.others) == (4, 4)


def test_equal_scores_are_no_evidence():
    found = risk_of(np.zeros(100), np.zeros(100))
    assert (found.tpr, found.auc) == (0.0, 0.5)


def test_low_loss_means_member():
    assert loss_risk(np.full(50, 0.1), np.full(50, 0.9)).tpr == 1.0
    assert loss_risk(np.full(50, 0.9), np.full(50, 0.1)).tpr == 0.0


@given(st.floats(0.01, 20))
def test_confidence_is_the_log_odds_of_the_probability(loss):
    p = np.exp(-loss)
    assert confidence(np.array([loss]))[0] == pytest.approx(np.log(p / (1 - p)), rel=1e-6, abs=1e-9)


def test_confidence_stays_finite_at_the_ends():
    assert np.isfinite(confidence(np.array([0.0, 1e9, np.inf]))).all()


def models(effect, count=12, rows=400, seed=0):
    """Each row has its own hardness; training on it raises its confidence by ``effect``."""
    draw = np.random.default_rng(seed)
    included = draw.random((count, rows)) < 0.5
    hardness = draw.normal(0, 5, rows)
    return hardness + effect * included + draw.normal(0, 1, (count, rows)), included


def test_lira_sees_what_a_threshold_on_the_loss_does_not():
    phi, included = models(effect=4.0)
    by_ratio = lira_risk(phi, included)
    by_value = risk_of(phi[included], phi[~included])
    assert by_ratio.tpr > 0.8
    assert by_value.tpr < 0.1


def test_lira_finds_nothing_where_there_is_nothing():
    found = lira_risk(*models(effect=0.0))
    assert found.tpr < 0.03
    assert abs(found.auc - 0.5) < 0.03


def test_lira_never_looks_at_the_target_s_own_coins():
    phi, included = models(effect=4.0)
    flipped = included.copy()
    flipped[3] = ~flipped[3]
    assert np.array_equal(lira(phi, included, 3), lira(phi, flipped, 3))


def test_too_little_to_judge_is_refused():
    with pytest.raises(DataError, match="hold back"):
        risk_of(np.zeros(0), np.zeros(3))
    with pytest.raises(DataError, match="shadow"):
        lira(np.zeros((2, 1)), np.array([[True], [True]]), 0)
