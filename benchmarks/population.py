"""Cost of a round of W1 as the population and the cohort grow.

``python -m benchmarks.population POPULATION COHORT ROUNDS`` makes one run and prints ``RESULT`` and JSON.
Clients of W1's size (60 rows, label shares Dir(.3)) draw their rows from W1's 60,000, so there may be any
number of them; ``--listed`` runs W1's own thousand clients instead. :func:`measure` runs the grid in turns
and :func:`plot` draws it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

__all__ = ["FIGURE", "lines", "measure", "plot"]

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "population.svg"
WORKERS, COHORT, POPULATION = 2, 100, 100_000
POPULATIONS = (10**3, 10**4, 10**5, 10**6, 10**7)
COHORTS = ((100, 12), (1000, 5), (10_000, 3))
"""(cohort, rounds) at :data:`POPULATION` clients."""

Result = dict[str, Any]
Runs = dict[tuple[int, int, bool], list[Result]]
"""(population, cohort, listed) -> one result per turn."""


def measure(start: Callable[..., Any], turns: int, quick: bool) -> Runs:
    """The grid, ``turns`` times over, each run a process of its own.

    Args:
        start: runs a benchmark module with arguments and gives its result.
        turns: how often each point is measured.
        quick: leave out what takes long; too short for figures.
    """
    points = [(n, COHORT, 12, False) for n in POPULATIONS]
    points += [(POPULATION, m, r, False) for m, r in COHORTS if m != COHORT]
    points.append((1000, COHORT, 12, True))
    if quick:
        points = [(n, m, min(r, 4), x) for n, m, r, x in points if m <= 1000]
    found: Runs = {}
    for _ in range(turns):
        for population, cohort, rounds, listed in points:
            more = ["--listed"] if listed else []
            result = start("population", population, cohort, rounds, *more)
            found.setdefault((population, cohort, listed), []).append(result)
    return found


def lines(runs: Runs) -> list[str]:
    """The table: by population, then by cohort."""
    made = [
        "| population | cohort | a round | times the smallest | per client | processor time | "
        "times the smallest | first round done | memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    listed, flat, steep = (
        sorted(k for k in runs if k[2]),
        sorted(k for k in runs if not k[2] and k[1] == COHORT),
        sorted(k for k in runs if not k[2] and k[0] == POPULATION),
    )
    for kind in (listed, flat, steep):
        made += [_row(runs, key, kind[0]) for key in kind]
    return made


def _row(runs: Runs, key: tuple[int, int, bool], smallest: tuple[int, int, bool]) -> str:
    """Medians of one point; its ratio to the smallest of the same kind is taken within each turn."""
    population, cohort, listed = key
    middle = {k: median(r[k] for r in runs[key]) for k in ("round", "cpu", "first", "held")}
    times, work = (
        median([a[k] / b[k] for a, b in zip(runs[key], runs[smallest], strict=True)])
        for k in ("round", "cpu")
    )
    name = f"{population:,}" + (", listed (W1)" if listed else "")
    return (
        f"| {name} | {cohort:,} | {middle['round'] * 1e3:.4g} ms | {times:.3g} | "
        f"{middle['round'] / cohort * 1e3:.3g} ms | {middle['cpu'] * 1e3:.4g} ms | {work:.3g} | "
        f"{middle['first']:.1f} s | {middle['held']:.0f} MB |"
    )


def plot(runs: Runs, path: Path = FIGURE) -> None:
    """Two panels on logarithmic axes: flat in the population, linear in the cohort."""
    cost = {
        (n, m): median(r["round"] for r in results)
        for (n, m, listed), results in runs.items()
        if not listed
    }
    flat = sorted((n, s) for (n, m), s in cost.items() if m == COHORT)
    steep = sorted((m, s) for (n, m), s in cost.items() if n == POPULATION)
    body = [
        *_panel(60, f"clients in the population (cohort {COHORT})", flat, 0.0),
        *_panel(420, f"clients in the cohort (of {POPULATION:,})", steep, 1.0),
    ]
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 740 300" role="img" '
        'aria-label="Seconds a round over population and over cohort" font-family="sans-serif" '
        'font-size="12"><rect width="740" height="300" fill="#fff"/>'
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, *body, "</svg>", ""]))


def _panel(left: int, title: str, points: Sequence[tuple[int, float]], slope: float) -> list[str]:
    """One curve with its dots, and a dashed line of the expected slope through its first dot."""
    wide, high, top = 280, 200, 30
    low_x, high_x = math.log10(points[0][0]), math.log10(points[-1][0])
    low_y = math.floor(math.log10(min(s for _, s in points)))
    high_y = max(math.ceil(math.log10(max(s for _, s in points))), low_y + 2)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - low_x) / ((high_x - low_x) or 1.0)
        up = (math.log10(y) - low_y) / (high_y - low_y)
        return round(left + across * wide, 1), round(top + (1 - up) * high, 1)

    made = [f'<text x="{left}" y="{top - 12}" fill="#333">seconds a round</text>']
    for power in range(low_y, high_y + 1):
        _, y = at(points[0][0], 10.0**power)
        made.append(f'<path d="M{left} {y}H{left + wide}" stroke="#ddd"/>')
        made.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{10.0**power:g}</text>')
    for x, _ in points:
        across, _ = at(x, 10.0**low_y)
        made.append(
            f'<text x="{across}" y="{top + high + 18}" text-anchor="middle">{_short(x)}</text>'
        )
    first, last = points[0], points[-1]
    ends = at(*first), at(last[0], first[1] * (last[0] / first[0]) ** slope)
    guide = " L".join(f"{x} {y}" for x, y in ends)
    made.append(f'<path d="M{guide}" stroke="#999" stroke-dasharray="4 4" fill="none"/>')
    curve = " L".join(f"{x} {y}" for x, y in (at(*p) for p in points))
    made.append(f'<path d="M{curve}" stroke="#0b7d77" stroke-width="2" fill="none"/>')
    made += [
        f'<circle cx="{x}" cy="{y}" r="4" fill="#0b7d77"/>' for x, y in (at(*p) for p in points)
    ]
    middle = left + wide / 2
    made.append(f'<text x="{middle}" y="{top + high + 42}" text-anchor="middle">{title}</text>')
    return made


def _short(n: int) -> str:
    return f"10<tspan dy='-5' font-size='9'>{round(math.log10(n))}</tspan>"


def _run(population: int, cohort: int, rounds: int, listed: bool, workers: int) -> Result:
    from atoll import Cohort, Synchronous, simulate
    from atoll.core.contracts import Examples
    from atoll.core.seeds import Seed
    from atoll.data.population import resampled
    from benchmarks.machine import busy, memory
    from benchmarks.plain import settle
    from benchmarks.workloads import SEED, job

    made, clients = job("W1", rounds)
    made = replace(made, schedule=Synchronous(Cohort("uniform", cohort)))
    federation: Mapping[str, Examples] = clients
    if not listed:
        federation = resampled(clients.examples, population, 60, Seed(SEED), alpha=0.3)
    ends, cpu, held = [time.time()], [0.0], [math.nan]

    def watch(record: Mapping[str, Any]) -> None:
        ends.append(time.time())
        cpu.append(busy(os.getpid()))
        if record["round"] == rounds:
            held.append(memory(os.getpid()))

    executor = "serial" if workers == 1 else "processes"
    simulate(made, federation, executor=executor, workers=workers, observers=[watch])
    asked = float(os.environ.get("BENCH_START", ends[0]))
    worked = (cpu[-1] - cpu[1]) / max(1, rounds - 1)  # ticks are coarse: no median of rounds
    return {"round": settle(ends), "cpu": worked, "first": ends[1] - asked, "held": held[-1]}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("population", "cohort", "rounds"):
        parser.add_argument(name, type=int)
    parser.add_argument("--listed", action="store_true", help="W1's own thousand clients")
    parser.add_argument("--workers", type=int, default=WORKERS)
    given = parser.parse_args()
    found = _run(given.population, given.cohort, given.rounds, given.listed, given.workers)
    print("RESULT " + json.dumps({**vars(given), **found}))


if __name__ == "__main__":
    main()
