"""Masked and encrypted rounds beside plain ones and Flower's; the table goes into ``docs/performance.md``.

    python -m benchmarks.masked [--repeats N] [--clients 16] [--values 1000000] [--quick] [--no-page]

Contestants take turns, each run in a process of its own; figures are medians over rounds after the first and
then over turns, ratios medians of the ratios within one turn. Every mean is compared with the true one. Bytes
are counted in runs of their own. ``--quick`` makes one turn without ciphertexts and leaves the page alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks.machine import Background, describe
from benchmarks.pages import write
from benchmarks.run import ROOT
from benchmarks.turns import Result, arguments, launch, note, peers, remark, spread

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

Who = tuple[str, str]


def run(who: Who, interpreter: str, given: argparse.Namespace, sizes: bool) -> Result:
    """One run of a contestant; ``failed`` says why it gave no result, or a wrong one."""
    module, way = who
    rounds = 2 if sizes else ROUNDS.get(way, given.rounds)
    if sizes and way == "encrypted":
        rounds = 1
    words = ["--clients", given.clients, "--values", given.values, "--rounds", rounds]
    words += ["--sizes"] if sizes else []
    found = launch(f"masked.{module}", way, *words, interpreter=interpreter, patience=PATIENCE)
    if "failed" in found:
        return found
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
            turn[who] = found = run(who, interpreter, given, counting)
            told = found.get("failed") or f"{found['round']:.3f} s a round, off {found['off']:.2g}"
            print(f"  turn {number + 1}: {FIELD[who]}: {told}", file=sys.stderr)
            about = {"who": who, "clients": given.clients, "values": given.values}
            note(RAW, {**about, **found})
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
        cells = [
            f"{median(r['round'] for r in mine):.3g} s",
            spread(one["round"] / other["round"] for one, other in pairs),
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
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    given.repeats = 1 if given.quick else given.repeats
    theirs, said = peers("flower")
    interpreters = {"ours": sys.executable, **theirs}
    field = {
        who: interpreters[who[0]]
        for who in FIELD
        if who[0] in interpreters and not (given.quick and who[1] == "encrypted")
    }
    print("\n".join([describe(), *said]))
    others = Background()
    turns, counted = measure(field, given)
    about = f"{given.clients} clients, {given.values:,} float32 parameters, {given.repeats} turns. "
    last = about + remark(others, *said)
    lines = [*seconds(turns), "", *sizes(counted, 4 * given.values), "", last]
    print("\n".join(["", *lines]))
    failed = any("failed" in r for turn in [*turns, counted] for r in turn.values())
    if not (given.quick or given.no_page or failed):
        write("masked", lines)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
