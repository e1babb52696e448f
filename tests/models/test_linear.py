import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.contracts import Examples, Trainer
from atoll.core.errors import DataError, JobError
from atoll.core.local import LocalRule, LocalWork, Optimizer
from atoll.core.metrics import merge_metrics
from atoll.core.seeds import Seed
from atoll.models.batches import batches
from atoll.models.linear import LinearTrainer
from atoll.models.torch.adapter import TorchTrainer

KINDS = [("linear", 0), ("logistic", 2), ("multinomial", 3)]


def trainer_of(kind, classes, **fields):
    return LinearTrainer(kind, 4, classes=classes or 2, **fields)


def run(trainer, start, data, work, rule=None):
    return trainer.fit(start, data, work=work, rule=rule or LocalRule(), seed=Seed(0), round=0)


@pytest.mark.parametrize(("kind", "classes"), KINDS)
def test_gradient_equals_finite_differences(kind, classes, rows):
    trainer, data = trainer_of(kind, classes, l2=0.3), rows(9, classes=classes)
    assert isinstance(trainer, Trainer)
    w = np.random.default_rng(1).normal(size=trainer.layout.size)
    slope, loss = trainer.gradient(w, data)
    for j, e in enumerate(np.eye(len(w)) * 1e-6):
        ahead, behind = (trainer.gradient(w + s * e, data)[1] for s in (1, -1))
        assert slope[j] == pytest.approx((ahead - behind) / 2e-6, abs=1e-7)
    weight = trainer.layout.views(w)["weight"]
    penalty = 0.15 * np.sum(weight**2)
    assert trainer.evaluate(w, data)["loss"].value == pytest.approx(loss - penalty, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "classes", "loss", "outputs"),
    [("linear", 0, "mse", 1), ("logistic", 2, "bce", 1), ("multinomial", 3, "cross_entropy", 3)],
)
def test_training_walks_the_same_path_as_torch(kind, classes, loss, outputs, rows, work):
    mine, data = trainer_of(kind, classes), rows(23, classes=classes)
    theirs = TorchTrainer(torch.nn.Linear(4, outputs).double(), loss=loss)
    local = work(epochs=2, batch_size=5, optimizer={"momentum": 0.9}, clip_norm=0.5)
    start = np.random.default_rng(2).normal(size=mine.layout.size)
    rule = LocalRule(mu=0.1, anchor=start, shift=np.full(len(start), 0.01))
    a, b = (run(t, start, data, local, rule) for t in (mine, theirs))
    np.testing.assert_allclose(a.parameters, b.parameters, rtol=0, atol=1e-12)
    assert (a.steps, a.lr_sum, a.examples) == (b.steps, b.lr_sum, b.examples)
    assert a.loss == pytest.approx(b.loss, abs=1e-12)
    one, two = mine.evaluate(a.parameters, data), theirs.evaluate(b.parameters, data)
    assert set(one) == set(two)
    for name in one:
        assert one[name].value == pytest.approx(two[name].value, abs=1e-12)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_weighted_full_batch_steps_equal_one_central_gradient_step(sizes):
    rng = np.random.default_rng(sum(sizes))
    trainer = LinearTrainer("multinomial", 4, classes=3, l2=0.1)
    clients = [Examples(rng.normal(size=(n, 4)), rng.integers(3, size=n)) for n in sizes]
    pooled = Examples(
        np.concatenate([c.features for c in clients]), np.concatenate([c.targets for c in clients])
    )
    local = LocalWork(steps=1, batch_size=0, optimizer=Optimizer(lr=0.5))
    w = rng.normal(size=trainer.layout.size)
    for _ in range(3):
        central = w - 0.5 * trainer.gradient(w, pooled)[0]
        fits = [run(trainer, w, c, local) for c in clients]
        w = sum(f.parameters * f.examples for f in fits) / sum(sizes)
        np.testing.assert_allclose(w, central, rtol=0, atol=1e-12)


