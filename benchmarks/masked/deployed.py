"""Masked rounds of a deployment beside plain ones; the table goes into ``docs/performance.md``.

    python -m benchmarks.masked.deployed [--encrypted] [--buffered] [--repeats N] [--values 25000000]
        [--sites 6] [--rounds 5] [--no-page]

``--encrypted`` puts encrypted rounds beside plain and masked ones, of a million parameters: they are slow.
``--buffered`` takes FedBuff with a buffer of all sites instead of rounds.
A server, nodes and workers on one machine, as ``benchmarks.deploy`` starts them, plain and masked in turns.
Training adds a constant. A round counts from one last answer to the next; figures are medians over rounds
after the first and then over turns, ratios medians of the ratios within one turn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from benchmarks.machine import Background
from benchmarks.pages import write
from benchmarks.turns import Result, arguments, launch, remark, spread

PATIENCE = 900
WAYS = ("plain", "quantised", "masked")
SLOW = ("plain", "masked", "encrypted")


def run(way: str, given: argparse.Namespace) -> Result:
    """One run; seconds of its rounds and of processors of all its processes."""
    words = ["W5", "--sites", given.sites, "--values", given.values, "--rounds", given.rounds]
    words += ["--buffered"] if given.buffered else []
    found = launch("deploy.ours", *words, "--aggregation", way, patience=PATIENCE)
    if "failed" in found:
        sys.exit(f"{way}: {found['failed']}")
    ends = found["ends"]
    each = median(b - a for a, b in pairwise(ends))
    return {"round": each, "first": ends[0], "busy": found["busy"], "sent": found["sent"]}


def lines(turns: Sequence[dict[str, Result]]) -> list[str]:
    """The table."""
    made = [
        "| | a round | times plain (least to most) | round 1 done | processor seconds of a run "
        "| bytes a site sends in a round |",
        "|---|---|---|---|---|---|",
    ]
    for way in turns[0]:
        told = spread(turn[way]["round"] / turn["plain"]["round"] for turn in turns)
        first, busy, each, sent = (
            median(turn[way][k] for turn in turns) for k in ("first", "busy", "round", "sent")
        )
        made.append(f"| {way} | {each:.3g} s | {told} | {first:.3g} s | {busy:.3g} | {sent:,.0f} |")
    return made


def main() -> None:
    """Entry point."""
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--encrypted", action="store_true", help="beside plain and masked")
    parser.add_argument("--buffered", action="store_true", help="FedBuff instead of rounds")
    parser.add_argument("--values", type=int, default=0, help="0: 25 M, and 1 M with ciphertexts")
    parser.add_argument("--sites", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    ways = SLOW if given.encrypted else WAYS
    given.values = given.values or (1_000_000 if given.encrypted else 25_000_000)
    others, turns = Background(), list[dict[str, Result]]()
    for number in range(given.repeats):
        turn = {}
        for way in ways:
            turn[way] = run(way, given)
            told = f"{turn[way]['round']:.3g} s a round, {turn[way]['busy']:.3g} s of processors"
            print(f"  turn {number + 1}: {way}: {told}", file=sys.stderr)
        turns.append(turn)
    kind = "FedBuff, " if given.buffered else ""
    about = (
        f"{kind}{given.sites} sites, {given.values:,} float32 parameters, {given.rounds} rounds, "
    )
    table = [*lines(turns), "", f"{about}{given.repeats} turns. {remark(others)}"]
    print("\n".join(table))
    if not given.no_page:
        kind = "buffered" if given.buffered else "encrypted" if given.encrypted else "masked"
        write(f"{kind}-deployed", table)


if __name__ == "__main__":
    main()
