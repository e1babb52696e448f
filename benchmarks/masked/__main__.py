"""Masked and encrypted rounds beside plain ones and Flower's; the table goes into ``docs/performance.md``.

    python -m benchmarks.masked [--repeats N] [--clients 16] [--values 1000000] [--quick] [--no-page]

Contestants take turns, each run in a process of its own; figures are medians over rounds after the first and
then over turns, ratios medians of the ratios within one turn. Every mean is compared with the true one. Bytes
are counted in runs of their own. ``--quick`` makes one turn without ciphertexts and leaves the page alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any

os.environ.update({f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")})

from benchmarks.machine import Background, describe
from benchmarks.pages import write
from benchmarks.peers.environments import ENVIRONMENTS, ensure
from benchmarks.peers.watch import TAG, end
from benchmarks.run import ROOT

RAW = ROOT / ".bench" / "masked.jsonl"
PATIENCE = 600
FIELD = {
    ("ours", "plain"): "Atoll, plain",
    ("ours", "masked"): "Atoll, masked",
    ("ours", "encrypted"): "Atoll, encrypted (CKKS)",
    ("flower", "plain"): "Flower, plain",
    ("flower", "masked"): "Flower, SecAgg+",
}
"""Who takes part."""
ROUNDS = {"encrypted": 2}
"""Rounds of who takes long for each."""
NEAR = {("flower", "plain"): 1e-6, ("flower", "masked"): 16 / 2**22 + 1e-6}
"""How far a mean may be off after one round: ours to 2e-8, SecAgg+ to a step of its grid (+- 8 in 2^22)."""

Result = dict[str, Any]
Who = tuple[str, str]


def launch(who: Who, interpreter: str, given: argparse.Namespace, sizes: bool) -> Result:
    """One run of a contestant; ``failed`` says why it gave no result."""
    module, way = who
    rounds = 2 if sizes else ROUNDS.get(way, given.rounds)
    if sizes and way == "encrypted":
        rounds = 1
    words = ["--clients", given.clients, "--values", given.values, "--rounds", rounds]
    command = [interpreter, "-m", f"benchmarks.masked.{module}", way, *map(str, words)]
    tag = f"{os.getpid()}-{time.monotonic_ns()}"
    try:
        done = subprocess.run(
            [*command, *(["--sizes"] if sizes else [])],
            cwd=ROOT,
            env={**os.environ, TAG: tag, "PYTHONUNBUFFERED": "1"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"no result in {PATIENCE} s"}
    finally:
        end(tag)
    told = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    if not told:
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
        said = [x for x in (done.stdout + done.stderr).splitlines() if x.strip()]
        return {"failed": (said or ["no output"])[-1][:200]}
    found: Result = json.loads(told[-1].removeprefix("RESULT "))
    if not found["off"] <= rounds * NEAR.get(who, 2e-8):
        return {"failed": f"the mean is off by {found['off']:.3g}"}
    each = found["seconds"]
    return {"round": median(each[1:] or each), "off": found["off"], "sizes": found["sizes"]}


def measure(
    field: Mapping[Who, str], given: argparse.Namespace
) -> tuple[list[dict[Who, Result]], dict[Who, Result]]:
    """All contestants in turns, and once more for the bytes."""
    turns: list[dict[Who, Result]] = []
    for number in range(given.repeats + 1):
        counting = number == given.repeats
        turn = {}
        for who, interpreter in field.items():
            turn[who] = found = launch(who, interpreter, given, counting)
            told = found.get("failed") or f"{found['round']:.3f} s a round, off {found['off']:.2g}"
            print(f"  turn {number + 1}: {FIELD[who]}: {told}", file=sys.stderr)
            RAW.parent.mkdir(exist_ok=True)
            with RAW.open("a") as file:
                line = {"at": time.time(), "who": who, "clients": given.clients, **found}
                file.write(json.dumps({**line, "values": given.values}) + "\n")
        turns.append(turn)
    return turns[:-1], turns[-1]


def seconds(turns: Sequence[Mapping[Who, Result]]) -> list[str]:
    """The table of rounds."""
    ours = ("ours", "masked")
    lines = [
        "| | a round | times Atoll's masked (least to most) | the mean is off by at most |",
        "|---|---|---|---|",
    ]
    for who in turns[0]:
        mine = [turn[who] for turn in turns]
        if wrong := [r["failed"] for r in mine if "failed" in r]:
            lines.append(f"| {FIELD[who]} | failed: {wrong[0]} | - | - |")
            continue
        pairs = [(turn[who], turn[ours]) for turn in turns if "round" in turn[ours]]
        ratios = [one["round"] / other["round"] for one, other in pairs] or [float("nan")]
        cells = [
            f"{median(r['round'] for r in mine):.3g} s",
            f"{median(ratios):.3g} ({min(ratios):.3g} to {max(ratios):.3g})",
            f"{max(r['off'] for r in mine):.2g}",
        ]
        lines.append(f"| {FIELD[who]} | {' | '.join(cells)} |")
    return lines


def sizes(counted: Mapping[Who, Result], plain: int) -> list[str]:
    """The table of bytes."""
    lines = [
        "| bytes a client, down and up | "
        + " | ".join(("keys", "shares", "train", "pledge", "unmask", "open"))
        + f" | up, over {plain:,} |",
        "|---" * 8 + "|",
    ]
    for who, result in counted.items():
        if "failed" in result:
            continue
        steps: Mapping[str, Sequence[float]] = result["sizes"]
        cells = [
            " / ".join(f"{size:,.0f}" for size in steps[step]) if step in steps else "-"
            for step in ("keys", "shares", "train", "pledge", "unmask", "open")
        ]
        up = sum(both[1] for both in steps.values())
        lines.append(f"| {FIELD[who]} | {' | '.join(cells)} | {up / plain:.3f} |")
    return lines


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-page", action="store_true", help="only print")
    given = parser.parse_args()
    given.repeats = 1 if given.quick else given.repeats
    found, missing = ensure(["flower"])
    interpreters = {"ours": sys.executable, **{name: str(path) for name, path in found.items()}}
    field = {
        who: interpreters[who[0]]
        for who in FIELD
        if who[0] in interpreters and not (given.quick and who[1] == "encrypted")
    }
    left_out = [f"Flower is left out: {reason}." for reason in missing.values()]
    print("\n".join([describe(), *left_out]))
    others = Background()
    turns, counted = measure(field, given)
    share = others.share()
    note = f"{given.clients} clients, {given.values:,} float32 parameters, {given.repeats} turns. "
    note += f"{datetime.now(UTC):%Y-%m-%d}, {describe()}. "
    note += f"Flower {ENVIRONMENTS['flower'].version}. " if found else ""
    note += " ".join([*left_out, f"Other processes used {share:.0%} of the machine meanwhile"])
    note += ": trust the ratios only." if share > 0.1 else "."
    lines = [*seconds(turns), "", *sizes(counted, 4 * given.values), "", note]
    print("\n".join(["", *lines]))
    failed = any("failed" in r for turn in [*turns, counted] for r in turn.values())
    if not (given.quick or given.no_page or failed):
        write("masked", lines)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
