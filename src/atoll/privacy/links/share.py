"""A client counts at most once: its weight becomes a factor in [0, 1] on its own vectors.

Where privacy is accounted for, no figure of a single client may decide what a sum is divided by. Vectors
are multiplied by min(w, cap) / cap, and the server divides by a number that everybody may know: how many
updates came, or how many a Poisson sampler was expected to bring. Rows and metrics are not sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from atoll.core.chain import Passage, Passive
from atoll.core.layout import Array
from atoll.core.values import Aggregate, Update
from atoll.privacy.links.clip import BELOW

__all__ = ["Share"]


@dataclass(frozen=True)
class Share(Passive):
    """The link.

    Args:
        cap: largest weight; more counts as much.
        expected: what the server divides by; 0 for the number of updates.
    """

    cap: float = 1.0
    expected: float = 0.0
    name: str = "share"
    needs: frozenset[str] = frozenset()
    gives: frozenset[str] = frozenset({"weights inside", "bounded weight"})

    def client(self, update: Update, passage: Passage) -> Update:
        """The vectors times the share; weight 1, no rows, no metrics."""
        share = min(float(update.weight), self.cap) / self.cap
        if share == 1.0:
            return Update(update.vectors, 1.0, 0)
        return Update(
            {
                name: v if name == BELOW else np.multiply(v, share, dtype=v.dtype)
                for name, v in update.vectors.items()
            },
            1.0,
            0,
        )

    def server(
        self, aggregate: Aggregate, slots: Mapping[str, Array], round: int
    ) -> tuple[Aggregate, Mapping[str, Array]]:
        """The sums, to be divided by a public number."""
        divisor = self.expected or float(aggregate.count)
        return replace(aggregate, weight=divisor, scaled_weight=divisor), {}
