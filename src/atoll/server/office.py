"""What all runs of one server share: where things are kept, what time it is, and who is to be told."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.core.errors import FenceError, StateError
from atoll.core.layout import Array
from atoll.core.values import ClientId
from atoll.server.blobs.contract import Blobs
from atoll.server.blobs.shown import Shown
from atoll.server.settings import Settings
from atoll.server.store.contract import Store
from atoll.server.store.rules import fence
from atoll.wire.frames import Blob, pieces

__all__ = ["LEDGERS", "Office"]

LEDGERS = "ledgers"
"""Under this key the record of a round holds the heads of its sites' privacy ledgers."""


def _nobody(names: Collection[str]) -> None:
    """Nobody is to be told."""


def _nothing() -> None:
    """Nothing is to be done."""


def _unsigned(message: bytes) -> bytes:
    """A server without a key signs nothing that a site would believe."""
    return bytes(64)


@dataclass(eq=False)
class Office:
    """One server's desk drawers.

    Args:
        store: rows.
        blobs: bytes.
        home: folder of the server; results lie in ``home/runs``.
        now: seconds since 1970, on a clock that nobody sets: for all that is waited for.
        settings: times and sizes.
        epoch: of this server on its store.
        tell: called with the names of sites that have news, and ``run <id>`` for runs that have.
        wake: called when there is work for the one thread that works.
        heard: when each site was last heard of.
        away: sites that are no members any more, and why.
        ledgers: newest head of each site's privacy ledger, as the site signed it.
        doubted: the last head of a site's ledger that was none of a later state of it.
        shown: by run and digest, what sites may read that is in no store.
        federation: its id.
        sign: the server's signature of bytes.
        date: seconds since 1970 as other machines have them: for what they check, or have said.
    """

    store: Store
    blobs: Blobs
    home: Path
    now: Callable[[], float]
    settings: Settings
    epoch: int = 0
    tell: Callable[[Collection[str]], None] = _nobody
    wake: Callable[[], None] = _nothing
    heard: dict[ClientId, float] = field(default_factory=dict)
    away: dict[ClientId, str] = field(default_factory=dict)
    ledgers: dict[ClientId, str] = field(default_factory=dict)
    doubted: dict[ClientId, str] = field(default_factory=dict)
    shown: dict[str, dict[str, Shown]] = field(default_factory=dict)
    federation: str = ""
    sign: Callable[[bytes], bytes] = _unsigned
    date: Callable[[], float] = time.time

    def folder(self, run: str) -> Path:
        """Where a run's results lie."""
        return self.home / "runs" / run

    def keys(self) -> dict[ClientId, bytes]:
        """The key of each member: of one who had several, that with which it is here now."""
        known = sorted(self.store.members(), key=lambda member: member.status == "active")
        return {member.name: member.key for member in known}

    def keep(self, body: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> Blob:
        """A frame as a durable blob."""
        return self.blobs.put_pieces(pieces(body, arrays))

    def show(self, run: str, body: Mapping[str, Any], arrays: Mapping[str, Array]) -> Blob:
        """A frame that sites of ``run`` may read as long as the server works on it."""
        made = Shown(body, arrays)
        self.shown.setdefault(run, {})[made.blob.sha256] = made
        return made.blob

    def hide(self, run: str, blob: Blob | None = None) -> None:
        """Show a frame no longer, or none of a run any more."""
        if blob is None:
            self.shown.pop(run, None)
        else:
            self.shown.get(run, {}).pop(blob.sha256, None)

    def seen(self, sha256: str) -> Shown | None:
        """What is shown under that digest."""
        return next((f[sha256] for f in list(self.shown.values()) if sha256 in f), None)

    def heads(self, sites: Collection[ClientId]) -> dict[str, dict[ClientId, str]]:
        """What a commit record says of the sites' privacy ledgers; nothing where nobody keeps one."""
        known = {site: self.ledgers[site] for site in sites if site in self.ledgers}
        return {LEDGERS: known} if known else {}

    def remember(self, heads: Mapping[ClientId, str]) -> None:
        """Keep the heads of ledgers that are newer than those known; told of at the next commit.

        A ledger that has become shorter, or another of the same length, is a line in the log: its site
        finds out by itself, from the newer head that it is told. It says the same with each of its answers.
        """
        for site, head in heads.items():
            known = self.ledgers.get(site, "")
            if _lines(head) > _lines(known):
                self.ledgers[site] = head
            elif head not in ("", known, self.doubted.get(site)):
                self.doubted[site] = head
                text = (
                    f"its privacy ledger has {_lines(head)} lines, and had {_lines(known)} before"
                )
                self.event("ledger", text, site=site)

    def knows(self, site: ClientId, head: str) -> bool:
        """Whether :meth:`remember` has no line for the log to write of that head."""
        known = self.ledgers.get(site, "")
        return head in ("", known, self.doubted.get(site)) or _lines(head) > _lines(known)

    def be_sure(self) -> None:
        """Raise ``FenceError`` where another server has the store, though this one has not noticed.

        A node lets go of what it hears is over or unknown. Only the server that has the store knows that.
        """
        try:
            fence(self.epoch, self.store.lease().epoch)
        except FenceError:
            self.wake()  # the next step finds out too, and ends this server
            raise

    @contextmanager
    def for_good(self) -> Iterator[None]:
        """Refusals inside are meant for good."""
        try:
            yield
        except StateError:
            self.be_sure()
            raise

    def event(self, kind: str, text: str, run: str = "", site: ClientId = "") -> None:
        """A line in the log."""
        self.store.add_event(kind, text, run, site, self.now())


def _lines(head: str) -> int:
    """How many lines a ledger had."""
    return int(head.partition(".")[0]) if head else 0
