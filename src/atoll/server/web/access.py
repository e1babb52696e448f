"""Which researcher may read which run, and which bytes a researcher may name in a job.

The operator says whether runs are ``open`` to every researcher of the federation, or each researcher's
``own``. Where they are one's own, a run is read by who submitted it and by those with whom it was shared;
to anybody else it is as if it were not there: the same answer, found in the same way, whether there is a
run of that id or none.

Blobs are kept by their digest, whoever has uploaded them. A digest is no key: where runs are one's own, a
job may name only bytes that its researcher has sent to this start of the server, all of them, and until
then an upload goes on as if nobody else had ever sent them.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from atoll.core.errors import Fault, Forbidden, JobError, NotFound, StateError, Unreachable, suggest
from atoll.server.settings import Runs
from atoll.server.store.contract import RunRow, Store
from atoll.server.store.rules import no_run
from atoll.server.web.limits import Buckets
from atoll.server.web.routes import Whose
from atoll.wire.disk import Piece
from atoll.wire.frames import Blob
from atoll.wire.messages import SubmitBody

__all__ = ["Access", "Proofs"]

_MOST = 10_000
"""Most uploads of one researcher that are remembered: the one unused for longest is forgotten first."""


class Access:
    """Who may read what. Any thread may ask.

    Args:
        store: what is asked each time, so that what is taken back counts at once.
        runs: whether they are open to every researcher, or each one's own.
        epoch: of this start of the server.
        now: seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        runs: Runs = "open",
        epoch: Callable[[], int] = lambda: 0,
        now: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._store, self.runs, self._epoch, self._now = store, runs, epoch, now
        self.proofs = Proofs()
        self._lock = threading.Lock()
        self._lines = Buckets(0.2, 50)
        self._unsaid: Counter[str] = Counter()

    @property
    def open(self) -> bool:
        """Whether every researcher may read every run."""
        return self.runs == "open"

    def asks(self, whose: Whose | None) -> bool:
        """Whether a route with that right needs :meth:`check`; reading what is open does not."""
        return whose is not None and not (self.open and whose == "reader")

    def check(self, name: str, run: str, whose: Whose, what: str) -> None:
        """Refuse a researcher who may not do that with a run.

        Args:
            name: who asks.
            run: its id, as it was asked for.
            whose: the right that is needed.
            what: the request, for the log.

        Raises:
            NotFound: there is no such run, or none that ``name`` may read.
            Forbidden: ``name`` may read it, and it is another's.
        """
        readers = self._store.readers(run)  # asked whether it is there or not
        row = self._find(run)
        if row is None or not (self.open or name in (row.by, *readers)):
            if self.open:
                raise no_run(run)
            self._log(name, run, row, what)
            raise NotFound(
                f"there is no run {run} that you may read",
                remedy="list those that you may: atoll job list; or ask its researcher to share it",
            )
        if whose == "owner" and row.by != name:
            raise Forbidden(f"run {run} is {row.by}'s", remedy=f"ask {row.by} to do this")

    def readable(self, name: str) -> Callable[[str, str], bool]:
        """Whether a run, by its id and researcher, is one that ``name`` may read."""
        if self.open:
            return lambda run, by: True
        shared = self._store.shared_with(name)
        return lambda run, by: by == name or run in shared

    def share(self, by: str, run: str, name: str) -> None:
        """Let another researcher read a run of one's own; again for the same one changes nothing.

        Raises:
            NotFound: nobody of that name is a researcher here.
            StateError: it is one's own name.
        """
        if name == by:
            raise StateError(f"run {run} is your own", remedy="name another researcher")
        known = [
            m.name
            for m in self._store.members()
            if (m.role, m.status) == ("researcher", "active") and m.name != by
        ]
        if name not in known:
            raise NotFound(f"{name!r:.120} is no researcher here", remedy=suggest(name, known))
        self._store.share(self._epoch(), run, name, self._now())

    def unshare(self, run: str, name: str) -> None:
        """Take that back; what was fetched before stays fetched.

        Raises:
            NotFound: the run is not shared with anybody of that name.
        """
        if not self._store.unshare(self._epoch(), run, name, self._now()):
            raise NotFound(
                f"run {run} is not shared with {name!r:.120}", remedy=f"atoll job show {run}"
            )

    def check_bytes(self, by: str, body: SubmitBody) -> None:
        """Refuse a job that names bytes which its researcher has not sent, whoever else has.

        Raises:
            JobError: naming each of them, as those are named that nobody has sent.
        """
        if self.open:
            return
        faults = [
            Fault(f"files.{name}", "is not here", "upload it before the job")
            for name, ref in body.brought.items()
            if not self.proofs.holds(by, ref.sha256)
        ]
        if faults:
            raise JobError("this job's files are not here", faults=faults)

    def _find(self, run: str) -> RunRow | None:
        try:
            return self._store.run(run)
        except NotFound:
            return None

    def _log(self, name: str, run: str, row: RunRow | None, what: str) -> None:
        """A line of a refusal; who asks again and again has them counted, and the next line says how many."""
        with self._lock:
            if self._lines.take(name, self._now()):
                self._unsaid[name] += 1
                return
            more = self._unsaid.pop(name, 0)
        there = "which it may not read" if row is not None else "which is not there"
        text = f"{name} asked for run {run!r:.120}, {there}: {what}"
        text += f"; and {more} times before that" if more else ""
        self._store.add_event("refused", text, "" if row is None else row.id, "", self._now())


