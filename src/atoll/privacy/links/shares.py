"""How much noise each client adds to its integers, and on which lattice, for a cohort of n.

The lattice is as fine as the ring allows and never finer than 2^-20 of the noise. With z the noise
multiplier, C the clip, D the number of values, S the deviation of the noise in steps of the lattice and m
the shares that surely count: a contribution is at most C/s + sqrt(D) steps long after rounding, so
``S = z (C/s + sqrt(D))``; one client sends at most ``C/s + 10 S / sqrt(m)`` steps, and n of them must stay
inside the ring.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from atoll.core.errors import JobConflict
from atoll.privacy.dp.calibration import Goal, calibrate
from atoll.privacy.dp.distributed import SharedNoise, rounded_norm
from atoll.privacy.dp.events import Event, Neighbouring
from atoll.privacy.secagg.terms import usual_threshold

__all__ = ["Lattice", "Shares", "Target"]

_FINEST = 2.0**20
_MARGIN = 10.0
"""Standard deviations of a share that are kept free for it."""


@dataclass(frozen=True)
class Target:
    """What the noise is calibrated to.

    Args:
        goal: at the end of all planned rounds.
        rounds: planned.
        neighbouring: which datasets are compared.
    """

    goal: Goal
    rounds: int
    neighbouring: Neighbouring = "add_or_remove"


@dataclass(frozen=True)
class Lattice:
    """The integers of a run.

    Args:
        step: value of one step.
        levels: most steps one client sends.
        noise: the shares.
        l2: most a client changes the sum by, in steps.
        dimension: number of values.
    """

    step: float
    levels: int
    noise: SharedNoise
    l2: float
    dimension: int

    def event(self, sampling: float = 1.0, count: int = 1) -> Event:
        """What one release costs."""
        return self.noise.event(self.l2, self.dimension, sampling, count)


@dataclass(frozen=True)
class Shares:
    """Noise in shares, as a job declares it.

    Args:
        noise_multiplier: z; 0 where it follows from ``target``.
        target: what it is calibrated to; None where it is given.
        kind: of the noise.
        threshold: fewest clients in a sum; 0 for two thirds and one.
        colluders: clients whose shares do not count.
        sampling: probability with which a client takes part, where that is secret.
    """

    noise_multiplier: float = 0.0
    target: Target | None = None
    kind: Literal["skellam", "discrete_gaussian"] = "skellam"
    threshold: int = 0
    colluders: int = 0
    sampling: float = 1.0

    def least(self, cohort: int) -> int:
        """Fewest clients whose sum carries enough noise."""
        return self.threshold or usual_threshold(cohort)

    def lattice(self, cohort: int, bound: float, dimension: int) -> Lattice:
        """The lattice and the shares for a cohort.

        Args:
            cohort: n, most clients of one sum.
            bound: C.
            dimension: D, all values that are sent.

        Raises:
            JobConflict: the ring has no room for it, or no noise keeps the target.
        """
        return _lattice(self, cohort, bound, dimension)


@lru_cache(maxsize=64)
def _lattice(shares: Shares, cohort: int, bound: float, dimension: int) -> Lattice:
    target = shares.target
    if target is None:
        return _with(shares, shares.noise_multiplier, cohort, bound, dimension)

    def cost(z: float) -> Event:
        made = _with(shares, z, cohort, bound, dimension)
        return made.event(shares.sampling, target.rounds)

    z = calibrate(target.goal, target.rounds, neighbouring=target.neighbouring, shape=cost)
    return _with(shares, z, cohort, bound, dimension)


def _with(shares: Shares, z: float, cohort: int, bound: float, dimension: int) -> Lattice:
    noise = SharedNoise(1.0, shares.least(cohort), shares.kind, shares.colluders)
    ring = (2**31 - 1) // cohort
    root = math.sqrt(dimension)
    spread = _MARGIN / math.sqrt(noise.counted)
    sd = min(_FINEST * max(1.0, z), 2.0**24, 0.99 * ring / (1.0 / z + spread))
    length = sd / z - root  # C in steps
    if length < root:
        raise JobConflict(
            f"a ring of 32 bits has no room for {cohort} clients, {dimension} values and noise of "
            f"{z:g} times the clip",
            remedy="lower the cohort or the noise, or let the server add it (where = 'server')",
        )
    levels = min(ring, math.ceil(length + spread * sd))
    return Lattice(
        bound / length, levels, replace(noise, sd=sd), rounded_norm(length, dimension), dimension
    )
