"""The workloads W1 to W4: their data, and each as an Atoll job through the public API.

====  ====================================================================================
W1    Fashion-MNIST, 1000 clients of 60 rows (labels Dir(.3) per client), 100 a round, one
      epoch, batch 10, SGD .05, dense network 784-200-10
W2    the same clients, 50 a round, two 5x5 convolutions (16, 32) with pooling, one dense layer
W3    10 clients of 6000 IID rows, all in every round, batch 64, the CNN of the FedAvg paper
W4    breast cancer, 5 sites of 113 rows, batch 32, logistic regression from zero
====  ====================================================================================

Every client of a workload holds equally many rows, so all weights are equal. Arrays are made once and
kept in ``.bench``; every contestant reads them from there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atoll import Cohort, Job, LocalWork, Optimizer, Stop, Synchronous
from atoll.core.contracts import Examples
from atoll.core.errors import DataError
from atoll.core.seeds import Seed
from atoll.data.partition import Partition, client_ids

__all__ = ["SEED", "WORKLOADS", "Rows", "Workload", "job", "plain_draws", "prepare", "rows"]

SEED = 7
KEPT = Path(__file__).parents[1] / ".bench" / "data"
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Workload:
    """One workload.

    Args:
        data: name of its arrays.
        clients, each, cohort: in the federation, rows of each, clients in a round.
        rounds: of a measured run.
        batch, lr: of the local SGD, one epoch.
        shape: of one row as the network takes it.
        workers: numbers of processes to measure.
        turns: how often each contestant runs.
    """

    data: str
    clients: int
    each: int
    cohort: int
    rounds: int
    batch: int
    lr: float
    shape: tuple[int, ...]
    workers: tuple[int, ...] = (1, 2)
    turns: int = 3


WORKLOADS = {
    "W1": Workload("fashion1000", 1000, 60, 100, 20, 10, 0.05, (784,)),
    "W2": Workload("fashion1000", 1000, 60, 50, 10, 10, 0.05, (1, 28, 28), turns=2),
    "W3": Workload("fashion10", 10, 6000, 10, 1, 64, 0.05, (1, 28, 28), workers=(2,), turns=1),
    "W4": Workload("cancer5", 5, 113, 5, 100, 32, 0.05, (30,)),
}


@dataclass(frozen=True, eq=False)
class Rows:
    """Arrays of a workload.

    Args:
        x: ``(clients, rows, values)`` float32.
        y: ``(clients, rows)`` int64.
        test_x: ``(m, values)`` float32.
        test_y: ``(m,)`` int64.
    """

    x: Array
    y: Array
    test_x: Array
    test_y: Array


def _fashion() -> tuple[Examples, Examples]:
    """Fashion-MNIST; ten noisy prototypes of the same shape where it is not installed."""
    from atoll.data.idx import fashion_mnist

    try:
        train, test = fashion_mnist()
    except DataError:
        print("Fashion-MNIST is not installed: random images of its size stand in for it")
        rng = np.random.default_rng(0)
        shapes = rng.random((10, 784)).astype(np.float32)

        def made(n: int) -> Examples:
            labels = rng.permutation(np.arange(n) % 10)
            noise = rng.normal(0, 0.4, (n, 784)).astype(np.float32)
            return Examples(shapes[labels] + noise, labels)

        return made(60_000), made(10_000)

    def scaled(e: Examples) -> Examples:
        flat = e.features.reshape(len(e), 784)
        return Examples(((flat - 0.2860) / 0.3530).astype(np.float32), e.targets)

    return scaled(train), scaled(test)


def _equal_dirichlet(labels: Array, clients: int, each: int, alpha: float, seed: int) -> Array:
    """``(clients, each)`` row numbers: label shares Dir(alpha) at each client, every row used once."""
    rng = np.random.default_rng(seed)
    pools = [list(rng.permutation(np.flatnonzero(labels == c))) for c in np.unique(labels)]
    dealt = np.empty((clients, each), np.int64)
    for client in range(clients):
        share, own = rng.dirichlet([alpha] * len(pools)), list[int]()
        while len(own) < each:
            left = np.array([len(pool) for pool in pools])
            open_ = share * (left > 0)
            p = open_ / open_.sum() if open_.sum() > 1e-9 else left / left.sum()
            wanted = np.minimum(rng.multinomial(each - len(own), p), left)
            for pool, count in zip(pools, wanted, strict=True):
                own += [pool.pop() for _ in range(count)]
        dealt[client] = rng.permutation(own)
    return dealt


def _make(name: str) -> Rows:
    if name == "cancer5":
        from sklearn.datasets import load_breast_cancer

        given = load_breast_cancer()
        order = np.random.default_rng(2).permutation(len(given.target))[:565]
        scaled = (given.data - given.data.mean(0)) / given.data.std(0)
        x, y = scaled[order].astype(np.float32), given.target[order].astype(np.int64)
        return Rows(x.reshape(5, 113, 30), y.reshape(5, 113), x, y)
    train, test = _fashion()
    if name == "fashion1000":
        order = _equal_dirichlet(train.targets, 1000, 60, 0.3, 0)
    else:
        order = np.random.default_rng(1).permutation(60_000).reshape(10, 6000)
    return Rows(train.features[order], train.targets[order], test.features, test.targets)


def prepare(name: str) -> None:
    """Make and keep a workload's arrays if they are not there yet."""
    folder = KEPT / WORKLOADS[name].data
    if not folder.exists():
        partial = folder.with_suffix(f".{os.getpid()}")
        partial.mkdir(parents=True)
        for key, value in vars(_make(folder.name)).items():
            np.save(partial / f"{key}.npy", value)
        partial.rename(folder)


