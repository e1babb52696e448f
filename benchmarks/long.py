"""Whether a long run holds on to memory: 1,000 rounds of W1 with two workers.

    python -m benchmarks.long [--rounds N] [--workers N] [--no-page]

Reads the memory of the whole process tree every 50 rounds, fits a line through the readings after the first
100 rounds and writes its slope into ``docs/performance.md``. The run has a folder, as users' runs do.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import numpy as np

from benchmarks.machine import Background, describe, memory
from benchmarks.pages import write
from benchmarks.workloads import job

EVERY = 50
SETTLED = 100


def main() -> None:
    """Entry point."""
    from atoll import simulate

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no-page", action="store_true", help="only print")
    given = parser.parse_args()
    made, clients = job("W1", given.rounds, "torch")
    read: list[tuple[int, float]] = []

    def watch(record: Mapping[str, Any]) -> None:
        if record["round"] % EVERY == 0:
            read.append((record["round"], memory(os.getpid())))

    others, began = Background(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        simulate(
            made,
            clients,
            executor="processes",
            workers=given.workers,
            observers=[watch],
            out=f"{folder}/run",
        )
    seconds = time.perf_counter() - began
    rounds, held = np.array([r for r in read if r[0] >= SETTLED]).T
    slope = float(np.polyfit(rounds, held, 1)[0]) * 100
    lines = [
        "| rounds | " + " | ".join(f"{int(r)}" for r in rounds[::3]) + " |",
        "|---|" + "---|" * len(rounds[::3]),
        "| memory | " + " | ".join(f"{m:.1f} MB" for m in held[::3]) + " |",
        "",
        f"Slope of a line through all {len(rounds)} readings from round {SETTLED} on: {slope:+.2f} MB in 100 "
        f"rounds. The whole run took {seconds:.0f} s.",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {describe()}. Other processes used {others.share():.0%} meanwhile.",
    ]
    print("\n".join(lines))
    if given.rounds >= 1000 and not given.no_page:
        write("long", lines)


if __name__ == "__main__":
    main()
