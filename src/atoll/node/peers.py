"""Whom this site knows: the other sites' keys, pinned, and what it asks of a masked round.

A masked sum protects against its server only where sites know each other's keys from elsewhere. The
server tells who is in the federation; a steward compares the fingerprints with the other sites (by
telephone, say) and pins them with ``atoll node peers --pin``. From then on the server can neither
put a key of its own in a site's place nor add sites that nobody has agreed to. Pinning what the server
shows, unseen, protects against a server that begins to lie later, and not against one that lied then.

The pins lie in ``peers.json``: fingerprints, SHA-256 of the raw public keys, by name.

Jobs that leave masks to the default come to sites whose stewards have pinned nobody. For those jobs alone a
key counts that was the first to be seen under a name; it is noted in ``peers_seen.json``, and another one
under that name is refused. That is better than no masks, and less than a telephone call.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from atoll.core.errors import AuthError, StorageError
from atoll.node.home import write_text
from atoll.node.journal import Signer
from atoll.node.settings import Masking
from atoll.privacy.secagg.ledger import Record
from atoll.privacy.secagg.policy import Policy
from atoll.privacy.secagg.terms import Member
from atoll.wire.trouble import unreadable

__all__ = ["Book", "Peers", "Trust"]


class Book(Protocol):
    """What this site has done in masked rounds, durably."""

    def keep(self, record: Record, apart: int = 0) -> None:
        """Write a step down before it is taken, or refuse it."""

    def knows(self, job: str) -> bool:
        """Whether a round of this job was ever joined."""
        ...


class Peers:
    """The pinned fingerprints in ``path``.

    Args:
        path: of the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._meeting = threading.Lock()

    def all(self) -> dict[str, str]:
        """Fingerprints by name.

        Raises:
            StorageError: the file is damaged.
        """
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise unreadable(self._path, error) from error
        if not isinstance(found, dict) or not all(isinstance(f, str) for f in found.values()):
            raise StorageError(f"{self._path} is damaged", remedy="restore it")
        return found

    def pin(self, shown: Mapping[str, str], again: Iterable[str] = ()) -> list[str]:
        """Pin what is not pinned yet; returns the names that are new.

        Args:
            shown: fingerprints by name.
            again: names whose key may have changed, because somebody has asked them.

        Raises:
            AuthError: one of them shows another key than the pinned one; nothing is changed.
            StorageError: the file cannot be written.
        """
        known, allowed = self.all(), set(again)
        other = [n for n, f in shown.items() if known.get(n, f) != f and n not in allowed]
        if other:
            raise AuthError(
                f"{', '.join(sorted(other))}: another key than the pinned one is shown",
                remedy="ask them by telephone; if they have a new key: atoll node peers --repin NAME",
            )
        new = [name for name, f in shown.items() if known.get(name) != f]
        if new:
            write_text(self._path, json.dumps({**known, **shown}, indent=2, sort_keys=True) + "\n")
        return sorted(new)

    def unpin(self, names: Iterable[str]) -> list[str]:
        """Forget the keys of ``names``; returns those that were there.

        Raises:
            StorageError: the file is damaged, or cannot be written.
        """
        known = self.all()
        gone = sorted(set(names) & set(known))
        if gone:
            rest = {name: f for name, f in known.items() if name not in gone}
            write_text(self._path, json.dumps(rest, indent=2, sort_keys=True) + "\n")
        return gone

    def meet(self, members: Iterable[Member]) -> dict[str, bytes]:
        """The keys among those of ``members`` that are pinned, or the first seen of a site that is not.

        Any thread may ask: what two runs see first at the same time is noted for both.

        Raises:
            StorageError: a file is damaged or cannot be written.
        """
        members = tuple(members)
        shown = {m.name: hashlib.sha256(m.key).hexdigest() for m in members}
        pinned, first = self.all(), Peers(self._path.with_name("peers_seen.json"))
        with self._meeting:
            known = {**first.all(), **pinned}
            first.pin({name: f for name, f in shown.items() if name not in known})
        known = {**shown, **known}
        return {m.name: m.key for m in members if known[m.name] == shown[m.name]}

    def keys(self, members: Iterable[Member]) -> dict[str, bytes]:
        """The keys among those of ``members`` that have the pinned fingerprints."""
        known = self.all()
        return {
            m.name: m.key for m in members if known.get(m.name) == hashlib.sha256(m.key).hexdigest()
        }


@dataclass(frozen=True, eq=False)
class Trust:
    """What a site needs for masked rounds, and gives to no worker.

    Args:
        federation: its id.
        server: the server's raw public key.
        signer: the site's identity.
        book: what it has done.
        peers: whose keys it has pinned.
    """

    federation: str
    server: bytes
    signer: Signer
    book: Book
    peers: Peers

    def policy(
        self, name: str, cohort: Iterable[Member], rules: Masking, *, auto: bool = False
    ) -> Policy:
        """This site's rules for a round of ``cohort``; its own key needs no pin.

        Args:
            name: of this site.
            cohort: who is invited.
            rules: of this site.
            auto: whether the job leaves it open whether it is masked; then keys seen first may do.
        """
        others = [member for member in cohort if member.name != name]
        found = self.peers.meet if auto and rules.first_use else self.peers.keys
        pinned = found(others) | {name: self.signer.public_bytes}
        return Policy(
            self.federation,
            self.server,
            pinned,
            smallest=rules.smallest,
            share=rules.share,
            apart=rules.apart,
            neighbours=rules.neighbours,
        )
