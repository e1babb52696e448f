"""Run Atoll and other systems on the same work, in turns; tables go into ``docs/performance.md``.

    python -m benchmarks.peers.run [--workloads W1 W4] [--methods fedavg] [--peers flower pfl] [--repeats N]
        [--quick] [--no-page]

Every run is a tree of processes of its own, each with one linear-algebra thread. Contestants take turns
(A B C A B C); figures are medians, ratios medians of the ratios within one turn. All start from the same
weights and get the same cohorts and batch orders, so final losses must be equal to three digits: one that
differs, or a run that fails, makes the exit code 1. Memory is read in a turn of its own, as reading it costs
time. Raw results go to ``.bench/peers.jsonl``, those of the page to ``tables.json`` beside this file. The page
is written after each table and keeps the last tables of workloads that were not run. ``--quick`` makes one
short turn for a look; it leaves the page alone, and so does a run without some of the peers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.update({f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")})

from benchmarks.machine import Background, compiled, describe
from benchmarks.pages import write
from benchmarks.peers import page, table
from benchmarks.peers.contestants import NAMES, Contestant, contestants
from benchmarks.peers.environments import ENVIRONMENTS, ensure
from benchmarks.peers.given import METHODS, OVER
from benchmarks.peers.watch import TAG, Peak, end
from benchmarks.peers.work import export, score
from benchmarks.run import ROOT
from benchmarks.workloads import WORKLOADS

RAW = ROOT / ".bench" / "peers.jsonl"
TABLES = ROOT / "benchmarks" / "peers" / "tables.json"
FIGURE = ROOT / "docs" / "figures" / "peers.svg"
PATIENCE = 300
"""Seconds after which a run counts as failed."""
FEW = {"W1": 3, "W2": 3, "W3": 1, "W4": 6}
"""Rounds of quick runs and of those that are made for their memory."""

MANY = ("W1", "W2")
"""Workloads that run with every method."""

Result = dict[str, Any]


def launch(who: Contestant, workload: str, rounds: int, watched: bool) -> Result:
    """One run of a contestant; ``failed`` says why it gave no result."""
    tag, asked = f"{os.getpid()}-{time.monotonic_ns()}", time.time()
    path = os.pathsep.join(str(ROOT / part) for part in (".", "src"))
    own = {"BENCH_START": repr(asked), TAG: tag, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory(prefix="bench-peers-") as folder:
        out = Path(folder) / "weights.npz"
        command = [*who.command, "--rounds", str(rounds)]
        ours = "benchmarks.one" in command
        command += [] if ours else ["--out", str(out)]
        log, over = Path(folder) / "log", Path(folder) / "over"
        environment = {**os.environ, **own, OVER: str(over)}
        peak = Peak(tag, over)
        try:
            with log.open("w") as file:
                started = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
                )
                if watched:
                    with peak:
                        started.wait(PATIENCE)
                else:
                    started.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return {"failed": f"no result in {PATIENCE} s"}
        finally:
            end(tag)
        text = log.read_text(errors="replace")
        told = [x for x in text.splitlines() if x.startswith("RESULT ")]
        if not told:
            print(text[-3000:], file=sys.stderr)
            return {"failed": _why(text)}
        found = json.loads(told[-1].removeprefix("RESULT "))
        result = found if ours else score(workload, found, out, asked)
    kept = {k: result[k] for k in ("round", "first", "loss", "accuracy")}
    return kept | ({"memory": peak.most} if watched else {})


def _why(text: str) -> str:
    """The line of a failed run's output that says most, fit for a table."""
    said = [x.strip() for x in text.splitlines() if x.strip()]
    errors = [x for x in said if "Error: " in x and "ChildFailed" not in x]
    return (errors or said or ["no output"])[-1][:200].replace("|", "/")


def _note(result: Result, workload: str, method: str) -> None:
    RAW.parent.mkdir(exist_ok=True)
    entry = {"workload": workload, "method": method, "at": time.time(), **result}
    with RAW.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    told = (
        result.get("failed")
        or f"{table.milliseconds(result['round'])} a round, loss {result['loss']:.6f}"
    )
    memory = f", {result['memory']:.0f} MB" if "memory" in result else ""
    who = f"{result['name']}, {result['workers']} workers"
    print(f"  {workload} {method} turn {result['turn']}: {who}: {told}{memory}", file=sys.stderr)


