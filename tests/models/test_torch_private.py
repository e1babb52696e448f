"""DP-SGD in torch: row gradients against single rows, and against Opacus where it is installed."""

import copy
import pickle
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from atoll.core.contracts import Examples, Trainer
from atoll.core.local import LocalRule, LocalWork, Optimizer
from atoll.core.seeds import Seed
from atoll.models.networks import CropFlip, lenet_niid, mlp
from atoll.models.private import RecordPrivacy
from atoll.models.torch.adapter import TorchTrainer
from atoll.models.torch.private import PrivateTorchTrainer
from atoll.models.torch.private_dense import Chained
from atoll.models.torch.private_rows import Layers
from atoll.privacy.dp.noise import Draws

sys.path.insert(0, str(Path(__file__).parent))

from private_modules import CLIP, LOUD, dense, fit, private, some
from replayed import Again, Quiet


class Twice(nn.Module):
    """One layer used two times: its row gradient is no single outer product."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


class Borrowed(nn.Module):
    """A weight that is used outside its layer as well."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.layer(x)
        return self.out(hidden + functional.linear(x, self.layer.weight.square()))


class Loose(nn.Module):
    """A parameter outside any layer."""

    def __init__(self):
        super().__init__()
        self.scale, self.out = nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(x * self.scale)


class Positions(nn.Module):
    def __init__(self, wide=12):
        super().__init__()
        self.embed = nn.Embedding(9, wide, padding_idx=0)
        self.norm, self.mix = nn.LayerNorm(wide), nn.Linear(wide, 16)
        self.out = nn.Linear(16, 3, bias=False)

    def forward(self, x):
        return self.out(torch.relu(self.mix(self.norm(self.embed(x)))).mean(1))


