"""Who opens a sum, and how many that takes.

With a shared key one site is enough, and that is its weakness; a threshold scheme takes parts from
several. The round is the same for both: the server sends the sealed sum to sites, each answers with its
part, and as many parts as are needed give the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from atoll.core.errors import QuorumError, UpdateRefused
from atoll.core.layout import Array
from atoll.privacy.he.contexts import SecretContext
from atoll.privacy.he.sealed import Sealed, loaded

__all__ = ["Opening", "SharedKey"]


class Opening(Protocol):
    """How sealed sums are opened."""

    @property
    def needed(self) -> int:
        """How many sites' parts open a sum."""
        ...

    @property
    def label(self) -> str:
        """What this protects against and what not, in one sentence for reports."""
        ...

    def part(self, total: Sealed) -> bytes:
        """This site's part of opening ``total``."""
        ...

    def joined(self, total: Sealed, parts: Sequence[bytes], bound: float = 1.0) -> Array:
        """The values of the sum, ``(length,)`` float64.

        Raises:
            QuorumError: fewer parts than are needed.
            UpdateRefused: a part that is none.
        """
        ...


class SharedKey:
    """Every site holds the whole key: one part, the values themselves, is enough.

    Args:
        context: the secret key.
    """

    needed = 1
    label = (
        "encrypted under one key that all sites share: the server alone reads no update; "
        "the server and any one site together read every update"
    )

    def __init__(self, context: SecretContext) -> None:
        self._context = context

    def part(self, total: Sealed) -> bytes:
        """The values of ``total`` in units of the bound, float64 little-endian.

        Raises:
            UpdateRefused: ciphertexts that this key does not open.
        """
        found = list[Array]()
        for vector in loaded(self._context, total):
            try:
                found.append(np.asarray(vector.decrypt()))
            except (ValueError, RuntimeError, TypeError) as error:
                raise UpdateRefused("a ciphertext that this key does not open") from error
        return np.concatenate(found)[: total.length].astype("<f8").tobytes()

    def joined(self, total: Sealed, parts: Sequence[bytes], bound: float = 1.0) -> Array:
        """See :class:`Opening`."""
        if not parts:
            raise QuorumError("no site has opened the sum")
        if len(parts[0]) != 8 * total.length:
            raise UpdateRefused(f"{len(parts[0])} bytes that open {total.length} values")
        values = np.frombuffer(parts[0], "<f8").astype(np.float64) * bound
        sites = self._context.parameters.sites
        # Beyond the range that so many sites can reach: another key, or a site that did not clip.
        if not np.isfinite(values).all() or np.abs(values).max() > 1.01 * sites * bound:
            raise UpdateRefused(f"a sum beyond the range of {sites} sites")
        return values