def test_linear_regression_recovers_its_coefficients(work):
    x = np.random.default_rng(0).normal(size=(200, 2))
    data = Examples(x, 2 * x[:, 0] + 3 * x[:, 1] + 1)
    trainer = LinearTrainer("linear", 2)
    fit = run(trainer, trainer.initial(Seed(0)), data, work(epochs=200, batch_size=0))
    np.testing.assert_allclose(fit.parameters, [2, 3, 1], atol=1e-9)
    assert trainer.evaluate(fit.parameters, data)["r2"].value == pytest.approx(1.0)


def test_the_intercept_is_not_penalised(rows):
    w = np.ones(5)
    data = rows(6)
    plain, _ = LinearTrainer("linear", 4).gradient(w, data)
    ridge, _ = LinearTrainer("linear", 4, l2=2.0).gradient(w, data)
    np.testing.assert_allclose(ridge - plain, [2, 2, 2, 2, 0], atol=1e-12)


def test_losses_of_huge_logits_are_finite():
    data = Examples(np.array([[1e4], [-1e4]]), np.array([0, 1]))
    loss = LinearTrainer("logistic", 1).evaluate(np.array([1.0, 0.0]), data)["loss"].value
    assert loss == 1e4
    w = np.array([0.0, 1.0, 0.0, 0.0])
    assert LinearTrainer("multinomial", 1).evaluate(w, data)["loss"].value == 1e4


@pytest.mark.parametrize(("kind", "classes"), KINDS)
def test_single_precision_and_one_row_work(kind, classes, rows, work):
    trainer = trainer_of(kind, classes, dtype="float32")
    start = trainer.initial(Seed(0))
    fit = run(trainer, start, rows(1, classes=classes), work(batch_size=10))
    assert fit.parameters.dtype == np.float32
    assert not start.any()
    assert fit.steps == 1
    assert trainer.gradient(start, rows(1, classes=classes))[0].dtype == np.float32


def test_a_rule_with_mu_zero_changes_no_bit(rows, work):
    trainer, data = trainer_of("multinomial", 3), rows(20, classes=3)
    start = trainer.initial(Seed(0))
    plain = run(trainer, start, data, work(batch_size=3))
    prox = run(trainer, start, data, work(batch_size=3), LocalRule(mu=0.0, anchor=start + 1))
    zero = run(trainer, start, data, work(batch_size=3), LocalRule(shift=np.zeros_like(start)))
    assert plain.parameters.tobytes() == prox.parameters.tobytes() == zero.parameters.tobytes()


def test_a_personal_entry_is_trained_but_not_corrected(rows, work):
    trainer = LinearTrainer("linear", 4, personal=["intercept"])
    start = trainer.initial(Seed(0))
    shift = np.ones(4)
    local = work(lr=1.0, batch_size=0)
    plain, moved = (run(trainer, start, rows(8), local, LocalRule(shift=s)) for s in (None, shift))
    np.testing.assert_allclose(plain.parameters - moved.parameters, [1, 1, 1, 1, 0], atol=1e-12)


def test_a_diverging_client_returns_what_it_got_without_warnings(rows, work):
    trainer = LinearTrainer("linear", 4)
    fit = run(trainer, trainer.initial(Seed(0)), rows(8), work(lr=1e200, epochs=9, batch_size=1))
    assert not np.isfinite(fit.parameters).all()
    assert not np.isfinite(fit.loss)


def test_metrics_of_two_halves_merge_to_those_of_the_whole(rows):
    trainer, data = trainer_of("logistic", 2), rows(11, classes=2)
    w = np.arange(5.0)
    parts = (Examples(data.features[s], data.targets[s]) for s in (slice(4), slice(4, None)))
    merged = merge_metrics(*(trainer.evaluate(w, p) for p in parts))
    whole = trainer.evaluate(w, data)
    for name in whole:
        assert merged[name].value == pytest.approx(whole[name].value, abs=1e-12)


