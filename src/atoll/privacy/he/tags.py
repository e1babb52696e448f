"""A sum that proves of what it is the sum, to sites that have seen none of its parts.

Sites that share a key must never see one another's ciphertexts, for they could read them. So the server adds
up, and a site that is to open the sum has to find out by other means that it is one: not a single site's
ciphertext, not another set of sites, not a ciphertext that the server has made to try out the key. Opening
such a thing would tell what encryption is there to hide; the answers to a few of the last kind give away the
key itself.

A ciphertext is a vector c of numbers modulo a prime q, and adding ciphertexts adds those vectors. Each site
sends a *tag* beside its own, t = <r, c> + s, where r (one number for each of c) and the pad s come from a
secret that sites have and the server has not: r is of the round, s of the round, the site and the hash of its
ciphertext. Tags add up like ciphertexts, and who knows the secret can check the sum of the tags against the sum
of the ciphertexts. To whom all tags look random, no other ciphertext fits but with probability 1/q. This is the
homomorphic MAC of Agrawal and Boneh, "Homomorphic MACs: MAC-Based Integrity for Network Coding", ACNS
2009, section 3.

=============  ===============================================
in the paper   here
=============  ===============================================
k1, u          ``_rows``: r of the round, drawn piece by piece
k2, b          ``_pad``: s
v              the coefficients of a ciphertext
=============  ===============================================

A tag has two such numbers, from independent r and s: one in q^2, about 2^108, for a guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from atoll.core.errors import UpdateRefused
from atoll.core.layout import Array
from atoll.privacy.he.contexts import PublicContext, SecretContext
from atoll.privacy.he.sealed import Sealed, loaded
from atoll.privacy.secagg.keys import derive, keystream

__all__ = ["TAG", "Entry", "Tags"]

_COUNT = 2
"""Numbers modulo q in a tag."""
TAG = 8 * _COUNT
"""Bytes of a tag."""
_LIMB = 18
_LIMBS = 3
"""A number below 2^54 in so many limbs: sums of 8192 products of two limbs are whole numbers of a float64."""

Entry = tuple[int, bytes]
"""One site of a sum: its index, and the hash of its ciphertext."""


class Tags:
    """Tags of one round.

    Args:
        context: a key of the round; either half will do, as q is public.
        secret: what sites know and the server does not.
        occasion: what the round is, as bytes; tags of one round mean nothing in another.
    """

    def __init__(
        self, context: PublicContext | SecretContext, secret: bytes, occasion: bytes
    ) -> None:
        self._context = context
        self._secret = derive(secret, "atoll he tags", occasion)
        self._q = _modulus(context)

    def tag(self, entry: Entry, sealed: Sealed) -> bytes:
        """The tag of one site's ciphertext.

        Args:
            entry: the site, with the hash of ``sealed``.
            sealed: what it sends.
        """
        numbers = zip(self._product(sealed), self._pad(entry), strict=True)
        return _written((product + pad) % self._q for product, pad in numbers)

    def check(self, entries: Sequence[Entry], tags: Sequence[bytes], total: Sealed) -> None:
        """Refuse what is not the sum of the ciphertexts of these sites, each of them once.

        Args:
            entries: of the sites.
            tags: theirs, in the same order.
            total: the sum.

        Raises:
            UpdateRefused: it is another sum, or none; or a site has sent a false tag.
        """
        expected = self._product(total)
        for entry in entries:
            expected = [a + b for a, b in zip(expected, self._pad(entry), strict=True)]
        found = [0] * _COUNT
        for tag in tags:
            found = [a + b for a, b in zip(found, _numbers(tag), strict=True)]
        if len(tags) != len(entries) or any(
            (a - b) % self._q for a, b in zip(expected, found, strict=True)
        ):
            raise UpdateRefused(
                f"what is to be opened is not the sum of these {len(entries)} sites' ciphertexts"
            )

    def _product(self, sealed: Sealed) -> list[int]:
        """<r, c>, modulo q."""
        total = [0] * _COUNT
        for number, vector in enumerate(loaded(self._context, sealed)):
            of_piece = self._of_piece(number, _coefficients(vector))
            total = [(a + b) % self._q for a, b in zip(total, of_piece, strict=True)]
        return total

    def _of_piece(self, number: int, coefficients: Array) -> list[int]:
        rows = _limbs(self._rows(number, coefficients.size)).reshape(-1, _COUNT * _LIMBS)
        crossed = _limbs(coefficients).T @ rows  # whole numbers below 2^49
        cells = crossed.reshape(_LIMBS, _COUNT, _LIMBS)
        return [
            sum(
                int(cells[a, j, b]) << _LIMB * (a + b) for a in range(_LIMBS) for b in range(_LIMBS)
            )
            for j in range(_COUNT)
        ]

    def _rows(self, number: int, size: int) -> Array:
        # 64 bits modulo q: no value is likelier than another by more than one part in a thousand.
        stream = keystream(derive(self._secret, "rows", number), 8 * size * _COUNT)
        found: Array = np.frombuffer(stream, "<u8") % np.uint64(self._q)
        return found

    def _pad(self, entry: Entry) -> list[int]:
        stream = keystream(derive(self._secret, "pad", *entry), TAG)
        return [number % self._q for number in _numbers(stream)]


def _modulus(context: PublicContext | SecretContext) -> int:
    """q, the one prime that a ciphertext is kept in."""
    import tenseal.sealapi  # noqa: F401  # makes known what a modulus is

    data: Any = context.handle().seal_context().data.first_context_data()
    (prime,) = data.parms().coeff_modulus()
    return int(prime.value())


def _coefficients(vector: Any) -> Array:
    """Of a ciphertext that :func:`~atoll.privacy.he.sealed.loaded` has checked, uint64 below q."""
    (inside,) = vector.ciphertext()
    size = inside.size() * inside.poly_modulus_degree()
    return np.fromiter(map(inside.__getitem__, range(size)), np.uint64, size)


def _limbs(numbers: Array) -> Array:
    """``(n, 3)`` float64: limbs of 18 bits, the lowest first."""
    shifts = np.arange(_LIMBS, dtype=np.uint64) * np.uint64(_LIMB)
    mask = np.uint64((1 << _LIMB) - 1)
    found: Array = ((numbers[:, None] >> shifts) & mask).astype(np.float64)
    return found


def _written(numbers: Iterable[int]) -> bytes:
    return b"".join(number.to_bytes(8, "little") for number in numbers)


def _numbers(tag: bytes) -> list[int]:
    if len(tag) != TAG:
        raise UpdateRefused(f"a tag of {len(tag)} bytes, not {TAG}")
    return [int.from_bytes(tag[8 * j : 8 * j + 8], "little") for j in range(_COUNT)]
