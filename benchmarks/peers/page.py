"""The page's section: the last full run of each workload and method, kept until the next.

A table comes from one interleaved run; tables of different workloads may come from different ones, so that one
can be measured again without the others, and an interrupted run loses one table only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import figure, table
from benchmarks.peers.given import METHODS, NETWORKS

__all__ = ["keep", "kept", "section"]

Kept = dict[tuple[str, str], dict[str, Any]]


def kept(path: Path) -> Kept:
    """The results and the note of each (workload, method), in the order of the page."""
    found = json.loads(path.read_text()) if path.exists() else {}
    order = [(workload, method) for workload in NETWORKS for method in METHODS]
    return {key: found[" ".join(key)] for key in order if " ".join(key) in found}


def keep(path: Path, workload: str, method: str, results: Sequence[Any], note: str) -> None:
    """Replace the results of one workload and method."""
    held = {" ".join(key): entry for key, entry in kept(path).items()}
    held[f"{workload} {method}"] = {"results": list(results), "note": note}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(held))
    partial.replace(path)


def section(held: Kept, picture: Path) -> list[str]:
    """The lines between the page's markers; draws the picture they show."""
    made = {key: table.rows(entry["results"]) for key, entry in held.items()}
    fedavg: Mapping[str, list[table.Row]] = {w: r for (w, m), r in made.items() if m == "fedavg"}
    lines = [*table.summary({key: entry["results"] for key, entry in held.items()}), ""]
    if fedavg:
        figure.draw(fedavg, picture)
        title = "Time of a round of every contestant, by workload"
        lines = [f"![{title}](figures/{picture.name})", "", *lines]
    for key, rows in made.items():
        wrong = [f"- {line}" for line in table.check(rows, *key)]
        lines += [*table.lines(rows, *key), "", held[key]["note"], ""]
        lines += ["Not as it should be:", "", *wrong, ""] if wrong else []
    return lines[:-1]
