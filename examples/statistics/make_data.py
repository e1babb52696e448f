"""Makes trial.csv: a trial at six clinics, drawn from an exponential model; nobody's data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

SIZES = (64, 92, 118, 75, 141, 110)


def main() -> None:
    """Write the table next to this file."""
    rng = np.random.default_rng(20)
    parts = []
    for i, n in enumerate(SIZES):
        arm = rng.permutation(np.arange(n) % 2)
        age = np.round(np.clip(rng.normal(63, 9, n), 30, 90))
        hazard = (0.0016 + 0.0003 * i) * np.exp(0.04 * (age - 63)) * np.where(arm == 1, 0.5, 1.0)
        death, end = rng.exponential(1 / hazard), rng.uniform(200, 730, n)
        parts.append(
            pd.DataFrame(
                {
                    "clinic": f"clinic {i + 1}",
                    "arm": np.where(arm == 1, "treatment", "placebo"),
                    "age": age.astype(int),
                    "days": np.maximum(1, np.ceil(np.minimum(death, end))).astype(int),
                    "died": (death <= end).astype(int),
                }
            )
        )
    pd.concat(parts).to_csv(Path(__file__).with_name("trial.csv"), index=False)


if __name__ == "__main__":
    main()
