"""What the loop holds does not grow with the rounds (2,000 clients; the cohort is 50)."""

import gc
import re
import tracemalloc
from pathlib import Path

import pytest
import runtime_clients as rc

from atoll.algorithms import FedAvg, Scaffold
from atoll.core.contracts import Examples
from atoll.core.seeds import Seed
from atoll.runtime.clock import Clock, Delay
from atoll.runtime.cohort import Cohort
from atoll.runtime.loop import Evaluation, Loop, Stop
from atoll.runtime.processes import ProcessExecutor
from atoll.runtime.schedule import Asynchronous, Synchronous
from atoll.runtime.serial import SerialExecutor

N = 2000


@pytest.fixture(scope="module")
def clients():
    big = rc.rows(60 * N, 1)
    return {
        f"c{i:04d}": Examples(big.features[i * 60 :][:60], big.targets[i * 60 :][:60])
        for i in range(N)
    }


def run(parts, executor, schedule, rounds, progress=None):
    clock = Clock(Delay("exponential", 1.0))
    stop = Stop(rounds=rounds)
    return Loop(parts, executor, schedule, clock, Evaluation(0), stop).run(progress).progress


@pytest.mark.parametrize(
    ("algorithm", "schedule", "allowed"),
    [
        (FedAvg(), Synchronous(Cohort("uniform", 50)), 0),
        # The control variate of each client that has ever taken part: a dict and a small array.
        (Scaffold(), Synchronous(Cohort("uniform", 50)), 700),
        # Two counters of each client that has ever begun.
        (FedAvg(), Asynchronous(buffer=50, concurrency=200), 300),
    ],
    ids=["fedavg", "scaffold", "async"],
)
def test_the_loop_forgets_its_rounds(clients, algorithm, schedule, allowed):
    """At most ``allowed`` bytes for each client seen for the first time; nothing for a round."""
    parts = rc.parts(algorithm, clients, held_out=False, personal=())
    executor = SerialExecutor(parts)
    tracemalloc.start()  # before what is kept of the last round, and goes when the next one is over
    try:
        Seed(0).at(*clients).digest()  # seeds keep the last thousand names
        progress = run(parts, executor, schedule, 5)
        known = len(progress.memories) + len(progress.pace.starts)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        progress = run(parts, executor, schedule, 25, progress)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - held
    finally:
        tracemalloc.stop()
    fresh = len(progress.memories) + len(progress.pace.starts) - known
    assert grown < allowed * fresh + 32 * 1024
    assert (fresh > 500) == bool(allowed)


def test_workers_do_not_grow(clients):
    def private(pid):
        text = Path(f"/proc/{pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", text)[1])

    parts = rc.parts(FedAvg(), clients, held_out=False)
    like = FedAvg().broadcast(Loop(parts, SerialExecutor(parts)).start().state)
    executor = ProcessExecutor(parts, like, workers=2)
    try:
        schedule = Synchronous(Cohort("uniform", 50))
        progress = run(parts, executor, schedule, 20)
        before = [private(p.pid) for p, _ in executor._workers]
        run(parts, executor, schedule, 80, progress)
        after = [private(p.pid) for p, _ in executor._workers]
    finally:
        executor.close()
    assert max(b - a for a, b in zip(before, after, strict=True)) < 2048
