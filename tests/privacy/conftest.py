"""A source of random bits that can be had again: for tests only, and only here."""

import numpy as np
import pytest


class Replayed:
    """NumPy's generator in the place of the system's."""

    def __init__(self, seed):
        self.generator = np.random.default_rng(seed)

    def fill(self, into):
        into.reshape(-1).view(np.uint8)[:] = np.frombuffer(
            self.generator.bytes(into.nbytes), np.uint8
        )


@pytest.fixture
def replayed():
    """replayed(seed=0): a source that gives the same bits again."""
    return lambda seed=0: Replayed(seed)