@dataclass(eq=False)
class _Proof:
    """How much of a blob a researcher has sent, and its digest so far."""

    size: int
    sha: hashlib._Hash = field(default_factory=hashlib.sha256)
    seen: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Proofs:
    """Which bytes researchers have sent since this server's start. Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, OrderedDict[str, _Proof]] = {}
        self._whole: set[tuple[str, str]] = set()

    def holds(self, name: str, sha256: str) -> bool:
        """Whether ``name`` has sent all of it."""
        return (name, sha256) in self._whole

    def seen(self, name: str, sha256: str) -> int:
        """How many of its bytes ``name`` has sent."""
        with self._lock:
            known = self._known.get(name, OrderedDict()).get(sha256)
        return 0 if known is None else known.seen

    def take(
        self, name: str, blob: Blob, offset: int, data: Piece, keep: Callable[[bool], object]
    ) -> int:
        """Bytes that ``name`` sends; returns how many it has sent.

        What is said of them comes from what was sent alone, before they are handed on.

        Args:
            name: who sends them.
            blob: what all of them together will be.
            offset: where these belong.
            data: the bytes.
            keep: hands them on, to be kept; it is told whether an upload begins, so that nothing is left of an
                earlier one. What it raises, these bytes have not been sent.

        Raises:
            Unreachable: bytes before ``offset`` are missing, or all of them are here and are not the blob.
        """
        proof = self._proof(name, blob)
        with proof.lock:
            if offset > proof.seen:
                raise Unreachable(
                    f"a chunk at {offset} leaves a gap: {proof.seen} bytes are held",
                    remedy=f"continue at {proof.seen}",
                )
            fresh, sha = memoryview(data)[proof.seen - offset :], proof.sha.copy()
            sha.update(fresh)
            seen = proof.seen + len(fresh)
            if seen < blob.size or (seen == blob.size and sha.hexdigest() == blob.sha256):
                keep(not proof.seen)
                proof.sha, proof.seen = sha, seen
                if seen == blob.size:
                    self._whole.add((name, blob.sha256))
                return seen
        self.forget(name, blob.sha256)
        raise Unreachable(
            f"the {seen} bytes that are here are not blob {blob.sha256[:12]}",
            remedy="send it again from the start",
        )

    def _proof(self, name: str, blob: Blob) -> _Proof:
        with self._lock:
            mine = self._known.setdefault(name, OrderedDict())
            found = mine.get(blob.sha256)
            if found is None or found.size != blob.size:
                found = mine[blob.sha256] = _Proof(blob.size)
                self._whole.discard((name, blob.sha256))
            mine.move_to_end(blob.sha256)
            while len(mine) > _MOST:
                old, _ = mine.popitem(last=False)
                self._whole.discard((name, old))
        return found

    def forget(self, name: str, sha256: str) -> None:
        """``name`` has sent nothing of it: the server has forgotten its upload."""
        with self._lock:
            self._known.get(name, OrderedDict()).pop(sha256, None)
            self._whole.discard((name, sha256))
