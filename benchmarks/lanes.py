"""Lanes against client by client, on one core: W1 and W2, one round's cohort.

Run ``python -m benchmarks.lanes [turns] [widths ...]`` (default: 5 turns, widths 2, 10 and 50). In every
turn each way trains the same clients from the same weights; ways take turns, and the table gives
the median of a way's seconds and of its ratio to the general path within a turn. ``general`` is autograd
client by client, ``compiled`` the replayed step. The last columns are distances of clients' vectors from
the general path's, as shares of how far a client moved: the median and the largest. Where two inputs of a
ReLU or a pooling are equal up to rounding (flat parts of an image), a client may go another way at a kink;
in float64 there are none here.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from atoll.core.contracts import Examples, Lane
from atoll.core.local import Fit, LocalRule
from atoll.core.seeds import Seed
from atoll.models.torch.lanes import LanesTrainer
from benchmarks.workloads import SEED, WORKLOADS, job, prepare

Way = Callable[[], Sequence[Fit]]


def cohort(name: str) -> tuple[Any, list[Lane]]:
    """The trainer of a workload and the clients of one round."""
    made, clients = job(name, 1)
    names = list(clients)[: WORKLOADS[name].cohort]
    lanes = [
        Lane(
            Examples(np.asarray(clients[c].features), np.asarray(clients[c].targets)),
            made.local,
            LocalRule(),
            Seed(SEED) / "lane" / c,
            1.0,
        )
        for c in names
    ]
    return made.trainer, lanes


def ways(trainer: Any, lanes: Sequence[Lane], widths: Sequence[int]) -> dict[str, Way]:
    """Each way to train the clients, by name."""
    starts = [trainer.initial(Seed(SEED))] * len(lanes)

    def singly(path: str) -> Way:
        own = replace(trainer, path=path)
        return lambda: [
            own.fit(v, e.data, work=e.work, rule=e.rule, seed=e.seed, round=0)
            for v, e in zip(starts, lanes, strict=True)
        ]

    def beside(width: int) -> Way:
        own = LanesTrainer(replace(trainer, path="general"), width)
        return lambda: own.fit_lanes(starts, lanes, round=0)

    named = {path: singly(path) for path in ("general", "compiled")}
    return named | {f"lanes {w}": beside(w) for w in widths}


def distances(found: Sequence[Fit], wanted: Sequence[Fit], start: Any) -> list[float]:
    """How far each vector is from the wanted one, as a share of how far that client moved."""
    return [
        float(np.linalg.norm(a.parameters - b.parameters) / np.linalg.norm(b.parameters - start))
        for a, b in zip(found, wanted, strict=True)
    ]


def measure(name: str, turns: int, widths: Sequence[int]) -> None:
    """Print one row per way."""
    prepare(name)
    trainer, lanes = cohort(name)
    named = ways(trainer, lanes, widths)
    first = {way: train() for way, train in named.items()}  # also warms everything up
    taken: dict[str, list[float]] = {way: [] for way in named}
    for _ in range(turns):
        for way, train in named.items():
            start = time.perf_counter()
            train()
            taken[way].append(time.perf_counter() - start)
    for way, seconds in taken.items():
        ratios = [s / g for s, g in zip(seconds, taken["general"], strict=True)]
        apart = distances(first[way], first["general"], trainer.initial(Seed(SEED)))
        print(
            f"{name:4} {len(lanes):8} {way:10} {statistics.median(seconds):9.3f} "
            f"{statistics.median(ratios):11.2f} "
            f"{statistics.median(apart):9.1e} {max(apart):9.1e}",
            flush=True,
        )


def main(turns: int = 5, *widths: int) -> None:
    """Print the table of both workloads."""
    print(
        f"{'':4} {'clients':>8} {'way':10} {'seconds':>9} {'of general':>11} {'median':>9} {'largest':>9}"
    )
    for name in ("W1", "W2"):
        measure(name, turns, widths or (2, 10, 50))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
