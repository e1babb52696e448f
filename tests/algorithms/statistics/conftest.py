"""A federation of four sites, with missing values, groups and a person column.

Makes ``growing`` importable, here and (through ``sys.path``) in processes that tests start.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))


def made(seed=0, rows=(40, 75, 60, 125)):
    rng = np.random.default_rng(seed)
    sites = {}
    for i, n in enumerate(rows):
        age = np.round(rng.normal(50 + 3 * i, 12, n))
        group = rng.integers(0, 2, n).astype(float)
        weight = 1e6 + 5 * group + rng.normal(0, 3, n)
        weight[:: 7 + i] = np.nan
        kind = rng.integers(0, 3, n).astype(float)
        sites[f"site-{i}"] = {"age": age, "group": group, "weight": weight, "kind": kind}
    return sites


@pytest.fixture
def sites():
    return made()


@pytest.fixture
def pooled(sites):
    return {n: np.concatenate([s[n] for s in sites.values()]) for n in next(iter(sites.values()))}


@pytest.fixture
def clinics():
    """The same with a binary outcome and times."""
    sites, rng = made(4), np.random.default_rng(0)
    for site in sites.values():
        n = len(site["age"])
        site["sick"] = (rng.random(n) < 0.3 + 0.2 * site["group"]).astype(float)
        site["days"] = rng.integers(1, 50, n).astype(float)
    return sites
