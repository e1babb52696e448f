"""What Atoll is held against: the same work as a plain torch loop, federated and centralised.

The federated loop is what one writes in an afternoon: load the global weights, run local SGD, add the
trained weights up. It is handed its cohorts and batch orders, keeps no records, checks nothing and sums
in float32 in the order of arrival. The centralised one takes as many SGD steps on the same rows with one
model. With two processes, each takes every second client; sums meet in shared memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn import functional

from atoll.core.seeds import Seed
from benchmarks.machine import memory
from benchmarks.peers.given import rounds_over
from benchmarks.workloads import SEED, WORKLOADS, Rows, cnn, plain_draws, rows, zero_logistic

__all__ = ["Measured", "loss_and_accuracy", "network", "run", "settle"]

Draws = Sequence[tuple[int, Any]]


@dataclass(frozen=True)
class Measured:
    """Outcome of a run.

    Args:
        ends: clock at the start and at the end of each round, in seconds of the epoch.
        loss, accuracy: of the final model on the test rows.
        cpu: processor seconds of this process at the same moments.
        held: memory of the process tree after the last round, see :func:`benchmarks.machine.memory`.
    """

    ends: Sequence[float]
    cpu: Sequence[float]
    loss: float
    accuracy: float
    held: float


def _dense() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))


def _paper() -> nn.Module:
    convolutions = [
        layer
        for a, b in ((1, 32), (32, 64))
        for layer in (nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
    ]
    dense = [nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(*convolutions, *dense)


_NETWORKS: dict[str, Callable[[], Any]] = {
    "W1": _dense,
    "W2": cnn,
    "W3": _paper,
    "W4": zero_logistic,
}


def network(name: str) -> nn.Module:
    """A workload's network with the weights every contestant starts from."""
    torch.manual_seed((Seed(SEED) / "initial").integer())
    made: nn.Module = _NETWORKS[name]()
    return made


def loss_and_accuracy(name: str, model: nn.Module) -> tuple[float, float]:
    """On the workload's test rows."""
    data = rows(name)
    x, y = torch.from_numpy(data.test_x), torch.from_numpy(data.test_y)
    with torch.no_grad():
        out = torch.cat([model.eval()(part) for part in x.split(1000)])
    loss = functional.cross_entropy(out, y).item()
    return loss, (out.argmax(1) == y).double().mean().item()


class _Part:
    """One process's share of the work: its model, its data, its running sum."""

    def __init__(self, name: str, data: Rows, federated: bool) -> None:
        self.w, self.federated = WORKLOADS[name], federated
        self.x = [torch.from_numpy(x) for x in data.x]
        self.y = [torch.from_numpy(y) for y in data.y]
        self.model = network(name)
        self.sgd = torch.optim.SGD(self.model.parameters(), lr=self.w.lr)
        self.sums = [torch.zeros_like(p) for p in self.model.parameters()]

    def round(self, weights: Sequence[Tensor], draws: Draws) -> None:
        """Train on the drawn clients; afterwards ``sums`` holds this part of the mean."""
        own = list(self.model.parameters())
        for total in self.sums:
            total.zero_()
        for client, order in draws:
            with torch.no_grad():
                if self.federated:
                    for parameter, value in zip(own, weights, strict=True):
                        parameter.copy_(value)
            self.train(client, torch.from_numpy(order))
            with torch.no_grad():
                if self.federated:
                    for total, parameter in zip(self.sums, own, strict=True):
                        total.add_(parameter, alpha=1.0 / self.w.cohort)

    def train(self, client: int, order: Tensor) -> None:
        """One epoch of SGD on one client's rows."""
        x, y, size = self.x[client][order], self.y[client][order], self.w.batch
        for start in range(0, len(y), size):
            self.sgd.zero_grad()
            out = self.model(x[start : start + size])
            functional.cross_entropy(out, y[start : start + size]).backward()
            self.sgd.step()


def _work(pipe: Any, part: _Part, weights: list[Tensor], out: list[Tensor]) -> None:
    torch.set_num_threads(1)
    pipe.send("ready")
    while (draws := pipe.recv()) is not None:
        part.round(weights, draws)
        for shared, own in zip(out, part.sums, strict=True):
            shared.copy_(own)
        pipe.send("done")


def run(name: str, rounds: int, workers: int, federated: bool) -> Measured:
    """Run a workload with 1 process, or with ``workers`` beside this one."""
    torch.set_num_threads(1)
    draws = plain_draws(name, rounds)
    model = network(name)
    if workers == 1:
        return _alone(name, draws, model, federated)
    part = _Part(name, rows(name), federated)  # forked: the children share its pages
    context: Any = torch.multiprocessing.get_context("fork")
    weights = [p.detach().clone().share_memory_() for p in model.parameters()]
    sums = [[torch.zeros_like(v).share_memory_() for v in weights] for _ in range(workers)]
    pipes = []
    for out in sums:
        ours, theirs = context.Pipe()
        context.Process(target=_work, args=(theirs, part, weights, out), daemon=True).start()
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv()
    ends, cpu = [time.time()], [time.process_time()]
    for drawn in draws:
        for number, pipe in enumerate(pipes):
            pipe.send(drawn[number::workers])
        for pipe in pipes:
            pipe.recv()
        if federated:
            for value, *parts in zip(weights, *sums, strict=True):
                value.copy_(torch.stack(parts).sum(0))
        ends.append(time.time())
        cpu.append(time.process_time())
    held = memory(os.getpid())
    for pipe in pipes:
        pipe.send(None)
    return Measured(ends, cpu, *_scores(name, model, weights), held)


def _alone(name: str, draws: Sequence[Draws], model: nn.Module, federated: bool) -> Measured:
    part = _Part(name, rows(name), federated)
    weights = [p.detach().clone() for p in model.parameters()]
    ends, cpu = [time.time()], [time.process_time()]
    for drawn in draws:
        part.round(weights, drawn)
        if federated:
            weights = [total.clone() for total in part.sums]
        ends.append(time.time())
        cpu.append(time.process_time())
    held = memory(os.getpid())
    final = weights if federated else [p.detach() for p in part.model.parameters()]
    return Measured(ends, cpu, *_scores(name, model, final), held)


def _scores(name: str, model: nn.Module, weights: Sequence[Tensor]) -> tuple[float, float]:
    rounds_over()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), weights, strict=True):
            parameter.copy_(value)
    return loss_and_accuracy(name, model)


def settle(values: Sequence[float]) -> float:
    """Median length of the rounds, leaving out the first ones, in which caches fill."""
    lengths = np.diff(values)
    return float(np.median(lengths[min(2, len(lengths) - 1) :]))
