"""What durability costs: milliseconds per acknowledged contribution and per committed round.

Run ``python -m benchmarks.store [URL or path]``; the default is SQLite in a temporary folder. Each is
measured beside the floor, one write of 4 KiB and an fsync on the same disk, in turns with it: on a busy
machine only the ratio means anything. The last column is a whole round: a contribution from each site,
one after the other, and its commit.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from atoll.server.store.contract import Contribution, RoundRow, RunRow, Store
from atoll.server.store.opening import open_store

ROUNDS = 40


def timed(step: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1e3


def floor(path: Path) -> Callable[[], None]:
    """A write of one page and its fsync."""
    number = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)

    def step() -> None:
        os.pwrite(number, b"x" * 4096, 0)
        os.fsync(number)

    return step


def answer(run: str, number: int, site: int) -> Contribution:
    """Contribution of a site to a round."""
    task = f"{run}.train.{number}.site-{site}"
    return Contribution(run, task, f"site-{site}", "a" * 64, 1 << 20, "done", 300, 300.0, 1.0)


def measure(store: Store, epoch: int, sites: int, sync: Callable[[], None]) -> tuple[float, ...]:
    """Medians over the rounds: fsync, contribution, commit, whole round."""
    run = f"run-{sites}-{time.time_ns()}"
    names = tuple(f"site-{n}" for n in range(sites))
    store.add_run(epoch, RunRow(run, "bench", "0" * 64, "{}", {}, names, "ada", 0.0, "open"))
    record = {"round": 0, "contributed": dict.fromkeys(names, 300), "train": {"loss": 0.123}}
    found: dict[str, list[float]] = {"sync": [], "answer": [], "commit": [], "round": []}
    for number in range(ROUNDS):
        found["sync"].append(timed(sync))
        rows = [answer(run, number, site) for site in range(sites)]
        answers = [timed(lambda row=row: store.contribute(epoch, row)) for row in rows]
        ended = RoundRow(run, number + 1, record, "c" * 64, "d" * 64, tuple(r.task for r in rows))
        commit = timed(lambda row=ended: store.commit_round(epoch, row))
        found["answer"] += answers
        found["commit"].append(commit)
        found["round"].append(sum(answers) + commit)
    return tuple(statistics.median(times) for times in found.values())


def main(url: str = "") -> None:
    """Print one row per number of sites."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(url or str(Path(folder) / "store.db"))
        epoch = store.acquire("benchmark", time.time())
        sync = floor(Path(folder) / "floor")
        print(f"medians over {ROUNDS} rounds, ms")
        print(f"{'sites':>5} {'fsync':>8} {'answer':>8} {'commit':>8} {'round':>8}")
        for sites in (1, 4, 10, 100):
            row = measure(store, epoch, sites, sync)
            print(f"{sites:5} " + " ".join(f"{value:8.2f}" for value in row))
        store.close()


if __name__ == "__main__":
    main(*sys.argv[1:2])
