"""Metrics as integers: what comes out of their sum is the metric of all rows together, to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import UpdateRefused
from atoll.core.metrics import (
    BinnedAUC,
    Confusion,
    Count,
    Mean,
    RankedScores,
    Regression,
    merge_all,
    values,
)
from atoll.runtime.figures import (
    COUNT,
    DIGITS,
    digits_of,
    integers_of,
    kinds_of,
    lanes_of,
    metrics_of,
    number_of,
    spread,
)


def site(seed: int, rows: int = 20) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 2, rows)
    truth[:2] = 0, 1
    score, y = draw.random(rows), draw.normal(0, 1e6, rows)
    return {
        "loss": Mean.of(float(draw.random()), rows),
        "rows": Count(rows),
        "accuracy": Confusion.of(truth, (score > 0.5).astype(int), 2),
        "auc": BinnedAUC.of(truth, score, bins=10),
        "r2": Regression.of(y, y + draw.normal(0, 1, rows)),
    }


def added(sites: Sequence[dict[str, Any]]) -> dict[str, Any]:
    kinds = kinds_of(sites[0])
    sent = [integers_of(metrics, kinds) for metrics in sites]
    return metrics_of(kinds, {name: sum(s[name] for s in sent) for name in sent[0]})


def test_the_sum_of_integers_is_the_merged_metric_to_the_last_bit() -> None:
    sites = [site(seed) for seed in range(7)]
    merged = merge_all(sites)
    found = added(sites)
    assert found == {name: merged[name] for name in found}
    assert values(found) == values(merged)
    assert set(found) == set(sites[0])


@given(st.lists(st.floats(-1e30, 1e30, allow_subnormal=False), min_size=1, max_size=6))
@settings(max_examples=50)
def test_means_of_any_size_add_up_exactly(means: list[float]) -> None:
    sites = [{"loss": Mean.of(mean, 1 + i)} for i, mean in enumerate(means)]
    exact = sum((Fraction(mean) * (1 + i) for i, mean in enumerate(means)), Fraction(0))
    unit = Fraction(2) ** -330
    assert abs(added(sites)["loss"].total - exact) <= len(means) * unit


def test_every_input_keeps_to_its_lane() -> None:
    metrics = site(3)
    kinds = kinds_of(metrics)
    sent = integers_of(metrics, kinds)
    lanes = {lane.name: lane for lane in lanes_of(kinds)}
    assert set(sent) == set(lanes)
    for name, vector in sent.items():
        assert vector.shape == (lanes[name].length,)
        assert np.abs(vector).max() <= lanes[name].bound
        assert not lanes[name].faults(100)


def test_digits_tell_the_total_and_nothing_else_of_who_added_what() -> None:
    """Without spreading, a carry tells that no site alone has reached it."""
    half = 1 << 23
    alike = digits_of(half) + digits_of(half)
    alone = digits_of(2 * half) + digits_of(0)
    assert not np.array_equal(alike, alone)  # the same total, told apart
    seen = {tuple(spread(digits_of(half)) + spread(digits_of(half))) for _ in range(20)}
    assert len(seen) == 20
    total = Fraction(2 * half) * Fraction(2) ** -330
    assert {number_of(np.array(digits)) for digits in seen} == {total}


def test_what_is_moved_between_digits_covers_any_carry() -> None:
    """The sum of many sites' carries, at most 1 023 of them, is lost in 2^28 equally likely moves."""
    drawn = np.stack([spread(digits_of(0)) for _ in range(400)])
    assert np.abs(drawn).max() < DIGITS
    moved = drawn[:, 0] >> 24  # of the lowest digit
    assert moved.min() < -(2**25) < 2**25 < moved.max()
    assert len(set(moved.tolist())) > 390
    assert drawn.shape == (400, COUNT)


def test_a_value_that_is_not_finite_makes_the_sum_undefined() -> None:
    found = added([{"loss": Mean.of(1.0, 2)}, {"loss": Mean.of(float("nan"), 2)}])
    assert not found["loss"].finite


def test_scores_of_single_rows_are_no_kind_and_stay() -> None:
    metrics = {"auc": RankedScores((0.5,), (0.1,)), "loss": Mean.of(1.0, 2)}
    assert kinds_of(metrics) == {"loss": ("mean", 0)}


def test_other_kinds_than_those_of_everybody_are_refused() -> None:
    kinds = kinds_of(site(1))
    with pytest.raises(UpdateRefused, match="metric 'auc'"):
        integers_of({**site(1), "auc": BinnedAUC.of(np.array([0, 1]), np.array([0.1, 0.9]))}, kinds)
    with pytest.raises(UpdateRefused, match="too large"):
        integers_of({"loss": Mean.of(1e60, 1e60)}, {"loss": ("mean", 0)})
