"""Noise in shares: each site adds a part inside its mask, and the sum carries enough of it.

Each share has variance sigma^2 / m, m the fewest honest shares that can be in a sum: the threshold of
masked aggregation less the sites that may work with the server and so know their own share. Whoever drops
out, the sum has at least sigma^2 of noise that nobody knows; with all n sites it has n / m times that.

Everything is in units of the lattice, the integers that are masked. Values are rounded to whole
numbers before the noise, which makes a contribution of norm C at most C + sqrt(d).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from atoll.core.errors import Fault, JobConflict, raise_faults
from atoll.privacy.dp.events import DiscreteGaussian, Event, Skellam
from atoll.privacy.dp.lattice import Whole, discrete_gaussian, skellam
from atoll.privacy.dp.noise import Source

__all__ = ["SharedNoise", "rounded_norm"]


def rounded_norm(norm: float, dimension: int) -> float:
    """Largest L2 norm after each of ``dimension`` values was rounded up or down by less than 1."""
    return norm + math.sqrt(dimension)


@dataclass(frozen=True)
class SharedNoise:
    """How much noise each site adds.

    Args:
        sd: of the noise that must be in every sum, in units of the lattice.
        threshold: fewest sites in a sum.
        kind: ``skellam``, whose sums are Skellam again, or ``discrete_gaussian``.
        colluders: most sites that may work with the server; their shares do not count.
    """

    sd: float
    threshold: int
    kind: Literal["skellam", "discrete_gaussian"] = "skellam"
    colluders: int = 0

    def __post_init__(self) -> None:
        """Refuse shares that cannot be enough.

        Raises:
            JobConflict: all faults at once.
        """
        found = []
        if self.kind not in ("skellam", "discrete_gaussian"):
            found.append(Fault("kind", f"{self.kind!r} is unknown", "skellam, discrete_gaussian"))
        if not 0 < self.sd < 2.0**25:
            todo = "choose the lattice so that it is between 16 and 2^25"
            found.append(Fault("sd", f"{self.sd:g} units of the lattice", todo))
        if self.colluders < 0 or self.threshold <= self.colluders:
            message = f"{self.colluders} of at least {self.threshold} sites may collude"
            found.append(Fault("colluders", message, "raise the threshold"))
        raise_faults(JobConflict, "noise in shares", found)

    @property
    def counted(self) -> int:
        """m, the shares that surely count."""
        return self.threshold - self.colluders

    @property
    def share_sd(self) -> float:
        """Standard deviation of one share.

        >>> SharedNoise(sd=300.0, threshold=9).share_sd
        100.0
        """
        return self.sd / math.sqrt(self.counted)

    def total_sd(self, present: int) -> float:
        """Standard deviation of the noise in a sum of ``present`` sites."""
        return self.share_sd * math.sqrt(present)

    def excess(self, sites: int, dropout: float = 0.0) -> float:
        """Expected variance over what is needed, each of ``sites`` being lost with this probability.

        Rounds below the threshold do not happen; where they are likely, this is a little low.

        >>> round(SharedNoise(1000.0, threshold=21).excess(30), 3)
        1.429
        """
        return sites * (1.0 - dropout) / self.counted

    def draw(self, source: Source, size: int) -> Whole:
        """One site's share, ``(size,)`` int64."""
        if self.kind == "skellam":
            return skellam(source, size, self.share_sd**2)
        return discrete_gaussian(source, size, self.share_sd)

    def reach(self, sites: int, deviations: float = 10.0) -> int:
        """How far the noise of ``sites`` shares goes: levels to keep free in the ring."""
        return math.ceil(deviations * self.total_sd(sites))

    def event(self, l2: float, dimension: int, sampling: float = 1.0, count: int = 1) -> Event:
        """What one release costs.

        Args:
            l2: contribution of one unit in units of the lattice, rounding included
                (:func:`rounded_norm`).
            dimension: length of the vector.
            sampling: probability with which each unit takes part.
            count: how many releases.
        """
        if self.kind == "skellam":
            return Skellam(self.sd**2, l2, dimension, sampling, count)
        return DiscreteGaussian(self.share_sd, self.counted, l2, dimension, sampling, count)
