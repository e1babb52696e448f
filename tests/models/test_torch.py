import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from atoll.core.contracts import Examples, Trainer
from atoll.core.errors import DataError, JobConflict, JobError, LayoutError
from atoll.core.local import LocalRule, LocalWork, Optimizer, Schedule
from atoll.core.metrics import BinnedAUC
from atoll.core.seeds import Seed
from atoll.models.batches import batches
from atoll.models.torch.adapter import OPTIMIZERS, TorchTrainer

SEED = Seed(11) / "fit"


def net(classes=3, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, classes)).to(dtype)


def normed():
    torch.manual_seed(0)
    # No bias before the normalisation: its gradient is rounding, which Adam's division makes large.
    first = nn.Linear(4, 5, bias=False)
    return nn.Sequential(first, nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()


def run(trainer, data, work, rule=None, seed=SEED, start=None, round=0):
    start = trainer.initial(Seed(0)) if start is None else start
    return trainer.fit(start, data, work=work, rule=rule or LocalRule(), seed=seed, round=round)


def plain_loop(module, data, work, loss=functional.cross_entropy, clip=0.0, **fields):
    """What a reader would write with torch alone, over the same batches."""
    module = copy.deepcopy(module).train()
    kind = getattr(torch.optim, OPTIMIZERS[work.optimizer.name][0])
    optimizer = kind(module.parameters(), lr=work.optimizer.lr, **fields)
    x, y = torch.tensor(data.features), torch.tensor(data.targets)
    losses = []
    for _, index in batches(len(data), work, SEED):
        optimizer.zero_grad()
        value = loss(module(x[index]), y[index])
        value.backward()
        if clip:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        losses.append(value.item())
    return module, float(np.mean(losses))


def assert_same_state(trainer, vector, module, atol=1e-12):
    got = trainer.state_dict_from(vector)
    for name, tensor in module.state_dict().items():
        np.testing.assert_allclose(got[name], tensor, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("sgd", {}),
        ("sgd", {"momentum": 0.9, "weight_decay": 0.01}),
        ("sgd", {"momentum": 0.9, "nesterov": True}),
        ("adam", {"betas": (0.8, 0.9), "weight_decay": 0.01}),
        ("adamw", {"weight_decay": 0.01}),
        ("nadam", {}),
        ("radam", {}),
        ("adagrad", {"eps": 1e-6}),
        ("rmsprop", {"momentum": 0.5}),
    ],
)
@pytest.mark.parametrize("module", [net, normed])
def test_the_flat_optimiser_equals_torch_tensor_by_tensor(name, fields, module, rows, work):
    data = rows(23, classes=3)
    local = work(name=name, lr=0.05, optimizer=fields, epochs=2, batch_size=5)
    trainer = TorchTrainer(module())
    fit = run(trainer, data, local)
    theirs, loss = plain_loop(module(), data, local, **fields)
    assert_same_state(trainer, fit.parameters, theirs)
    assert fit.loss == pytest.approx(loss, abs=1e-12)
    assert (fit.steps, fit.examples) == (10, 23)
    assert fit.lr_sum == pytest.approx(0.5)


def test_gradient_clipping_equals_torch(rows, work):
    data, local = rows(20, classes=3), work(lr=1.0, batch_size=5, clip_norm=0.1)
    trainer = TorchTrainer(net())
    fit = run(trainer, data, local)
    assert_same_state(trainer, fit.parameters, plain_loop(net(), data, local, clip=0.1)[0])
    assert np.linalg.norm(fit.parameters - trainer.initial(Seed(0))) <= 4 * 0.1


@pytest.mark.parametrize(
    ("loss", "classes", "outputs", "theirs"),
    [
        (
            "bce",
            2,
            1,
            lambda o, t: functional.binary_cross_entropy_with_logits(o[:, 0], t.double()),
        ),
        ("mse", 0, 1, lambda o, t: functional.mse_loss(o[:, 0], t)),
        ("l1", 0, 1, lambda o, t: functional.l1_loss(o[:, 0], t)),
        ("nll_sum", 3, 3, lambda o, t: functional.cross_entropy(o, t) * len(t)),
        (nn.MultiMarginLoss(), 3, 3, functional.multi_margin_loss),
    ],
)
def test_losses_train_as_in_torch_and_are_reported_per_row(
    loss, classes, outputs, theirs, rows, work
):
    data, local = rows(14, classes=classes), work(lr=0.05, batch_size=7)
    trainer = TorchTrainer(net(outputs), loss=loss)
    fit = run(trainer, data, local)
    module, mean = plain_loop(net(outputs), data, local, loss=theirs)
    assert_same_state(trainer, fit.parameters, module)
    assert fit.loss == pytest.approx(mean / (7 if loss == "nll_sum" else 1))
    full = theirs(module(torch.tensor(data.features)), torch.tensor(data.targets)).item()
    per_row = full / (14 if loss == "nll_sum" else 1)
    assert trainer.evaluate(fit.parameters, data)["loss"].value == pytest.approx(per_row)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None)
