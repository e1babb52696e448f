"""Clients for runtime tests: importable by worker processes, good or bad on demand.

A client's mood is written in the first feature of its first row, so it travels with its data.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from atoll.algorithms import FedAvg
from atoll.core.contracts import Examples, Weighting
from atoll.core.layout import Layout
from atoll.core.local import Fit, LocalWork, Optimizer
from atoll.core.seeds import Seed
from atoll.core.values import Memory
from atoll.models.linear import LinearTrainer
from atoll.runtime.client import Parts

RAISES, DIES, SLOW, WILD, EVALUATION_RAISES = 101.0, 102.0, 103.0, 104.0, 105.0
FEATURES = 3
MUCH = 6000
"""Values of a memory that is too large for a message."""


@dataclass(frozen=True, eq=False)
class Moody:
    """A LinearTrainer that some clients upset. ``from_round`` is when moods begin to show."""

    inner: LinearTrainer
    from_round: int = 0
    scale: float = 1.0

    @property
    def layout(self) -> Layout:
        return self.inner.layout

    @property
    def corrects(self) -> bool:
        return True

    def initial(self, seed: Seed) -> Any:
        drawn = seed.generator().normal(size=self.layout.size) * 0.1
        return drawn.astype(self.layout.dtype)

    def fit(self, parameters: Any, data: Any, **how: Any) -> Fit:
        mood = float(data.features[0, 0]) if how["round"] >= self.from_round else 0.0
        if mood == RAISES:
            raise ValueError("this client is out of luck")
        if mood == DIES and in_a_worker():
            os.kill(os.getpid(), signal.SIGKILL)
        if mood == SLOW:
            time.sleep(0.05)
        fit = self.inner.fit(parameters, data, **how)
        if mood == WILD:
            fit.parameters[...] = self.scale
        return fit

    def gradient(self, parameters: Any, data: Any) -> tuple[Any, float]:
        if float(data.features[0, 0]) == RAISES:
            raise ValueError("this client is out of luck")
        slope, loss = self.inner.gradient(parameters, data)
        if float(data.features[0, 0]) == WILD:
            slope[...] = self.scale
        return slope, loss

    def evaluate(self, parameters: Any, data: Any) -> Any:
        if float(data.features[0, 0]) == EVALUATION_RAISES:
            raise ValueError("cannot be judged")
        return self.inner.evaluate(parameters, data)


def in_a_worker() -> bool:
    """Whether this is not the process of the test: a child of it, or a Ray actor."""
    return multiprocessing.parent_process() is not None or "pytest" not in sys.modules


@dataclass(frozen=True, eq=False)
class Unsendable:
    """A trainer's companion that no process can be sent."""

    trainer: Any
    hidden: Any = field(default_factory=lambda: lambda: None)

    @property
    def layout(self) -> Layout:
        return self.trainer.layout

    def initial(self, seed: Seed) -> Any:
        return self.trainer.initial(seed)


@dataclass(frozen=True)
class Notes(FedAvg):
    """Every client remembers much: how often it took part, and what it last began from."""

    def client(self, broadcast: Any, memory: Memory, work: Any) -> Any:
        update, kept = super().client(broadcast, memory, work)
        told = memory.get("told", np.zeros(MUCH, np.float32)) + 1
        begun = np.resize(broadcast.parameters, (MUCH // 2, 2)).astype(np.float64)
        return update, {**kept, "told": told, "begun": begun}


def rows(n: int, seed: int, mood: float = 0.0, *, shift: float = 0.0) -> Examples:
    """``n`` rows of a noisy logistic model."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, FEATURES)) + shift
    targets = (features.sum(1) + rng.normal(size=n) > 3 * shift).astype(np.int64)
    if mood:
        features[0, 0] = mood
    return Examples(features, targets)


def federation(
    sizes: Mapping[str, int], moods: Mapping[str, float] | None = None
) -> dict[str, Examples]:
    """Clients of the given sizes, each with its own distribution."""
    moods = moods or {}
    return {
        name: rows(n, i, moods.get(name, 0.0), shift=0.1 * i)
        for i, (name, n) in enumerate(sizes.items())
    }


SIZES = {f"c{i}": n for i, n in enumerate((40, 7, 23, 1, 64, 12, 30, 5, 18, 9))}


def parts(
    algorithm: Any,
    clients: Mapping[str, Examples] | None = None,
    *,
    seed: int = 3,
    held_out: bool = True,
    from_round: int = 0,
    scale: float = 1.0,
    weights: str = "",
    personal: tuple[str, ...] = ("intercept",),
) -> Parts:
    """A run's fixed parts: logistic regression whose intercept stays at the client."""
    given = clients or federation(SIZES)
    uniform = type(algorithm).__name__ == "FedDyn"
    inner = LinearTrainer("logistic", FEATURES, personal=personal, dtype="float32")
    return Parts(
        algorithm=algorithm,
        trainer=Moody(inner, from_round, scale),
        clients=given,
        seed=Seed(seed),
        local=LocalWork(epochs=2, batch_size=8, optimizer=Optimizer(lr=0.2)),
        weighting=Weighting(weights or ("uniform" if uniform else "examples")),
        held_out={c: rows(6 + i, 100 + i) for i, c in enumerate(given)} if held_out else {},
    )
