"""DP-SGD beside a plain torch loop and Opacus: the same rows, the same steps, interleaved.

    python -m benchmarks.dp [REPEATS] [WORD]     # WORD: only networks with it in their name

Each row is a network at a batch size; each figure the median over interleaved repetitions of a step's
processor time over the plain loop's (everything runs on one thread). ``private`` is all of it: sampling by
Poisson, row gradients, clipping, noise from the operating system's generator, the optimiser's step. Opacus
samples and draws noise by torch's generator, in its modes that run here: hooks, functorch and ghost
clipping.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from atoll.core.contracts import Examples
from atoll.core.local import LocalRule, LocalWork, Optimizer
from atoll.core.seeds import Seed
from atoll.models.networks import lenet_niid, mlp, paper_cnn
from atoll.models.private import RecordPrivacy
from atoll.models.torch.adapter import TorchTrainer
from atoll.models.torch.private import PrivateTorchTrainer
from atoll.privacy.dp.lattice import discrete_gaussian, skellam
from atoll.privacy.dp.noise import Draws, SystemSource, gaussian, noised

Build = Callable[[], nn.Module]
ROWS, RATE, CLIP, NOISE = 2000, 0.05, 0.5, 1.0
_HELD = 200_000_000
"""Values of row gradients beyond which a mode that forms them is left out."""


@dataclass(frozen=True, eq=False)
class Setting:
    """One network at one batch size.

    Args:
        name: shown.
        build: the network.
        batch: rows of a step; expected rows of a private one.
        steps: of one measurement.
    """

    name: str
    build: Build
    batch: int
    steps: int


SETTINGS = [
    Setting("paper CNN (1.66 M)", paper_cnn, 64, 4),
    Setting("LeNet (44 k)", lenet_niid, 64, 20),
    Setting("dense 784-200-10 (159 k)", mlp, 10, 80),
    Setting("dense 784-200-10 (159 k)", mlp, 64, 40),
    Setting("dense 784-200-10 (159 k)", mlp, 128, 30),
    Setting("dense 784-200-10 (159 k)", mlp, 256, 20),
    Setting("dense 784-1000-1000-10 (1.8 M)", partial(mlp, 784, (1000, 1000)), 256, 5),
]


def rows() -> Examples:
    """Made-up images."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 784)).astype(np.float32)
    return Examples(x, rng.integers(0, 10, ROWS))


def plain(setting: Setting, data: Examples) -> Callable[[], None]:
    """A loop in torch alone."""
    module = setting.build()
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    x, y = torch.from_numpy(data.features), torch.from_numpy(data.targets)

    def run() -> None:
        order = torch.randperm(ROWS)
        for i in range(setting.steps):
            own = order[(i * setting.batch) % ROWS :][: setting.batch]
            optimizer.zero_grad()
            functional.cross_entropy(module(x[own]), y[own]).backward()
            optimizer.step()

    return run


def ours(setting: Setting, data: Examples, *, private: bool) -> Callable[[], None]:
    """A trainer of ours, with and without privacy."""
    trainer = TorchTrainer(setting.build)
    hidden = PrivateTorchTrainer(trainer, RecordPrivacy(CLIP, NOISE), Draws)
    work = LocalWork(steps=setting.steps, batch_size=setting.batch, optimizer=Optimizer(lr=RATE))
    start = trainer.initial(Seed(0))
    taken = hidden if private else trainer
    return lambda: (
        taken.fit(start, data, work=work, rule=LocalRule(), seed=Seed(1), round=0) and None
    )


def opacus(setting: Setting, data: Examples, mode: str) -> Callable[[], None] | None:
    """Opacus with Poisson sampling in one of its modes; None where it is not installed, or holds too much."""
    try:
        from opacus import PrivacyEngine
    except ImportError:
        return None
    module = setting.build()
    size = sum(p.numel() for p in module.parameters())
    if mode != "ghost" and size * setting.batch > _HELD:
        return None
    x, y = torch.from_numpy(data.features), torch.from_numpy(data.targets)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=setting.batch
    )
    parts = PrivacyEngine().make_private(
        module=module.train(),
        optimizer=torch.optim.SGD(module.parameters(), lr=RATE),
        data_loader=loader,
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        grad_sample_mode=mode,
        criterion=nn.CrossEntropyLoss(),
    )
    # Ghost clipping also wraps the loss, whose backward pass is two.
    module, optimizer = parts[0], parts[1]
    loss = parts[2] if len(parts) == 4 else nn.CrossEntropyLoss()

    def run() -> None:
        for _ in range(setting.steps):
            own = torch.nonzero(torch.rand(ROWS) < setting.batch / ROWS)[:, 0]
            optimizer.zero_grad()
            loss(module(x[own]), y[own]).backward()
            optimizer.step()

    return run


def measured(setting: Setting, repeats: int) -> None:
    """Print one setting's row."""
    data = rows()
    ways: dict[str, Callable[[], None] | None] = {
        "plain": plain(setting, data),
        "our plain": ours(setting, data, private=False),
        "private": ours(setting, data, private=True),
        "Opacus hooks": opacus(setting, data, "hooks"),
        "Opacus functorch": opacus(setting, data, "functorch"),
        "Opacus ghost": opacus(setting, data, "ghost"),
    }
    taken: dict[str, list[float]] = {name: [] for name, way in ways.items() if way}
    for i in range(repeats + 1):
        for name, way in ways.items():
            if way is None:
                continue
            start = time.thread_time()
            way()
            if i:  # the first warms up
                taken[name].append((time.thread_time() - start) / setting.steps)
    print(f"{setting.name}, batch {setting.batch}")
    for name, seconds in taken.items():
        ratios = [a / b for a, b in zip(seconds, taken["plain"], strict=True)]
        middle = statistics.median(seconds) * 1e3
        print(f"  {name:18} {middle:8.2f} ms a step {statistics.median(ratios):6.2f} x plain")


def draws() -> None:
    """Print what a value of noise costs."""
    source, size = SystemSource(), 1_000_000
    values, held = np.zeros(size, np.float32), Draws(source)
    step, place = np.zeros(159_010, np.float32), np.empty(159_010, np.float32)
    ways: dict[str, Callable[[], object]] = {
        "Gaussian on a grid": lambda: gaussian(source, size, 1.0),
        "added to float32": lambda: noised(source, values, 1.0, 1.0, "float32"),
        "discrete Gaussian, exact": lambda: discrete_gaussian(source, size, 1e6),
        "Skellam": lambda: skellam(source, size, 1e12),
        "torch.normal, no secret": lambda: torch.empty(size).normal_(),
    }
    for name, way in ways.items():
        print(f"{name:26} {_seconds(way) / size * 1e9:7.1f} ns a value")
    again = _seconds(lambda: held.noised(step, 1.0, 1.0, place))
    print(f"{'the same, step after step':26} {again / step.size * 1e9:7.1f} ns a value of 159,010")


def _seconds(way: Callable[[], object]) -> float:
    times = []
    for _ in range(9):
        start = time.thread_time()
        way()
        times.append(time.thread_time() - start)
    return statistics.median(times)


def main(repeats: int = 7, word: str = "") -> None:
    """Print the tables."""
    warnings.simplefilter("ignore")  # Opacus warns of its own hooks
    torch.set_num_threads(1)
    for setting in (s for s in SETTINGS if word in s.name):
        measured(setting, repeats)
    draws()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:3])