def test_weighted_full_batch_steps_equal_one_central_gradient_step(sizes):
    rng = np.random.default_rng(sum(sizes))
    trainer = TorchTrainer(net(), eval_batch_size=4)
    clients = [Examples(rng.normal(size=(n, 4)), rng.integers(3, size=n)) for n in sizes]
    x, y = (np.concatenate([getattr(c, k) for c in clients]) for k in ("features", "targets"))
    local = LocalWork(steps=1, batch_size=0, optimizer=Optimizer(lr=0.5))
    w = trainer.initial(Seed(0))
    for _ in range(3):
        central = w - 0.5 * trainer.gradient(w, Examples(x, y))[0]
        fits = [run(trainer, c, local, start=w) for c in clients]
        w = sum(f.parameters * f.examples for f in fits) / sum(sizes)
        np.testing.assert_allclose(w, central, rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", ["cross_entropy", "nll_sum"])
def test_gradient_is_of_the_mean_loss_however_it_is_cut(loss, rows):
    data = rows(11, classes=3)
    trainers = [TorchTrainer(net(), loss=loss, eval_batch_size=b) for b in (3, 11, 1024)]
    w = trainers[0].initial(Seed(0))
    found = [t.gradient(w, data) for t in trainers]
    for slope, value in found:
        np.testing.assert_allclose(slope, found[0][0], rtol=0, atol=1e-14)
        assert value == pytest.approx(trainers[0].evaluate(w, data)["loss"].value, abs=1e-14)
    step = 1e-6 * np.eye(len(w))[7]
    ahead, behind = (trainers[0].gradient(w + s * step, data)[1] for s in (1, -1))
    assert found[0][0][7] == pytest.approx((ahead - behind) / 2e-6, abs=1e-8)


def test_gradient_is_in_eval_mode_and_zero_where_nothing_is_trained(rows):
    module = nn.Sequential(nn.Dropout(0.5), normed())
    module[1][0].requires_grad_(False)
    trainer, data = TorchTrainer(module), rows(10, classes=3)
    w = trainer.initial(Seed(0))
    slope, _ = trainer.gradient(w, data)
    views = trainer.layout.views(slope)
    assert not views["1.0.weight"].any()
    assert not views["1.1.running_var"].any()
    assert views["1.3.weight"].any()
    assert slope.tobytes() == trainer.gradient(w, data)[0].tobytes()


def test_rules_correct_the_shared_region_only(rows, work):
    trainer = TorchTrainer(net(), personal=["2.*"])
    data, local = rows(8, classes=3), work(lr=1.0, batch_size=0)
    start = trainer.initial(Seed(0))
    shared = trainer.layout.shared.stop
    shift = np.arange(1.0, shared + 1)
    plain = run(trainer, data, local).parameters
    moved = run(trainer, data, local, LocalRule(shift=shift)).parameters
    np.testing.assert_allclose((plain - moved)[:shared], shift, atol=1e-12)
    assert plain[shared:].tobytes() == moved[shared:].tobytes()
    pulled = run(trainer, data, local, LocalRule(mu=0.5, anchor=start[:shared] + 2)).parameters
    np.testing.assert_allclose((pulled - plain)[:shared], 1.0, atol=1e-12)


def test_clipping_comes_before_the_correction(rows, work):
    trainer, data = TorchTrainer(net()), rows(8, classes=3)
    local = work(lr=1.0, batch_size=0, clip_norm=1e-3)
    shift = np.full(trainer.layout.size, 5.0)
    moved = run(trainer, data, local, LocalRule(shift=shift)).parameters
    np.testing.assert_allclose(moved, trainer.initial(Seed(0)) - 5.0, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rule_that_does_nothing_changes_no_bit(dtype, rows, work):
    trainer, data = TorchTrainer(net(dtype=dtype)), rows(20, classes=3)
    local = work(batch_size=3, optimizer={"momentum": 0.9})
    zero = np.zeros_like(trainer.initial(Seed(0)))
    plain = run(trainer, data, local).parameters
    for rule in (LocalRule(mu=0.0, anchor=zero + 1), LocalRule(shift=zero)):
        assert run(trainer, data, local, rule).parameters.tobytes() == plain.tobytes()


def test_one_bench_serves_clients_in_any_order(rows, work):
    trainer = TorchTrainer(normed())
    clients = [rows(n, classes=3, seed=n) for n in (7, 30, 12)]
    local = work(batch_size=5, epochs=2, drop_last=True, optimizer={"momentum": 0.9})
    first = [run(trainer, c, local).parameters.tobytes() for c in clients]
    trainer.evaluate(trainer.initial(Seed(0)), clients[0])
    trainer.gradient(trainer.initial(Seed(0)), clients[0])
    again = [run(trainer, c, local).parameters.tobytes() for c in reversed(clients)]
    assert first == again[::-1]


def test_input_parameters_are_untouched_and_may_be_read_only(rows, work):
    trainer, data = TorchTrainer(net()), rows(9, classes=3)
    start = trainer.initial(Seed(0))
    before = start.copy()
    for array in (start, data.features, data.targets):
        array.flags.writeable = False
    fit = run(trainer, data, work(), LocalRule(mu=0.1, anchor=start), start=start)
    trainer.evaluate(start, data)
    trainer.gradient(start, data)
    assert start.tobytes() == before.tobytes()
    assert not np.shares_memory(fit.parameters, trainer.initial(Seed(0)))
    other = run(trainer, data, work(lr=1.0)).parameters
    assert other.tobytes() != fit.parameters.tobytes()


def test_results_do_not_depend_on_where_the_data_lie(rows, work):
    trainer = TorchTrainer(net(dtype=torch.float32))
    data = rows(33, classes=3, dtype="float32")
    space = np.zeros(33 * 4 + 1, np.float32)
    shifted = space[1:].reshape(33, 4)
    shifted[...] = data.features
    swapped = data.features[::-1].astype(">f4")[::-1]
    found = {
        run(trainer, Examples(x, data.targets), work(batch_size=5)).parameters.tobytes()
        for x in (data.features, shifted, swapped, np.asfortranarray(data.features))
    }
    assert len(found) == 1


def test_randomness_and_threads_outside_stay_as_they_were(rows, work):
    trainer = TorchTrainer(partial(nn.Linear, 4, 3))
    data = rows(9, classes=3, dtype="float32")
    torch.manual_seed(123)
    state = torch.get_rng_state()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        start = trainer.initial(Seed(4))
        run(trainer, data, work())
        trainer.evaluate(start, data)
        with pytest.raises(JobError):
            run(trainer, data, work(name="sdg"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.get_rng_state().equal(state)
    assert start.tobytes() == trainer.initial(Seed(4)).tobytes()
    assert start.tobytes() != trainer.initial(Seed(5)).tobytes()


def test_dropout_is_drawn_from_the_seed(rows, work):
    trainer = TorchTrainer(nn.Sequential(nn.Dropout(0.5), net()))
    data = rows(9, classes=3)
    found = []
    for noise, seed in ((1, SEED), (2, SEED), (3, SEED / "other")):
        torch.manual_seed(noise)
        found.append(run(trainer, data, work(batch_size=0), seed=seed).parameters.tobytes())
    assert found[0] == found[1] != found[2]


def shift_batch(batch, generator):
    return batch + torch.randn(batch.shape, generator=generator, dtype=batch.dtype)


def test_augmentation_sees_training_batches_only_and_its_own_stream(rows, work):
    data, local = rows(9, classes=3), work(batch_size=4)
    plain, noisy = TorchTrainer(net()), TorchTrainer(net(), augment=shift_batch)
    before = data.features.copy()
    one, two = (run(noisy, data, local).parameters.tobytes() for _ in range(2))
    assert one == two != run(plain, data, local).parameters.tobytes()
    assert data.features.tobytes() == before.tobytes()
    w = plain.initial(Seed(0))
    assert plain.evaluate(w, data) == noisy.evaluate(w, data)


def test_batchnorm_statistics_come_back_and_count_their_batches(rows, work):
    trainer = TorchTrainer(normed())
    fit = run(trainer, rows(20, classes=3), work(batch_size=5, epochs=2))
    views = trainer.layout.views(fit.parameters)
    assert views["1.num_batches_tracked"] == 8
    assert views["1.running_mean"].any()
    averaged = fit.parameters.copy()
    trainer.layout.views(averaged)["1.num_batches_tracked"][...] = 7.6
    again = run(trainer, rows(5, classes=3), work(batch_size=5), start=averaged)
    assert trainer.layout.views(again.parameters)["1.num_batches_tracked"] == 9


def test_frozen_entries_keep_their_bits_and_tied_ones_get_both_gradients(rows, work):
    module = net()
    module[2].requires_grad_(False)
    trainer = TorchTrainer(module)
    data = rows(9, classes=3)
    fit = run(trainer, data, work(optimizer={"weight_decay": 0.1}))
    fixed = slice(0, trainer.layout.trainable.start)
    assert fixed.stop == 18
    assert fit.parameters[fixed].tobytes() == trainer.initial(Seed(0))[fixed].tobytes()

    def tied():
        torch.manual_seed(1)
        stack = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3)).double()
        stack[2].weight = stack[0].weight
        return stack

    both = TorchTrainer(tied())
    assert_same_state(both, run(both, data, work()).parameters, plain_loop(tied(), data, work())[0])


class Mixed(nn.Module):
    """A low-precision layer inside a float32 module."""

    def __init__(self, dtype):
        super().__init__()
        self.low = nn.Linear(4, 5).to(dtype)
        self.high = nn.Linear(5, 3)

    def forward(self, x):
        return self.high(self.low(x.to(self.low.weight.dtype)).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_entries_are_trained_through_master_weights(dtype, rows, work):
    torch.manual_seed(0)
    trainer = TorchTrainer(Mixed(dtype))
    data = rows(12, classes=3, dtype="float32")
    start = trainer.initial(Seed(0))
    fit = run(trainer, data, work(lr=1e-4, batch_size=4))
    low = trainer.layout.views(fit.parameters - start)["low.weight"]
    assert np.count_nonzero(low) == 20
    assert trainer.state_dict_from(fit.parameters)["low.weight"].dtype == dtype
    long = run(trainer, data, work(lr=0.1, batch_size=4, epochs=20))
    assert long.loss < fit.loss
    slope, _ = trainer.gradient(start, data)
    assert trainer.layout.views(slope)["low.weight"].any()


def test_channels_last_gives_the_same_up_to_rounding(work):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    rng = np.random.default_rng(0)
    data = Examples(rng.normal(size=(9, 2, 6, 6)).astype("f4"), rng.integers(3, size=9))
    one, two = (TorchTrainer(module, channels_last=c) for c in (False, True))
    local = work(batch_size=4, epochs=2)
    a, b = (run(t, data, local).parameters for t in (one, two))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    assert np.abs(a - one.initial(Seed(0))).max() > 1e-3


def test_schedules_reach_the_optimiser(rows, work):
    trainer, data = TorchTrainer(net()), rows(8, classes=3)
    halve = Schedule("step", gamma=0.5, every=1)
    start = trainer.initial(Seed(0))
    for name in ("sgd", "adam"):
        steps = [
            run(trainer, data, work(name=name, batch_size=0, schedule=halve), round=r)
            for r in (0, 2)
        ]
        far, near = (f.parameters - start for f in steps)
        np.testing.assert_allclose(near, far / 4, rtol=1e-9, atol=1e-15)
        assert [f.lr_sum for f in steps] == [0.1, 0.025]
    epochs = work(batch_size=0, epochs=3, schedule=Schedule("step", 0.5, unit="epoch"))
    assert run(trainer, data, epochs).lr_sum == pytest.approx(0.175)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("exact", [True, False])
def test_two_classes_are_scored_with_one_output_or_two(outputs, exact, rows):
    loss = "bce" if outputs == 1 else "cross_entropy"
    trainer = TorchTrainer(net(outputs), loss=loss, exact_auc=exact, eval_batch_size=4)
    data = rows(30, classes=2)
    w = trainer.initial(Seed(0))
    found = trainer.evaluate(w, data)
    assert isinstance(trainer, Trainer)
    assert list(found) == ["loss", "accuracy", "confusion", "auc"]
    assert isinstance(found["auc"], BinnedAUC) is not exact
    with torch.no_grad():
        z = trainer.module_with(w)(torch.tensor(data.features)).numpy()
    guess = z[:, 0] > 0 if outputs == 1 else z.argmax(1)
    assert found["accuracy"].value == pytest.approx(np.mean(guess == data.targets))


def test_regression_is_scored_and_flat_outputs_are_the_same(rows):
    data = rows(9)
    flat = nn.Sequential(net(1), nn.Flatten(0))
    one, two = TorchTrainer(net(1), loss="mse"), TorchTrainer(flat, loss="mse")
    w = one.initial(Seed(0))
    found = one.evaluate(w, data)
    assert list(found) == ["loss", "mse", "mae", "r2"]
    assert found == two.evaluate(w, data)
    assert found["loss"].value == pytest.approx(found["mse"].value)


def test_a_model_without_anything_to_train_stands_still(rows, work):
    trainer = TorchTrainer(net().requires_grad_(False))
    fit = run(trainer, rows(5, classes=3), work())
    assert fit.parameters.tobytes() == trainer.initial(Seed(0)).tobytes()


def test_a_diverging_client_returns_its_non_finite_loss(rows, work):
    fit = run(TorchTrainer(net(1), loss="mse"), rows(9), work(lr=1e200, epochs=5, batch_size=2))
    assert not np.isfinite(fit.loss)


def test_bad_data_and_choices_are_named(rows, work):
    trainer = TorchTrainer(net(), classes=3)
    with pytest.raises(DataError, match="target 4"):
        run(trainer, Examples(np.zeros((1, 4)), np.array([4])), work())
    with pytest.raises(DataError, match="no rows"):
        run(trainer, rows(0, classes=3), work())
    with pytest.raises(DataError, match="no rows"):
        trainer.gradient(trainer.initial(Seed(0)), rows(0, classes=3))
    with pytest.raises(DataError, match="2 rows of features and 3 targets"):
        run(trainer, Examples(np.zeros((2, 4)), np.zeros(3, int)), work())
    with pytest.raises(LayoutError, match="3 classes, the job declares 2"):
        TorchTrainer(net(), classes=2).evaluate(trainer.initial(Seed(0)), rows(5, classes=2))
    with pytest.raises(LayoutError, match="one output per target"):
        run(TorchTrainer(net(), loss="mse"), rows(5), work())
    with pytest.raises(JobError, match="adam"):
        run(trainer, rows(5, classes=3), work(name="addam"))
    with pytest.raises(JobError, match="cross_entropy"):
        TorchTrainer(net(), loss="cross_entrop")
    with pytest.raises(JobConflict, match="regression, not classification"):
        TorchTrainer(net(), loss="mse", task="classification")
    assert np.isnan(trainer.evaluate(trainer.initial(Seed(0)), rows(0, classes=3))["loss"].value)


def test_a_regression_without_a_loss_is_of_squared_errors(rows, work):
    plain = TorchTrainer(net(1), loss="mse")
    meant = TorchTrainer(net(1), task="regression")
    assert (meant.loss, meant.task) == (plain.loss, plain.task) == ("mse", "regression")
    assert (TorchTrainer(net()).loss, TorchTrainer(net()).task) == (
        "cross_entropy",
        "classification",
    )
    data = rows(7)
    assert np.array_equal(run(meant, data, work()).parameters, run(plain, data, work()).parameters)
    with pytest.raises(JobConflict, match="classification, not regression"):
        TorchTrainer(net(), loss="cross_entropy", task="regression")


def test_a_module_may_put_a_new_tensor_in_a_buffers_place(rows, work):
    trainer = TorchTrainer(Recalling())
    data = rows(6, classes=3, dtype="float32")
    fit = run(trainer, data, work(batch_size=0))
    seen = trainer.layout.views(fit.parameters)["seen"]
    np.testing.assert_allclose(seen, data.features.mean(0), atol=1e-6)
    assert run(trainer, data, work(batch_size=0)).parameters.tobytes() == fit.parameters.tobytes()


class Recalling(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        if self.training:
            self.seen = x.mean(0)
        return self.layer(x)
