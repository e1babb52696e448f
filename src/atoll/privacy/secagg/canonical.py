"""One sequence of bytes for each value: what is signed and hashed must have one reading only."""

from __future__ import annotations

import hashlib
from typing import TypeAlias

__all__ = ["Part", "digest", "pack"]

Part: TypeAlias = "bytes | str | int | float | tuple[Part, ...]"
"""What can be packed."""


def pack(label: str, *parts: Part) -> bytes:
    """``label`` and ``parts`` as bytes; two different calls never give the same.

    Each part is written as one letter for its kind, its length, a colon, its content (a whole number as
    itself and a colon).

    >>> pack("a", "b") == pack("ab"), pack("a", 1) == pack("a", "1")
    (False, False)
    """
    return _packed((label, *parts))


def digest(label: str, *parts: Part) -> bytes:
    """SHA-256 of :func:`pack`, 32 bytes."""
    return hashlib.sha256(pack(label, *parts)).digest()


def _packed(part: Part) -> bytes:
    if isinstance(part, bytes):
        return b"b%d:%b" % (len(part), part)
    if isinstance(part, int):
        return b"i%d:" % part
    if isinstance(part, tuple):
        inner = b"".join(map(_packed, part))
        return b"t%d:%b" % (len(inner), inner)
    raw = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part.hex().encode()
    return b"%c%d:%b" % (b"s" if isinstance(part, str) else b"f", len(raw), raw)
