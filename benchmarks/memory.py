"""Memory of runs with 10,000 simulated clients of 60 rows: over rounds, and over sizes of the cohort.

``python -m benchmarks.memory COHORT ROUNDS`` makes one run and prints ``RESULT`` and JSON: what the whole
process tree holds (MB) at the end of some rounds, and at most while the last of them ran. The model
is a dense network 64-512-10 (38,410 parameters, 150 kB); the rows are random, 64 values each.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import numpy as np

from atoll import Cohort, Job, LocalWork, Optimizer, Stop, Synchronous, simulate
from atoll.core.contracts import Examples
from atoll.data.partition import Partition
from benchmarks.machine import memory

CLIENTS, EACH, VALUES, HIDDEN = 10_000, 60, 64, 512
LOOK = (10, 50, 200)
"""Rounds after which memory is read."""


def federation(clients: int) -> Partition:
    """Random rows that hold a pattern to learn."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((clients * EACH, VALUES), dtype=np.float32)
    y = x[:, :10].argmax(1)
    return Partition(Examples(x, y), np.arange(clients + 1) * EACH)


def a_job(cohort: int, rounds: int) -> Job:
    """One epoch of batch 10 at each client of the cohort; nothing is evaluated."""
    from atoll.models.networks import mlp
    from atoll.models.torch.adapter import TorchTrainer

    return Job(
        trainer=TorchTrainer(mlp, {"inputs": VALUES, "hidden": (HIDDEN,), "classes": 10}),
        local=LocalWork(1, batch_size=10, optimizer=Optimizer(lr=0.05)),
        schedule=Synchronous(Cohort("uniform", cohort)),
        stop=Stop(rounds=rounds),
        evaluate_every=0,
        central=False,
        federated=False,
        checkpoint_every=0,
    )


class Watch:
    """Reads the tree's memory after the rounds of ``LOOK``, and its peak between them.

    The peak comes from a thread that looks five times a second, so it is a lower bound.
    """

    def __init__(self) -> None:
        self.held: dict[int, float] = {}
        self.peak: dict[int, float] = {}
        self.first = float("nan")
        self._top = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._ended.wait(0.2):
            self._top = max(self._top, memory(os.getpid()))

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Observe one round."""
        number = int(record["round"])
        if number == 1:
            self.first = time.time() - float(os.environ.get("BENCH_START", "nan"))
            self._thread.start()
        elif number == LOOK[0] - 1:
            self._top = 0.0  # from here on workers and caches are warm
        if number in LOOK:
            now = memory(os.getpid())
            self.held[number], self.peak[number] = now, max(now, self._top)
            self._top = 0.0

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cohort", type=int)
    parser.add_argument("rounds", type=int)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--workers", type=int, default=2, help="1: in this process")
    given = parser.parse_args()
    watch = Watch()
    simulate(
        a_job(given.cohort, given.rounds),
        federation(given.clients),
        executor="serial" if given.workers == 1 else "processes",
        workers=given.workers,
        observers=[watch],
    )
    watch.stop()
    rows = given.clients * EACH * (VALUES * 4 + 8) / 2**20
    found = {"held": watch.held, "peak": watch.peak, "first": watch.first, "rows": rows}
    print("RESULT " + json.dumps({**vars(given), **found}))


if __name__ == "__main__":
    main()
