"""What a recorded step can stand for, and what it must leave to the general path, bit for bit."""

from __future__ import annotations

import random
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from atoll.core.contracts import Examples
from atoll.core.local import LocalRule, LocalWork, Optimizer
from atoll.core.seeds import Seed
from atoll.models.torch import kernels as torch_kernels
from atoll.models.torch.adapter import TorchTrainer
from atoll.models.torch.record import Untraceable, record
from atoll.models.torch.tape import Program

sys.path.insert(0, str(Path(__file__).parent))

from tape_modules import EITHER, GENERAL, REPLAYED, buffered, module

NEAR = 1e-6
aten = torch.ops.aten


@pytest.fixture(autouse=True)
def _no_resized_outputs(capfd):
    """An ``out=`` form that resizes its output warns on stderr, once per process unless told otherwise."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)
    assert "resized" not in capfd.readouterr().err


def data(n=14, shape=(6,), classes=3, most=0, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(most, size=(n, *shape)) if most else rng.normal(size=(n, *shape))
    return Examples(x if most else x.astype(np.float32), rng.integers(classes, size=n))


WORK = LocalWork(epochs=1.5, batch_size=4, optimizer=Optimizer(lr=0.05))
SLOW = LocalWork(
    epochs=2.0, batch_size=4, optimizer=Optimizer(lr=0.05, momentum=0.9, weight_decay=0.1)
)


def walked(build, rows, path, work=WORK, rounds=3, **options):
    """Parameters and loss after some rounds, with every generator at the same start; the reason."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # some of the modules draw from the global generator
    torch.manual_seed(0)
    trainer = TorchTrainer(build, path=path, **options)
    point = trainer.initial(Seed(0))
    for t in range(rounds):
        fit = trainer.fit(point, rows, work=work, rule=LocalRule(), seed=Seed(3) / t, round=t)
        point = fit.parameters
    return point, fit.loss, trainer._steps.reason


def far(a, b):
    return float(np.linalg.norm(a.astype(float) - b) / np.linalg.norm(b.astype(float)))


@pytest.mark.parametrize("name", GENERAL)
@pytest.mark.parametrize("work", [WORK, SLOW], ids=["sgd", "momentum"])
def test_what_cannot_be_replayed_takes_the_general_path_to_its_exact_bits(name, work):
    build, why = GENERAL[name]
    wanted = walked(build, data(), "general", work)
    got = walked(build, data(), "compiled", work)
    assert why in got[2]
    assert got[0].tobytes() == wanted[0].tobytes()
    assert got[1] == wanted[1]


@pytest.mark.parametrize("name", REPLAYED)
@pytest.mark.parametrize("work", [WORK, SLOW], ids=["sgd", "momentum"])
def test_these_are_replayed_and_give_the_same(name, work):
    rows = data(16)
    wanted = walked(REPLAYED[name], rows, "general", work)
    got = walked(REPLAYED[name], rows, "compiled", work)
    assert got[2] == ""
    assert far(got[0], wanted[0]) <= NEAR
    assert got[1] == pytest.approx(wanted[1], rel=1e-5)


@pytest.mark.parametrize("name", EITHER)
def test_whichever_path_these_take_the_result_is_the_same(name):
    build, shape = EITHER[name]
    rows = data(12, shape)
    wanted, got = (walked(build, rows, p)[0] for p in ("general", "compiled"))
    # Some magnify rounding: a norm by power iteration moves by 6e-7 for the last digit of the rows.
    rounded = Examples(np.nextafter(rows.features, np.float32(9)), rows.targets)
    assert far(got, wanted) <= max(NEAR, 4 * far(walked(build, rounded, "general")[0], wanted))
    exact = Examples(rows.features.astype(float), rows.targets)
    wanted, got = (walked(lambda: build().double(), exact, p)[0] for p in ("general", "compiled"))
    assert far(got, wanted) <= 1e-12


