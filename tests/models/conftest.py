"""Small data sets and local work for the trainers' tests."""

import numpy as np
import pytest

from atoll.core.contracts import Examples
from atoll.core.local import LocalWork, Optimizer


@pytest.fixture
def rows():
    """rows(n, features, classes=0): n examples; real targets when classes is 0."""

    def make(n, features=4, classes=0, seed=0, dtype="float64"):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(n, features)).astype(dtype)
        y = rng.integers(classes, size=n) if classes else rng.normal(size=n).astype(dtype)
        return Examples(x, y)

    return make


@pytest.fixture
def work():
    """work(lr=0.1, **fields): local work with plain SGD unless told otherwise."""

    def make(lr=0.1, name="sgd", optimizer=None, **fields):
        return LocalWork(optimizer=Optimizer(name, lr=lr, **(optimizer or {})), **fields)

    return make
