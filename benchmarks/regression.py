"""A logistic regression over sites beside statsmodels' on the pooled rows, in turns.

``python -m benchmarks.regression`` prints the median of paired ratios and how far the answers are apart.
What is timed is a fit, from data in memory to standard errors: Atoll's with disclosure control on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from datetime import date
from typing import Any

import numpy as np
import pandas as pd

from atoll import stats


def made(sites: int, rows: int, columns: int) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Sites whose means differ, and the names of the features."""
    rng = np.random.default_rng(1)
    names = [f"x{i}" for i in range(columns)]
    beta = rng.normal(0, 0.3, columns)
    frames = {}
    for s in range(sites):
        x = rng.normal(0.1 * s, 1, (rows, columns))
        p = 1 / (1 + np.exp(-(x @ beta - 0.5)))
        frame = pd.DataFrame(x, columns=names)
        frame["y"] = (rng.random(rows) < p).astype(float)
        frames[f"site-{s:02d}"] = frame
    return frames, names


def pooled(frames: dict[str, pd.DataFrame], names: list[str]) -> Any:
    """A function that fits the pooled rows."""
    import statsmodels.api as sm  # an oracle, for development only

    whole = pd.concat(frames.values())
    y = whole["y"].to_numpy()
    x = sm.add_constant(whole[names].to_numpy())
    return lambda: sm.Logit(y, x).fit(disp=0, method="newton", tol=1e-10)


def lines_of(found: dict[str, Any], least: float, most: float, repeats: int) -> list[str]:
    """The section of the page."""
    times = f"{found['ratio']:.2f} ({least:.2f} to {most:.2f})"
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return [
        "| logistic regression | seconds | times statsmodels' (least to most) |",
        "|---|---|---|",
        f"| Atoll, over sites | {found['atoll_seconds']:.2f} | {times} |",
        f"| statsmodels, pooled rows | {found['statsmodels_seconds']:.2f} | 1 |",
        "",
        f"{found['rows']:,} rows, {found['columns']} columns; {repeats} fits of each in turns, medians. "
        f"Coefficients are {found['coefficients_apart']:.1e} apart at most, standard errors "
        f"{found['standard_errors_apart']:.1e}. {date.today()}, Python {platform.python_version()}, "
        f"NumPy {np.__version__}, threads for linear algebra: {threads}.",
    ]


def main() -> None:
    """Time both in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--rows", type=int, default=100_000, help="of each site")
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    given = parser.parse_args()
    frames, names = made(given.sites, given.rows, given.columns)
    other = pooled(frames, names)
    federation = stats.Federation.of(frames)
    model = stats.LogisticRegression("y", names)
    ours, theirs, apart, errors = [], [], 0.0, 0.0
    for turn in range(given.repeats + 1):
        began = time.perf_counter()
        fit = model.fit(federation)
        middle = time.perf_counter()
        reference = other()
        ended = time.perf_counter()
        if turn:  # the first warms up
            ours.append(middle - began)
            theirs.append(ended - middle)
        table = fit.result.table
        apart = max(apart, float(np.abs(table.values - reference.params).max()))
        errors = max(errors, float(np.abs(table.standard_errors - reference.bse).max()))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    found = {
        "rows": given.sites * given.rows,
        "columns": given.columns,
        "atoll_seconds": round(statistics.median(ours), 3),
        "statsmodels_seconds": round(statistics.median(theirs), 3),
        "ratio": round(statistics.median(ratios), 3),
        "coefficients_apart": apart,
        "standard_errors_apart": errors,
    }
    print(json.dumps(found, indent=2))
    if given.write:
        from benchmarks.pages import write

        write("statistics", lines_of(found, min(ratios), max(ratios), given.repeats))


if __name__ == "__main__":
    main()
