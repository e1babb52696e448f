"""Masked rounds of a deployment beside plain ones; the table goes into ``docs/performance.md``.

    python -m benchmarks.masked.deployed [--repeats N] [--values 25000000] [--sites 6] [--rounds 5] [--no-page]

A server, nodes and workers on one machine, as ``benchmarks.deploy`` starts them, plain and masked in turns.
Training adds a constant. A round counts from one last answer to the next; figures are medians over rounds
after the first and then over turns, ratios medians of the ratios within one turn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from statistics import median
from typing import Any

os.environ.update({f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")})

from benchmarks.machine import Background, describe
from benchmarks.pages import write
from benchmarks.peers.watch import TAG, end
from benchmarks.run import ROOT

PATIENCE = 900
WAYS = ("plain", "quantised", "masked")

Result = dict[str, Any]


def launch(way: str, given: argparse.Namespace) -> Result:
    """One run; seconds of its rounds and of processors of all its processes."""
    tag = f"{os.getpid()}-{time.monotonic_ns()}"
    words = ["W5", "--sites", given.sites, "--values", given.values, "--rounds", given.rounds]
    command = [sys.executable, "-m", "benchmarks.deploy.ours", *map(str, words)]
    before = os.times()
    try:
        done = subprocess.run(
            [*command, "--aggregation", way],
            cwd=ROOT,
            env={**os.environ, TAG: tag, "PYTHONUNBUFFERED": "1"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    finally:
        end(tag)
    after = os.times()
    told = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    if not told:
        sys.exit(f"{way}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    ends = json.loads(told[-1].removeprefix("RESULT "))["ends"]
    busy = sum(after[2:4]) - sum(before[2:4])  # of ended children and theirs
    return {"round": median(b - a for a, b in pairwise(ends)), "first": ends[0], "busy": busy}


def lines(turns: Sequence[dict[str, Result]]) -> list[str]:
    """The table."""
    made = [
        "| | a round | times plain (least to most) | round 1 done | processor seconds of a run |",
        "|---|---|---|---|---|",
    ]
    for way in WAYS:
        ratios = [turn[way]["round"] / turn["plain"]["round"] for turn in turns]
        first, busy, each = (
            median(turn[way][k] for turn in turns) for k in ("first", "busy", "round")
        )
        told = f"{median(ratios):.3g} ({min(ratios):.3g} to {max(ratios):.3g})"
        made.append(f"| {way} | {each:.3g} s | {told} | {first:.3g} s | {busy:.3g} |")
    return made


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--values", type=int, default=25_000_000)
    parser.add_argument("--sites", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-page", action="store_true", help="only print")
    given = parser.parse_args()
    others, turns = Background(), list[dict[str, Result]]()
    for number in range(given.repeats):
        turn = {}
        for way in WAYS:
            turn[way] = launch(way, given)
            told = f"{turn[way]['round']:.3g} s a round, {turn[way]['busy']:.3g} s of processors"
            print(f"  turn {number + 1}: {way}: {told}", file=sys.stderr)
        turns.append(turn)
    share = others.share()
    note = f"{given.sites} sites, {given.values:,} float32 parameters, {given.rounds} rounds, "
    note += f"{given.repeats} turns. {datetime.now(UTC):%Y-%m-%d}, {describe()}. "
    note += f"Other processes used {share:.0%} of the machine meanwhile"
    note += ": trust the ratios only." if share > 0.1 else "."
    table = [*lines(turns), "", note]
    print("\n".join(table))
    if not given.no_page:
        write("masked-deployed", table)


if __name__ == "__main__":
    main()
