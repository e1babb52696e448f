"""What the privacy promises came to: figure beside goal.

    python -m benchmarks.privacy [ROW ...] [--quick] [--page]

A row is a number of the table of promises (1 to 10, 14); without any, all are measured.
``--page`` writes the newest full figures of every row into ``docs/privacy.md``, whenever they were measured.
Raw results go to ``.bench/privacy.jsonl``, one line a row.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.pages import write
from benchmarks.privacy.figures import Figure, Row, table

ROOT = Path(__file__).parents[2]
RAW = ROOT / ".bench" / "privacy.jsonl"

ROWS: Mapping[int, Sequence[str]] = {
    1: ("masking.lies",),
    2: ("masking.collusion",),
    3: ("masking.dropouts",),
    4: ("masking.overflow",),
    5: ("noise.emitted", "noise.control"),
    6: ("one_run.bounds",),
    7: ("accountant.published", "accountant.bounds"),
    8: ("ledger.crashes", "ledger.forks"),
    9: ("inversion.closed_form", "inversion.optimised"),
    10: ("membership.federated", "membership.alone"),
    14: ("clients.malformed",),
}


def measured(row: int, quick: bool) -> list[Figure]:
    """All figures of one promise."""
    found: list[Figure] = []
    for name in ROWS[row]:
        module, function = name.split(".")
        tried: Row = getattr(import_module(f"benchmarks.privacy.{module}"), function)
        found += tried(quick)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, keep; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.privacy")
    parser.add_argument("rows", nargs="*", type=int, choices=[*ROWS, []], metavar="ROW")
    parser.add_argument("--quick", action="store_true", help="fewer trials, page left alone")
    parser.add_argument("--page", action="store_true", help="write the table into docs/privacy.md")
    given = parser.parse_args(arguments)
    figures: list[Figure] = []
    for row in given.rows or ROWS:
        began = time.perf_counter()
        found = measured(row, given.quick)
        figures += found
        print(f"row {row}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        RAW.parent.mkdir(exist_ok=True)
        with RAW.open("a", encoding="utf-8") as raw:
            figures_of = [asdict(figure) for figure in found]
            raw.write(json.dumps({"row": row, "quick": given.quick, "figures": figures_of}) + "\n")
    print(table(figures))
    if given.page:
        write("figures", [table(_newest())], "privacy.md")
    return int(not all(figure.holds for figure in figures))


def _newest() -> list[Figure]:
    """The last full figures of every row."""
    found: dict[int, list[Figure]] = {}
    for line in RAW.read_text(encoding="utf-8").splitlines():
        told = json.loads(line)
        if not told["quick"]:
            found[told["row"]] = [Figure(**figure) for figure in told["figures"]]
    return [figure for row in sorted(found) for figure in found[row]]


if __name__ == "__main__":
    sys.exit(main())
