"""What members have begun to upload and nothing refers to yet: not more than each may have, and not for ever.

A researcher's uploads are counted by what each says it will be: whoever begins many has all of them counted.
They count whether the bytes are here already or not, and a job of another's that names the same bytes changes
nothing: a limit that is full tells nobody what others have sent. The bytes stay for as long as they count for
anybody.
They are noted in the store before their first bytes are taken, so that another start of the server counts
them too, and removes them in the end. Of a site's uploads each belongs to an open task, which says how many
bytes it may have: it goes with the task. Those that a start finds on the disk are kept for as long as their
site takes part in a run, for it may go on with them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from atoll.core.errors import StateError, TooLarge, Unreachable
from atoll.server.garbage import needed
from atoll.server.office import Office
from atoll.server.rounds.board import Board
from atoll.server.rounds.engine import ENDED
from atoll.server.settings import GIB, MIB
from atoll.server.store.contract import Upload
from atoll.wire.disk import Piece
from atoll.wire.frames import Blob

__all__ = ["Uploads"]

_LEAST = MIB
"""Bytes that an upload counts for at least: names cost something too."""

_EACH = 4
"""Most answers to one task of which a site may have begun to upload one: it has one, or another start has."""

_OFTEN = 24
"""The store is told so often, in the time that an upload is kept, that something was added."""


@dataclass
class _Begun:
    """One upload: its size, when something was added, when the store says so, its task, whether it counts."""

    size: int
    when: float
    noted: float = -1.0
    task: str = ""
    counts: bool = False


_Named = tuple[str, str, _Begun]


class Uploads:
    """Uploads by member. Any thread may ask.

    Args:
        office: of the server; its settings say how much, and for how long.

    Attributes:
        on_forgotten: called with a member and the digest of an upload of its that is forgotten.
    """

    def __init__(self, office: Office) -> None:
        self.on_forgotten: Callable[[str, str], None] = lambda name, sha256: None
        self._office, self._lock = office, threading.Lock()
        self._held: dict[str, dict[str, _Begun]] = {}
        self._used: list[_Named] = []
        # Whole ones that were not here before.
        self._whole: set[tuple[str, str]] = set()

    def resume(self) -> None:
        """Take up what an earlier start has left; files of those who are no members are removed.

        Raises:
            StorageError: it cannot be read, or noted.
        """
        office, now = self._office, self._office.now()
        rows, members = office.store.uploads(), office.store.members()
        counts = {m.name: m.role == "researcher" for m in members}
        for row in rows:
            at = min(row.at, now)
            begun = _Begun(row.size, at, at, counts=counts.get(row.owner, False))
            self._held.setdefault(row.owner, {})[row.sha256] = begun
        new = []
        for owner, blob in office.blobs.unfinished(m.name for m in members if m.status == "active"):
            held, size = self._held.setdefault(owner, {}), max(_LEAST, blob.size)
            if blob.sha256 not in held:
                # A site's, or of an older version: from now on it is known how old it is at least.
                held[blob.sha256] = _Begun(size, now, now, counts=counts[owner])
                new.append(Upload(owner, blob.sha256, size, now))
        if new:
            office.store.note_uploads(office.epoch, new)
        if rows:
            self._resume_used(rows)

    def _resume_used(self, rows: Collection[Upload]) -> None:
        """What a job of the same researcher, or a run of a site's, refers to since it was noted."""
        runs, kept = self._office.store.runs(), needed(self._office.store, ENDED)
        named = {(run.by, ref["sha256"]) for run in runs for ref in run.files.values()}
        with self._lock:
            for row in rows:
                known = (row.owner, row.sha256) in named
                if known or (row.sha256 in kept and not self._held[row.owner][row.sha256].counts):
                    self._use(row.owner, row.sha256)

    def add(self, name: str, blob: Blob, offset: int, data: Piece, task: str) -> int:
        """Take the next part of an upload; returns how many bytes are here.

        Raises:
            TooLarge: with that a researcher would have more than it may.
            Unreachable: bytes before ``offset`` are missing; or the whole is not what its name says.
            StorageError: it cannot be noted, or written.
        """
        new = not self._office.blobs.has(blob.sha256)
        if new or not task:
            self.expect(name, blob, task)
        held = self.more(name, blob, offset, data)
        if new and held == blob.size:
            # All bytes of it are here, and were not before.
            self._whole.add((name, blob.sha256))
        return held

    def more(self, name: str, blob: Blob, offset: int, data: Piece) -> int:
        """Bytes of the middle of an upload, whose last part was taken by :meth:`add`.

        Raises:
            Unreachable: bytes before ``offset`` are missing.
        """
        try:
            return self._office.blobs.append(blob, offset, data, name)
        except StateError as error:  # a power failure took what came before: to go on from there
            raise Unreachable(error.message, remedy=error.remedy) from error

    def expect(self, name: str, blob: Blob, task: str = "") -> None:
        """A member uploads a blob, or a part of it: for a task, or else for a job.

        Raises:
            TooLarge: with that a researcher would have more than it may.
            StorageError: it cannot be noted.
        """
        if task:
            self._answering(name, blob, task)
            return
        office, now = self._office, self._office.now()
        most, seconds = office.settings.uploads, office.settings.uploads_kept
        with self._lock:
            held = self._held.setdefault(name, {})
            begun = held.get(blob.sha256, _Begun(_LEAST, now))
            others = sum(other.size for sha256, other in held.items() if sha256 != blob.sha256)
            size = max(begun.size, blob.size)
            if others + size > most:
                raise TooLarge(
                    f"{name} has uploaded {others / GIB:.3g} GiB that no job refers to, and may have "
                    f"{most / GIB:.3g} GiB of that",
                    remedy="submit the job that they are for, or wait: what no job refers to is forgotten "
                    f"after {seconds / 3600:.3g} h",
                )
            told = 0 <= begun.noted <= now <= begun.noted + seconds / _OFTEN and size == begun.size
            begun.size, begun.when, begun.counts = size, now, True
            begun.noted = begun.noted if told else now
            held[blob.sha256] = begun
        if told:
            return
        try:
            office.store.note_uploads(office.epoch, [Upload(name, blob.sha256, size, now)])
        except BaseException:
            begun.noted = -1.0
            raise

    def _answering(self, site: str, blob: Blob, task: str) -> None:
        with self._lock:
            held = self._held.setdefault(site, {})
            begun = held.pop(blob.sha256, None) or _Begun(blob.size, 0.0)
            begun.when, begun.task = self._office.now(), task
            held[blob.sha256] = begun  # the last one added to is the last
            same = [sha256 for sha256, other in held.items() if other.task == task]
            left = same[:-_EACH]
            self._used += [(site, sha256, held.pop(sha256)) for sha256 in left]
        for sha256 in left:
            self._office.blobs.abandon(sha256, site)

    def taken(self, site: str, blob: Blob) -> None:
        """It is the answer to a task."""
        self._whole.discard((site, blob.sha256))
        with self._lock:
            begun = self._held.get(site, {}).pop(blob.sha256, None)
            if begun is not None and begun.noted >= 0:
                self._used.append((site, blob.sha256, begun))

    def refused(self, site: str, blob: Blob) -> None:
        """It answers no task: nobody is going to need these bytes, but a researcher who has sent them too.

        Bytes that a job refers to stay; no job is taken in meanwhile.
        """
        if (site, blob.sha256) in self._whole:
            self.taken(site, blob)
            rows = self._office.store.runs()
            if not any(ref["sha256"] == blob.sha256 for row in rows for ref in row.files.values()):
                self._delete(blob.sha256)

    def _delete(self, sha256: str) -> None:
        """Delete bytes, unless they count for somebody; who begins to send them meanwhile, waits."""
        with self._lock:
            others = [begun for held in self._held.values() if (begun := held.get(sha256))]
            if not any(begun.counts for begun in others):
                self._office.blobs.delete(sha256)

    def used(self, name: str, digests: Iterable[str]) -> None:
        """A job of ``name``'s refers to these."""
        with self._lock:
            for sha256 in digests:
                self._use(name, sha256)

    def _use(self, name: str, sha256: str) -> None:
        if (begun := self._held.get(name, {}).pop(sha256, None)) is not None:
            self._used.append((name, sha256, begun))

    def clear(self, board: Board, members: Collection[str]) -> None:
        """Forget what nobody has added to for so long, and what is of no member or for no task that is open.

        Bytes that a run has too stay; no job is taken in meanwhile.

        Args:
            board: the runs that have not ended.
            members: names of all.

        Raises:
            StorageError: it cannot be deleted; it is not tried again before the server's next start.
        """
        with self._lock:
            known = [
                (name, sha256, begun)
                for name, held in self._held.items()
                for sha256, begun in held.items()
            ]
        gone = [one for one in known if one[0] not in members or self._over(board, *one)]
        with self._lock:
            used, self._used = self._used, []
            # Not what a job has begun to refer to since.
            gone = [(n, s, self._held[n].pop(s)) for n, s, _ in gone if s in self._held.get(n, ())]
        if gone or used:
            with board.lock:
                self._forget(gone, used)

    def _over(self, board: Board, name: str, sha256: str, begun: _Begun) -> bool:
        if self._office.now() - begun.when > self._office.settings.uploads_kept:
            return True
        if begun.task:
            return board.gone(begun.task)
        return not begun.counts and not board.of(name)

    def _forget(self, gone: list[_Named], used: list[_Named]) -> None:
        blobs, store = self._office.blobs, self._office.store
        ours = [sha256 for _, sha256, begun in gone if begun.counts]
        kept = needed(store, ENDED) if ours else set[str]()
        for name, sha256, _ in (*gone, *used):
            blobs.abandon(sha256, name)
            self._whole.discard((name, sha256))
        for name, sha256, _ in gone:
            self.on_forgotten(name, sha256)
        # Of a site's whole answers only the start of a server knows that nobody is going to need them.
        for sha256 in ours:
            if sha256 not in kept:
                self._delete(sha256)
        noted = [Upload(n, s, 0, 0.0) for n, s, begun in (*gone, *used) if begun.noted >= 0]
        if noted:
            store.note_uploads(self._office.epoch, [], noted)