def _kept(name: str, *keys: str) -> list[Array]:
    """Some of a workload's arrays, rows in the shape its network takes."""
    prepare(name)
    w = WORKLOADS[name]
    read = [np.load(KEPT / w.data / f"{key}.npy") for key in keys]
    return [a if a.dtype == np.int64 else a.reshape(*a.shape[:-1], *w.shape) for a in read]


def rows(name: str) -> Rows:
    """A workload's arrays, rows in the shape its network takes."""
    return Rows(*_kept(name, *Rows.__dataclass_fields__))


def cnn() -> Any:
    """W2's network."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def zero_logistic() -> Any:
    """W4's model: softmax regression that starts at zero, whatever the framework."""
    from torch import nn

    model = nn.Linear(30, 2)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def _trainer(name: str, kind: str) -> Any:
    if kind == "numpy":
        from atoll.models.linear import LinearTrainer

        return LinearTrainer("multinomial", 30, classes=2, dtype="float32")
    from atoll.models.networks import mlp, paper_cnn
    from atoll.models.torch.adapter import TorchTrainer

    made: dict[str, Callable[[], Any]] = {
        "W1": lambda: TorchTrainer(mlp, {"inputs": 784, "hidden": (200,), "classes": 10}),
        "W2": lambda: TorchTrainer(cnn),
        "W3": lambda: TorchTrainer(paper_cnn),
        "W4": lambda: TorchTrainer(zero_logistic),
    }
    return made[name]()


def _cohort(w: Workload) -> Cohort:
    return Cohort() if w.cohort == w.clients else Cohort("uniform", w.cohort)


def job(name: str, rounds: int, kind: str = "torch") -> tuple[Job, Partition]:
    """The Atoll job of a workload (``kind`` ``numpy``: without torch, W4 only), and its clients."""
    w = WORKLOADS[name]
    x, y = _kept(name, "x", "y")  # test rows are for the end
    flat = Examples(x.reshape(-1, *w.shape), y.reshape(-1))
    made = Job(
        trainer=_trainer(name, kind),
        local=LocalWork(1, batch_size=w.batch, optimizer=Optimizer(lr=w.lr)),
        schedule=Synchronous(_cohort(w)),
        stop=Stop(rounds=rounds),
        evaluate_every=0,
        central=False,
        federated=False,
        checkpoint_every=0,
        name=name,
        seed=SEED,
    )
    return made, Partition(flat, np.arange(w.clients + 1) * w.each)


def plain_draws(name: str, rounds: int) -> list[list[tuple[int, Array]]]:
    """For each round (client number, order of its rows): the draws an Atoll run of the job makes.

    Contestants get them before their clock starts, so they pay nothing for drawing.
    """
    w, ids, seed = WORKLOADS[name], client_ids(WORKLOADS[name].clients), Seed(SEED)
    number = {client: i for i, client in enumerate(ids)}

    def order(client: str, version: int) -> Array:
        stream = seed / "task" / client / version / 0 / "fit" / "epoch" / 0
        return stream.generator().permutation(w.each)

    return [
        [(number[c], order(c, r)) for c in _cohort(w).draw(ids, seed / "round" / r)]
        for r in range(rounds)
    ]