def images():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, stride=2),
        nn.GroupNorm(2, 6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 4, (3, 2), groups=2, bias=False, dilation=(1, 2)),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def signals():
    return nn.Sequential(nn.Conv1d(2, 5, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(35, 3))


def partly_frozen():
    module = dense()
    module[0].weight.requires_grad_(False)
    return module


CASES = {
    "dense": (dense, (4,)),
    "frozen": (partly_frozen, (4,)),
    "images": (images, (2, 8, 8)),
    "signals": (signals, (2, 7)),
    "positions": (Positions, (5,)),
    "wide positions": (partial(Positions, 40), (3,)),
    "twice": (Twice, (4,)),
    "borrowed": (Borrowed, (4,)),
    "loose": (Loose, (4,)),
}
BY_LAYER = {"dense", "frozen", "images", "signals", "positions", "wide positions"}


def margins(output, target):
    own = output.gather(1, target[:, None])
    return functional.relu(1 - own + output).sum(1).mean()


def row_by_row(trainer, data, clip=CLIP, loss=functional.cross_entropy, dtype=torch.int64):
    """What a loop over rows gives, in the layout's order."""
    module, total = trainer.module_with(trainer.initial(Seed(0))), 0.0
    trained = [p for p in module.parameters() if p.requires_grad]
    for i in range(len(data)):
        x = torch.as_tensor(data.features[i : i + 1])
        y = torch.as_tensor(data.targets[i : i + 1]).to(dtype)
        grads = torch.autograd.grad(loss(module(x), y), trained)
        norm = torch.sqrt(sum(g.square().sum() for g in grads))
        total = total + torch.cat([g.flatten() for g in grads]) * min(1.0, clip / float(norm))
    names = {id(p): n for n, p in module.named_parameters()}
    out, at = {}, 0
    for p in trained:
        out[names[id(p)]] = total[at : at + p.numel()].view(p.shape).detach().numpy()
        at += p.numel()
    return out


def assert_sums(trainer, got, wanted):
    views = trainer.layout.views(got)
    top = max(np.abs(w).max() for w in wanted.values())
    for name, value in wanted.items():
        np.testing.assert_allclose(views[name], value, atol=2e-6 * top, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_the_clipped_sum_is_that_of_single_rows(case):
    build, shape = CASES[case]
    trainer, data = private(build), some(shape)
    got = trainer.clipped_sum(trainer.initial(Seed(0)), data, np.arange(len(data)))
    assert_sums(trainer, got, row_by_row(trainer, data))
    way = trainer.explain(LocalWork(), data)
    assert way.startswith("private, by layer" if case in BY_LAYER else "private, by row"), way


def test_rows_whose_squares_vanish_are_clipped_all_the_same(monkeypatch):
    # In float32 the square of 1e-23 is 0, but with features of 1e18 such slopes pass a small bound.
    data, clip = some((4,)), 1e-6
    rows = private(partial(nn.Linear, 4, 3))._way(data).rows
    assert isinstance(rows, Chained)
    monkeypatch.setattr(rows, "_slope", lambda out, y: torch.full_like(out, 1e-23))
    with torch.no_grad():
        rows.bench.gradient.zero_()
        norms = rows.add(torch.full((1, 4), 1e18), torch.zeros(1, dtype=torch.int64), clip)
    assert norms.item() > 1e-23 * 3**0.5 * 2e18 > clip
    assert torch.linalg.vector_norm(rows.bench.gradient.double()) <= clip


@pytest.mark.parametrize(
    ("build", "shape"), [(lenet_niid, (28, 28)), (partial(mlp, 20, (8,), 3), (20,))]
)
def test_published_networks_go_layer_by_layer(build, shape):
    trainer, data = private(build), some(shape, n=6)
    assert trainer.explain(LocalWork(), data) == "private, by layer"
    got = trainer.clipped_sum(trainer.initial(Seed(0)), data, np.arange(6))
    assert_sums(trainer, got, row_by_row(trainer, data))


def test_large_kernels_go_row_by_row_to_the_same_sums(monkeypatch):
    import atoll.models.torch.private_rows as module

    data = some((2, 8, 8))
    monkeypatch.setattr(module, "_FEW", 0)
    trainer = private(images)
    got = trainer.clipped_sum(trainer.initial(Seed(0)), data, np.arange(len(data)))
    assert_sums(trainer, got, row_by_row(trainer, data))


@pytest.mark.parametrize(
    ("loss", "wanted", "dtype"),
    [
        ("nll_sum", functional.cross_entropy, torch.int64),
        ("mse", functional.mse_loss, torch.float32),
        (margins, margins, torch.int64),
    ],
    ids=["sum", "mse", "own"],
)
def test_other_losses_are_taken_by_row(loss, wanted, dtype):
    data = some((4,))
    build = dense
    if loss == "mse":
        data = Examples(data.features, data.features[:, :3].copy())
    trainer = private(build, loss=loss)
    got = trainer.clipped_sum(trainer.initial(Seed(0)), data, np.arange(len(data)))
    assert_sums(trainer, got, row_by_row(trainer, data, loss=wanted, dtype=dtype))


def chain(activation=nn.GELU, bias=True):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(6, 5, bias=bias),
        activation(),
        nn.Linear(5, 7, bias=bias),
        nn.Linear(7, 4, bias=bias),
        nn.Tanh(),
        nn.Linear(4, 3),
    )


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.LeakyReLU])
@pytest.mark.parametrize("bias", [True, False])
def test_chains_of_dense_layers_need_no_autograd_to_the_same_sums(activation, bias):
    trainer, data = private(partial(chain, activation, bias)), some((2, 3))
    assert isinstance(trainer._way(data).rows, Chained)
    got = trainer.clipped_sum(trainer.initial(Seed(0)), data, np.arange(len(data)))
    assert_sums(trainer, got, row_by_row(trainer, data))


def test_what_a_gradient_held_is_written_over():
    trainer, data = private(chain), some((2, 3))
    way = trainer._way(data)
    x, y = torch.from_numpy(data.features), torch.from_numpy(data.targets)
    with torch.no_grad():
        way.bench.gradient.zero_()
        way.rows.add(x, y, CLIP)
        added = way.bench.gradient.clone()
        way.bench.gradient.fill_(float("nan"))
        way.rows.add(x, y, CLIP, fresh=True)
        assert torch.equal(way.bench.gradient, added)
        x[:] = float("inf")
        way.rows.add(x, y, CLIP, fresh=True)
        assert not way.bench.gradient.any()


