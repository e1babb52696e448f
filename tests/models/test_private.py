"""DP-SGD of linear models, and what all private trainers share."""

import pickle
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.contracts import Examples, Trainer
from atoll.core.errors import DataError, JobConflict, JobError
from atoll.core.local import LocalRule, LocalWork, Optimizer
from atoll.core.seeds import Seed
from atoll.models.linear import LinearTrainer
from atoll.models.linear_private import PrivateLinearTrainer
from atoll.models.private import RecordPrivacy, Releases, factors, releases, steps
from atoll.privacy.dp.noise import Draws

sys.path.insert(0, str(Path(__file__).parent))

from replayed import Again, Quiet

KINDS = [("linear", 0, 2), ("logistic", 2, 2), ("multinomial", 3, 3)]
LOUD = RecordPrivacy(clip=0.5, noise_multiplier=1.0)


def made(kind="logistic", classes=2, privacy=LOUD, randomness=Quiet, **fields):
    return PrivateLinearTrainer(LinearTrainer(kind, 4, classes, **fields), privacy, randomness)


def fit(trainer, data, work, rule=None, start=None):
    start = trainer.initial(Seed(0)) if start is None else start
    return trainer.fit(start, data, work=work, rule=rule or LocalRule(), seed=Seed(1), round=0)


def one_by_one(trainer, parameters, data, clip):
    """Clipped gradients of single rows, added up."""
    inner, total, norms = trainer.trainer, 0.0, []
    for i in range(len(data)):
        row = type(data)(data.features[i : i + 1], data.targets[i : i + 1])
        g, _ = inner.gradient(parameters, row)
        norms.append(np.linalg.norm(g))
        total = total + g * min(1.0, clip / norms[-1])
    return total, np.array(norms)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("kind", "labels", "classes"), KINDS)
def test_the_clipped_sum_is_that_of_single_rows(rows, kind, labels, classes, intercept):
    trainer, data = made(kind, classes, intercept=intercept), rows(30, classes=labels)
    w = np.random.default_rng(0).normal(size=trainer.layout.size)
    wanted, norms = one_by_one(trainer, w, data, 0.5)
    assert (norms > 0.5).any()
    np.testing.assert_allclose(trainer.clipped_sum(w, data, np.arange(30)), wanted, atol=1e-12)


@pytest.mark.parametrize(("kind", "labels", "classes"), KINDS)
def test_one_row_more_moves_the_sum_by_no_more_than_the_clip(rows, kind, labels, classes):
    trainer, data = made(kind, classes, dtype="float32"), rows(40, classes=labels, dtype="float32")
    w = np.random.default_rng(0).normal(size=trainer.layout.size).astype(np.float32)
    for i in range(40):
        alone = trainer.clipped_sum(w, data, np.array([i]))
        assert np.linalg.norm(alone.astype(np.float64)) <= LOUD.bound


@pytest.mark.parametrize("kind", ["multinomial", "linear"])
def test_rows_whose_squares_vanish_are_clipped_all_the_same(kind):
    """In float32 the square of 1e-23 is 0: a slope of that on features of 1e19, or the other way round."""
    trainer = made(kind, 2, RecordPrivacy(1e-6, 1.0), dtype="float32", intercept=False)
    w = np.array([0, 0, 0, 0, -52.9e-18, 0, 0, 0], np.float32)
    x, y = [[1e18, 1.7e19, 0, 0]], [0]
    if kind == "linear":
        w, x, y = np.zeros(4, np.float32), [[2e-23, 0, 0, 0]], [1e18]
    data = Examples(np.array(x, np.float32), np.array(y))
    gradient, _ = trainer.trainer.gradient(w, data)
    assert np.linalg.norm(gradient.astype(np.float64)) > 1e-5
    got = trainer.clipped_sum(w, data, np.array([0]))
    assert np.linalg.norm(got.astype(np.float64)) <= 1e-6


def test_without_noise_or_clipping_it_is_the_plain_step(rows, work):
    data = rows(20, classes=2)
    wide = RecordPrivacy(clip=1e6, noise_multiplier=1.0)
    trainer = made(privacy=wide, l2=0.1)
    todo = work(batch_size=0, steps=5, optimizer={"momentum": 0.5})
    plain = trainer.trainer.fit(
        trainer.initial(Seed(0)), data, work=todo, rule=LocalRule(), seed=Seed(1), round=0
    )
    np.testing.assert_allclose(fit(trainer, data, todo).parameters, plain.parameters, atol=1e-12)


def test_a_step_by_hand(rows, work):
    # One row of gradient (x, 1) * r clipped to .5, over an expected batch of 2, learning rate .1.
    data = rows(4, classes=2)
    trainer = made(randomness=lambda: Quiet(take=[2]))
    after = fit(trainer, data, work(batch_size=2, steps=1)).parameters
    g, _ = trainer.trainer.gradient(np.zeros(5), type(data)(data.features[2:3], data.targets[2:3]))
    np.testing.assert_allclose(after, -0.1 * g * min(1, 0.5 / np.linalg.norm(g)) / 2, atol=1e-15)


