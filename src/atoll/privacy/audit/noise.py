"""Is the noise that leaves a site the noise that was declared?

Two tests of emitted noise: its standard deviation, and a chi-squared test of its whole shape against
the normal distribution. Wrong scales, a generator that repeats, noise that is added twice or shared out
wrongly among those who stay all show in one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from atoll.core.errors import DataError
from atoll.core.layout import Array

__all__ = ["NoiseFound", "chi_squared_tail", "normal_noise"]


@dataclass(frozen=True)
class NoiseFound:
    """What emitted noise is like.

    Args:
        sd: its standard deviation about the declared mean 0.
        ratio: ``sd`` over the declared one.
        statistic: chi-squared over cells of equal chance.
        freedom: degrees of freedom.
        p: chance of such a statistic or a larger one, if the noise is as declared.
        draws: how many values were looked at.
    """

    sd: float
    ratio: float
    statistic: float
    freedom: int
    p: float
    draws: int


def normal_noise(values: Array, sd: float, cells: int = 101, step: float = 0.0) -> NoiseFound:
    """Test ``values`` against a normal distribution with mean 0 and standard deviation ``sd``.

    Args:
        values: emitted noise, any shape.
        sd: what was declared, > 0.
        cells: number of cells, odd, so that the degrees of freedom are even.
        step: grid of a discrete Gaussian, 0 for continuous noise. Cells then end between grid points,
            and their chances are those of the points in them; ``sd`` should be some steps.

    Raises:
        DataError: no declared noise, too few values for the cells, or an even number of cells.
    """
    flat = np.ravel(values).astype(np.float64)
    if not sd > 0 or cells % 2 == 0 or len(flat) < 10 * cells:
        raise DataError(
            f"{len(flat)} values of declared sd {sd:g} in {cells} cells",
            remedy="an odd number of cells, ten values for each, and noise that is on",
        )
    normal = NormalDist(0.0, sd)
    edges = np.array([normal.inv_cdf(k / cells) for k in range(1, cells)])
    if step > 0:
        edges = np.unique((np.floor(edges / step) + 0.5) * step)
        if len(edges) % 2:
            edges = edges[:-1]
    counts = np.bincount(np.searchsorted(edges, flat), minlength=len(edges) + 1)
    below = np.array([0.0, *(normal.cdf(edge) for edge in edges), 1.0])
    expected = np.diff(below) * len(flat)
    statistic = float(((counts - expected) ** 2 / expected).sum())
    found = math.sqrt(float(np.mean(flat**2)))
    freedom = len(edges)
    tail = chi_squared_tail(statistic, freedom)
    return NoiseFound(found, found / sd, statistic, freedom, tail, len(flat))


def chi_squared_tail(statistic: float, freedom: int) -> float:
    """P[chi-squared with ``freedom`` degrees >= ``statistic``], for an even ``freedom``.

    With freedom 2k it is a Poisson sum: exp(-x/2) sum_{i<k} (x/2)^i / i!.

    Raises:
        DataError: an odd or no number of degrees.

    >>> round(chi_squared_tail(5.991, 2), 3)
    0.05
    """
    if freedom < 2 or freedom % 2:
        raise DataError(f"{freedom} degrees of freedom; an even number is needed")
    half = statistic / 2
    if half <= 0:
        return 1.0
    logs = [i * math.log(half) - math.lgamma(i + 1) - half for i in range(freedom // 2)]
    return min(1.0, math.fsum(math.exp(term) for term in logs))
