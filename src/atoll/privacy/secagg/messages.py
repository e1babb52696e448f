"""What is said in a masked round, and the bytes under each signature.

A message is an event of the machine that receives it. Sites are named by their index in the cohort.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from atoll.privacy.secagg.canonical import digest, pack
from atoll.privacy.secagg.terms import Terms

__all__ = [
    "Commitment",
    "Deal",
    "Dealt",
    "Envelope",
    "FromServer",
    "FromSite",
    "Invitation",
    "Kind",
    "Opening",
    "Pledge",
    "Release",
    "Roster",
    "Share",
    "Survivors",
    "Vector",
    "roster_hash",
    "share_hash",
]

Kind = Literal["seed", "key"]
"""Of a share: of the seed of a site's own mask, or of the key of its pairwise masks."""


@dataclass(frozen=True)
class Invitation:
    """Server, step 0: the terms, signed by the server."""

    terms: Terms
    signature: bytes = b""

    def signed(self) -> bytes:
        """What the signature is on."""
        return pack("invitation", self.terms.context)


@dataclass(frozen=True)
class Commitment:
    """Site, step 0: two fresh public keys, and the hash of the seed of its own mask."""

    sender: int
    channel: bytes
    mask: bytes
    seed_hash: bytes
    signature: bytes = b""

    def signed(self, context: bytes) -> bytes:
        """What the signature is on."""
        return pack("commitment", context, self.sender, self.channel, self.mask, self.seed_hash)


@dataclass(frozen=True)
class Roster:
    """Server, step 1: everybody's commitments."""

    commitments: tuple[Commitment, ...]


@dataclass(frozen=True)
class Envelope:
    """A sealed pair of shares on its way from ``source`` to ``target``.

    Args:
        source: whose secrets.
        target: who may open it.
        sealed: ciphertext.
        hashes: of the two shares inside, so that a wrong share has one culprit.
        signature: of the source.
    """

    source: int
    target: int
    sealed: bytes
    hashes: tuple[bytes, bytes]
    signature: bytes = b""

    def signed(self, context: bytes, roster: bytes) -> bytes:
        """What the signature is on."""
        inside = (self.source, self.target, self.sealed, self.hashes)
        return pack("envelope", context, roster, *inside)


@dataclass(frozen=True)
class Deal:
    """Site, step 1: its shares for its neighbours and itself."""

    sender: int
    envelopes: tuple[Envelope, ...]


@dataclass(frozen=True)
class Dealt:
    """Server, step 2: who dealt, and the envelopes for this site."""

    members: tuple[int, ...]
    envelopes: tuple[Envelope, ...]


@dataclass(frozen=True)
class Vector:
    """Site, step 2: the root of its masked input; the chunks travel beside it."""

    sender: int
    root: bytes
    dealers: tuple[int, ...]
    signature: bytes = b""

    def signed(self, context: bytes, roster: bytes) -> bytes:
        """What the signature is on."""
        return pack("vector", context, roster, self.sender, self.root, self.dealers)


@dataclass(frozen=True)
class Survivors:
    """Server, step 3: whose inputs are in the sum."""

    members: tuple[int, ...]


@dataclass(frozen=True)
class Pledge:
    """Site, step 3: its signature on who is in the sum; it gives only one in an attempt."""

    sender: int
    signature: bytes = b""

    @staticmethod
    def signed(
        context: bytes, roster: bytes, dealers: tuple[int, ...], survivors: tuple[int, ...]
    ) -> bytes:
        """What the signature is on."""
        return pack("pledge", context, roster, dealers, survivors)


@dataclass(frozen=True)
class Opening:
    """Server, step 4: the pledges of enough sites to one and the same set."""

    members: tuple[int, ...]
    pledges: tuple[Pledge, ...]


@dataclass(frozen=True)
class Share:
    """One share of one secret of ``dealer``."""

    dealer: int
    kind: Kind
    value: bytes


@dataclass(frozen=True)
class Release:
    """Site, step 4: exactly one kind of share for each site that dealt to it."""

    sender: int
    shares: tuple[Share, ...]
    signature: bytes = b""

    def signed(self, context: bytes, roster: bytes) -> bytes:
        """What the signature is on."""
        shares = tuple((share.dealer, share.kind, share.value) for share in self.shares)
        return pack("release", context, roster, self.sender, shares)


FromServer = Roster | Dealt | Survivors | Opening
FromSite = Commitment | Deal | Vector | Pledge | Release


def roster_hash(commitments: tuple[Commitment, ...], context: bytes) -> bytes:
    """What fixes the keys of all, and the graph: the hash of the commitments, by index."""
    ordered = sorted(commitments, key=lambda commitment: commitment.sender)
    return digest("roster", tuple(commitment.signed(context) for commitment in ordered))


def share_hash(context: bytes, source: int, target: int, kind: Kind, value: bytes) -> bytes:
    """What a dealer says of a share without showing it."""
    return digest("share", context, source, target, kind, value)