def test_bad_data_is_named(rows):
    trainer = LinearTrainer("logistic", 3)
    with pytest.raises(DataError, match="takes 3 values"):
        trainer.gradient(np.zeros(4), rows(5, features=4, classes=2))
    with pytest.raises(DataError, match="target 2"):
        LinearTrainer("logistic", 4).gradient(
            np.zeros(5), Examples(np.zeros((1, 4)), np.array([2]))
        )
    with pytest.raises(DataError, match="no rows"):
        trainer.gradient(np.zeros(4), rows(0, features=3, classes=2))
    assert np.isnan(trainer.evaluate(np.zeros(4), rows(0, 3, 2))["loss"].value)
    with pytest.raises(JobError, match="logistic"):
        LinearTrainer("logistics", 3)


PROGRAM = """
import hashlib, numpy as np
from atoll.core.contracts import Examples
from atoll.core.local import LocalRule, LocalWork
from atoll.core.seeds import Seed
from atoll.models.batches import batches
from atoll.models.linear import LinearTrainer
rng, sha = np.random.default_rng(0), hashlib.sha256()
for kind in ("linear", "logistic", "multinomial"):
    for n, p in ((5000, 100), (700, 784)):
        trainer = LinearTrainer(kind, p, classes=4, dtype="float32")
        data = Examples(rng.normal(size=(n, p)), rng.integers(2, size=n))
        w = rng.normal(size=trainer.layout.size).astype("f4")
        work = LocalWork(batch_size=0, clip_norm=1.0)
        fit = trainer.fit(w, data, work=work, rule=LocalRule(), seed=Seed(0), round=0)
        sha.update(fit.parameters.tobytes() + trainer.gradient(w, data)[0].tobytes())
        sha.update(repr(trainer.evaluate(w, data)["loss"]).encode())
print(sha.hexdigest())
"""


def test_bits_do_not_depend_on_the_number_of_blas_threads():
    found = set()
    for threads in ("1", "2"):
        own = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=own, capture_output=True, text=True, check=True
        )
        found.add(done.stdout)
    assert len(found) == 1


def test_full_batches_of_many_blocks_equal_the_plain_formula(rows):
    data = rows(6000)
    trainer, w = LinearTrainer("linear", 4), np.arange(5.0)
    rest = data.features @ w[:4] + w[4] - data.targets
    slope, loss = trainer.gradient(w, data)
    np.testing.assert_allclose(slope[:4], 2 * rest @ data.features / 6000, rtol=1e-12)
    assert slope[4] == pytest.approx(2 * rest.mean(), rel=1e-12)
    assert loss == pytest.approx(np.mean(rest**2), rel=1e-12)


@pytest.mark.parametrize(("kind", "classes"), KINDS)
@pytest.mark.parametrize("size", [7, 64, 0])
def test_batches_gathered_together_or_in_blocks_walk_the_path_of_single_gradients(
    kind, classes, size, monkeypatch, rows, work
):
    """With tiny bounds, one fit meets several gathers and batches of several blocks."""
    monkeypatch.setattr("atoll.models.linear._PRODUCT", 80)
    monkeypatch.setattr("atoll.models.linear._GATHER", 60)
    trainer, data = trainer_of(kind, classes, l2=0.1), rows(101, classes=classes)
    local = work(epochs=2, batch_size=size, lr=0.1)
    fit = run(trainer, trainer.initial(Seed(0)), data, local)
    w, losses = trainer.initial(Seed(0)), []
    for _, index in batches(101, local, Seed(0)):
        batch = Examples(data.features[index], data.targets[index])
        slope, loss = trainer.gradient(w, batch)
        w = w - 0.1 * slope
        losses.append(loss)
    np.testing.assert_allclose(fit.parameters, w, rtol=0, atol=1e-13)
    assert fit.loss == pytest.approx(np.mean(losses), abs=1e-13)
