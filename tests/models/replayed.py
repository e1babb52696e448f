"""Sampling and noise that tests can have again, or leave out."""

import numpy as np

from atoll.privacy.dp.noise import Draws, chosen, noised


class Bits:
    def __init__(self, seed):
        self.generator = np.random.default_rng(seed)

    def fill(self, into):
        into.reshape(-1).view(np.uint8)[:] = np.frombuffer(
            self.generator.bytes(into.nbytes), np.uint8
        )


class Again:
    """The real sampling and noise from bits that come again."""

    def __init__(self, seed=0):
        self.bits = Bits(seed)
        self.asked = []

    def chosen(self, rows, rate):
        self.asked.append((rows, rate))
        return chosen(self.bits, rows, rate)

    def cell(self, size, bound, noise_multiplier):
        return Draws(self.bits).cell(size, bound, noise_multiplier)

    def noised(self, values, bound, noise_multiplier, out=None):
        return noised(self.bits, values, bound, noise_multiplier, str(values.dtype), out)


class Quiet:
    """All rows (or those of ``take``) and no noise; keeps what it was asked for."""

    def __init__(self, take=None):
        self.take, self.sums, self.bounds = take, [], []

    def chosen(self, rows, rate):
        return np.arange(rows) if self.take is None else np.asarray(self.take, np.int64)

    def cell(self, size, bound, noise_multiplier):
        return 1.0

    def noised(self, values, bound, noise_multiplier, out=None):
        self.sums.append(values.copy())
        self.bounds.append((bound, noise_multiplier))
        return values.copy()
