"""A round in one process: clients with losses simple enough to solve on paper, and the exact fold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from atoll.aggregation.exact import Fold
from atoll.core.contracts import Algorithm, Examples, Trainer, Weighting, Work
from atoll.core.layout import Array, Entry, Layout
from atoll.core.local import Fit, LocalRule, LocalWork, Optimizer
from atoll.core.metrics import Mean, Metrics
from atoll.core.seeds import Seed
from atoll.core.values import Memory, State, Update


@dataclass(frozen=True, eq=False)
class Quadratic:
    """f(w) = sum a/2 (w - b)^2, held by ``rows`` rows."""

    a: Any
    b: Any
    rows: int = 1

    def __len__(self) -> int:
        return self.rows


@dataclass(frozen=True, eq=False)
class QuadraticTrainer:
    """Gradient steps on a Quadratic, or its exact minimum under the rule.

    The entry ``stats``, where the layout has one, behaves like BatchNorm: training sets it to mean(b).
    ``noise`` is the sd of gradient noise drawn from the task's seed.
    """

    layout: Layout
    exact: bool = False
    noise: float = 0.0
    corrects: bool = True

    def initial(self, seed: Seed) -> Array:
        return seed.generator().normal(size=self.layout.size).astype(self.layout.dtype)

    def fit(
        self,
        parameters: Array,
        data: Quadratic,
        *,
        work: LocalWork,
        rule: LocalRule,
        seed: Seed,
        round: int,
    ) -> Fit:
        whole, rng, o = parameters.copy(), seed.generator(), work.optimizer
        steps = int(work.epochs) if work.steps is None else work.steps
        w = whole[self.layout.trainable]
        ours = slice(0, self.layout.shared.stop - self.layout.trainable.start)  # shared, in w
        there = self.layout.shared_trainable
        anchor = None if rule.anchor is None else rule.anchor[there]
        shift = None if rule.shift is None else rule.shift[there]
        if self.exact:
            top, bottom = data.a * data.b + np.zeros_like(w), data.a + np.zeros_like(w)
            if rule.mu:
                top[ours] += rule.mu * anchor
                bottom[ours] += rule.mu
            if shift is not None:
                top[ours] -= shift
            w[:], steps = top / bottom, 1
        else:
            velocity = np.zeros_like(w)
            for _ in range(steps):
                g = (data.a * (w - data.b)).astype(w.dtype)
                if self.noise:
                    g += (self.noise * rng.normal(size=g.size)).astype(w.dtype)
                rule.correct(g[ours], w[ours], anchor, shift)
                velocity = o.momentum * velocity + g
                w -= o.lr * (g + o.momentum * velocity if o.nesterov else velocity)
        if steps and "stats" in (e.name for e in self.layout.entries):
            self.layout.views(whole)["stats"][...] = np.mean(data.b)
        return Fit(whole, steps, steps * o.lr, len(data), self._loss(w, data))

    def gradient(self, parameters: Array, data: Quadratic) -> tuple[Array, float]:
        g = np.zeros_like(parameters)
        w = parameters[self.layout.trainable]
        g[self.layout.trainable] = data.a * (w - data.b)
        return g, self._loss(w, data)

    def evaluate(self, parameters: Array, data: Quadratic) -> Metrics:
        return {"loss": Mean.of(self._loss(parameters[self.layout.trainable], data), len(data))}

    @staticmethod
    def _loss(w: Array, data: Quadratic) -> float:
        return float(np.sum(data.a / 2 * (w - data.b).astype(np.float64) ** 2))


@dataclass(frozen=True, eq=False)
class LeastSquaresTrainer:
    """Mean of (x.w - y)^2 / 2 by SGD over batches in the order of the rows."""

    layout: Layout
    corrects: bool = True

    def initial(self, seed: Seed) -> Array:
        return np.zeros(self.layout.size, self.layout.dtype)

    def fit(
        self,
        parameters: Array,
        data: Examples,
        *,
        work: LocalWork,
        rule: LocalRule,
        seed: Seed,
        round: int,
    ) -> Fit:
        w, n = parameters.copy(), len(data)
        size = work.batch_size or n
        losses = []
        for _ in range(int(work.epochs)):
            for first in range(0, n, size):
                rows = slice(first, first + size)
                g, loss = self.gradient(w, Examples(data.features[rows], data.targets[rows]))
                rule.correct(g, w, rule.anchor, rule.shift)
                w -= work.optimizer.lr * g
                losses.append(loss)
        steps = len(losses)
        return Fit(w, steps, steps * work.optimizer.lr, n, float(np.mean(losses)))

    def gradient(self, parameters: Array, data: Examples) -> tuple[Array, float]:
        error = data.features @ parameters - data.targets
        return data.features.T @ error / len(data), float(np.mean(error**2) / 2)

    def evaluate(self, parameters: Array, data: Examples) -> Metrics:
        return {"loss": Mean.of(self.gradient(parameters, data)[1], len(data))}


def vector_layout(size: int = 1, dtype: str = "float64") -> Layout:
    """``size`` shared, trained parameters and nothing else."""
    return Layout.of([Entry("w", (size,), dtype)], dtype=dtype)


def sgd(lr: float, steps: int, **more: Any) -> LocalWork:
    """``steps`` plain steps of rate ``lr``."""
    return LocalWork(steps=steps, batch_size=0, optimizer=Optimizer(lr=lr, **more))


@dataclass(frozen=True, eq=False)
class Setting:
    """What is fixed over the rounds of one test.

    ``steps`` gives single clients another number of local steps; ``scales`` a staleness factor.
    """

    algorithm: Algorithm
    trainer: Trainer
    clients: Mapping[str, Any]
    local: LocalWork
    weighting: Weighting = field(default_factory=Weighting)
    steps: Mapping[str, int] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def start(self, parameters: Array | float = 0.0) -> State:
        layout = self.trainer.layout
        whole = np.zeros(layout.size, layout.dtype) + np.asarray(parameters, layout.dtype)
        return self.algorithm.init(whole, layout, len(self.clients))

    def work(self, client: str, round: int) -> Work:
        data = self.clients[client]
        local = replace(self.local, steps=self.steps.get(client, self.local.steps))
        stream = Seed(self.seed) / "task" / client / round
        weight = self.weighting.of(client, len(data))
        return Work(client, weight, self.trainer, data, local, stream, round)

    def updates(
        self, state: State, memories: Mapping[str, Memory], cohort: Iterable[str]
    ) -> tuple[dict[str, Update], dict[str, Memory]]:
        """Each client's update, and all memories afterwards."""
        broadcast, kept, sent = self.algorithm.broadcast(state), dict(memories), {}
        for client in cohort:
            work = self.work(client, state.round)
            sent[client], kept[client] = self.algorithm.client(
                broadcast, memories.get(client, {}), work
            )
        return sent, kept

    def step(self, state: State, sent: Mapping[str, Update]) -> State:
        """Fold the updates in their order and take the server's step."""
        fold = Fold()
        for client, update in sent.items():
            fold.add(update, self.scales.get(client, 1.0))
        return self.algorithm.server(state, fold.aggregate())

    def round(
        self,
        state: State,
        memories: Mapping[str, Memory] | None = None,
        cohort: Iterable[str] | None = None,
    ) -> tuple[State, dict[str, Memory]]:
        sent, kept = self.updates(state, memories or {}, cohort or self.clients)
        return self.step(state, sent), kept

    def play(
        self,
        rounds: int,
        parameters: Array | float = 0.0,
        cohort: Callable[[int], Iterable[str]] | None = None,
    ) -> State:
        """The state after ``rounds`` rounds; ``cohort`` chooses the clients of each."""
        state, memories = self.start(parameters), {}
        for r in range(rounds):
            state, memories = self.round(state, memories, cohort(r) if cohort else None)
        return state


def heterogeneous() -> dict[str, Quadratic]:
    """Four clients with a = (1, 4, .5, 2), b = (0, 1, -2, 3) and weights .1, .2, .3, .4."""
    rows = zip("abcd", (1.0, 4.0, 0.5, 2.0), (0.0, 1.0, -2.0, 3.0), (1, 2, 3, 4), strict=True)
    return {name: Quadratic(a, b, n) for name, a, b, n in rows}


HARNESS = SimpleNamespace(
    Quadratic=Quadratic,
    QuadraticTrainer=QuadraticTrainer,
    LeastSquaresTrainer=LeastSquaresTrainer,
    Setting=Setting,
    heterogeneous=heterogeneous,
    sgd=sgd,
    vector_layout=vector_layout,
)


@pytest.fixture(scope="session")
def h() -> SimpleNamespace:
    """The harness above, for tests that cannot import this file by name."""
    return HARNESS
