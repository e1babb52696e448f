"""Run the public targets and write ``docs/results.md``.

    python -m benchmarks.targets.run [T09 T11 T24 ASYNC] [--fresh] [--table] [--workers 2]

Runs that have already been made are kept in ``.bench/targets.jsonl`` and not made again unless
``--fresh`` is given; each is one single-threaded process, two side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

from benchmarks.targets import asynchronous, t09, t11, t24

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".bench" / "targets.jsonl"
TARGETS = {"T24": t24, "ASYNC": asynchronous, "T11": t11, "T09": t09}


def one(target: str, arguments: dict[str, Any]) -> tuple[dict[str, float], float]:
    """One run in a process of its own, and its seconds."""
    start = time.perf_counter()
    return TARGETS[target].run(**arguments), time.perf_counter() - start


def kept() -> dict[str, dict[str, float]]:
    """Results of earlier runs by name."""
    if not KEPT.exists():
        return {}
    rows = [json.loads(line) for line in KEPT.read_text().splitlines() if line.endswith("}")]
    return {row["run"]: row["result"] for row in rows}


def compute(names: list[str], workers: int) -> None:
    """Make every run that is missing."""
    KEPT.parent.mkdir(exist_ok=True)
    done = kept()
    todo = [(t, run, a) for t in names for run, a in TARGETS[t].runs() if run not in done]
    print(f"{len(todo)} runs to make, {len(done)} kept", file=sys.stderr)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(one, t, a): run for t, run, a in todo}
        for number, future in enumerate(as_completed(waiting), start=1):
            result, seconds = future.result()
            row = {"run": waiting[future], "seconds": round(seconds, 1), "result": result}
            with KEPT.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{number}/{len(todo)} {row['run']} {seconds:.0f} s {result}", file=sys.stderr)


def write() -> Path:
    """``docs/results.md`` from all results at hand."""
    results = kept()
    lines = [
        "# Results beside published ones",
        "",
        "Published experiments, run again with Atoll in the published settings. Made by `make targets` "
        "(`benchmarks/targets/`, one file for each T number); do not edit.",
        "",
        "A figure passes when the two means are as near as runs with different seeds let one expect: |own "
        "mean - published mean| <= 2.5 sqrt(sd_p²/n_p + sd_o²/n_o), with the standard deviations sd over n "
        "runs, p for published and o for ours. On accuracies of image tasks .5 percentage points are "
        f"always allowed. Last written {datetime.now(UTC):%Y-%m-%d} with Python {platform.python_version()}.",
        "",
    ]
    for target in ("T09", "T11", "T24", "ASYNC"):
        lines += TARGETS[target].table(results)
    path = ROOT / "docs" / "results.md"
    path.write_text("\n".join(lines).rstrip() + "\n")
    return path


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), metavar="TARGET")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--table", action="store_true", help="only write the page")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    unknown = [t for t in given.targets if t not in TARGETS]
    if unknown:
        parser.error(f"unknown target {unknown[0]}; known: {', '.join(TARGETS)}")
    if given.fresh:
        KEPT.unlink(missing_ok=True)
    if not given.table:
        compute(given.targets, given.workers)
    print(write())


if __name__ == "__main__":
    main()
