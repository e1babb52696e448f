"""Boosted trees over sites beside XGBoost's on the pooled rows, in turns, from rows in memory to trees.

``python -m benchmarks.trees`` prints medians of seconds and of paired ratios, processor seconds, bytes sent
and both losses. XGBoost runs with one thread, as Atoll does here.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np

from atoll.algorithms.statistics.analysis import solve
from atoll.algorithms.statistics.boosting import GradientBoosting


def made(sites: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and a 0/1 outcome that depends on sums of them, a bend and a switch."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(sites * rows, columns))
    score = x @ rng.normal(0, 0.3, columns) + np.abs(x[:, 0]) + x[:, 1] * (x[:, 2] > 0.5)
    return x, (rng.random(len(x)) < 1 / (1 + np.exp(-score))).astype(float)


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, processor seconds, and what came of it."""
    wall, processor = time.perf_counter(), time.process_time()
    found = work()
    return time.perf_counter() - wall, time.process_time() - processor, found


def lines_of(found: dict[str, Any]) -> list[str]:
    """The section of the page."""
    ratio = f"{found['ratio']:.1f} ({found['least']:.1f} to {found['most']:.1f})"
    return [
        "| boosted trees | seconds | processor seconds | times XGBoost's (least to most) | log loss |",
        "|---|---|---|---|---|",
        f"| Atoll, {found['sites']} sites | {found['atoll']:.2f} | {found['atoll_cpu']:.2f} | {ratio} "
        f"| {found['atoll_loss']:.5f} |",
        f"| XGBoost {found['version']}, pooled rows | {found['theirs']:.2f} | {found['theirs_cpu']:.2f} "
        f"| 1 | {found['their_loss']:.5f} |",
        "",
        f"{found['rows']:,} rows, {found['columns']} columns, {found['trees']} trees of depth "
        f"{found['depth']}, {found['bins']} bins, one thread; {found['repeats']} fits of each in turns, "
        f"medians. {date.today()}, Python {platform.python_version()}, NumPy {np.__version__}.",
    ]


def main() -> None:
    """Time both in turns."""
    import xgboost

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--rows", type=int, default=100_000, help="of each site")
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--trees", type=int, default=20)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--bins", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    given = parser.parse_args()
    x, y = made(given.sites, given.rows, given.columns)
    names = [f"x{i}" for i in range(given.columns)]
    parts = [slice(i * given.rows, (i + 1) * given.rows) for i in range(given.sites)]
    tables = {
        f"site-{i:02d}": {n: x[part, j].copy() for j, n in enumerate(names)} | {"y": y[part]}
        for i, part in enumerate(parts)
    }
    options = {
        "objective": "binary:logistic",
        "max_depth": given.depth,
        "eta": 0.3,
        "max_bin": given.bins,
        "tree_method": "hist",
        "nthread": 1,
    }

    def ours() -> Any:
        model = GradientBoosting(
            names, "y", trees=given.trees, depth=given.depth, rate=0.3, bins=given.bins
        )
        return solve(model, tables)

    def theirs() -> Any:
        rows = xgboost.QuantileDMatrix(x, y, max_bin=given.bins, nthread=1)
        return xgboost.train(options, rows, given.trees).predict(rows)

    turns = [(timed(ours), timed(theirs)) for _ in range(given.repeats)]
    ratios = [a[0] / b[0] for a, b in turns]
    chance = np.clip(turns[0][1][2].astype(float), 1e-12, 1 - 1e-12)
    found = {
        **{n: getattr(given, n) for n in ("sites", "columns", "trees", "depth", "bins", "repeats")},
        "rows": len(y),
        "version": xgboost.__version__,
        "atoll": statistics.median(a[0] for a, _ in turns),
        "atoll_cpu": statistics.median(a[1] for a, _ in turns),
        "theirs": statistics.median(b[0] for _, b in turns),
        "theirs_cpu": statistics.median(b[1] for _, b in turns),
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "atoll_loss": float(turns[0][0][2].losses[-1]),
        "their_loss": float(-np.mean(y * np.log(chance) + (1 - y) * np.log(1 - chance))),
    }
    print(json.dumps(found, indent=2))
    if given.write:
        from benchmarks.pages import write

        write("trees", lines_of(found))


if __name__ == "__main__":
    main()
