"""Integers hold what was sent to the grid's precision, and nothing in the clear says how much a client is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.aggregation.exact import Fold
from atoll.core.chain import COHORT, Passage, Range, Setting
from atoll.core.contracts import Weighting
from atoll.core.errors import UpdateRefused
from atoll.core.metrics import (
    BinnedAUC,
    Confusion,
    Count,
    Mean,
    RankedScores,
    Regression,
    merge_all,
)
from atoll.core.seeds import Seed
from atoll.core.values import Aggregate, Broadcast, Update
from atoll.privacy.links.quantise import Quantise

TRUTH, GUESS = np.array([0, 1, 1, 0]), np.array([0.2, 0.7, 0.4, 0.9])
KINDS = {
    "loss": Mean.of(1.0, 4),
    "rows": Count(1),
    "table": Confusion.of(TRUTH, GUESS > 0.5, 2),
    "r2": Regression.of(TRUTH, GUESS),
    "auc": BinnedAUC.of(TRUTH, GUESS, 10),
}


def passage(client: str, cohort: int, scale: float = 1.0) -> Passage:
    return Passage(client, 0, 0, Broadcast(0, {}), cohort, Seed(3) / client, scale=scale)


def added(link: Quantise, updates: list[Update], cohort: int, scale: float = 1.0) -> Aggregate:
    fold = Fold(cohort)
    for i, update in enumerate(updates):
        sent = link.client(update, passage(f"c{i}", cohort, scale))
        assert (sent.weight, sent.examples, dict(sent.metrics)) == (1.0, 0, {})
        fold.add(sent)
    total, changed = link.server(fold.aggregate(), {COHORT: np.array([float(cohort)])}, 0)
    assert changed == {}
    return total


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3), st.integers(1, 900)
        ),
        min_size=1,
        max_size=5,
    )
)
def test_the_weighted_mean_comes_back_to_the_grid(clients: list[tuple[list[float], int]]) -> None:
    link = Quantise(1.0, 3, {"delta": 3}, cap=500.0)
    updates = [Update({"delta": np.array(v, np.float32)}, float(n), n) for v, n in clients]
    total = added(link, updates, 5)
    weights = [min(n, 500) for _, n in clients]
    wanted = sum(w * np.array(v) for (v, _), w in zip(clients, weights, strict=True))
    # Each of at most five clients is off by less than one step of 5 / 2^31, times the cap.
    assert np.abs(total.sums["delta"] - wanted).max() < 5 * 500 * 5 / 2**31 * 1.01
    assert total.weight == sum(weights)
    assert total.examples == sum(n for _, n in clients)


def test_every_kind_of_metric_that_adds_up_comes_back() -> None:
    link = Quantise(1.0, 1, {"delta": 1}, cap=10.0, kinds=KINDS)
    other = {
        "loss": Mean.of(0.25, 3),
        "rows": Count(5),
        "table": Confusion.of(TRUTH, GUESS < 0.5, 2),
        "r2": Regression.of(TRUTH, GUESS / 2),
        "auc": BinnedAUC.of(TRUTH, GUESS / 2, 10),
    }
    updates = [Update({"delta": np.zeros(1, np.float32)}, 4.0, 4, m) for m in (KINDS, other)]
    found, wanted = added(link, updates, 3).metrics, merge_all([KINDS, other])
    assert {name: type(m) for name, m in found.items()} == {n: type(m) for n, m in wanted.items()}
    for name in ("rows", "table", "auc"):
        assert found[name] == wanted[name]
    for name in ("loss", "r2"):
        assert found[name].value == pytest.approx(wanted[name].value, abs=1e-7)


def test_a_metric_of_only_some_clients_is_theirs_and_one_of_nobody_is_left_out() -> None:
    link = Quantise(1.0, 1, {"delta": 1}, cap=10.0, kinds={"loss": Mean.of(1, 1), "n": Count(1)})
    vectors = {"delta": np.zeros(1, np.float32)}
    some = [Update(vectors, 4.0, 4, {"loss": Mean.of(0.5, 4)}), Update(vectors, 9.0, 9)]
    found = {n: m.value for n, m in added(link, some, 3).metrics.items()}
    assert found == {"loss": pytest.approx(0.5, abs=1e-8)}


def test_a_loss_that_is_not_finite_stays_so() -> None:
    link = Quantise(1.0, 1, {"delta": 1}, kinds={"loss": Mean.of(1, 1)})
    update = Update({"delta": np.zeros(1, np.float32)}, 1.0, 4, {"loss": Mean.of(np.nan, 4)})
    assert np.isnan(added(link, [update], 3).metrics["loss"].value)


def test_staleness_shortens_vectors_inside_and_leaves_the_weight() -> None:
    link = Quantise(1.0, 2, {"delta": 2}, cap=100.0)
    update = Update({"delta": np.full(2, 0.5, np.float32)}, 50.0, 50)
    total = added(link, [update], 3, scale=0.25)
    assert total.sums["delta"] == pytest.approx([6.25, 6.25], abs=1e-5)
    assert (total.weight, round(total.scaled_weight, 6)) == (50.0, 12.5)


def test_vectors_that_are_no_model_keep_their_range_and_others_are_clipped_to_the_bound() -> None:
    ranges = {"counts": Range(1000.0, 1.0)}
    link = Quantise(0.5, 3, {"counts": 2, "delta": 3, "steps": 1}, cap=1.0, ranges=ranges)
    vectors = {
        "delta": np.array([0.25, 7.0, -7.0], np.float32),
        "steps": np.array([1234.5]),
        "counts": np.array([999.0, 3.0]),
    }
    total = added(link, [Update(vectors, 1.0, 1)], 4)
    assert total.sums["delta"] == pytest.approx([0.25, 0.5, -0.5], abs=1e-8)
    assert total.sums["steps"] == pytest.approx([1234.5], abs=1e-5)
    assert total.sums["counts"].tolist() == [999.0, 3.0]
    beyond = {**vectors, "counts": np.array([1001.0, 0.0])}
    with pytest.raises(UpdateRefused, match="1001"):
        link.client(Update(beyond, 1.0, 1), passage("a", 4))


@pytest.mark.parametrize(
    "vectors",
    [
        {"delta": np.array([np.nan, 0.0, 0.0])},
        {"delta": np.zeros(2)},
        {"delta": np.zeros(3), "more": np.zeros(1)},
    ],
    ids=["not finite", "short", "unknown"],
)
def test_what_does_not_fit_leaves_no_client(vectors: dict[str, Any]) -> None:
    with pytest.raises(UpdateRefused):
        Quantise(1.0, 3, {"delta": 3}).client(Update(vectors, 1.0, 1), passage("a", 3))


def test_the_same_seed_rounds_alike_and_another_client_otherwise() -> None:
    link = Quantise(1.0, 100, {"delta": 100})
    update = Update({"delta": np.linspace(-0.9, 0.9, 100)}, 1.0, 1)
    one, same, other = (
        link.client(update, passage(c, 1000)).vectors["delta"] for c in ("a", "a", "b")
    )
    assert one.tolist() == same.tolist()
    assert one.tolist() != other.tolist()


def test_the_masked_lanes_are_whole_numbers_that_cannot_overflow() -> None:
    link = Quantise(1.0, 3, {"delta": 3}, cap=10.0, kinds={"loss": Mean.of(1, 1)})
    lanes = link.integer_lanes(100)
    sent = link.client(Update({"delta": np.ones(3)}, 9.0, 9), passage("a", 100)).vectors
    assert [lane.name for lane in lanes] == list(sent)
    for lane in lanes:
        assert lane.faults(100) == []
        assert lane.step == 1.0
        assert 100 * lane.levels(100) < 2 ** (lane.bits - 1)
        assert np.abs(sent[lane.name]).max() <= lane.levels(100)


def test_scores_of_single_rows_are_refused_by_name() -> None:
    kinds = {"auc": RankedScores.of(TRUTH, GUESS)}
    link = Quantise(1.0, 3, {"delta": 3}, kinds=kinds)
    setting = Setting({"delta": ((3,), "float32")}, kinds, 3, Weighting(), 5)
    (fault,) = link.faults(setting)
    assert "BinnedAUC" in str(fault)
    assert replace(link, kinds={}).faults(replace(setting, metrics={})) == []


def test_a_weight_that_no_cap_was_declared_for_is_refused_and_not_shortened() -> None:
    link = Quantise(1.0, 1, {"delta": 1}, caps=False)
    with pytest.raises(UpdateRefused, match="weight 7"):
        link.client(Update({"delta": np.zeros(1)}, 7.0, 7), passage("a", 3))
