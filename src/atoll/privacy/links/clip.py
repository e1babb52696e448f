"""An update is scaled down to a declared length before it leaves: what one client can do is bounded.

All vectors together have an L2 norm of at most C, exactly (:mod:`atoll.privacy.dp.clipping`), or every layer
has a share of it, or C follows a quantile of the norms (Andrew et al. 2021): each client then says, in one
more value, whether it was below, and the server moves C.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from atoll.core.chain import Passage, Passive, Setting
from atoll.core.errors import Fault
from atoll.core.layout import Array, Layout
from atoll.core.values import Aggregate, Broadcast, Update
from atoll.privacy.dp.clipping import AdaptiveClip, clip, clip_layers, indicator, layer_bounds

__all__ = ["BELOW", "BOUND", "Clip"]

BOUND = "clip.bound"
"""Slot and public vector: the present C."""

BELOW = "clip.below"
"""Vector of one value: +1/2 where the update was not longer than C, else -1/2."""


@dataclass(frozen=True)
class Clip(Passive):
    """The link.

    Args:
        bound: C, or where an adaptive one starts.
        by: ``l2``, ``layer`` or ``adaptive``.
        model: d, length of a vector of the model; others are not clipped.
        layers: ends of the layers in a vector of the model, for ``layer``.
        quantile: share of updates that an adaptive bound leaves as they are.
        rate: step of its logarithm.
        most: an adaptive bound never rises above this.
    """

    bound: float
    by: Literal["l2", "layer", "adaptive"] = "l2"
    model: int = 0
    layers: tuple[int, ...] = ()
    quantile: float = 0.5
    rate: float = 0.2
    most: float = 1e9
    name: str = "clip"
    needs: frozenset[str] = frozenset()
    gives: frozenset[str] = frozenset({"bounded norm"})

    def faults(self, setting: Setting) -> Sequence[Fault]:
        """A model is no change; an adaptive bound counts clients, so weights must not."""
        if not setting.changes:
            return [
                Fault(
                    "privacy.clip",
                    "shortens changes, and this algorithm sends whole models, which it would draw to 0",
                    "use fedbuff, or set privacy.clip = 0",
                )
            ]
        if self.by == "adaptive" and setting.weighting.kind != "uniform":
            return [
                Fault(
                    "privacy.clip_by",
                    "'adaptive' asks which share of the clients is below the bound, and weights "
                    f"are {setting.weighting.kind!r}",
                    "set algorithm.weights = 'uniform', or clip_by = 'l2'",
                )
            ]
        return ()

    def start(self, layout: Layout) -> Mapping[str, Array]:
        """The first bound."""
        return {BOUND: np.array([self.bound])}

    def tell(self, slots: Mapping[str, Array]) -> Mapping[str, Array]:
        """The present bound."""
        return {BOUND: slots[BOUND]}

    def client(self, update: Update, passage: Passage) -> Update:
        """The update, not longer than the bound.

        Raises:
            UpdateRefused: a value is not finite.
        """
        cut = self.bounded(update, passage.broadcast)
        _, whole = self._whole(update)
        if self.by != "adaptive" or not whole.size:
            return cut
        below = np.array([indicator(whole, self._bound(passage.broadcast))])
        return replace(cut, vectors={**cut.vectors, BELOW: below})

    def bounded(self, update: Update, broadcast: Broadcast) -> Update:
        """The update, not longer than the bound; the very same where it was not.

        Raises:
            UpdateRefused: a value is not finite.
        """
        names, whole = self._whole(update)
        if not names:
            return update
        bound = self._bound(broadcast)
        if self.by == "layer":
            slices = self._slices(len(names))
            short = clip_layers(whole, slices, layer_bounds(bound, len(slices)))
        else:
            short = clip(whole, bound)
        if short is whole:
            return update
        cut = {
            n: short[i * self.model : (i + 1) * self.model].reshape(update.vectors[n].shape)
            for i, n in enumerate(names)
        }
        return replace(update, vectors={**update.vectors, **cut})

    def _whole(self, update: Update) -> tuple[list[str], Array]:
        """All vectors of the model in one."""
        names = [n for n in sorted(update.vectors) if update.vectors[n].size == self.model]
        parts = [update.vectors[n].reshape(-1) for n in names]
        if len(parts) < 2:
            return names, parts[0] if parts else np.zeros(0)
        return names, np.concatenate(parts)

    def _bound(self, broadcast: Broadcast) -> float:
        """C: the job's own, for noise may be made for it; what the server tells counts where C adapts alone."""
        if self.by != "adaptive":
            return self.bound
        return min(float(broadcast.vectors[BOUND][0]), self.most)

    def _slices(self, vectors: int) -> list[slice]:
        ends = [*self.layers] or [self.model]
        starts = [0, *ends[:-1]]
        return [
            slice(i * self.model + a, i * self.model + b)
            for i in range(vectors)
            for a, b in zip(starts, ends, strict=True)
        ]

    def server(
        self, aggregate: Aggregate, slots: Mapping[str, Array], round: int
    ) -> tuple[Aggregate, Mapping[str, Array]]:
        """Moves an adaptive bound; nothing else."""
        if self.by != "adaptive" or BELOW not in aggregate.sums:
            return aggregate, {}
        present = AdaptiveClip(
            float(slots[BOUND][0]), self.quantile, self.rate, least=1e-9, most=self.most
        )
        after = present.after(float(aggregate.sums[BELOW][0]), aggregate.weight)
        sums = {name: aggregate.sums[name] for name in aggregate.sums if name != BELOW}
        return replace(aggregate, sums=sums), {BOUND: np.array([after.bound])}
