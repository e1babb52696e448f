"""Metrics: what sites merge is what their rows together give, in any order, to the bit."""

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, r2_score, roc_auc_score

from atoll.core.errors import DataError
from atoll.core.metrics import (
    BinnedAUC,
    Confusion,
    Count,
    Mean,
    RankedScores,
    Regression,
    merge_all,
    merge_metrics,
    values,
)

patient = settings(deadline=None, max_examples=60)
reals = st.floats(-1e9, 1e9)
ties = st.sampled_from([0.0, 0.25, 0.3, 0.5, 1.0])
scores = st.one_of(ties, st.floats(0, 1))
labelled = st.lists(st.tuples(st.integers(0, 1), scores), max_size=25)
pairs = st.lists(st.tuples(reals, reals), max_size=12)
classes = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=20)


def columns(rows, dtype=float):
    table = np.array(rows, float).reshape(-1, 2)
    return table[:, 0].astype(dtype), table[:, 1].astype(dtype)


def ranked(rows):
    return RankedScores.of(*columns(rows))


def binned(rows):
    return BinnedAUC.of(*columns(rows), bins=10)


def regression(rows):
    return Regression.of(*columns(rows))


def confusion(rows):
    return Confusion.of(*columns(rows, np.int64), classes=3)


def mean(rows):
    return merge_all([{"m": Mean.of(x, abs(w))} for x, w in rows]).get("m", Mean.of(0.0, 0))


def count(rows):
    return Count(len(rows))


MAKERS = [
    (ranked, labelled),
    (binned, labelled),
    (regression, pairs),
    (confusion, classes),
    (mean, pairs),
    (count, pairs),
]


@pytest.mark.parametrize(("make", "rows"), MAKERS)
def test_merging_sites_gives_the_metric_of_all_their_rows(make, rows):
    @patient
    @given(rows, rows, rows)
    def holds(a, b, c):
        pooled, (x, y, z) = make(a + b + c), map(make, (a, b, c))
        assert x.merge(y).merge(z) == pooled
        assert x.merge(y.merge(z)) == pooled
        assert z.merge(x).merge(y) == pooled
        merged = z.merge(y).merge(x)
        assert np.float64(merged.value).tobytes() == np.float64(pooled.value).tobytes()

    holds()


@pytest.mark.parametrize(("make", "rows"), MAKERS)
def test_a_metric_crosses_a_process_boundary(make, rows):
    metric = make([(1, 0.5), (0, 0.25)] if make is not confusion else [(1, 0), (2, 2)])
    assert pickle.loads(pickle.dumps(metric)) == metric


METRICS = [Count(1), mean([]), ranked([]), binned([]), regression([]), confusion([])]


@pytest.mark.parametrize("metric", METRICS)
def test_different_kinds_do_not_merge(metric):
    for other in METRICS:
        if type(other) is not type(metric):
            with pytest.raises(TypeError, match=type(other).__name__):
                metric.merge(other)


@pytest.mark.parametrize("metric", METRICS[1:])
def test_a_metric_of_no_rows_is_undefined(metric):
    assert math.isnan(metric.value)


def test_a_weighted_mean_by_hand():
    assert Mean.of(2.0, 3).merge(Mean.of(4.0, 1)).value == 2.5
    assert Mean.of(5.0, 0).merge(Mean.of(1.0, 2)).value == 1.0


@given(
    st.lists(
        st.tuples(
            st.floats(width=32), st.integers(0, 10**6) | st.floats(0, 1e6, allow_subnormal=True)
        ),
        min_size=1,
        max_size=8,
    )
)
def test_a_mean_over_many_is_their_means_merged(pairs):
    merged = Mean.of(*pairs[0])
    for pair in pairs[1:]:
        merged = merged.merge(Mean.of(*pair))
    assert Mean.over(pairs) == merged


def test_a_mean_of_cancelling_values_is_exact():
    many = [Mean.of(x, 1) for x in (1e300, 1e-300, -1e300)]
    assert many[0].merge(many[1]).merge(many[2]).total == Fraction(1e-300)


@pytest.mark.parametrize("bad", [(math.nan, 1), (math.inf, 1), (1.0, math.nan), (1.0, math.inf)])
def test_a_mean_that_met_a_non_finite_number_stays_undefined(bad):
    merged = Mean.of(1.0, 1).merge(Mean.of(*bad)).merge(Mean.of(1.0, 1))
    assert math.isnan(merged.value)
    assert not math.isnan(Mean.of(1.0, 1).value)


