"""What exactness costs: milliseconds to add one weighted update, beside a plain float64 sum.

Run ``python benchmarks/exact_sum.py [values]``; the default is a model of 159,010 parameters. Two
weights are timed because small values need only the fine limb of an exact sum and large ones both.

Measured on one core of an AMD EPYC (Zen 4), NumPy 2: plain 0.07, float32 0.13 (weight 60) and 0.26
(weight 6000), float64 0.27.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

from atoll.aggregation.exact import ExactSum, Fold
from atoll.core.values import Update


def milliseconds(step: Callable[[], object], repeats: int = 7, calls: int = 50) -> float:
    """Shortest mean time of ``calls`` calls, over ``repeats`` tries."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            step()
        best = min(best, (time.perf_counter() - start) / calls)
    return best * 1e3


def main(size: int = 159_010) -> None:
    """Print one row per dtype and weight."""
    rng = np.random.default_rng(0)
    print(f"{size:,} values, ms per update")
    print(f"{'dtype':8} {'weight':>7} {'plain':>8} {'exact':>8} {'fold':>8} {'exact/plain':>12}")
    for dtype in ("float32", "float64"):
        vector = rng.normal(0, 0.05, size).astype(dtype)
        for weight in (60.0, 6000.0):
            plain, exact, fold = np.zeros(size), ExactSum(size, dtype), Fold()
            update = Update({"parameters": vector}, weight, int(weight))

            def add_plain(v: np.ndarray = vector, w: float = weight, t: np.ndarray = plain) -> None:
                t += v.astype(np.float64) * w

            naive = milliseconds(add_plain)
            ours = milliseconds(lambda e=exact, v=vector, w=weight: e.add(v, w))
            whole = milliseconds(lambda f=fold, u=update: f.add(u))
            print(
                f"{dtype:8} {weight:7.0f} {naive:8.3f} {ours:8.3f} {whole:8.3f} {ours / naive:12.1f}"
            )


if __name__ == "__main__":
    main(*(int(argument.replace(",", "")) for argument in sys.argv[1:2]))
