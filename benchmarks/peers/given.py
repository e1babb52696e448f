"""What every contestant is given, and what it gives back (NumPy only: peers import this at their place).

A folder per workload holds the rows of each client, the initial weights, and the cohorts and batch orders that
an Atoll run of the job draws. Contestants read it before their clock starts, so that all do the same work.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

__all__ = [
    "FOLDER",
    "LOCAL",
    "METHODS",
    "NETWORKS",
    "OVER",
    "Given",
    "asked",
    "finish",
    "rounds_over",
]

FOLDER = Path(__file__).parents[2] / ".bench" / "peers"

Array = np.ndarray[Any, Any]
Layer = tuple[str | int, ...]


def _convolutions(*channels: int, padding: int) -> tuple[Layer, ...]:
    return tuple(
        layer
        for a, b in pairwise(channels)
        for layer in (("conv", a, b, 5, padding), ("relu",), ("pool", 2))
    )


NETWORKS: Mapping[str, tuple[Layer, ...]] = MappingProxyType(
    {
        "W1": (("dense", 784, 200), ("relu",), ("dense", 200, 10)),
        "W2": (*_convolutions(1, 16, 32, padding=0), ("flatten",), ("dense", 512, 10)),
        "W3": (
            *_convolutions(1, 32, 64, padding=2),
            ("flatten",),
            *(("dense", 3136, 512), ("relu",), ("dense", 512, 10)),
        ),
        "W4": (("dense", 30, 2),),
    }
)
"""The networks, in words that each framework turns into its own: ``conv`` in, out, kernel, padding."""

METHODS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "fedavg": {},
        "fedprox": {"mu": 0.1},
        "scaffold": {},
        "fedadam": {
            "server_lr": 0.01,
            "beta1": 0.9,
            "beta2": 0.99,
            "tau": 1e-3,
            "initial_v": 0.0,
            "bias_correction": "t+1",
        },
        "momentum": {},
        "adam": {},
    }
)
"""Methods and their options, by Atoll's names. FedAdam's correction and start are those Flower has built in.

The last two are FedAvg with another local optimiser, :data:`LOCAL`.
"""

LOCAL: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"momentum": {"momentum": 0.9}, "adam": {"name": "adam", "lr": 0.001}}
)
"""What a method changes of the local optimiser, which is SGD at the workload's rate; by Atoll's names."""


@dataclass(frozen=True)
class Given:
    """One run to make.

    Args:
        name: of the workload.
        method: a name of :data:`METHODS`.
        rounds: to run.
        workers: processes or threads to use.
        mode: what else a runner can choose.
        out: file for the final weights.
    """

    name: str
    method: str
    rounds: int
    workers: int
    mode: str
    out: str

    @cached_property
    def facts(self) -> dict[str, Any]:
        """``clients``, ``each``, ``cohort``, ``batch``, ``lr`` of the workload."""
        found: dict[str, Any] = json.loads((FOLDER / self.name / "facts.json").read_text())
        return found

    @property
    def options(self) -> Mapping[str, Any]:
        """Of the method."""
        return METHODS[self.method]

    @property
    def optimizer(self) -> Mapping[str, Any]:
        """Of the clients: ``name``, ``lr``, ``momentum``."""
        plain = {"name": "sgd", "lr": self.facts["lr"], "momentum": 0.0}
        return {**plain, **LOCAL.get(self.method, {})}

    def array(self, what: str, mapped: bool = False) -> Array:
        """``x``, ``y`` of the clients, ``cohorts`` (rounds, places), ``orders`` (rounds, places, rows)."""
        path = FOLDER / self.name / f"{what}.npy"
        found: Array = np.load(path, mmap_mode="r" if mapped else None)
        return found

    def initial(self) -> list[Array]:
        """Weights to start from, in the order of torch's ``parameters()`` and in its layouts."""
        with np.load(FOLDER / self.name / "initial.npz") as file:
            return [file[f"p{i}"] for i in range(len(file.files))]


def asked(doc: str | None) -> Given:
    """Read the command line of a runner."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("name", choices=list(NETWORKS))
    parser.add_argument("--method", choices=list(METHODS), default="fedavg")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--mode", default="")
    parser.add_argument("--out", required=True)
    return Given(**vars(parser.parse_args()))


OVER = "BENCH_OVER"


def rounds_over() -> None:
    """Tell whoever watches the memory that the rounds are done: what follows is only scoring."""
    if path := os.environ.get(OVER):
        Path(path).touch()


def finish(given: Given, ends: Sequence[float], weights: Iterable[Array]) -> None:
    """Save the final weights and print the clock's readings.

    Args:
        given: the run.
        ends: seconds of the epoch at the start and at the end of each round.
        weights: final ones, in the order and layouts of :meth:`Given.initial`.
    """
    rounds_over()
    np.savez(given.out, **{f"p{i}": np.asarray(w) for i, w in enumerate(weights)})
    print("\nRESULT " + json.dumps({"ends": list(ends)}), flush=True)
