"""Three clinics whose people are asked about, one of whom is hunted."""

from __future__ import annotations

import numpy as np
import pandas as pd

from atoll import stats
from atoll.stats import Axis, Disclosure, Federation

AXIS = Axis(horizon=400.0)


def frame(seed=3, rows=(120, 90, 150)):
    """Three clinics. Patient 7 of clinic a is the victim: 97 years old, the only one of clan ``rare``."""
    rng = np.random.default_rng(seed)
    parts = []
    for name, n in zip("abc", rows, strict=True):
        age = np.round(rng.normal(55, 10, n)).clip(25, 85)
        part = pd.DataFrame(
            {
                "clinic": name,
                "age": age,
                "dose": rng.gamma(2.0, 3.0, n).round(2),
                "sex": rng.choice(["f", "m"], n),
                "arm": rng.choice(["x", "y"], n),
                "sick": rng.choice([0.0, 1.0], n),
                "days": rng.integers(1, 400, n).astype(float),
                "dead": rng.choice([0.0, 1.0], n),
                "clan": rng.choice(["north", "south", "west"], n),
                "code": rng.choice([3.0, 70.0, 70000.0], n),
                "bmi": rng.normal(25, 4, n).round(1),
                "patient": np.arange(n) // 3,
            }
        )
        if name == "a":
            part.loc[7, ["age", "clan", "code", "dose"]] = [97.0, "rare", 424242.0, 99.0]
            part.loc[7, "bmi"] = np.nan
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def federation(data=None, **rule):
    data = frame() if data is None else data
    levels = {"clan": ["north", "south", "west", "rare"]}
    return Federation.of(data, site="clinic", levels=levels, rule=Disclosure(**rule))


def mean(asked, *columns):
    return stats.describe(asked, list(columns or ("age",)), quantiles=())