def test_a_step_that_takes_no_row_is_noise_alone(rows, work):
    trainer = made(randomness=lambda: Quiet(take=[]))
    done = fit(trainer, rows(4, classes=2), work(batch_size=2, steps=3))
    assert done.steps == 3
    assert not done.parameters.any()


def test_noise_is_for_the_clip_and_scaled_by_the_expected_batch(rows):
    # Zero data: what is left after one step of rate 1 is z C / batch.
    data = rows(10, classes=2)
    zero = type(data)(np.zeros((10, 4)), data.targets)
    todo = LocalWork(steps=1, batch_size=5, optimizer=Optimizer(lr=1.0))
    trainer = made(intercept=False, privacy=RecordPrivacy(0.7, 2.0), randomness=Draws)
    draws = np.concatenate([fit(trainer, zero, todo).parameters for _ in range(3000)])
    sd = 2.0 * 0.7 / 5
    assert abs(draws.std() - sd) < 6 * sd / np.sqrt(2 * draws.size)


def test_rows_are_sampled_at_the_rate_that_is_accounted_for(rows, work):
    source = Again()
    trainer = made(randomness=lambda: source)
    todo = work(epochs=2, batch_size=5)
    fit(trainer, rows(20, classes=2), todo)
    cost = trainer.releases(20, todo)
    assert cost == Releases(1.0, 0.25, 8)
    assert source.asked == [(20, 0.25)] * 8


def test_the_rule_acts_after_the_noise(rows, work):
    data, todo = rows(10, classes=2), work(batch_size=0, steps=1)
    shift = np.arange(5.0)
    moved = fit(made(), data, todo, LocalRule(shift=shift)).parameters
    np.testing.assert_allclose(moved, fit(made(), data, todo).parameters - 0.1 * shift, atol=1e-15)


def test_what_would_cost_more_is_not_told(rows, work):
    data, trainer = rows(10, classes=2), made(randomness=partial(Again, 3))
    assert np.isnan(fit(trainer, data, work()).loss)
    first, loss = trainer.gradient(np.zeros(5), data)
    assert np.isnan(loss)
    assert not np.allclose(first, trainer.trainer.gradient(np.zeros(5), data)[0])


def test_micro_batches_change_nothing_but_last_bits(rows):
    data, w = rows(50, classes=3), np.random.default_rng(0).normal(size=15)
    whole = made("multinomial", 3).clipped_sum(w, data, np.arange(50))
    few = made("multinomial", 3, RecordPrivacy(0.5, 1.0, micro_batch=7))
    np.testing.assert_allclose(few.clipped_sum(w, data, np.arange(50)), whole, atol=1e-12)


def test_a_row_that_is_not_finite_counts_as_absent(rows):
    data = rows(6, classes=2)
    data.features[3, 0] = np.inf
    others = np.array([0, 1, 2, 4, 5])
    trainer, w = made(), np.ones(5)
    np.testing.assert_array_equal(
        trainer.clipped_sum(w, data, np.arange(6)), trainer.clipped_sum(w, data, others)
    )


def test_the_trainer_keeps_the_contract_and_goes_to_other_processes(rows, work):
    trainer = made(randomness=Draws)
    assert isinstance(trainer, Trainer)
    data = rows(10, classes=2)
    fit(trainer, data, work())
    there = pickle.loads(pickle.dumps(trainer))
    assert "_draws" not in there.__dict__
    assert not np.array_equal(
        fit(there, data, work()).parameters, fit(trainer, data, work()).parameters
    )
    assert set(trainer.evaluate(np.zeros(5), data)) >= {"loss", "accuracy"}


def test_conflicts_and_wrong_data_are_refused(rows, work):
    with pytest.raises(JobConflict, match="clip_norm"):
        fit(made(), rows(10, classes=2), work(clip_norm=1.0))
    with pytest.raises(DataError, match="takes 4"):
        fit(made(), rows(10, features=3, classes=2), work())
    with pytest.raises(JobError) as refused:
        RecordPrivacy(clip=0.0, noise_multiplier=-1.0, micro_batch=-1)
    assert len(refused.value.faults) == 3


@given(st.integers(1, 500), st.integers(0, 64), st.floats(0.1, 3.0))
@settings(max_examples=50)
def test_as_many_steps_as_without_privacy(count, batch, epochs):
    todo = LocalWork(epochs=epochs, batch_size=batch)
    cost = releases(LOUD, count, todo)
    assert cost.count == len(list(steps(count, todo, 0)))
    assert 0 < cost.sampling <= 1


def test_factors_of_norms():
    norms = np.array([0.0, 0.25, 1.0, np.nan, np.inf], np.float32)
    assert factors(norms, 0.5).tolist() == [1.0, 1.0, 0.5, 0.0, 0.0]
