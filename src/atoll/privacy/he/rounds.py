"""What server and sites say to each other in an encrypted round, as arrays of a frame, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atoll.core.errors import UpdateRefused, WireError
from atoll.core.layout import Array
from atoll.privacy.he.parameters import Parameters
from atoll.privacy.he.sealed import Sealed
from atoll.privacy.he.tags import Entry
from atoll.privacy.he.whole import slots_of
from atoll.privacy.secagg.canonical import digest, pack
from atoll.privacy.secagg.keys import signed_by
from atoll.privacy.secagg.terms import Lane, Terms

__all__ = ["MOST_PIECE", "Included", "cut", "joined", "key_lane", "pieces_in", "pledged", "rows_of"]

MOST_PIECE = 70_000
"""Bytes of the longest ciphertext: two vectors of 4096 numbers of 64 bits, and what is said of them."""


@dataclass(frozen=True)
class Included:
    """Whose ciphertexts are in a sum: index and hash of each, by index."""

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, members: Sequence[int], roots: Sequence[bytes]) -> Included:
        """From two lists of one length.

        Raises:
            WireError: they are not.
        """
        if len(members) != len(roots):
            raise WireError(f"{len(members)} members with {len(roots)} hashes")
        return cls(tuple(zip(map(int, members), roots, strict=True)))

    def digest(self, context: bytes) -> bytes:
        """The hash of it in the round with this context."""
        return digest("he included", context, self.entries)

    def signed(self, context: bytes) -> bytes:
        """What a pledge is on: that this is the sum of the round, and no other."""
        return pack("he pledge", context, self.entries)

    def arrays(self) -> dict[str, Array]:
        """As a message holds it."""
        roots = b"".join(root for _, root in self.entries)
        members = np.array([index for index, _ in self.entries], np.int64)
        return {"members": members, "roots": np.frombuffer(roots, np.uint8)}


def pledged(terms: Terms, included: Included, signatures: Mapping[int, bytes]) -> dict[int, bytes]:
    """Those of the signatures that are pledges of members of the sum to it, by index."""
    signed, inside = included.signed(terms.context), {index for index, _ in included.entries}
    return {
        index: signature
        for index, signature in signatures.items()
        if index in inside
        and (member := terms.member(index)) is not None
        and signed_by(member.key, signature, signed)
    }


def key_lane(sites: int) -> Lane:
    """What stands for the parameters of the key in its terms: for how many sites, and how many slots."""
    parameters = Parameters.exact(max(2, sites))
    return Lane("key", parameters.slots, float(2**parameters.scale_bits), 64, 1.0, "refuse")


def pieces_in(lanes: Sequence[Lane], parameters: Parameters) -> int:
    """How many ciphertexts hold all lanes."""
    return -(-slots_of(lanes, parameters) // parameters.slots)


def joined(sealed: Sealed) -> dict[str, Array]:
    """A vector's ciphertexts one after the other, and how long each is."""
    sizes = np.array([len(piece) for piece in sealed.pieces], np.uint32)
    return {"sizes": sizes, "pieces": np.frombuffer(b"".join(sealed.pieces), np.uint8)}


def cut(arrays: Mapping[str, Any], lanes: Sequence[Lane], parameters: Parameters) -> Sealed:
    """What :func:`joined` gave of a vector of these lanes.

    Raises:
        UpdateRefused: it is not as long as that.
    """
    sizes, pieces = [int(size) for size in arrays["sizes"]], arrays["pieces"]
    if len(sizes) != pieces_in(lanes, parameters) or sum(sizes) != len(pieces):
        raise UpdateRefused(f"{len(sizes)} ciphertexts of {len(pieces)} bytes are no such vector")
    ends = np.cumsum(sizes).tolist()
    found = tuple(pieces[end - size : end].tobytes() for size, end in zip(sizes, ends, strict=True))
    return Sealed(slots_of(lanes, parameters), found)


def rows_of(array: Any, width: int) -> list[bytes]:
    """An array of bytes cut into pieces of one width.

    Raises:
        WireError: its length is no multiple of that.
    """
    raw = array.tobytes()
    if len(raw) % width:
        raise WireError(f"{len(raw)} bytes are no list of {width} bytes each")
    return [raw[start : start + width] for start in range(0, len(raw), width)]
