"""Digits of a statistic as integers of the 64-bit ring: the masks' input, without rounding.

A statistic's sums are whole numbers below 2^32 in size already (:mod:`atoll.algorithms.statistics.digits`), so
nothing is clipped and nothing rounded: the masked sum has the bits of the plain one. What a site sends changes
shape from round to round; so do the lanes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from atoll.core.chain import Passage, Passive
from atoll.core.errors import UpdateRefused
from atoll.core.layout import Array
from atoll.core.values import Aggregate, Update
from atoll.privacy.secagg.terms import Lane

__all__ = ["Digits"]

_MOST = 2.0**32


@dataclass(frozen=True)
class Digits(Passive):
    """The link.

    Args:
        lengths: of every vector that comes in this round, by name.
    """

    lengths: tuple[tuple[str, int], ...] = ()
    name: str = "quantise"
    needs: frozenset[str] = frozenset()
    gives: frozenset[str] = frozenset({"integers", "weights inside", "staleness inside"})

    def over(self, shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> Digits:
        """The link in a round whose updates have these vectors, each with its shape and dtype."""
        sizes = {name: int(np.prod(shape, dtype=int)) for name, (shape, _) in shapes.items()}
        return replace(self, lengths=tuple(sorted((n, k) for n, k in sizes.items() if k)))

    def integer_lanes(self, cohort: int) -> tuple[Lane, ...]:
        """The lanes of this round: whole numbers, with the most one site may send."""
        return tuple(
            Lane(name, size, bound=_MOST, bits=64, step=1.0, excess="refuse")
            for name, size in self.lengths
        )

    def client(self, update: Update, passage: Passage) -> Update:
        """The digits as integers; in the clear the update says nothing else.

        Raises:
            UpdateRefused: a value is no whole number below 2^32.
        """
        sent = {}
        for name, vector in update.vectors.items():
            if not vector.size:
                continue
            whole = np.rint(vector)
            if not ((whole == vector) & (np.abs(vector) <= _MOST)).all():
                raise UpdateRefused(f"vector {name!r} holds what is no digit")
            sent[name] = whole.astype(np.int64).reshape(-1)
        return Update(sent, 1.0, 0)

    def server(
        self, aggregate: Aggregate, slots: Mapping[str, Array], round: int
    ) -> tuple[Aggregate, Mapping[str, Array]]:
        """The sums as numbers; their shapes are the algorithm's to know."""
        sums = {
            name: np.asarray(words).astype(np.int64).astype(np.float64)
            for name, words in sorted(aggregate.sums.items())
        }
        return replace(aggregate, sums=sums), {}