def measure(
    workload: str, method: str, field: Sequence[Contestant], turns: int, quick: bool
) -> list[Result]:
    """All contestants of a workload and method, in turns, and once more for their memory."""
    results: list[Result] = []

    def go(who: Contestant, turn: int, rounds: int, watched: bool, **marks: bool) -> None:
        found = launch(who, workload, rounds, watched)
        about = {"name": who.name, "peer": who.peer, "workers": who.workers, "rounds": rounds}
        about |= {} if who.exact else {"exact": False}
        results.append({**about, "turn": turn, **marks, **found})
        _note(results[-1], workload, method)

    for turn in range(1, turns + 1):
        for who in field:
            if not any(_is(r, who) and "failed" in r for r in results):
                go(who, turn, who.rounds, watched=quick)
    reference = next(c for c in field if c.peer == ("plain" if method == "fedavg" else "atoll"))
    for rounds in sorted({c.rounds for c in field} - {reference.rounds}):
        go(reference, turns, rounds, watched=False, extra=True, timed=False)
    if not quick:
        for who in field:
            if not any(_is(r, who) and "failed" in r for r in results):
                go(who, 0, min(FEW[workload], who.rounds), watched=True, timed=False)
    return results


def _is(result: Result, who: Contestant) -> bool:
    return (result["name"], result["workers"]) == (who.name, who.workers)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=list(METHODS),
        help="by default all on W1 and W2, fedavg elsewhere",
    )
    names = list(ENVIRONMENTS)
    parser.add_argument("--peers", nargs="*", choices=names, default=names)
    parser.add_argument("--repeats", type=int, default=0, help="turns; 0: by workload")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-page", action="store_true", help="only print")
    return parser.parse_args()


def _note_of(pythons: Mapping[str, Path], left_out: Sequence[str], share: float) -> str:
    """When and where a table was made, with which versions, and who is missing."""
    versions = ", ".join(
        f"{NAMES[name]} {e.version}" + (f" ({e.note})" if e.note else "")
        for name, e in ENVIRONMENTS.items()
        if name in pythons
    )
    parts = [f"{datetime.now(UTC):%Y-%m-%d}, {describe()}", versions, *left_out]
    parts += [f"Other processes used at most {share:.0%} of the machine meanwhile"]
    return " ".join(f"{part}." for part in parts if part)


def main() -> int:
    """Entry point; the exit code."""
    given = _arguments()
    pythons, missing = ensure(given.peers)
    left_out = [f"{NAMES[name]} is left out: {reason}" for name, reason in missing.items()]
    compiled()
    print("\n".join([describe(), *left_out]))
    wrong: list[str] = []
    full = not (given.quick or given.no_page) and set(given.peers) == set(ENVIRONMENTS)
    tables: dict[tuple[str, str], list[Result]] = {}
    for workload in given.workloads:
        # At least two, as the first holds what a system builds on first use.
        rounds = FEW[workload] if given.quick else max(2, WORKLOADS[workload].rounds)
        turns = given.repeats or (1 if given.quick else WORKLOADS[workload].turns)
        export(workload, rounds)
        for method in given.methods or (list(METHODS) if workload in MANY else ["fedavg"]):
            others, began = Background(), time.perf_counter()
            field = contestants(workload, method, rounds, pythons)
            results = measure(workload, method, field, turns, given.quick)
            note = _note_of(pythons, left_out, others.share())
            tables[workload, method], made = results, table.rows(results)
            wrong += table.check(made, workload, method)
            print("\n".join(["", *table.lines(made, workload, method), "", note]))
            print(f"({time.perf_counter() - began:.0f} s)", flush=True)
            if full:
                page.keep(TABLES, workload, method, results, note)
                write("peers", page.section(page.kept(TABLES), FIGURE))
    print("\n".join(["", *table.summary(tables), "", *wrong]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