def test_a_row_that_is_not_finite_counts_as_absent_in_a_chain():
    trainer, data = private(chain), some((2, 3))
    data.features[4, 0, 1] = np.inf
    start, others = trainer.initial(Seed(0)), np.delete(np.arange(12), 4)
    whole = trainer.clipped_sum(start, data, np.arange(12))
    np.testing.assert_array_equal(whole, trainer.clipped_sum(start, data, others))


def test_a_dense_layer_over_positions_is_no_chain():
    data = Examples(some((5, 4)).features, np.zeros((12, 5, 3), np.float32))
    trainer = private(lambda: nn.Sequential(nn.Linear(4, 3)), loss="mse")
    assert isinstance(trainer._way(data).rows, Layers)
    got = trainer.clipped_sum(trainer.initial(Seed(0)), data, np.arange(12))
    wanted = row_by_row(trainer, data, loss=functional.mse_loss, dtype=torch.float32)
    assert_sums(trainer, got, wanted)


@pytest.mark.parametrize("case", CASES)
def test_one_row_moves_the_sum_by_no_more_than_the_clip(case):
    build, shape = CASES[case]
    trainer, data = private(build), some(shape)
    for i in range(4):
        alone = trainer.clipped_sum(trainer.initial(Seed(0)), data, np.array([i]))
        assert np.linalg.norm(alone.astype(np.float64)) <= LOUD.bound


@pytest.mark.parametrize("case", ["images", "loose"])
def test_micro_batches_change_nothing_but_last_bits(case):
    build, shape = CASES[case]
    data = some(shape)
    start = private(build).initial(Seed(0))
    whole = private(build).clipped_sum(start, data, np.arange(12))
    few = private(build, RecordPrivacy(CLIP, 1.0, micro_batch=5)).clipped_sum(
        start, data, np.arange(12)
    )
    np.testing.assert_allclose(few, whole, atol=1e-6)


@pytest.mark.parametrize(
    "optimizer", [Optimizer(lr=0.1, momentum=0.5, weight_decay=0.01), Optimizer("adam", lr=0.01)]
)
def test_without_noise_or_clipping_it_is_the_plain_step(optimizer):
    trainer, data = private(dense, RecordPrivacy(1e6, 1.0)), some((4,))
    work = LocalWork(steps=4, batch_size=0, optimizer=optimizer)
    rule = LocalRule(mu=0.1, anchor=np.ones(trainer.layout.size, np.float32))
    start = trainer.initial(Seed(0))
    plain = trainer.trainer.fit(start, data, work=work, rule=rule, seed=Seed(1), round=0)
    got = fit(trainer, data, work, rule)
    np.testing.assert_allclose(got.parameters, plain.parameters, atol=2e-6)
    assert (got.steps, got.lr_sum) == (plain.steps, plain.lr_sum)


def test_plain_sgd_divides_its_rate_to_the_same_step():
    data, work = some((4,)), LocalWork(steps=3, batch_size=0, optimizer=Optimizer(lr=0.1))
    trainer = private(dense, RecordPrivacy(1e6, 1.0))
    start = trainer.initial(Seed(0))
    plain = trainer.trainer.fit(start, data, work=work, rule=LocalRule(), seed=Seed(1), round=0)
    np.testing.assert_allclose(fit(trainer, data, work).parameters, plain.parameters, atol=2e-6)


