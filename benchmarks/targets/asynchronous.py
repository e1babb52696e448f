"""Asynchronous against synchronous rounds in virtual time.

Synthetic(1, 1) spread over 100 clients by cutting each device's rows, exponential task durations with
mean 1. FedAvg waits for the slowest client of each round, with all 100 clients or with 10 drawn uniformly;
FedBuff has K = 10 and 100 clients at work. The time is virtual seconds until the global training loss
first reaches what FedAvg with all clients reaches after 60 rounds; three seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from atoll import (
    Asynchronous,
    Clock,
    Cohort,
    Delay,
    Job,
    LocalWork,
    Optimizer,
    Stop,
    Synchronous,
    simulate,
)
from atoll.algorithms import FedAvg, FedBuff
from atoll.core.contracts import Examples
from atoll.core.seeds import Seed
from atoll.data.synthetic import synthetic
from atoll.models.linear import LinearTrainer
from benchmarks.targets.judge import deviation, mean

SEEDS = (1, 2, 3)
CLIENTS, ROUNDS = 100, 60


def runs() -> list[tuple[str, dict[str, Any]]]:
    """Every run of the comparison."""
    return [(f"ASYNC/{s}", {"seed": s}) for s in SEEDS]


def _clients(seed: int) -> dict[str, Examples]:
    """The largest devices halved until there are 100 clients: labels stay as skewed as they were."""
    train, _ = synthetic(1.0, 1.0, Seed(seed) / "synthetic")
    parts = [train[c] for c in train]
    while len(parts) < CLIENTS:
        parts.sort(key=len)
        big = parts.pop()
        half = len(big) // 2
        parts += [
            Examples(big.features[:half], big.targets[:half]),
            Examples(big.features[half:], big.targets[half:]),
        ]
    return {f"client-{i:04d}": e for i, e in enumerate(parts)}


def run(seed: int) -> dict[str, float]:
    """Both runs of one seed; virtual seconds to the same loss, and their ratio."""
    clients = _clients(seed)
    whole = Examples(
        np.concatenate([e.features for e in clients.values()]),
        np.concatenate([e.targets for e in clients.values()]),
    )
    trainer = LinearTrainer("multinomial", 60, 10, dtype="float32")
    common: dict[str, Any] = {
        "trainer": trainer,
        "local": LocalWork(1, batch_size=10, optimizer=Optimizer(lr=0.01)),
        "clock": Clock(Delay("exponential", 1.0)),
        "federated": False,
    }
    everyone = Job(**common, algorithm=FedAvg(), stop=Stop(rounds=ROUNDS))
    first = simulate(everyone, clients, central=whole, seed=seed)
    goal = first.rounds[-1]["central"]["loss"]
    few = Job(
        **common,
        algorithm=FedAvg(),
        schedule=Synchronous(Cohort("uniform", 10)),
        stop=Stop(rounds=20 * ROUNDS, metric="central.loss", target=goal),
    )
    drawn = simulate(few, clients, central=whole, seed=seed)
    buffered = Job(
        **common,
        algorithm=FedBuff(),
        schedule=Asynchronous(buffer=10),
        stop=Stop(rounds=20 * ROUNDS, metric="central.loss", target=goal),
    )
    second = simulate(buffered, clients, central=whole, seed=seed)
    slow, sampled, fast = (_reached(r.rounds, goal) for r in (first, drawn, second))
    return {
        "loss": goal,
        "synchronous": slow,
        "sampled": sampled,
        "asynchronous": fast,
        "ratio": slow / fast,
        "ratio_sampled": sampled / fast,
        "staleness": mean([r["staleness"]["mean"] for r in second.rounds]),
    }


def _reached(rounds: Sequence[Mapping[str, Any]], goal: float) -> float:
    """Virtual time at which the loss first was at most ``goal``."""
    return next((float(r["clock"]) for r in rounds if r["central"]["loss"] <= goal), math.inf)


def table(results: dict[str, dict[str, float]]) -> list[str]:
    """The section of ``docs/results.md``."""
    lines = [
        "## Asynchronous against synchronous",
        "",
        (__doc__ or "").strip().split("\n\n")[1].replace("\n", " "),
        "",
        "| seed | loss reached | FedAvg, 100 clients | FedAvg, 10 of 100 | FedBuff, K = 10 | "
        "ratio | ratio to 10 of 100 | mean staleness |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found = [(s, results[f"ASYNC/{s}"]) for s in SEEDS if f"ASYNC/{s}" in results]
    lines += [
        f"| {s} | {r['loss']:.4f} | {r['synchronous']:.1f} | {r['sampled']:.1f} | "
        f"{r['asynchronous']:.1f} | {r['ratio']:.2f} | {r['ratio_sampled']:.2f} | "
        f"{r['staleness']:.1f} |"
        for s, r in found
    ]
    if found:
        ratios = [r["ratio"] for _, r in found]
        sampled = [r["ratio_sampled"] for _, r in found]
        lines += [
            "",
            f"In virtual time FedBuff is {mean(ratios):.2f} ± {deviation(ratios):.2f} times as fast as "
            f"FedAvg over all clients, and {mean(sampled):.2f} ± {deviation(sampled):.2f} times as fast "
            "as FedAvg with ten. Two things make it so: updates arrive 5.19 times as fast (identity "
            "8), and a server step is made of 10 of them, not of 100.",
        ]
    return [*lines, ""]
