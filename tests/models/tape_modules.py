"""Modules that a recorded step can stand for, and modules that must be left to the general path."""

import random
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


def module(forward, **own):
    """A function that builds a module with a dense layer ``f``, a vector ``w`` and this forward."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.w = nn.Linear(6, 3), nn.Parameter(torch.full((6,), 0.5))
            for name, make in own.items():
                setattr(self, name, make())

        def buffer(self, name, value, persistent=True):
            self.register_buffer(name, value, persistent=persistent)

    Own.forward = forward
    return Own


def buffered(forward, persistent=True):
    class Own(module(forward)):
        def __init__(self):
            super().__init__()
            self.register_buffer("m", torch.ones(6), persistent=persistent)

    return Own


class NumpyForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(np.tanh(x.numpy()))

    @staticmethod
    def backward(ctx, g):
        return g * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)


class NumpyBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, g):
        return g * float(np.abs(g.numpy()).max() > 1e-3)


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        return g


class Doubled(torch.autograd.Function):
    """Changes the gradient it is given, which others read as well."""

    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, g):
        return g.mul_(2)


def branches(self, x):
    return self.f(x * self.w) if x.max() > 2 else self.f(x)


def swallows(self, x):
    try:
        size = float(x.abs().max())
    except Exception:  # as some libraries do around what they think optional
        size = 1.0
    return self.f(x) * size


def counts(self, x):
    self.n += 1
    return self.f(x) / self.n


def counts_late(self, x):
    self.n += 1
    return self.f(x) * (2 if self.n > 4 else 1)


def counts_in_a_list(self, x):
    self.seen.append(len(x))
    return self.f(x) * (1 + len(self.seen))


def draws_rarely(self, x):
    return self.f(x) * (2.0 if random.random() < 0.3 else 1.0)


def replaces(self, x):
    self.m = self.m * 0.9 + 0.1 * x.abs().mean(0)
    return self.f(x / self.m)


def caches(self, x):
    h = x * self.w
    self.last = h.detach()
    return self.f(h)


def constant_changed(self, x):
    one = torch.tensor([1.0])
    one.add_(1.0)
    return self.f(x) * one


def seeds(self, x):
    h = functional.dropout(x, 0.5)
    torch.manual_seed(1)
    return self.f(h)


class Hooked(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        self[0].register_forward_hook(lambda m, i, o: o * 2)


class GradientHooked(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        self[0].weight.register_hook(lambda g: g.clamp(-0.01, 0.01))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.r, self.f = getattr(nn, kind)(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.f(self.r(x.view(len(x), 3, 2))[0][:, -1])


class Forgetful(nn.Module):
    """Drops out within a part that is computed again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.a, self.f = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        inner = lambda z: torch.dropout(torch.tanh(self.a(z)), 0.5, True)  # noqa: E731
        return self.f(checkpoint(inner, x, use_reentrant=False))


GENERAL = {
    "branch": (module(branches), "depends on values"),
    "item": (module(lambda s, x: s.f(x) * s.w.sum().item()), "depends on values"),
    "mask": (module(lambda s, x: s.f(x) + x[x > 0].sum()), "depends on values"),
    "swallowed": (module(swallows), "depends on values"),
    "numpy of weights": (
        module(lambda s, x: s.f(x) * float(s.w.detach().numpy().mean())),
        "leave torch by numpy",
    ),
    "array of data": (module(lambda s, x: s.f(x) * float(np.asarray(x).mean())), "leave torch"),
    "list": (module(lambda s, x: s.f(x) * s.w.detach().tolist()[0]), "leave torch by tolist"),
    "function with numpy": (module(lambda s, x: s.f(NumpyForward.apply(x * s.w))), "leave torch"),
    "backward with numpy": (module(lambda s, x: s.f(NumpyBackward.apply(x * s.w))), "leave torch"),
    "counter": (module(counts, n=int), "keeps state"),
    "late counter": (module(counts_late, n=int), "keeps state"),
    "list of calls": (module(counts_in_a_list, seen=list), "keeps state"),
    "cache": (module(caches), "keeps state"),
    "python's random": (module(draws_rarely), "outside torch"),
    "numpy's random": (module(lambda s, x: s.f(x) * np.random.rand()), "outside torch"),  # noqa: NPY002
    "own generator": (
        module(
            lambda s, x: s.f(x * torch.rand(x.shape, generator=s.g)),
            g=lambda: torch.Generator().manual_seed(1),
        ),
        "generator of its own",
    ),
    "seed set": (module(seeds), "other random numbers"),
    "replaced buffer": (buffered(replaces), "replaces a buffer"),
    "constant changed": (module(constant_changed), "changed in place"),
    "hook": (Hooked, "hooks"),
    "hook of a gradient": (GradientHooked, "hooks"),
    "computed again": (Forgetful, "replayed step"),
    "own dtype": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).to(torch.bfloat16),
        "dtype of their own",
    ),
    "cumulative statistics": (
        lambda: nn.Sequential(nn.BatchNorm1d(6, momentum=None), nn.Linear(6, 3)),
        "depends on values",
    ),
}


def projects(self, x):
    with torch.no_grad():
        self.w.clamp_(-0.3, 0.3)
    return self.f(x * self.w)


def projects_data(self, x):
    self.w.data.clamp_(-0.3, 0.3)
    return self.f(x * self.w)


