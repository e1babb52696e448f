"""Metrics as plain data: exact both ways, closed, and limited."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core import metrics as core
from atoll.core.errors import WireError
from atoll.core.metrics import (
    BinnedAUC,
    Confusion,
    Count,
    Mean,
    RankedScores,
    Regression,
    merge_all,
)
from atoll.wire.metrics import _KINDS, metrics_from_plain, metrics_to_plain

any_float = st.floats()
means = st.lists(st.tuples(any_float, st.floats(0, 1e300)), min_size=1, max_size=4).map(
    lambda rows: merge_all([{"m": Mean.of(*row)} for row in rows])["m"]
)
labels = st.lists(st.tuples(st.integers(0, 1), st.floats(allow_nan=False)), max_size=8)
columns = labels.map(lambda rows: np.array(rows, float).reshape(-1, 2).T)
kinds = {
    "mean": means,
    "count": st.integers(-(2**63) + 1, 2**63 - 1).map(Count),
    "confusion": st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=9).map(
        lambda pairs: Confusion.of(*np.array(pairs, int).reshape(-1, 2).T, classes=3)
    ),
    "regression": st.lists(st.tuples(any_float, any_float), max_size=5).map(
        lambda rows: Regression.of(*np.array(rows).reshape(-1, 2).T)
    ),
    "ranked": columns.map(lambda c: RankedScores.of(*c)),
    "binned": columns.map(lambda c: BinnedAUC.of(*c, bins=7)),
}


def test_every_metric_of_the_core_is_in_the_table():
    classes = {k for k in vars(core).values() if isinstance(k, type) and "merge" in vars(k)}
    assert {kind for kind, _, _ in _KINDS.values()} == classes - {core.Metric}
    assert set(kinds) == set(_KINDS)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.one_of(*kinds.values()), max_size=4))
def test_metrics_are_equal_after_a_round_trip_through_json(metrics):
    back = metrics_from_plain(json.loads(json.dumps(metrics_to_plain(metrics), allow_nan=False)))
    assert back == metrics
    for name, metric in metrics.items():
        assert type(back[name]) is type(metric)
        assert repr(back[name]) == repr(metric)
        assert back[name].merge(metric) == metric.merge(metric)


def test_a_weight_that_is_a_whole_number_stays_one():
    plain = metrics_to_plain({"a": Mean(Fraction(3, 2), 3), "b": Mean(Fraction(3, 2), Fraction(3))})
    assert plain == {"a": {"mean": ["3/2", "3", True]}, "b": {"mean": ["3/2", "3/1", True]}}
    back = metrics_from_plain(plain)
    assert type(back["a"].weight) is int
    assert type(back["b"].weight) is Fraction


def test_scores_that_are_not_finite_keep_their_value():
    scores = RankedScores((math.inf, -0.0), (-math.inf, 5e-324))
    back = metrics_from_plain(metrics_to_plain({"a": scores}))["a"]
    assert [x.hex() for x in back.positives + back.negatives] == [
        "inf", "-0x0.0p+0", "-inf", "0x0.0000000000001p-1022",
    ]  # fmt: skip


class Foreign:
    value = 1.0

    def merge(self, other):
        return self


def test_a_metric_that_is_not_in_the_table_does_not_travel():
    with pytest.raises(WireError, match="metric 'x' is a Foreign, which does not travel"):
        metrics_to_plain({"x": Foreign()})


def test_a_sum_of_other_fractions_does_not_travel():
    with pytest.raises(WireError, match="metric 'x' does not travel"):
        metrics_to_plain({"x": Mean(Fraction(1, 3), 1)})


@pytest.mark.parametrize(
    "raw",
    [
        {"x": {"mean": ["1/3", "1", True]}},
        {"x": {"mean": ["1/0", "1", True]}},
        {"x": {"mean": ["1.5", "1", True]}},
        {"x": {"mean": ["1/-2", "1", True]}},
        {"x": {"mean": ["0x1", "1", True]}},
        {"x": {"mean": ["1_0", "1", True]}},
        {"x": {"mean": ["٣", "1", True]}},
        {"x": {"mean": [1, 1, True]}},
        {"x": {"mean": ["1", "1"]}},
        {"x": {"mean": ["1", "1", 1]}},
        {"x": {"mean": ["1", "1", True, 0]}},
        {"x": {"mean": ["1" * 4097, "1", True]}},
        {"x": {"mean": ["1" * 10**6, "1", True]}},
        {"x": {"count": [True]}},
        {"x": {"count": [2**63]}},
        {"x": {"count": [1.0]}},
        {"x": {"confusion": [[1, 2], [3]]}},
        {"x": {"confusion": [[1, 2]]}},
        {"x": {"confusion": [[-1]]}},
        {"x": {"confusion": []}},
        {"x": {"confusion": [[0] * 513] * 513}},
        {"x": {"regression": [1, "1", "1", "1"]}},
        {"x": {"regression": [-1, "1", "1", "1", True]}},
        {"x": {"ranked": [["0x1p+9999"], []]}},
        {"x": {"ranked": [[1.0], []]}},
        {"x": {"ranked": [["zero"], []]}},
        {"x": {"ranked": [[]]}},
        {"x": {"binned": [[1, 2], [3], 0]}},
        {"x": {"binned": [[1, -2], [3, 4], 0]}},
        {"x": {"binned": [[], [], 0]}},
        {"x": {"binned": [[1], [2], -1]}},
        {"x": {"Mean": ["1", "1", True]}},
        {"x": {"mean": {"total": "1"}}},
        {"x": {"mean": ["1", "1", True], "count": [1]}},
        {"x": {}},
        {"x": []},
        {"x" * 201: {"count": [1]}},
        {str(i): {"count": [1]} for i in range(257)},
        [],
        None,
    ],
)
def test_what_is_not_in_the_table_or_beyond_it_is_refused(raw):
    with pytest.raises(WireError):
        metrics_from_plain(raw)


@settings(deadline=None, max_examples=200)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=5)
            | st.dictionaries(st.sampled_from([*_KINDS, "x"]), inner, max_size=2)
        ),
    )
)
def test_any_other_data_are_read_or_refused_and_nothing_else(raw):
    for data in (raw, {"x": raw}, *({"x": {kind: raw}} for kind in _KINDS)):
        try:
            found = metrics_from_plain(data)
        except WireError:
            continue
        assert metrics_from_plain(metrics_to_plain(found)).keys() == found.keys()