def test_a_made_up_batch_that_fails_is_no_failure_of_the_client():
    """Whole numbers that come as floats are no indices once they are made up."""
    rows = data(most=5)
    rows = Examples(rows.features.astype(np.float32), rows.targets)
    build = module(lambda s, x: s.f(s.e(x.long()).mean(2)), e=lambda: nn.Embedding(5, 4))
    wanted, got = (walked(build, rows, p) for p in ("general", "compiled"))
    assert "made-up batch fails: index out of range" in got[2]
    assert got[0].tobytes() == wanted[0].tobytes()


@pytest.mark.parametrize(
    ("build", "rows", "error"),
    [
        (partial(nn.Linear, 6, 3), Examples(data().features, data().targets + 1), IndexError),
        (lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)), data(1), ValueError),
        (partial(nn.Linear, 5, 3), data(), RuntimeError),
        (partial(nn.Linear, 6, 3), data(most=9), RuntimeError),
    ],
    ids=["label", "statistics of one row", "shape", "whole numbers"],
)
def test_a_client_fails_on_either_path_with_the_same_words(build, rows, error):
    said = []
    for path in ("general", "compiled"):
        with pytest.raises(error) as raised:
            walked(build, rows, path)
        said.append(str(raised.value))
    assert said[0] == said[1]


def sizes_matter(self, x):
    return self.f(x * self.w) * (float(x.mean()) if len(x) == 3 else 1.0)


def fits(trainer, clients, work):
    start = trainer.initial(Seed(0))
    fit = partial(trainer.fit, start, work=work, rule=LocalRule(), round=0)
    return [fit(c, seed=Seed(1)).parameters.tobytes() for c in clients]


@pytest.mark.parametrize("build", [module(sizes_matter), REPLAYED["dropout"]])
def test_the_path_of_a_client_does_not_depend_on_who_came_before(build):
    """One batch shape of ``sizes_matter`` cannot be replayed; the others still are."""
    wild = data(8)
    wild.features[:] = np.nan
    clients = [data(3), data(8, seed=1), wild, data(11, seed=2)]
    work = LocalWork(epochs=2, batch_size=4, optimizer=Optimizer(lr=0.1))
    whole = fits(TorchTrainer(build, path="compiled"), clients, work)
    back = fits(TorchTrainer(build, path="compiled"), clients[::-1], work)[::-1]
    assert whole == back
    for client, bits in zip(clients, whole, strict=True):
        assert fits(TorchTrainer(build, path="compiled"), [client], work) == [bits]


def remembers(self, x):
    """Keeps things in all places that are not saved, and reads them again in the next step."""
    self.n += 1
    self.m.mul_(0.9).add_(0.1 * x.abs().mean(0))
    h = x / self.m + torch.rand((), generator=self.g) + self.t.mean()
    h = h if self.h is None else h + self.h
    self.h, self.t = x.mean(0).detach(), x.mean(1).detach()
    self.late = getattr(self, "late", 0) + 1
    return self.f(h * self.w) / self.n / self.late


def summed_up(self, x):
    self.m.mul_(0.9).add_(0.1 * x.abs().mean(0))
    self.t.add_(x.mean())
    return self.f(x / self.m + self.t)


@pytest.mark.parametrize("path", ["general", "compiled"])
@pytest.mark.parametrize("forward", [remembers, summed_up])
def test_what_a_client_leaves_in_a_module_never_reaches_the_next(forward, path):
    class Keeping(buffered(forward, persistent=False)):
        def __init__(self):
            super().__init__()
            self.n, self.h, self.t = 0, None, torch.zeros(1)
            self.g = torch.Generator().manual_seed(1)

    work = LocalWork(epochs=2.0, batch_size=4, optimizer=Optimizer(lr=0.05))
    clients = [data(n, seed=n) for n in (11, 5, 7)]
    trainer = TorchTrainer(Keeping, path=path)
    bits = fits(trainer, clients, work)
    assert fits(trainer, clients[::-1], work)[::-1] == bits
    assert [fits(TorchTrainer(Keeping, path=path), [c], work)[0] for c in clients] == bits


