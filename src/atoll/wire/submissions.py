"""What a researcher signs when handing in a job, so that a server can neither change one nor make one up.

Every message to the server is signed too, but a site never sees those. This signature travels with the run's
plan to each site, which checks it against the key that it knows of the researcher
(:mod:`atoll.node.policy.researchers`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from atoll.core.errors import AuthError
from atoll.wire.identity import Identity, check_signature
from atoll.wire.messages import SignedBody

__all__ = ["Submission"]


@dataclass(frozen=True)
class Submission:
    """A job as its researcher means it.

    Args:
        federation: id of the one that it is for.
        by: name of the researcher there.
        definition: SHA-256 of the whole job in canonical form, in hex.
        files: SHA-256 of each file that comes with it, by name: code, and the model that it begins at.
        sites: who is to take part, sorted; empty for all whom the server counts as members.
        nonce: 16 random bytes in hex, of this submission alone.
    """

    federation: str
    by: str
    definition: str
    files: Mapping[str, str] = field(default_factory=dict)
    sites: tuple[str, ...] = ()
    nonce: str = ""

    @property
    def message(self) -> bytes:
        """What is signed."""
        told = {
            "federation": self.federation,
            "by": self.by,
            "definition": self.definition,
            "files": dict(self.files),
            "sites": sorted(self.sites),
            "nonce": self.nonce,
        }
        return b"atoll submission\n" + json.dumps(told, sort_keys=True).encode()

    def signed(self, identity: Identity) -> SignedBody:
        """The researcher's name under it."""
        return SignedBody(
            nonce=self.nonce,
            key=identity.public_bytes.hex(),
            signature=identity.sign(self.message).hex(),
            sites=sorted(self.sites),
        )

    def check(self, signed: SignedBody) -> None:
        """Refuse a signature that was made on something else, or with another key than it names.

        Raises:
            AuthError: it was.
        """
        if (self.nonce, sorted(self.sites)) != (signed.nonce, signed.sites):
            raise AuthError("the signature is of another submission")
        key, signature = bytes.fromhex(signed.key), bytes.fromhex(signed.signature)
        check_signature(key, signature, self.message)
