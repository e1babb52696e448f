"""The gate in front of every sum: what single updates are held against, beside shape, dtype and range.

Names, shapes, dtypes, finite values, the exact range and the declared weight are checked where updates are
folded, always. A limit on norms is a choice of the job's: it contains a client that sends its update many
times over. Where only sums of integers arrive, no server can look at one update; the range of the
quantiser takes its place there, and is checked for each update where the integers come in the clear.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from atoll.core.errors import JobError, UpdateRefused
from atoll.core.layout import Array
from atoll.core.values import Update

__all__ = ["Gate", "norm_of"]

_BLOCK = 1 << 16
"""Values squared at a time, in float64: the temporaries stay in the cache."""


@dataclass(frozen=True)
class Gate:
    """What an update must keep to.

    Args:
        max_norm: largest L2 norm of all its vectors together, per unit of weight; 0 for no limit.
        most: largest absolute value by vector, for vectors of integers.

    >>> Gate(5.0).check(Update({"delta": np.array([3.0, 4.0])}, 1.0, 1))
    """

    max_norm: float = 0.0
    most: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a limit that is none.

        Raises:
            JobError: negative or not finite.
        """
        if not (math.isfinite(self.max_norm) and self.max_norm >= 0):
            raise JobError(
                f"max_norm = {self.max_norm}", remedy="give a number above 0, or 0 for none"
            )

    def check(self, update: Update) -> None:
        """Let ``update`` pass, or refuse it.

        Raises:
            UpdateRefused: its norm is beyond the limit or not finite, or an integer is out of range.
        """
        for name, most in self.most.items():
            vector = update.vectors.get(name)
            if vector is None or vector.dtype.kind not in "iu" or not vector.size:
                continue
            if (worst := max(int(vector.max()), -int(vector.min()))) > most:
                raise UpdateRefused(
                    f"{name!r} holds {worst}; {most} is the most one client may send"
                )
        if not self.max_norm:
            return
        norm = norm_of(update)
        if not norm <= self.max_norm:
            raise UpdateRefused(
                f"an update of norm {norm:.3g}, allowed are {self.max_norm:g}",
                remedy="raise privacy.max_norm if honest updates are that large",
            )


def norm_of(update: Update) -> float:
    """L2 norm of all vectors of ``update`` together; not a number if a value is none."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.sqrt(sum(_squares(vector) for vector in update.vectors.values()))


def _squares(vector: Array) -> float:
    flat, total = vector.reshape(-1), 0.0
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK].astype(np.float64)
        total += float(block @ block)
    return total
