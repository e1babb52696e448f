"""Which way local training takes, and what that gains: methods and local optimisers, W1 and W2.

    python -m benchmarks.paths [--workloads W1 W2] [--turns N] [--quick] [--no-page]

For each method and local optimiser the general way (autograd, step by step) and the one that is chosen by
default take turns with two workers; the ratio is the median of those within a turn. The table goes into
``docs/performance.md``. Local momentum is .9; Adam's learning rate is .001.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from statistics import median
from typing import Any

from benchmarks.machine import Background, describe
from benchmarks.pages import write
from benchmarks.run import milliseconds, start

CASES = (
    ("fedavg", "SGD", ()),
    ("fedprox", "SGD", ()),
    ("scaffold", "SGD", ()),
    ("fedadam", "SGD", ()),
    ("fedavg", "momentum", ("momentum=0.9",)),
    ("fedprox", "momentum", ("momentum=0.9",)),
    ("fedavg", "Adam", ("name=adam", "lr=0.001")),
)
"""(method, local optimiser, its fields)."""

ROUNDS = {"W1": 12, "W2": 8}


def measure(workload: str, case: tuple[str, str, tuple[str, ...]], turns: int, rounds: int) -> str:
    """One row of the table."""
    method, optimizer, local = case
    words = [word for field in local for word in ("--local", field)]
    words += ["--method", method, "--workers", "2", "--rounds", str(rounds)]
    found: dict[str, list[dict[str, Any]]] = {"general": [], "auto": []}
    for _ in range(turns):
        for path, results in found.items():
            results.append(start("one", "atoll", workload, *words, "--option", f"path={path}"))
    pairs = list(zip(found["general"], found["auto"], strict=True))
    gains = [slow["round"] / fast["round"] for slow, fast in pairs]
    slow, fast = ([r["round"] for r in found[path]] for path in ("general", "auto"))
    cells = [
        workload,
        method,
        optimizer,
        found["auto"][0]["training"],
        milliseconds(median(slow)),
        milliseconds(median(fast)),
        f"{median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f})",
        f"{found['general'][0]['loss']:.6f}",
        f"{found['auto'][0]['loss']:.6f}",
    ]
    row = f"| {' | '.join(cells)} |"
    print(row, file=sys.stderr)
    return row


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workloads", nargs="+", choices=list(ROUNDS), default=list(ROUNDS))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help="one short turn; leaves the page alone"
    )
    parser.add_argument("--no-page", action="store_true", help="only print")
    given = parser.parse_args()
    others = Background()
    lines = [
        "| workload | method | local optimiser | way taken | general | taken | times faster | "
        "final loss, general | taken |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for workload in given.workloads:
        for case in CASES:
            rounds = 3 if given.quick else ROUNDS[workload]
            lines.append(measure(workload, case, 1 if given.quick else given.turns, rounds))
    share = others.share()
    note = (
        f"{datetime.now(UTC):%Y-%m-%d}, {describe()}. Other processes used {share:.0%} meanwhile."
    )
    print("\n".join([*lines, "", note]))
    if not (given.quick or given.no_page):
        write("paths", [*lines, "", note])


if __name__ == "__main__":
    main()