def test_numbers_may_be_numpys():
    assert Mean.of(np.float32(0.5), np.int64(2)) == Mean.of(0.5, 2)


@patient
@given(classes.filter(len))
def test_confusion_agrees_with_scikit_learn(rows):
    truth, predicted = columns(rows, np.int64)
    metric = Confusion.of(truth, predicted, 3)
    assert metric.table == tuple(
        map(tuple, confusion_matrix(truth, predicted, labels=[0, 1, 2]).tolist())
    )
    assert metric.value == accuracy_score(truth, predicted)


def test_confusion_counts_rows_by_truth_and_columns_by_prediction():
    assert Confusion.of(np.array([0, 0, 1]), np.array([1, 1, 1]), 2).table == ((0, 2), (0, 1))


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        ([0], [3], "predicted class 3"),
        ([0, -1], [0, 0], "true class -1"),
        ([0.5], [0.0], "true class 0.5"),
        ([0.0], [math.nan], "predicted class nan"),
    ],
)
def test_a_class_out_of_range_is_refused_rather_than_counted_elsewhere(truth, predicted, message):
    with pytest.raises(DataError, match=message):
        Confusion.of(np.array(truth), np.array(predicted), 3)


def test_tables_and_histograms_of_other_sizes_do_not_merge():
    with pytest.raises(ValueError, match="2 and 1 classes"):
        Confusion(((1, 0), (0, 1))).merge(Confusion(((1,),)))
    with pytest.raises(ValueError, match="1 and 2 bins"):
        BinnedAUC(np.ones((2, 1), int)).merge(BinnedAUC(np.ones((2, 2), int)))


@patient
@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=2, max_size=20))
def test_r_squared_agrees_with_scikit_learn(rows):
    truth, predicted = columns(rows)
    if np.ptp(truth) < 1e-3:
        truth = truth + np.arange(len(truth))
    got = Regression.of(truth, predicted).value
    assert got == pytest.approx(r2_score(truth, predicted), rel=1e-7, abs=1e-7)


def test_r_squared_by_hand():
    metric = Regression.of(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0]))
    assert (metric.n, metric.y, metric.yy, metric.rr) == (3, 6, 14, 1)
    assert metric.value == 0.5


@patient
@given(st.lists(st.floats(-1e100, 1e100).filter(lambda x: x == 0 or abs(x) > 1e-100), max_size=8))
def test_sums_of_squares_have_no_rounding(rows):
    truth = np.array(rows)
    metric = Regression.of(truth, np.zeros(len(rows)))
    assert metric.y == sum(map(Fraction, rows))
    assert metric.yy == metric.rr == sum(Fraction(x) ** 2 for x in rows)


@pytest.mark.parametrize("level", [0.1, 1 / 3, 1e8 + 0.1, -7.7])
def test_r_squared_of_a_constant_target_is_undefined_not_huge(level):
    assert math.isnan(Regression.of(np.full(3, level), np.array([1.0, 2.0, 3.0])).value)


def test_r_squared_survives_a_large_offset():
    truth = 1e9 + np.array([0.0, 1.0, 2.0, 3.0])
    assert Regression.of(truth, truth + 0.5).value == pytest.approx(1 - 1 / 5, rel=1e-15)


