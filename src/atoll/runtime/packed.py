"""A federation's rows in two blocks, so that they travel as two blocks and are mapped, not copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from atoll.core.contracts import Examples
from atoll.core.layout import Array
from atoll.core.values import ClientId
from atoll.data.population import LazyClients

__all__ = ["Block", "Packed", "pack"]


class Block(Protocol):
    """Rows in one piece: an array, or memory that can be seen as one."""

    def view(self) -> Array:
        """The array, without a copy."""
        ...


@dataclass(frozen=True, eq=False)
class Packed(Mapping[ClientId, Examples]):
    """A client is a slice of both blocks.

    Args:
        features: all rows, ``(rows, ...)``.
        targets: all targets, ``(rows, ...)``.
        spans: client -> (first row, end row).
    """

    features: Block
    targets: Block
    spans: Mapping[ClientId, tuple[int, int]]

    def __getitem__(self, client: ClientId) -> Examples:
        """Slices; nothing is copied."""
        start, stop = self.spans[client]
        return Examples(self.features.view()[start:stop], self.targets.view()[start:stop])

    def __iter__(self) -> Iterator[ClientId]:
        """Client ids in the federation's order."""
        return iter(self.spans)

    def __len__(self) -> int:
        """Number of clients."""
        return len(self.spans)


def pack(
    clients: Mapping[ClientId, Any], lay: Callable[[Sequence[Array]], Block] = np.concatenate
) -> Mapping[ClientId, Any]:
    """The same federation in two blocks; data that are not alike arrays stay as they are.

    Of a lazy population only what its clients draw from is packed: no client is made.

    Args:
        clients: the federation.
        lay: makes a block of arrays that differ in their number of rows alone, one below the other.
    """
    if isinstance(clients, LazyClients):
        source = clients.source
        return clients if source is None else replace(clients, source=pack(source, lay))
    every = list(clients.values())
    if not every or not all(isinstance(e, Examples) for e in every):
        return clients
    kinds = {
        (e.features.shape[1:], e.features.dtype, e.targets.shape[1:], e.targets.dtype)
        for e in every
    }
    if len(kinds) != 1:
        return clients
    ends = np.cumsum([len(e) for e in every]).tolist()
    spans = dict(zip(clients, zip([0, *ends], ends, strict=False), strict=True))
    return Packed(lay([e.features for e in every]), lay([e.targets for e in every]), spans)