def averages(self, x):
    self.m.mul_(0.9).add_(0.1 * x.abs().mean(0))
    return self.f(x / self.m)


def penalised(self, x):
    x = x.clone().requires_grad_(True)
    out = self.f(torch.tanh(x * self.w))
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return out + slope.pow(2).sum()


def doubles_in_place(self, x):
    x.mul_(2)
    return self.f(x * self.w)


def shares_gradient(self, x):
    h = x * self.w
    return self.f(h) + Doubled.apply(self.f(torch.tanh(h)))


def draws_for_nothing(self, x):
    torch.rand(3)
    return self.f(functional.dropout(x, 0.5))


def conjugates(self, x):
    """The backward pass of exp reads its result, where the conjugate lies as well."""
    y = torch.exp(torch.fft.fft(x * self.w) * 0.1)
    return self.f((y.conj() * y * y).real)


def mixes(self, x):
    """The gradient of one weight is read to make that of the other."""
    return functional.linear(x, self.f.weight + 0.5 * self.a, self.f.bias * self.w.sum())


class Ignored(nn.Module):
    """Statistics are kept of what nobody reads, and a parameter is reached by nothing."""

    def __init__(self):
        super().__init__()
        self.f, self.norm = nn.Linear(6, 3), nn.BatchNorm1d(6)
        self.spare = nn.Parameter(torch.ones(4))

    def forward(self, x):
        self.norm(x)
        return self.f(x)


class Frozen(nn.Sequential):
    def __init__(self):
        super().__init__(nn.BatchNorm1d(6), nn.Linear(6, 3))

    def forward(self, x):
        self[0].eval()
        return super().forward(x)


REPLAYED = {
    "dropout": lambda: nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.4), nn.ReLU(), nn.Linear(5, 3)),
    "alpha dropout": lambda: nn.Sequential(nn.SELU(), nn.AlphaDropout(0.3), nn.Linear(6, 3)),
    "noise": module(lambda s, x: s.f(x * s.w + torch.randn_like(x)) + torch.rand(())),
    "numbers drawn for nothing": module(draws_for_nothing),
    "statistics for nothing": Ignored,
    "statistics not updated": Frozen,
    "statistics in place": buffered(averages),
    "state that is not saved": buffered(averages, persistent=False),
    "custom function": module(lambda s, x: s.f(Straight.apply(x * s.w))),
    "function that changes its gradient": module(shares_gradient),
    "weights projected": module(projects),
    "weights projected by data": module(projects_data),
    "weights by another handle": module(lambda s, x: s.f(x * s.w) * s.w.data.sum()),
    "values by another handle": module(lambda s, x: s.f(x * s.w + (x * s.w).data)),
    "features in place": module(doubles_in_place),
    "gradient of a gradient": module(penalised),
    "complex": module(lambda s, x: s.f(torch.fft.ifft(torch.fft.fft(x * s.w).conj()).real)),
    "complex result that is kept": module(conjugates),
    "gradient read by another": module(mixes, a=lambda: nn.Parameter(torch.ones(3, 6))),
    "imaginary": module(lambda s, x: s.f(torch.fft.fft(x * s.w).imag)),
    "sorted": module(lambda s, x: s.f((x * s.w).sort(1)[0]) + (x * s.w).topk(3, 1)[0]),
    "cut and glued": module(
        lambda s, x: s.f(torch.cat([c * 1.5 for c in (x * s.w).chunk(3, 1)], 1))
    ),
    "reversed": module(lambda s, x: s.f((x * s.w).flip(1).roll(1, 1).cumsum(1))),
    "einsum": module(lambda s, x: s.f(torch.einsum("bi,bj,j->bi", x, x, s.w))),
    "normalised": module(lambda s, x: functional.normalize(s.f(x * s.w)) * s.w.norm()),
    "spectral norm": lambda: nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 3)
    ),
    "weight norm": lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 3)
    ),
    "rnn": partial(Recurrent, "RNN"),
    "gru": partial(Recurrent, "GRU"),
}

EITHER = {
    "lstm": (partial(Recurrent, "LSTM"), (6,)),
    "random relu": (lambda: nn.Sequential(nn.Linear(6, 4), nn.RReLU(), nn.Linear(4, 3)), (6,)),
    "attention": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Flatten(), nn.Linear(20, 3)
        ),
        (5, 4),
    ),
    "volume": (
        lambda: nn.Sequential(
            nn.Conv3d(1, 3, 2), nn.BatchNorm3d(3), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(24, 3)
        ),
        (1, 5, 5, 5),
    ),
    "upwards": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(2, 3, 3, stride=2),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.AdaptiveMaxPool2d(2),
            nn.Flatten(),
            nn.Linear(12, 3),
        ),
        (2, 4, 4),
    ),
    "shuffled": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.LocalResponseNorm(2),
            nn.ReflectionPad2d(1),
            nn.PixelShuffle(2),
            nn.LPPool2d(2, 2),
            nn.Flatten(),
            nn.Linear(36, 3),
        ),
        (2, 6, 6),
    ),
    "spectral norm of a kernel": (
        lambda: nn.Sequential(
            parametrizations.spectral_norm(nn.Conv2d(2, 5, 3)), nn.Flatten(), nn.Linear(80, 3)
        ),
        (2, 6, 6),
    ),
}
