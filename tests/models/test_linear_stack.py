"""Clients trained side by side: each walks the path it walks alone."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.contracts import CohortTrainer, Examples, Lane
from atoll.core.errors import DataError, JobConflict
from atoll.core.local import LocalRule, LocalWork, Optimizer
from atoll.core.seeds import Seed
from atoll.models.batches import plan
from atoll.models.linear import LinearTrainer
from atoll.models.linear_stack import _across

KINDS = [("linear", 2), ("logistic", 2), ("multinomial", 2), ("multinomial", 3)]
SGD = Optimizer(lr=0.1, weight_decay=0.01)


def lanes_of(kind, classes, sizes, work, rule=None, features=4, dtype="float64"):
    rng = np.random.default_rng(sum(sizes))
    lanes = []
    for i, n in enumerate(sizes):
        y = rng.normal(size=n) if kind == "linear" else rng.integers(classes, size=n)
        data = Examples(rng.normal(size=(n, features)).astype(dtype), y)
        lanes.append(Lane(data, work, rule or LocalRule(), Seed(i), n / 7))
    return lanes


def assert_alike(trainer, start, lanes, tolerance):
    together = trainer.fit_together(start, lanes, round=0)
    fits = [
        trainer.fit(start, lane.data, work=lane.work, rule=lane.rule, seed=lane.seed, round=0)
        for lane in lanes
    ]
    change = sum(
        lane.weight * (f.parameters - start.astype(float))
        for lane, f in zip(lanes, fits, strict=True)
    )
    assert together.change.dtype == start.dtype
    assert list(together.steps) == [f.steps for f in fits]
    scale = 1.0 + np.abs(change).max()
    np.testing.assert_allclose(together.change, change, rtol=0, atol=tolerance * scale)
    np.testing.assert_allclose(together.losses, [f.loss for f in fits], rtol=tolerance * 10)


@pytest.mark.parametrize(("kind", "classes"), KINDS)
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    batch=st.sampled_from([0, 1, 7, 16]),
    epochs=st.sampled_from([0.05, 0.4, 1.0, 2.5]),
    drop=st.booleans(),
    penalty=st.sampled_from([0.0, 0.1]),
    intercept=st.booleans(),
)
def test_any_clients_walk_the_paths_they_walk_alone(
    kind, classes, sizes, batch, epochs, drop, penalty, intercept
):
    trainer = LinearTrainer(kind, 4, classes=classes, l2=penalty, intercept=intercept)
    start = np.random.default_rng(0).normal(size=trainer.layout.size)
    work = LocalWork(epochs, batch_size=batch, optimizer=SGD, drop_last=drop, clip_norm=0.5)
    rule = LocalRule(mu=0.1, anchor=start + 1, shift=np.full(len(start), 0.01))
    assert_alike(trainer, start, lanes_of(kind, classes, sizes, work, rule), 1e-13)


def test_a_pass_gathered_in_parts_is_the_same_pass(monkeypatch):
    monkeypatch.setattr("atoll.models.linear_stack._GATHER", 100)
    trainer = LinearTrainer("multinomial", 4, classes=3)
    work = LocalWork(2, batch_size=5, optimizer=SGD)
    lanes = lanes_of("multinomial", 3, (33, 20, 4), work)
    assert_alike(trainer, trainer.initial(Seed(0)), lanes, 1e-13)


def test_single_precision_stays_within_its_rounding():
    trainer = LinearTrainer("multinomial", 4, classes=3, dtype="float32")
    work = LocalWork(3, batch_size=8, optimizer=SGD)
    lanes = lanes_of("multinomial", 3, (50, 41, 9), work, dtype="float32")
    assert_alike(trainer, trainer.initial(Seed(0)), lanes, 2e-6)


def test_the_order_of_the_lanes_is_that_of_the_answers():
    trainer, work = LinearTrainer("linear", 4), LocalWork(batch_size=4, optimizer=SGD)
    lanes = lanes_of("linear", 2, (3, 30, 11), work)
    one, other = (
        trainer.fit_together(trainer.initial(Seed(0)), turn, round=0)
        for turn in (lanes, lanes[::-1])
    )
    assert list(one.steps) == [1, 8, 3] == list(other.steps)[::-1]
    np.testing.assert_allclose(one.losses, other.losses[::-1], rtol=1e-13)
    np.testing.assert_allclose(one.change, other.change, rtol=1e-12)


def test_small_steps_are_taken_together_and_large_or_stateful_ones_alone():
    trainer = LinearTrainer("multinomial", 30, classes=2)
    assert isinstance(trainer, CohortTrainer)
    assert trainer.together(LocalWork(batch_size=32), 113) == 32
    assert trainer.together(LocalWork(batch_size=0), 2000) == 1
    assert trainer.together(LocalWork(optimizer=Optimizer(momentum=0.9)), 113) == 1
    assert trainer.together(LocalWork(optimizer=Optimizer("adam")), 113) == 1
    assert trainer.together(LocalWork(steps=3), 113) == 1


@pytest.mark.parametrize(
    ("work", "rows", "sums", "says"),
    [
        (LocalWork(batch_size=32), 113, True, "stacked, 32 clients at once"),
        (LocalWork(batch_size=32), 113, False, "one by one: single clients' models are wanted"),
        (
            LocalWork(batch_size=0),
            2000,
            True,
            "one by one: a batch of 64000 values, more than 9000",
        ),
        (LocalWork(optimizer=Optimizer(momentum=0.9)), 9, True, "one by one: momentum 0.9"),
        (LocalWork(optimizer=Optimizer("adam")), 9, True, "one by one: adam is not plain SGD"),
        (LocalWork(steps=3), 9, True, "one by one: 3 steps are asked for, not epochs"),
    ],
)
def test_the_way_is_told_and_why_it_is_not_a_faster_one(work, rows, sums, says):
    data = Examples(np.zeros((rows, 30)), np.zeros(rows, int))
    assert LinearTrainer("multinomial", 30).explain(work, data, sums=sums) == says


def test_lanes_that_differ_or_keep_a_part_to_themselves_are_refused():
    trainer, work = LinearTrainer("linear", 4), LocalWork(batch_size=4, optimizer=SGD)
    start = trainer.initial(Seed(0))
    (one,) = lanes_of("linear", 2, (5,), work)
    (longer,) = lanes_of("linear", 2, (5,), LocalWork(2, batch_size=4, optimizer=SGD))
    (pulled,) = lanes_of("linear", 2, (5,), work, LocalRule(mu=0.1, anchor=start))
    for other in (longer, pulled):
        with pytest.raises(JobConflict, match="one by one"):
            trainer.fit_together(start, [one, other], round=0)
    with pytest.raises(JobConflict, match="personal"):
        LinearTrainer("linear", 4, personal=["weight"]).fit_together(start, [one, one], round=0)


def test_clients_of_which_some_begin_another_epoch_are_refused():
    trainer = LinearTrainer("linear", 4)
    work = LocalWork(1 + 1e-10, batch_size=1, optimizer=SGD)
    assert [plan(n, work).epochs for n in (5, 100)] == [1, 2]
    with pytest.raises(JobConflict, match="one by one"):
        trainer.fit_together(
            trainer.initial(Seed(0)), lanes_of("linear", 2, (5, 100), work), round=0
        )


@pytest.mark.parametrize("ufunc", [np.maximum, np.add])
@pytest.mark.parametrize("shape", [(2, 5, 32), (2, 1, 1), (3, 4, 7), (2, 7, 1)])
def test_going_over_few_classes_gives_the_bits_of_a_reduction(ufunc, shape):
    whole = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    whole.flat[0] = np.nan
    found = np.empty(shape[1:], np.float32)
    call, given_ = _across(ufunc, whole, tuple(whole), found)
    call(*given_)
    assert found.tobytes() == ufunc.reduce(whole, 0).tobytes()


def test_other_work_on_the_same_rows_is_cut_anew():
    trainer, start = LinearTrainer("linear", 4), np.zeros(5)
    lanes = lanes_of("linear", 2, (9, 5), LocalWork(batch_size=4, optimizer=SGD))
    for epochs in (1, 3, 1):
        work = LocalWork(epochs, batch_size=4, optimizer=SGD)
        group = [replace(lane, work=work) for lane in lanes]
        assert list(trainer.fit_together(start, group, round=0).steps) == [3 * epochs, 2 * epochs]


def test_a_client_with_bad_labels_is_found():
    trainer = LinearTrainer("logistic", 4)
    work = LocalWork(batch_size=4, optimizer=SGD)
    good = lanes_of("logistic", 2, (5, 6), work)
    bad = Lane(Examples(np.zeros((3, 4)), np.array([0, 1, 2])), work, LocalRule(), Seed(0), 1.0)
    with pytest.raises(DataError, match="target 2 in row 2"):
        trainer.fit_together(trainer.initial(Seed(0)), [*good, bad], round=0)


def test_a_diverged_client_leaves_no_finite_sum_and_no_warning():
    trainer = LinearTrainer("linear", 4)
    work = LocalWork(9, batch_size=1, optimizer=Optimizer(lr=1e200))
    done = trainer.fit_together(
        trainer.initial(Seed(0)), lanes_of("linear", 2, (8, 8), work), round=0
    )
    assert not np.isfinite(done.change).all()


def test_clients_that_come_again_are_trained_as_by_a_trainer_that_never_saw_them():
    trainer = LinearTrainer("multinomial", 4, classes=3, dtype="float32")
    work = LocalWork(1.5, batch_size=8, optimizer=SGD)
    lanes = lanes_of("multinomial", 3, (30, 41, 5), work, dtype="float32")
    start = np.random.default_rng(0).normal(size=trainer.layout.size).astype("float32")
    nothing = np.full_like(start, np.nan)
    turns = [(start, lanes), (start, lanes), (nothing, lanes), (start, lanes), (start, lanes[1:])]
    for given_, group in turns:
        again = trainer.fit_together(given_, group, round=0)
        fresh = LinearTrainer("multinomial", 4, classes=3, dtype="float32")
        first = fresh.fit_together(given_, group, round=0)
        assert again.change.tobytes() == first.change.tobytes()
        np.testing.assert_array_equal(again.losses, first.losses)


def test_other_rows_of_the_same_size_are_not_taken_for_those_before():
    trainer, work = LinearTrainer("linear", 4), LocalWork(batch_size=4, optimizer=SGD)
    start = trainer.initial(Seed(0))
    (one,), (other,) = (lanes_of("linear", 2, (n,), work) for n in (9, 9))
    moved = Lane(Examples(other.data.features, -other.data.targets), work, other.rule, one.seed, 1)
    trainer.fit_together(start, [one], round=0)
    change = trainer.fit_together(start, [moved], round=0).change
    assert (
        change.tobytes()
        == LinearTrainer("linear", 4).fit_together(start, [moved], round=0).change.tobytes()
    )


def test_what_is_kept_between_rounds_does_not_travel():
    trainer, work = LinearTrainer("linear", 4), LocalWork(batch_size=4, optimizer=SGD)
    before = len(pickle.dumps(trainer))
    trainer.fit_together(trainer.initial(Seed(0)), lanes_of("linear", 2, (900,), work), round=0)
    assert len(pickle.dumps(trainer)) < before + 2000


def test_clients_that_come_again_with_other_weights_count_by_those():
    trainer, work = LinearTrainer("linear", 4), LocalWork(batch_size=4, optimizer=SGD)
    lanes, start = lanes_of("linear", 2, (9, 5), work), np.ones(5)
    for weights in ((1.0, 1.0), (1.0, 3.0), (1.0, 3.0), (2.0, 0.0)):
        group = [replace(x, weight=w) for x, w in zip(lanes, weights, strict=True)]
        again = trainer.fit_together(start, group, round=0).change
        fresh = LinearTrainer("linear", 4).fit_together(start, group, round=0).change
        assert again.tobytes() == fresh.tobytes()


@pytest.mark.parametrize(("kind", "classes"), KINDS)
def test_all_that_a_step_makes_lies_in_one_piece(kind, classes):
    """NumPy takes twice as long for arrays with gaps: in a small step that is what counts."""
    trainer = LinearTrainer(kind, 4, classes=classes)
    lanes = lanes_of(kind, classes, (33, 20, 4), LocalWork(batch_size=8, optimizer=SGD))
    trainer.fit_together(trainer.initial(Seed(0)), lanes, round=0)
    (chunk,) = trainer.__dict__["_held"].stack._kept.values()
    for _, at in chunk.steps:
        made = at.z, at.slope, at.aim, at.share, at.total, at.room, *at.outputs, *at.powers
        assert all(array.flags.c_contiguous for array in made)
