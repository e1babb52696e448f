import math

import numpy as np
import pytest

from atoll.core.errors import DataError, LayoutError
from atoll.core.metrics import BinnedAUC, RankedScores
from atoll.models.scores import check_labels, classification_scores, regression_scores

TRUTH = np.array([0, 1, 1, 0])
LOGITS = np.array([-1.0, 2.0, -0.5, 0.5])


@pytest.mark.parametrize(
    "logits",
    [LOGITS, LOGITS[:, None], np.stack([np.zeros(4), LOGITS], 1)],
    ids=["(n,)", "(n,1)", "(n,2)"],
)
def test_the_same_odds_score_the_same_in_every_shape(logits):
    found = classification_scores(TRUTH, logits)
    assert found["accuracy"].value == 0.5
    assert found["confusion"].table == ((1, 1), (1, 1))
    assert found["auc"].value == 0.75


def test_auc_by_histograms_when_scores_may_not_be_kept():
    assert isinstance(classification_scores(TRUTH, LOGITS)["auc"], RankedScores)
    binned = classification_scores(TRUTH, LOGITS, exact_auc=False)["auc"]
    assert isinstance(binned, BinnedAUC)
    assert binned.value == 0.75


@pytest.mark.parametrize(
    ("mean", "factor"),
    [(0, 1), (-7, 1), (7, 1), (0, 30)],
    ids=["even", "rare", "common", "too sure"],
)
def test_auc_by_histograms_is_near_wherever_the_scores_lie(mean, factor):
    """Bins of equal width of the probability held most rows of rare events, or of sure networks, in one."""
    rng = np.random.default_rng(0)
    logits = rng.normal(mean, 1, 40_000)
    truth = (rng.random(len(logits)) < 1 / (1 + np.exp(-logits))).astype(int)
    exact, binned = (
        classification_scores(truth, factor * logits, exact_auc=exact)["auc"]
        for exact in (True, False)
    )
    assert abs(binned.value - exact.value) <= binned.error_bound < 0.01
    assert binned.value == pytest.approx(exact.value, abs=1e-3)


def test_endless_logits_are_at_the_ends_of_the_histogram():
    logits = np.array([-np.inf, 0.0, np.inf])
    assert classification_scores(np.array([0, 0, 1]), logits, exact_auc=False)["auc"].value == 1.0


def test_huge_logits_do_not_tie_in_the_exact_auc():
    found = classification_scores(np.array([0, 1]), np.array([800.0, 801.0]))
    assert found["auc"].value == 1.0


def test_many_classes_have_no_auc():
    found = classification_scores(np.array([0, 2]), np.eye(3)[[0, 1]])
    assert "auc" not in found
    assert found["confusion"].table == ((1, 0, 0), (0, 0, 0), (0, 1, 0))


def test_labels_per_pixel_are_counted_one_by_one():
    truth = np.array([[0, 1], [1, 1]])
    logits = np.stack([1 - truth, truth], 1) * 1.0
    logits[0, :, 0] = [0, 1]
    assert classification_scores(truth, logits)["accuracy"].value == 0.75


def test_a_label_outside_the_classes_is_named_with_its_row():
    with pytest.raises(DataError, match="target 3 in row 1"):
        check_labels(np.array([0, 3]), 3)
    with pytest.raises(DataError, match="target -1 in row 0"):
        classification_scores(np.array([-1, 0]), LOGITS[:2])
    for between in (0.7, np.nan):
        with pytest.raises(DataError, match=f"target {between} in row 2 is not a class"):
            check_labels(np.array([0.0, 1.0, between]), 2)
    check_labels(np.array([0.0, 1.0]), 2)


def test_outputs_and_declared_classes_must_agree():
    with pytest.raises(LayoutError, match="2 classes, the job declares 3"):
        classification_scores(TRUTH, LOGITS, 3)


def test_errors_whose_squares_are_beyond_float64_are_not_defined():
    found = regression_scores(np.array([1e200, 0.0]), np.zeros(2))
    assert math.isnan(found["mse"].value)
    assert math.isnan(found["r2"].value)
    assert found["mae"].value == 5e199


def test_regression_scores_by_hand():
    found = regression_scores(np.array([1.0, 2.0, 3.0]), np.array([[1.0], [2.0], [5.0]]))
    assert found["mse"].value == pytest.approx(4 / 3)
    assert found["mae"].value == pytest.approx(2 / 3)
    assert found["r2"].value == -1.0
