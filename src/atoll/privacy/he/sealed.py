"""Vectors in slots: encrypt, add, and the bytes in between.

A vector is cut into pieces of N / 2 values, one a ciphertext; the last is filled up with zeros. Values
are divided by their declared bound first, so that all parameters are about numbers in [-1, 1].
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atoll.core.errors import UpdateRefused, WireError
from atoll.core.layout import Array
from atoll.privacy.he.contexts import PublicContext, SecretContext

__all__ = ["Sealed", "SealedSum", "loaded", "seal"]


@dataclass(frozen=True)
class Sealed:
    """An encrypted vector.

    Args:
        length: number of values.
        pieces: its ciphertexts as bytes, in order.
    """

    length: int
    pieces: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(map(len, self.pieces))

    @property
    def root(self) -> bytes:
        """The hash of all of it, 32 bytes."""
        whole = hashlib.sha256(b"%d:%d:" % (self.length, len(self.pieces)))
        for piece in self.pieces:
            whole.update(b"%d:" % len(piece))
            whole.update(piece)
        return whole.digest()


def seal(context: PublicContext, values: Array, bound: float = 1.0) -> Sealed:
    """Encrypt a vector; what lies beyond the bound is clipped to it.

    Args:
        context: the public key.
        values: ``(n,)``, n >= 1.
        bound: values lie in ``[-bound, bound]``.

    Raises:
        UpdateRefused: a value is not finite, or there is none.
    """
    flat = np.ravel(values).astype(np.float64)
    if not flat.size or not np.isfinite(flat).all():
        raise UpdateRefused(
            f"{int(np.count_nonzero(~np.isfinite(flat)))} of {flat.size} values are not finite: "
            "this site drops out"
        )
    np.clip(flat / bound, -1.0, 1.0, out=flat)
    slots = context.parameters.slots
    padded = np.zeros(-(-flat.size // slots) * slots)
    padded[: flat.size] = flat
    vector = _library().ckks_vector
    pieces = [
        vector(context.handle(), padded[start : start + slots].tolist()).serialize()
        for start in range(0, padded.size, slots)
    ]
    return Sealed(flat.size, tuple(pieces))


def _library() -> Any:
    import tenseal  # a context exists, so it is installed

    return tenseal


def loaded(context: PublicContext | SecretContext, sealed: Sealed) -> Iterator[Any]:
    """The ciphertexts of a vector, one after another, as TenSEAL's objects.

    What else travels with one is checked, too: its scale, above all. Whoever could choose that would see
    what rounding hides, the noise, and from the noise the key.

    Raises:
        UpdateRefused: their number is not that of the length, or one is not what :func:`seal` makes with this
            key's parameters.
    """
    parameters = context.parameters
    if sealed.length < 1 or len(sealed.pieces) != -(-sealed.length // parameters.slots):
        raise UpdateRefused(f"{len(sealed.pieces)} ciphertexts for {sealed.length} values")
    library, scale = _library(), 2.0**parameters.scale_bits
    for piece in sealed.pieces:
        try:
            vector = library.ckks_vector_from(context.handle(), piece)
            inside = vector.ciphertext()
        except (ValueError, RuntimeError, TypeError) as error:
            raise UpdateRefused(f"{len(piece)} bytes that are no ciphertext") from error
        if vector.size() != parameters.slots:
            raise UpdateRefused(f"a ciphertext of {vector.size()} values, not {parameters.slots}")
        shapes = [(c.size(), c.poly_modulus_degree(), c.coeff_modulus_size()) for c in inside]
        if shapes != [(2, parameters.degree, 1)] or inside[0].scale != scale:
            raise UpdateRefused(f"a ciphertext of another shape or scale: {shapes}")
        yield vector


class SealedSum:
    """The running sum of encrypted vectors, formed without any secret.

    Args:
        context: the public key.

    Attributes:
        count: how many vectors are in it.
    """

    def __init__(self, context: PublicContext) -> None:
        self._context = context
        self._total: list[Any] = []
        self._length = 0
        self.count = 0

    def add(self, sealed: Sealed) -> None:
        """Add one vector.

        Raises:
            UpdateRefused: another length, more vectors than the parameters are made for, or
                ciphertexts that are none of this key's; the sum is then unchanged.
        """
        sites = self._context.parameters.sites
        if self.count and sealed.length != self._length:
            raise UpdateRefused(f"{sealed.length} values where {self._length} are expected")
        if self.count >= sites:
            raise UpdateRefused(f"more than the {sites} vectors that the key was made for")
        pieces = self._read(sealed)
        if self.count:
            try:
                pieces = [mine + theirs for mine, theirs in zip(self._total, pieces, strict=True)]
            except (ValueError, RuntimeError) as error:
                raise UpdateRefused(f"ciphertexts that do not add up: {error}") from error
        self._total, self._length, self.count = pieces, sealed.length, self.count + 1

    def _read(self, sealed: Sealed) -> list[Any]:
        return list(loaded(self._context, sealed))

    def sealed(self) -> Sealed:
        """The sum so far, still encrypted.

        Raises:
            WireError: nothing was added.
        """
        if not self.count:
            raise WireError("nothing was added up")
        return Sealed(self._length, tuple(vector.serialize() for vector in self._total))

    @classmethod
    def of(cls, context: PublicContext, vectors: Sequence[Sealed]) -> Sealed:
        """The sum of ``vectors``, encrypted."""
        total = cls(context)
        for vector in vectors:
            total.add(vector)
        return total.sealed()
