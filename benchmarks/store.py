"""What durability costs at the server, in milliseconds, and how many waits for the disk that is.

Run ``python -m benchmarks.store [URL or path]``; the default is SQLite in a temporary folder. The floor is
one write of 4 KiB and its fsync on the same disk, measured in turns with everything else: on a busy
machine only ratios to it mean anything.

The first table is the store alone: an answer, a committed round, and a whole round of answers one after
the other. The second is a whole round with its bytes, as the server does it: each site's answer of 400 kB
and its row, all sites at once, then a checkpoint of 400 kB and the round's row, then what is not needed
any more is deleted; with small blobs in a folder and in the store.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from atoll.server.blobs.contract import Blobs
from atoll.server.blobs.folder import FolderBlobs
from atoll.server.blobs.near import NearBlobs
from atoll.server.store.contract import Contribution, RoundRow, RunRow, Store
from atoll.server.store.opening import open_store

ROUNDS = 40
FRAME = 400_000


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


def new_run(store: Store, epoch: int, sites: int) -> str:
    """A run in the store."""
    run = f"run-{sites}-{time.time_ns()}"
    names = tuple(f"site-{n}" for n in range(sites))
    store.add_run(epoch, RunRow(run, "bench", "0" * 64, "{}", {}, names, "ada", 0.0, "open"))
    return run


def answer(run: str, number: int, site: int) -> Contribution:
    """Contribution of a site to a round."""
    task = f"{run}.train.{number}.site-{site}"
    return Contribution(run, task, f"site-{site}", "a" * 64, FRAME, "done", 300, 300.0, 1.0)


def ended(run: str, number: int, sites: int) -> RoundRow:
    """The round of these answers."""
    names = [f"site-{site}" for site in range(sites)]
    record = {"round": number, "contributed": dict.fromkeys(names, 300), "train": {"loss": 0.123}}
    tasks = tuple(answer(run, number, site).task for site in range(sites))
    return RoundRow(run, number + 1, record, "c" * 64, "d" * 64, tasks)


def rows(store: Store, epoch: int, sites: int, sync: Callable[[], None]) -> tuple[float, ...]:
    """Medians over the rounds: fsync, answer, commit, whole round."""
    run = new_run(store, epoch, sites)
    found: dict[str, list[float]] = {"sync": [], "answer": [], "commit": [], "round": []}
    for number in range(ROUNDS):
        found["sync"].append(timed(sync))
        answers = [
            timed(partial(store.contribute, epoch, answer(run, number, site)))
            for site in range(sites)
        ]
        commit = timed(partial(store.commit_round, epoch, ended(run, number, sites)))
        found["answer"] += answers
        found["commit"].append(commit)
        found["round"].append(sum(answers) + commit)
    return tuple(statistics.median(times) for times in found.values())


def whole_round(
    store: Store,
    blobs: Blobs,
    epoch: int,
    run: str,
    number: int,
    sites: int,
    pool: ThreadPoolExecutor,
) -> None:
    """One round with its bytes, all sites at once."""
    frames = [os.urandom(16) + bytes(FRAME - 16) for _ in range(sites + 1)]

    def send(site: int) -> str:
        blob = blobs.put(frames[site])
        store.contribute(epoch, replace(answer(run, number, site), sha256=blob.sha256))
        return blob.sha256

    used = list(pool.map(send, range(sites)))
    checkpoint = blobs.put(frames[-1]).sha256
    store.commit_round(epoch, replace(ended(run, number, sites), checkpoint=checkpoint))
    for sha256 in (*used, checkpoint):
        blobs.delete(sha256)


def bytes_too(store: Store, epoch: int, sites: int, folder: Path, sync: Callable[[], None]) -> None:
    """Medians of whole rounds: fsync, small blobs in a folder, in the store."""
    far = FolderBlobs(folder / "blobs")
    kinds: dict[str, Blobs] = {"folder": far, "store": NearBlobs(store, far)}
    runs = {kind: new_run(store, epoch, sites) for kind in kinds}
    found: dict[str, list[float]] = {"sync": [], **{kind: [] for kind in kinds}}
    with ThreadPoolExecutor(sites) as pool:
        for number in range(ROUNDS):
            found["sync"].append(timed(sync))
            for kind, blobs in kinds.items():
                given = (store, blobs, epoch, runs[kind], number, sites, pool)
                found[kind].append(timed(partial(whole_round, *given)))
    medians = [statistics.median(times) for times in found.values()]
    print(f"{sites:5} " + " ".join(f"{value:8.2f}" for value in medians))


def main(url: str = "") -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = open_store(url or str(folder / "store.db"))
        epoch = store.acquire("benchmark", time.time())
        sync = floor(folder / "floor")
        print(f"medians over {ROUNDS} rounds, ms")
        print(f"{'sites':>5} {'fsync':>8} {'answer':>8} {'commit':>8} {'round':>8}")
        for sites in (1, 4, 10, 100):
            row = rows(store, epoch, sites, sync)
            print(f"{sites:5} " + " ".join(f"{value:8.2f}" for value in row))
        print(
            f"\nwith {FRAME / 1e3:.0f} kB a site, small blobs in\n{'sites':>5} {'fsync':>8}", end=""
        )
        print(f" {'folder':>8} {'store':>8}")
        for sites in (1, 4, 10):
            bytes_too(store, epoch, sites, folder, sync)
        store.close()


if __name__ == "__main__":
    main(*sys.argv[1:2])
