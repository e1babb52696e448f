"""Rows of three clinics."""

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def frame():
    rng = np.random.default_rng(11)
    n = 400
    data = pd.DataFrame(
        {
            "clinic": rng.choice(["a", "b", "c"], n),
            "age": rng.normal(60, 8, n).round(),
            "sex": rng.choice(["f", "m"], n),
            "grade": rng.choice(["I", "II", "III"], n),
        }
    )
    eta = 0.04 * (data["age"] - 60) + 0.7 * (data["sex"] == "m") - 0.2
    data["sick"] = (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(int)
    return data