def test_noise_is_for_the_clip_and_scaled_by_the_expected_batch():
    trainer = private(lambda: nn.Linear(4, 3), RecordPrivacy(0.7, 2.0), Draws)
    data = some((4,), n=10)
    flat = trainer.layout.size
    start = np.zeros(flat, np.float32)
    quiet = private(lambda: nn.Linear(4, 3), RecordPrivacy(0.7, 2.0), partial(Quiet, []))
    work = LocalWork(steps=1, batch_size=5, optimizer=Optimizer(lr=1.0))
    assert not fit(quiet, data, work, start=start).parameters.any()
    source = Again(1)
    source.chosen = lambda rows, rate: np.arange(0)
    trainer = private(lambda: nn.Linear(4, 3), RecordPrivacy(0.7, 2.0), lambda: source)
    draws = np.concatenate([fit(trainer, data, work, start=start).parameters for _ in range(700)])
    sd = 2.0 * 0.7 / 5
    assert abs(draws.std() - sd) < 6 * sd / np.sqrt(2 * draws.size)


def test_the_state_of_torch_is_as_before():
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    trainer = PrivateTorchTrainer(TorchTrainer(dense), LOUD, Draws)
    fit(trainer, some((4,)), LocalWork(steps=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_dropout_and_augmentation_act_on_single_rows():
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 3))
    trainer = private(lambda: module, randomness=partial(Again, 2), augment=CropFlip())
    data = some((28, 28), n=20)
    assert trainer.explain(LocalWork(), data) == "private, by layer"
    done = fit(trainer, data, LocalWork(steps=3, batch_size=8))
    assert done.steps == 3
    assert np.isfinite(done.parameters).all()


def test_a_row_that_is_not_finite_counts_as_absent():
    data = some((4,))
    data.features[5] = np.inf
    others = np.array([i for i in range(12) if i != 5])
    for build in (dense, Loose):
        trainer = private(build)
        start = trainer.initial(Seed(0))
        np.testing.assert_allclose(
            trainer.clipped_sum(start, data, np.arange(12)),
            trainer.clipped_sum(start, data, others),
            atol=1e-7,
        )


def test_the_trainer_keeps_the_contract_and_goes_to_other_processes():
    trainer = PrivateTorchTrainer(
        TorchTrainer(nn.Linear, {"in_features": 4, "out_features": 3}), LOUD, Draws
    )
    data = some((4,))
    assert isinstance(trainer, Trainer)
    assert np.isnan(fit(trainer, data, LocalWork()).loss)
    assert trainer.releases(12, LocalWork(epochs=1, batch_size=3)).count == 4
    there = pickle.loads(pickle.dumps(trainer))
    assert not {"_draws", "_ways"} & set(there.__dict__)
    fit(there, data, LocalWork())
    gradient, loss = trainer.gradient(trainer.initial(Seed(0)), data)
    assert gradient.shape == (trainer.layout.size,)
    assert np.isnan(loss)
    assert "accuracy" in trainer.evaluate(trainer.initial(Seed(0)), data)
    assert set(trainer.state_dict_from(trainer.initial(Seed(0)))) == {"weight", "bias"}


def theirs(case):
    """A case as Opacus can take it: nothing in place, and no index that stands for padding."""
    build, shape = CASES[case]
    torch.manual_seed(0)
    module = build()
    for part in module.modules():
        if isinstance(part, nn.ReLU):
            part.inplace = False
        if isinstance(part, nn.Embedding):
            part.padding_idx = None
    return module, shape


@pytest.mark.parametrize("case", ["dense", "images", "signals", "positions"])
def test_opacus_agrees_to_float_precision(case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sample = pytest.importorskip("opacus").GradSampleModule
        start, shape = theirs(case)
        trainer, data = private(lambda: start), some(shape)
        module = sample(copy.deepcopy(start).train())
        loss = functional.cross_entropy(
            module(torch.as_tensor(data.features)), torch.as_tensor(data.targets)
        )
        loss.backward()
    named = {n.removeprefix("_module."): p.grad_sample for n, p in module.named_parameters()}
    norms = torch.sqrt(sum(g.flatten(1).square().sum(1) for g in named.values()))
    scale = (CLIP / norms).clamp(max=1.0)
    wanted = {n: torch.tensordot(scale, g, 1).detach().numpy() for n, g in named.items()}
    got = trainer.clipped_sum(trainer.initial(Seed(0)), data, np.arange(len(data)))
    assert_sums(trainer, got, wanted)
