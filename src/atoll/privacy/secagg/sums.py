"""Sums of lanes as numbers again, a part at a time.

A sum over a large model has 4 bytes a value as integers and 8 as numbers, and what a server step makes of
it on the way has that many again. So long vectors stay integers until somebody asks for a part of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from atoll.core.layout import Array
from atoll.privacy.secagg.fixed import check_reach
from atoll.privacy.secagg.terms import Lane

__all__ = ["LaneSums"]


class LaneSums(Mapping[str, Array]):
    """The sums of a round by name, each made when it is asked for.

    Args:
        lanes: what was added up, by name.
        integers: the sums, as integers of any size.
        sites: size of the cohort, which fixed the scale.
        present: how many sites are in the sum.
        factor: what a lane's unit counts.
        model: length of the sums that have parts.

    Raises:
        UpdateRefused: a sum is beyond what so many sites can reach.

    >>> lanes = {"w": Lane("w", 2, 4.0, step=0.5)}
    >>> sums = LaneSums(lanes, {"w": np.array([3, -4])}, sites=3, present=2, factor=10.0, model=2)
    >>> sums["w"]
    array([ 15., -20.])
    >>> sums.between(slice(1, 2))
    {'w': array([-20.])}
    """

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        integers: Mapping[str, Array],
        sites: int,
        present: int,
        factor: float = 1.0,
        model: int = 0,
    ) -> None:
        self._lanes, self._integers = lanes, {n: integers[n].reshape(-1) for n in lanes}
        self._sites, self._factor, self._model = sites, factor, model
        for name, lane in lanes.items():
            check_reach(lane, sites, present, self._integers[name])

    def __iter__(self) -> Iterator[str]:
        """Names in their order."""
        return iter(sorted(self._lanes))

    def __len__(self) -> int:
        """How many names."""
        return len(self._lanes)

    def __contains__(self, name: object) -> bool:
        """Whether there is such a sum; it is not made for that."""
        return name in self._lanes

    def __getitem__(self, name: str) -> Array:
        """A whole sum, float64."""
        return self._made(name, self._integers[name])

    def opened(self) -> Sequence[Mapping[str, Array]]:
        """What has to be opened for the parts: nothing."""
        return ()

    def between(self, here: slice, opened: Sequence[Mapping[str, Array]] = ()) -> dict[str, Array]:
        """A part of the sums that have parts, and all of the others."""
        found = {}
        for name in self:
            whole = self._integers[name]
            found[name] = self._made(name, whole[here] if whole.size == self._model else whole)
        return found

    def _made(self, name: str, integers: Array) -> Array:
        lane = self._lanes[name]
        if lane.step is not None:
            values = integers * np.float64(lane.step)
        else:
            values = integers / np.float64(lane.scale(self._sites))
        if self._factor != 1.0:
            values *= self._factor
        return values
