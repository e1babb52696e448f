"""Record-level differential privacy in local training (DP-SGD): what every private trainer shares.

Abadi et al., *Deep Learning with Differential Privacy* (CCS 2016, https://arxiv.org/abs/1607.00133). Each
step takes every row with probability q, independently; the gradient of each row taken is clipped
to an L2 norm of at most C; noise with standard deviation z C goes onto their sum; the sum is divided by
the *expected* number of rows. What the optimiser does with it costs nothing more.

=============  ===================================  =======================================
in the paper    in the code                          meaning
=============  ===================================  =======================================
C               ``RecordPrivacy.clip``               bound on one row's gradient
sigma           ``RecordPrivacy.noise_multiplier``   noise over the bound, z
q = L / N       ``Releases.sampling``                batch size over the client's rows
T               ``Releases.count``                   steps
L               ``LocalWork.batch_size``             expected rows of a step
=============  ===================================  =======================================

The number of a client's rows is taken as known. Where sampling and noise come from is handed in: a
trainer has no randomness of its own to fall back on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from atoll.core.errors import Fault, JobConflict, JobError, raise_faults
from atoll.core.layout import Array
from atoll.core.local import LocalWork
from atoll.models.batches import learning_rate, plan

__all__ = [
    "TINY",
    "Randomness",
    "RecordPrivacy",
    "Releases",
    "factors",
    "pieces",
    "releases",
    "steps",
]

_MARGIN = 1.0 + 2.0**-14
"""The noise is for a bound so much above C: norms are sums in float32."""

TINY = 2.0**-50
"""Added to lengths that are multiplied, far above where squares vanish in float32: no product of
one of them and a large one comes out too short."""


class Randomness(Protocol):
    """Sampling and noise from a cryptographic source."""

    def chosen(self, rows: int, rate: float) -> Array:
        """Row numbers, each of ``rows`` taken with probability ``rate``, int64."""
        ...

    def cell(self, size: int, bound: float, noise_multiplier: float) -> float:
        """The unit in which ``noised`` takes so many values fastest: a power of two."""
        ...

    def noised(
        self, values: Array, bound: float, noise_multiplier: float, out: Array | None = None
    ) -> Array:
        """``values`` with noise that hides a contribution of L2 norm ``bound``, same shape and dtype.

        They are put into ``out`` if it is given, contiguous, which may be ``values``.
        """
        ...


@dataclass(frozen=True)
class RecordPrivacy:
    """How single rows are hidden.

    Args:
        clip: C, L2 bound on one row's gradient.
        noise_multiplier: z, noise over the bound.
        micro_batch: most rows whose gradients are held at once; 0 chooses from shapes. It changes
            memory, and sums in their last bits.
    """

    clip: float
    noise_multiplier: float
    micro_batch: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            JobError: all faults at once.
        """
        found = [
            Fault(name, f"{value} is not a finite number above 0")
            for name, value in (("clip", self.clip), ("noise_multiplier", self.noise_multiplier))
            if not 0 < value < math.inf
        ]
        if self.micro_batch < 0:
            found.append(Fault("micro_batch", f"{self.micro_batch} is below 0"))
        raise_faults(JobError, "record-level privacy", found)

    @property
    def bound(self) -> float:
        """What the noise is for: C and a margin for rounding."""
        return self.clip * _MARGIN


@dataclass(frozen=True)
class Releases:
    """What one local training costs: so many Gaussian releases with Poisson sampling.

    Args:
        noise_multiplier: z.
        sampling: q.
        count: steps.
    """

    noise_multiplier: float
    sampling: float
    count: int


def releases(privacy: RecordPrivacy, rows: int, work: LocalWork) -> Releases:
    """What training on ``rows`` rows under ``work`` will cost, for the ledger, before it happens.

    Raises:
        DataError: no rows.

    >>> releases(RecordPrivacy(1.0, 0.8), 1000, LocalWork(epochs=2, batch_size=50))
    Releases(noise_multiplier=0.8, sampling=0.05, count=40)
    """
    cut = plan(rows, work)
    return Releases(privacy.noise_multiplier, cut.size / rows, cut.steps)


def steps(rows: int, work: LocalWork, round: int) -> Iterator[float]:
    """The learning rate of each step; as many as without privacy, where they are passes.

    Raises:
        DataError: no rows.
        JobConflict: ``work`` bounds the gradient of a batch as well.
    """
    if work.clip_norm:
        raise JobConflict(
            f"clip_norm {work.clip_norm} beside a bound on every row's gradient",
            remedy="leave out train.clip_norm: rows are clipped by privacy.record.clip",
        )
    cut = plan(rows, work)
    for i in range(cut.steps):
        yield learning_rate(work, round=round, epoch=i // cut.per_epoch)


def pieces(chosen: Array, largest: int) -> Iterator[Array]:
    """The rows of one step in micro-batches."""
    for start in range(0, len(chosen), largest):
        yield chosen[start : start + largest]


def factors(norms: Array, clip: float) -> Array:
    """min(1, C / norm) for each row; 0 for one whose gradient is not finite: it counts as absent.

    >>> factors(np.array([0.5, 2.0, np.inf]), 1.0).tolist()
    [1.0, 0.5, 0.0]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.minimum(1.0, clip / norms)
    return np.where(np.isfinite(norms), found, 0.0).astype(norms.dtype, copy=False)
