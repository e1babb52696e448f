"""Measure speed and memory, print the tables, write them into ``docs/performance.md``.

    python -m benchmarks.run [SECTION ...] [--workloads W1 W4] [--repeats N] [--quick] [--no-page]

Sections: speed, memory, parts, population. Every run is a process of its own with one linear-algebra
thread. Contestants take turns (A B C A B C), so slow drifts of the machine hit all alike; figures are
medians, ratios are medians of the ratios within one turn. Raw results go to ``.bench/performance.jsonl``.
``--quick`` takes less than three minutes, is too short for figures and leaves the page alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

from benchmarks import population as growth
from benchmarks.machine import Background, compiled, describe
from benchmarks.pages import write
from benchmarks.workloads import WORKLOADS, prepare

ROOT = Path(__file__).parents[1]
RAW = ROOT / ".bench" / "performance.jsonl"
SECTIONS = ("speed", "memory", "parts", "population")
COHORTS = ((10, 200), (100, 200), (1000, 10))
"""(cohort, rounds) of the runs whose memory is read."""

Result = dict[str, Any]
Lines = list[str]


def start(module: str, *arguments: object) -> Any:
    """Run a benchmark module in a process of its own; its result."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    environment = {**os.environ, "BENCH_START": repr(time.time())}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    found = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    if done.returncode or not found:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    result = json.loads(found[-1].removeprefix("RESULT "))
    RAW.parent.mkdir(exist_ok=True)
    with RAW.open("a") as file:
        file.write(json.dumps({"module": module, "at": time.time(), "result": result}) + "\n")
    return result


def contestants(name: str) -> Iterator[tuple[str, int]]:
    """Who runs a workload, and with how many workers."""
    for workers in WORKLOADS[name].workers:
        if workers == 1:
            yield "central", workers
        yield "plain", workers
        yield "atoll", workers
    if name == "W4":
        yield "atoll-numpy", 1


def speed(names: list[str], repeats: int, quick: bool) -> Lines:
    """All contestants of all workloads, in turns."""
    lines = [
        "| workload | workers | centralised | plain loop | Atoll | Atoll / plain | processor time | "
        "final loss, plain | Atoll | round 1 done, plain / Atoll | memory, plain / Atoll |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        prepare(name)
        turns: list[dict[tuple[str, int], Result]] = []
        rounds = max(3, WORKLOADS[name].rounds // 4) if quick else WORKLOADS[name].rounds
        for number in range(repeats or (1 if quick else WORKLOADS[name].turns)):
            turn = {}
            for who, workers in contestants(name):
                turn[who, workers] = found = start(
                    "one", who, name, "--workers", workers, "--rounds", rounds
                )
                print(
                    f"  {name} turn {number + 1}: {who}, {workers} workers: {found['round']:.5f} s a round",
                    file=sys.stderr,
                )
            turns.append(turn)
        made = _rows(name, turns)
        print("\n".join(made))
        lines += made
    return lines


def _rows(name: str, turns: list[dict[tuple[str, int], Result]]) -> Lines:
    lines = []
    for who, workers in turns[0]:
        if not who.startswith("atoll"):
            continue

        def middle(whom: str, what: str, workers: int = workers) -> float:
            values = [turn[whom, workers][what] for turn in turns if (whom, workers) in turn]
            return median(values) if values else float("nan")

        ratios, cpu = (
            [turn[who, workers][what] / turn["plain", workers][what] for turn in turns]
            for what in ("round", "cpu")
        )
        title = f"{name}, without torch" if who == "atoll-numpy" else name
        cells = [
            title,
            str(workers),
            *(milliseconds(middle(whom, "round")) for whom in ("central", "plain", who)),
            f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            f"{median(cpu):.2f}" if workers == 1 else "-",
            *(f"{middle(whom, 'loss'):.6f}" for whom in ("plain", who)),
            " / ".join(f"{middle(whom, 'first'):.1f} s" for whom in ("plain", who)),
            " / ".join(f"{middle(whom, 'held'):.0f} MB" for whom in ("plain", who)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def milliseconds(seconds: float) -> str:
    """Three digits, or a dash."""
    return "-" if seconds != seconds else f"{seconds * 1e3:.3g} ms"


def memory(quick: bool) -> Lines:
    """Runs of 10,000 clients with cohorts of several sizes."""
    lines = [
        "| cohort | workers | after round 10 | 50 | 200 | at most, rounds 10 to the last | round 1 done |",
        "|---|---|---|---|---|---|---|",
    ]
    runs = [(c, min(r, 50) if quick else r, 2) for c, r in COHORTS if not (quick and c == 1000)]
    rows = 0.0
    for cohort, rounds, workers in [*runs, (10, 50 if quick else 200, 1)]:
        found = start("memory", cohort, rounds, "--workers", workers)
        held, rows = found["held"], found["rows"]
        cells = [f"{held[k]:.0f} MB" if k in held else "-" for k in ("10", "50", "200")]
        peak = max(found["peak"].values())
        who = "in one process" if workers == 1 else str(workers)
        lines.append(
            f"| {cohort} | {who} | {' | '.join(cells)} | {peak:.0f} MB | {found['first']:.1f} s |"
        )
        print(lines[-1])
    return [*lines, "", f"All rows together are {rows:.0f} MB."]


def parts(quick: bool) -> Lines:
    """Costs of single parts."""
    found = start("parts", *(["--quick"] if quick else []))
    lines = ["| part | ms |", "|---|---|", *(f"| {r['part']} | {r['ms']:.3g} |" for r in found)]
    print("\n".join(lines))
    return lines


def population(repeats: int, quick: bool) -> Lines:
    """A round of W1 over populations and cohorts, and its figure."""
    prepare("W1")
    runs = growth.measure(start, repeats or (1 if quick else 3), quick)
    if not quick:
        growth.plot(runs)
    lines = growth.lines(runs)
    print("\n".join(lines))
    return lines


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "sections", nargs="*", default=[], metavar="SECTION", help=", ".join(SECTIONS)
    )
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=None)
    parser.add_argument("--repeats", type=int, default=0, help="turns; 0: by workload")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-page", action="store_true", help="only print")
    given = parser.parse_args()
    sections = given.sections or list(SECTIONS)
    if unknown := [s for s in sections if s not in SECTIONS]:
        parser.error(f"unknown section {unknown[0]}; known: {', '.join(SECTIONS)}")
    names = given.workloads or (["W1", "W4"] if given.quick else list(WORKLOADS))
    compiled()
    print(describe())
    for section in sections:
        others, began = Background(), time.perf_counter()
        lines = {
            "speed": lambda: speed(names, given.repeats, given.quick),
            "memory": lambda: memory(given.quick),
            "parts": lambda: parts(given.quick),
            "population": lambda: population(given.repeats, given.quick),
        }[section]()
        share = others.share()
        note = f"{datetime.now(UTC):%Y-%m-%d}, {describe()}. "
        note += f"Other processes used {share:.0%} of the machine meanwhile"
        note += ": trust the ratios only." if share > 0.1 else "."
        print(f"{note} ({time.perf_counter() - began:.0f} s)\n")
        if not (given.quick or given.no_page):
            write(section, [*lines, "", note])


if __name__ == "__main__":
    main()
