"""Secret sharing: any ``t`` of ``n`` shares give the secret back, fewer say nothing about it.

A. Shamir, *How to Share a Secret*, Communications of the ACM 22 (1979),
https://doi.org/10.1145/359168.359176. The secret is the value at 0 of a polynomial of degree t - 1
over the integers modulo :data:`PRIME`, share x its value at x. The field holds every secret of 32 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from atoll.core.errors import WireError

__all__ = ["PRIME", "SHARE_BYTES", "combine", "split", "weights_at_zero"]

PRIME = 2**256 + 297
"""The smallest prime above 2^256."""

SHARE_BYTES = 33
"""Bytes of one share."""

_COEFFICIENT_BYTES = 64  # taken modulo PRIME: 2^-255 from uniform


def split(secret: bytes, threshold: int, points: Sequence[int], randomness: bytes) -> list[bytes]:
    """Shares of ``secret`` (32 bytes) at ``points``, any ``threshold`` of which open it.

    Args:
        secret: 32 bytes.
        threshold: at least 1.
        points: distinct, from 1.
        randomness: ``64 * (threshold - 1)`` bytes that nobody else knows.

    Raises:
        ValueError: sizes do not fit.

    >>> shares = split(b"s" * 32, 2, [1, 2, 3], bytes(range(64)))
    >>> combine({1: shares[0], 3: shares[2]}) == b"s" * 32
    True
    """
    size = _COEFFICIENT_BYTES
    if len(secret) != 32 or len(randomness) != size * (threshold - 1) or threshold < 1:
        raise ValueError("a secret has 32 bytes, and 64 random ones belong to each coefficient")
    if min(points) < 1 or len(set(points)) < len(points):
        raise ValueError(f"points are distinct and at least 1, not {list(points)}")
    pieces = (randomness[at : at + size] for at in range(0, len(randomness), size))
    coefficients = [int.from_bytes(piece, "big") % PRIME for piece in pieces]
    lowest = int.from_bytes(secret, "big")
    return [_value(coefficients, lowest, x).to_bytes(SHARE_BYTES, "big") for x in points]


def _value(coefficients: Sequence[int], lowest: int, x: int) -> int:
    total = 0
    for coefficient in coefficients:
        total = (total + coefficient) * x % PRIME
    return (total + lowest) % PRIME


def weights_at_zero(points: Sequence[int]) -> dict[int, int]:
    """What each point's value counts in the value at 0 (Lagrange)."""
    weights = {}
    for x in points:
        above = below = 1
        for other in points:
            if other != x:
                above = above * other % PRIME
                below = below * (other - x) % PRIME
        weights[x] = above * pow(below, -1, PRIME) % PRIME
    return weights


def combine(shares: Mapping[int, bytes], weights: Mapping[int, int] | None = None) -> bytes:
    """The secret that exactly these shares (by point) open; give as many as the threshold says.

    Args:
        shares: by point.
        weights: :func:`weights_at_zero` of the same points, when known.

    Raises:
        WireError: they open nothing of 32 bytes, so at least one of them is wrong.
    """
    weights = weights or weights_at_zero(sorted(shares))
    total = sum(int.from_bytes(share, "big") * weights[x] for x, share in shares.items()) % PRIME
    if total >> 256:
        raise WireError("shares do not fit together")
    return total.to_bytes(32, "big")