def test_a_hopeless_prediction_scores_minus_infinity():
    assert Regression.of(np.array([0.0, 1e-140]), np.array([1e139, 0.0])).value == -math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_r_squared_with_a_value_out_of_range_is_undefined(bad):
    fine = Regression.of(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    for truth, predicted in (([bad, -bad], [0.0, 0.0]), ([0.0, 1.0], [bad, bad])):
        met = Regression.of(np.array(truth), np.array(predicted))
        assert math.isnan(met.value)
        assert math.isnan(fine.merge(met).value)


both = labelled.filter(lambda rows: len({y for y, _ in rows}) == 2)


@patient
@given(both)
def test_ranked_scores_agree_with_scikit_learn_ties_included(rows):
    truth, score = columns(rows)
    assert RankedScores.of(truth, score).value == pytest.approx(
        roc_auc_score(truth, score), abs=1e-12
    )


def test_area_by_hand_with_a_tie():
    """Of four pairs the positive wins two, ties one, loses one: 2.5 / 4."""
    metric = RankedScores.of(np.array([1, 1, 0, 0]), np.array([0.9, 0.5, 0.5, 0.7]))
    assert metric.value == 0.625


@patient
@given(both, st.integers(1, 50))
def test_binned_area_is_within_its_bound_of_the_exact_one(rows, bins):
    truth, score = columns(rows)
    metric = BinnedAUC.of(truth, score, bins=bins)
    assert abs(metric.value - RankedScores.of(truth, score).value) <= metric.error_bound + 1e-15


def test_the_bound_is_reached_when_a_bin_hides_the_order():
    metric = BinnedAUC.of(np.array([1, 0]), np.array([0.02, 0.01]), bins=10)
    assert (metric.value, metric.error_bound) == (0.5, 0.5)


def test_binned_area_is_exact_when_no_bin_is_shared():
    metric = BinnedAUC.of(np.array([1, 0, 0, 1]), np.array([0.9, 0.7, 0.2, 0.4]), bins=10)
    assert (metric.value, metric.error_bound) == (0.75, 0.0)


def test_scores_outside_the_unit_interval_join_the_end_bins():
    score = np.array([-math.inf, -3.0, 0.0, 1.0, 1e300, math.inf])
    metric = BinnedAUC.of(np.array([0, 1, 0, 1, 0, 1]), score, bins=2)
    assert metric.counts.tolist() == [[2, 1], [1, 2]]


def test_binned_area_of_more_pairs_than_64_bits_hold():
    """Each class 2^32 rows, spread alike over two bins: half of all pairs tie, the rest cancel."""
    metric = BinnedAUC(np.full((2, 2), 2**31))
    assert (metric.value, metric.error_bound) == (0.5, 0.25)


def test_equal_histograms_are_equal_and_hash_alike():
    one, same = (BinnedAUC(np.array([[1, 0], [0, 1]])) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != BinnedAUC(np.array([[0, 1], [0, 1]]))
    assert one != BinnedAUC(np.array([[1, 0], [0, 1]]), undefined=1)


@pytest.mark.parametrize("kind", [RankedScores, BinnedAUC])
def test_a_score_that_is_not_a_number_makes_the_area_undefined(kind):
    bad = kind.of(np.array([1, 0, 1]), np.array([0.5, 0.1, math.nan]))
    fine = kind.of(np.array([1, 0]), np.array([0.5, 0.1]))
    assert fine.value == 1.0
    assert math.isnan(bad.value)
    assert math.isnan(fine.merge(bad).value)


def test_the_bound_of_an_undefined_area_is_undefined():
    assert math.isnan(BinnedAUC.of(np.array([1, 0]), np.array([math.nan, 0.5])).error_bound)


@pytest.mark.parametrize("kind", [RankedScores, BinnedAUC])
@pytest.mark.parametrize("label", [2, -1, 0.5, math.nan])
def test_labels_other_than_zero_and_one_are_refused(kind, label):
    with pytest.raises(DataError, match="where 0 or 1 is expected"):
        kind.of(np.array([0, 1, label]), np.array([0.1, 0.2, 0.3]))


@pytest.mark.parametrize("kind", [RankedScores, BinnedAUC])
@pytest.mark.parametrize("label", [0, 1])
def test_the_area_of_one_class_is_undefined(kind, label):
    assert math.isnan(kind.of(np.full(3, label), np.array([0.1, 0.2, 0.3])).value)


@pytest.mark.parametrize("kind", [RankedScores, BinnedAUC])
def test_labels_may_be_true_and_false(kind):
    assert kind.of(np.array([True, False]), np.array([0.9, 0.1])).value == 1.0


def test_metric_sets_merge_by_name_and_keep_what_one_side_has():
    a, b = {"n": Count(1), "a": Count(10)}, {"n": Count(2), "b": Count(20)}
    assert values(merge_metrics(a, b)) == {"n": 3.0, "a": 10.0, "b": 20.0}
    assert values(a) == {"n": 1.0, "a": 10.0}
    assert merge_all([]) == {}


@patient
@given(st.lists(reals, max_size=10), st.randoms(use_true_random=False))
def test_any_order_of_many_sites_gives_the_same_bits(losses, chance):
    sites = [{"loss": Mean.of(x, i + 1)} for i, x in enumerate(losses)]
    want = merge_all(sites)
    chance.shuffle(sites)
    assert merge_all(sites) == want
