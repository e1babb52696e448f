"""One sequence of bytes for each value: what is signed and hashed must have one reading only."""

from __future__ import annotations

import hashlib
from typing import TypeAlias

__all__ = ["Part", "digest", "pack"]

Part: TypeAlias = "bytes | str | int | float | tuple[Part, ...]"
"""What can be packed."""


def pack(label: str, *parts: Part) -> bytes:
    """``label`` and ``parts`` as bytes; two different calls never give the same.

    Each part is written as one letter for its kind, its length, its content.

    >>> pack("a", "b") == pack("ab"), pack("a", 1) == pack("a", "1")
    (False, False)
    """
    return _packed((label, *parts))


def digest(label: str, *parts: Part) -> bytes:
    """SHA-256 of :func:`pack`, 32 bytes."""
    return hashlib.sha256(pack(label, *parts)).digest()


def _packed(part: Part) -> bytes:
    if isinstance(part, bytes):
        kind, raw = b"b", part
    elif isinstance(part, str):
        kind, raw = b"s", part.encode("utf-8", "surrogatepass")
    elif isinstance(part, float):
        kind, raw = b"f", part.hex().encode("ascii")
    elif isinstance(part, tuple):
        kind, raw = b"t", b"".join(_packed(inner) for inner in part)
    else:
        kind, raw = b"i", str(int(part)).encode("ascii")
    return kind + len(raw).to_bytes(8, "little") + raw
