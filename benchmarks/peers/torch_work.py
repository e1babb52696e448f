"""The networks and the one local training routine of all peers that use torch (torch and NumPy only)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peers.given import NETWORKS, Given

__all__ = ["Network", "Start", "as_arrays", "client_tensors", "load", "optimizer", "train"]


def _layer(kind: str, *sizes: int) -> nn.Module:
    if kind == "conv":
        return nn.Conv2d(*sizes[:3], padding=sizes[3])
    made: dict[str, type[nn.Module]] = {
        "dense": nn.Linear,
        "relu": nn.ReLU,
        "pool": nn.MaxPool2d,
        "flatten": nn.Flatten,
    }
    return made[kind](*sizes)


class Network(nn.Sequential):
    """A workload's network, by its name."""

    def __init__(self, name: str) -> None:
        super().__init__(*(_layer(*layer) for layer in NETWORKS[name]))

    @classmethod
    def of(cls, given: Given) -> Network:
        """With the initial weights."""
        made = cls(given.name)
        load(made, given.initial())
        return made


class Start(Network):
    """With the initial weights, for a system that builds its model by class and arguments."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        load(self, Given(name, "fedavg", 0, 1, "", "").initial())


def load(model: nn.Module, weights: Sequence[Any]) -> None:
    """Copy weights into a model."""
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), weights, strict=True):
            parameter.copy_(torch.as_tensor(value))


def as_arrays(model: nn.Module) -> list[Any]:
    """A model's weights."""
    return [p.detach().numpy() for p in model.parameters()]


def client_tensors(given: Given) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Rows and labels of each client, in memory."""
    x, y = given.array("x"), given.array("y")
    return [torch.from_numpy(part) for part in x], [torch.from_numpy(part) for part in y]


def optimizer(given: Given, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """A client's optimiser, as the method asks for it."""
    o = given.optimizer
    if o["name"] == "adam":
        return torch.optim.Adam(parameters, lr=lr)
    return torch.optim.SGD(parameters, lr=lr, momentum=o["momentum"])


def train(model: nn.Module, given: Given, x: Tensor, y: Tensor, order: Any) -> None:
    """One epoch over a client's rows in ``order``; with FedProx, towards where it starts."""
    mu = given.options.get("mu", 0.0)
    start = [p.detach().clone() for p in model.parameters()] if mu else []
    local = optimizer(given, model.parameters(), given.optimizer["lr"])
    index = torch.from_numpy(order)
    x, y, size = x[index], y[index], given.facts["batch"]
    for first in range(0, len(y), size):
        local.zero_grad()
        out = model(x[first : first + size])
        functional.cross_entropy(out, y[first : first + size]).backward()
        with torch.no_grad():
            for parameter, value in zip(model.parameters() if mu else (), start, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter - value, alpha=mu)
        local.step()