def test_a_buffer_of_truths_stands_in_a_recorded_step():
    class Masked(module(lambda s, x: s.f(torch.where(s.mask, x, 0.5 * x)))):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.tensor([True, False] * 3))

    wanted, got = (walked(Masked, data(), path) for path in ("general", "compiled"))
    assert got[2] == ""
    assert far(got[0], wanted[0]) <= NEAR


def test_after_many_shapes_a_step_is_recorded_again_and_is_the_same():
    trainer = TorchTrainer(REPLAYED["dropout"], path="compiled")
    clients = [data(n, seed=n) for n in range(1, 20)]
    work = LocalWork(batch_size=0, optimizer=Optimizer(lr=0.1))
    assert fits(trainer, clients, work) == fits(trainer, clients, work)


def test_a_shorter_last_batch_is_recorded_amid_training_without_a_trace():
    """Weights, momentum, statistics and random numbers are those of the client, not of the try-out."""
    build = lambda: nn.Sequential(  # noqa: E731
        nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 3)
    )
    trainer = TorchTrainer(build, path="compiled")
    first, again = (fits(trainer, [data(11)], SLOW) for _ in range(2))
    assert first == again


def test_training_in_bfloat16_is_the_same_on_both_paths_bit_by_bit():
    build = lambda: nn.Sequential(  # noqa: E731
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    wanted, got = (
        walked(build, data(shape=(2, 6, 6)), p, precision="bfloat16")
        for p in ("general", "compiled")
    )
    assert got[2] == ""
    assert got[0].tobytes() == wanted[0].tobytes()


class Views(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.f = nn.Conv2d(2, 4, 3), nn.Linear(64, 3)

    def forward(self, x):
        return self.f(functional.relu(self.c(x)).view(-1, 64))


@pytest.mark.parametrize("path", ["general", "compiled"])
def test_a_module_that_views_its_activations_is_kept_in_torchs_own_order(path):
    rows = data(shape=(2, 6, 6))
    plain = walked(Views, rows, path, channels_last=False)
    own = walked(Views, rows, path)
    assert own[0].tobytes() == plain[0].tobytes()
    assert own[2] == plain[2]
    trainer = TorchTrainer(Views)
    assert trainer.gradient(own[0], rows)[1] == pytest.approx(
        TorchTrainer(Views, channels_last=False).gradient(own[0], rows)[1]
    )
    with pytest.raises(RuntimeError, match="view size"):
        walked(Views, rows, path, channels_last=True)


AUGMENTS = {
    "noise": (lambda: nn.Linear(6, 3), lambda x, g: x + torch.randn(x.shape, generator=g)),
    "another shape": (lambda: nn.Linear(4, 3), lambda x, g: x[:, 1:5] * 2),
    "another dtype": (
        lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(24, 3)),
        lambda x, g: x.long() % 9,
    ),
    "torch's generator": (
        lambda: nn.Sequential(nn.Dropout(0.3), nn.Linear(6, 3)),
        lambda x, g: x + torch.rand(x.shape),
    ),
}


@pytest.mark.parametrize("name", AUGMENTS)
def test_augmented_batches_are_replayed(name):
    build, augment = AUGMENTS[name]
    rows = Examples(np.abs(data().features) * 4, data().targets)
    wanted, got = (walked(build, rows, p, augment=augment) for p in ("general", "compiled"))
    assert got[2] == ""
    assert far(got[0], wanted[0]) <= NEAR


def test_losses_of_other_shapes_and_penalties_are_replayed():
    class Penalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

        def forward(self, x):
            return self.b(x), sum(p.pow(2).sum() for p in self.b.parameters()), self.b[0].weight

    def loss(out, target):
        return functional.cross_entropy(out[0], target) + 0.1 * out[1] + out[2].abs().sum() * 0.01

    wanted, got = (walked(Penalised, data(), p, loss=loss) for p in ("general", "compiled"))
    assert got[2] == ""
    assert far(got[0], wanted[0]) <= NEAR


def test_recording_refuses_a_loss_that_is_no_single_number():
    x, y = torch.zeros(4, 6), torch.zeros(4, dtype=torch.int64)
    net = nn.Linear(6, 3)
    with pytest.raises(Untraceable, match="no single number"):
        record(lambda m, loss, x, y: m(x), net, None, list(net.parameters()), (x, y))


def test_a_dense_layers_gradient_is_never_stored_under_plain_sgd():
    """Four updates for two layers, and no step that makes a weight's gradient."""
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    x, y = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    forward = lambda m, loss, x, y: functional.cross_entropy(m(x), y)  # noqa: E731
    weights = list(net.parameters())
    tape = record(forward, net, None, weights, (x, y))
    views, slopes = [p.data for p in weights], [torch.zeros_like(p) for p in weights]
    fused, apart = (Program(tape, views, slopes, fused=f) for f in (True, False))
    assert len(fused.updates) == 4
    assert len(apart.updates) == 0
    assert len(apart.steps) == len(fused.steps) + 4
    before = [v.clone() for v in views]
    fused.run()
    apart.run()
    functional.cross_entropy(net(x), y).backward()
    fused.update(-0.5)
    for p, view, slope, old in zip(weights, views, slopes, before, strict=True):
        torch.testing.assert_close(slope, p.grad)
        torch.testing.assert_close(view, old - 0.5 * p.grad)


def kernels():
    """Arguments for every operation that writes into buffers."""
    torch.manual_seed(0)
    a, b, c = torch.randn(4, 5), torch.randn(5, 3), torch.randn(3)
    same, image = torch.randn(4, 5), torch.randn(2, 3, 6, 6)
    label = torch.tensor([0, 2, 1, 1])
    total = torch.tensor(4.0)
    logp = torch.log_softmax(a, 1)
    pooled, where = aten.max_pool2d_with_indices(image, [2, 2], [2, 2])
    window = ([2, 2], [2, 2], [0, 0])
    named = {
        "mm": (a, b),
        "bmm": (image[0], image[1]),
        "addmm": (c, a, b),
        "baddbmm": (image[0], image[0], image[1]),
        "dot": (c, c),
        "clone": (a,),
        "index_select": (a, 0, torch.tensor([1, 3])),
        "threshold_backward": (a, same, 0),
        "tanh_backward": (a, same),
        "sigmoid_backward": (a, same),
        "_log_softmax": (a, 1, False),
        "_log_softmax_backward_data": (a, logp, 1, torch.float32),
        "nll_loss_forward": (logp, label, None, 1, -100),
        "nll_loss_backward": (torch.tensor(1.0), logp, label, None, 1, -100, total),
        "mse_loss_backward": (torch.tensor(1.0), a, same, 1),
        "gelu_backward": (a, same),
        "leaky_relu": (a, 0.1),
        "leaky_relu_backward": (a, same, 0.1, False),
        "silu_backward": (a, same),
        "max_pool2d_with_indices": (image, [2, 2], [2, 2]),
        "max_pool2d_with_indices_backward": (pooled, image, *window, [1, 1], False, where),
        "avg_pool2d": (image, [2, 2], [2, 2]),
        "avg_pool2d_backward": (pooled, image, *window, False, True, None),
    }
    made = {getattr(aten, name).default: args for name, args in named.items()}
    made |= {aten._to_copy.default: (a,), aten.sum.dim_IntList: (a, [0], True)}
    made |= {getattr(aten, name).Tensor: (a, same) for name in ("add", "sub", "mul", "div")}
    return made


@pytest.mark.parametrize("func", torch_kernels._TABLE, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["", "channels last"])
def test_every_listed_kernel_writes_where_it_is_told(func, last):
    one = (torch.randn(4, 5),)
    args = kernels().get(func, one)
    if last:
        order = torch.channels_last
        args = tuple(
            a.contiguous(memory_format=order) if isinstance(a, torch.Tensor) and a.dim() == 4 else a
            for a in args
        )
    wanted = func(*args)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    room = [torch.full_like(t, 7) for t in wanted]
    places = [(t.data_ptr(), t.stride()) for t in room]
    torch_kernels.into_buffers(func)(args, {}, room)()
    for got, expected in zip(room, wanted, strict=True):
        torch.testing.assert_close(got, expected)
    assert [(t.data_ptr(), t.stride()) for t in room] == places
