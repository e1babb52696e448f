"""The store's twin in memory, for simulations and quick tests: no disk, and crashes on demand.

A :class:`MemoryDatabase` is what survives; a :class:`MemoryStore` is one server's connection to it.
Several stores on one database are several servers. Each operation checks first and then writes in one
step that cannot be cut, so a crash falls before it or after it:

    >>> database = MemoryDatabase()
    >>> store = MemoryStore(database)
    >>> store.acquire("server", now=0.0)
    1
    >>> store.crash()
    >>> MemoryStore(database).acquire("server again", now=1.0)
    2
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from atoll.core.errors import StateError, StorageError
from atoll.server.store import rules
from atoll.server.store.contract import (
    Contribution,
    Event,
    Heard,
    Invite,
    Lease,
    Member,
    Role,
    RoundRow,
    RunRow,
    Upload,
)
from atoll.server.store.pending import Pending

__all__ = ["MemoryDatabase", "MemoryStore"]

Hook = Callable[[str], None]


def _nothing(operation: str) -> None:
    """The hook that does nothing."""


@dataclass(eq=False)
class MemoryDatabase:
    """What all stores on it share and no crash of a store takes away."""

    lease: Lease = field(default_factory=lambda: Lease(0, "", 0.0))
    holder: MemoryStore | None = None
    members: dict[str, Member] = field(default_factory=dict)
    invites: dict[str, Invite] = field(default_factory=dict)
    runs: dict[str, RunRow] = field(default_factory=dict)
    contributions: dict[str, dict[str, Contribution]] = field(default_factory=dict)
    taken: dict[str, dict[str, int]] = field(default_factory=dict)
    rounds: dict[str, list[RoundRow]] = field(default_factory=dict)
    readers: dict[str, set[str]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    starts: dict[int, str] = field(default_factory=dict)
    uploads: dict[tuple[str, str], Upload] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)


class MemoryStore:
    """One server's connection to a :class:`MemoryDatabase`; a :class:`~.contract.Store`.

    Args:
        database: what it writes to; a new one when left out.
        before: called with the operation's name before anything is written; what it raises is seen
            by the caller, and nothing is written.
        after: called when the operation is durable and its caller does not know yet; what it raises
            is seen by the caller, and all is written.
    """

    def __init__(
        self,
        database: MemoryDatabase | None = None,
        *,
        before: Hook = _nothing,
        after: Hook = _nothing,
    ) -> None:
        self.database = MemoryDatabase() if database is None else database
        self.before = before
        self.after = after
        self._gone = ""
        self._pending = Pending()

    def crash(self) -> None:
        """Die: the lock is free, what was committed stays, this store answers no more."""
        self._end("this store's process has crashed")

    def close(self) -> None:
        """Let go of the lock; nothing may be called afterwards."""
        self._end("this store is closed")

    def lose_lock(self) -> None:
        """Lose the lock and live on, as when the connection that held it broke."""
        with self.database.lock:
            if self.database.holder is self:
                self.database.holder = None

    def _end(self, why: str) -> None:
        self.lose_lock()
        self._gone = why

    @contextmanager
    def _operation(self, name: str, epoch: int | None = None) -> Iterator[MemoryDatabase]:
        with self.database.lock:
            if self._gone:
                raise StorageError(self._gone, remedy="open the store again")
            self.before(name)
            if epoch is not None:
                self._fence(epoch)
            yield self.database
            if epoch is not None:
                self._flush()
            self.after(name)

    def _fence(self, epoch: int) -> None:
        rules.fence(epoch, self.database.lease.epoch)

    def _flush(self) -> None:
        """Small blobs become durable together with the rows just written."""
        changes = self._pending.changes()
        for sha256, raw in changes.items():
            if raw is None:
                self.database.blobs.pop(sha256, None)
            else:
                self.database.blobs[sha256] = raw
        self._pending.done(changes)

    # The lock

    def acquire(self, holder: str, now: float, above: int = 0, start: str = "") -> int:
        """Become the one server on this store; returns the new epoch."""
        with self._operation("acquire") as db:
            if db.holder is not None:
                raise rules.held_by(db.lease.holder)
            epoch = max(above, db.lease.epoch) + 1
            db.holder, db.lease = self, Lease(epoch, rules.readable(holder), now)
            oldest = rules.oldest_start(epoch)
            known = {e: drawn for e, drawn in db.starts.items() if e >= oldest}
            db.starts = {**known, epoch: start} if start else {}
            return db.lease.epoch

    def keep_lock(self) -> None:
        """Nobody takes it from a process's memory."""

    def lease(self) -> Lease:
        """Who acquired the store last."""
        with self._operation("lease") as db:
            return db.lease

    def starts(self) -> Mapping[int, str]:
        """What the latest starts on this store have drawn."""
        with self._operation("starts") as db:
            return dict(db.starts)

    # Members

    def members(self) -> tuple[Member, ...]:
        """All keys ever admitted."""
        with self._operation("members") as db:
            return tuple(db.members.values())

    def member(self, fingerprint: str) -> Member | None:
        """The key with this fingerprint."""
        with self._operation("member") as db:
            return db.members.get(fingerprint)

    def add_invite(self, invite: Invite) -> None:
        """Keep an invitation."""
        with self._operation("add_invite") as db:
            known = db.invites.get(invite.secret_hash)
            rules.allow_invite(invite, known, tuple(db.members.values()))
            db.invites[invite.secret_hash] = invite

    def invites(self) -> tuple[Invite, ...]:
        """All invitations."""
        with self._operation("invites") as db:
            return tuple(db.invites.values())

    def withdraw(self, name: str) -> int:
        """Forget the unused invitations for a name."""
        with self._operation("withdraw") as db:
            gone = [i.secret_hash for i in db.invites.values() if (i.name, i.used) == (name, None)]
            for secret_hash in gone:
                del db.invites[secret_hash]
            return len(gone)

    def join(
        self, secret_hash: str, name: str, key: bytes, now: float, role: Role | None = None
    ) -> Member:
        """Admit a key by its invitation."""
        with self._operation("join") as db:
            known = tuple(db.members.values())
            invite = db.invites.get(secret_hash)
            newcomer, used = rules.admit(invite, name, key, now, known, role)
            db.members[newcomer.fingerprint] = newcomer
            db.invites[secret_hash] = used
            return newcomer

    def set_member(self, name: str, status: Literal["revoked", "left"]) -> Member:
        """Revoke all keys of a name, or let its active key leave."""
        with self._operation("set_member") as db:
            changed = [
                replace(m, status=status)
                for m in db.members.values()
                if m.name == name and (status == "revoked" or m.status == "active")
            ]
            if not changed:
                raise rules.nobody(name)
            db.members.update({m.fingerprint: m for m in changed})
            return changed[-1]

    # Runs

    def add_run(self, epoch: int, row: RunRow) -> None:
        """Keep a new run."""
        kept = replace(row, files=_copied(row.files), reason=rules.readable(row.reason))
        with self._operation("add_run", epoch) as db:
            if row.id in db.runs:
                raise StateError(f"there is a run {row.id} already")
            db.runs[row.id] = kept
            db.contributions[row.id], db.taken[row.id], db.rounds[row.id] = {}, {}, []

    def run(self, id: str) -> RunRow:
        """One run."""
        with self._operation("run") as db:
            return _known(db, id)

    def runs(self) -> tuple[RunRow, ...]:
        """All runs."""
        with self._operation("runs") as db:
            return tuple(db.runs.values())

    def set_run(self, epoch: int, id: str, **changes: str) -> None:
        """Change status, reason, plan or phase."""
        checked: dict[str, Any] = rules.run_changes(changes)
        with self._operation("set_run", epoch) as db:
            db.runs[id] = replace(_known(db, id), **checked)

    def share(self, epoch: int, run: str, name: str, now: float) -> bool:
        """Let a researcher read a run."""
        with self._operation("share", epoch) as db:
            _known(db, run)
            if name in db.readers.get(run, ()):
                return False
            db.readers.setdefault(run, set()).add(name)
            _note(db, rules.SHARED, f"with {name}", run, "", now)
            return True

    def unshare(self, epoch: int, run: str, name: str, now: float) -> bool:
        """Take that back."""
        with self._operation("unshare", epoch) as db:
            _known(db, run)
            if name not in db.readers.get(run, ()):
                return False
            db.readers[run].remove(name)
            _note(db, rules.UNSHARED, f"with {name}", run, "", now)
            return True

    def readers(self, run: str) -> tuple[str, ...]:
        """With whom a run is shared."""
        with self._operation("readers") as db:
            return tuple(sorted(db.readers.get(run, ())))

    def shared_with(self, name: str) -> frozenset[str]:
        """Ids of the runs that are shared with a researcher."""
        with self._operation("shared_with") as db:
            return frozenset(run for run, names in db.readers.items() if name in names)

    # Rounds

    def contribute(self, epoch: int, row: Contribution) -> Heard:
        """Keep a site's answer unless its task has one."""
        return self.contribute_all(epoch, [row])[0]

    def contribute_all(self, epoch: int, rows: Sequence[Contribution]) -> tuple[Heard, ...]:
        """The same for several answers."""
        with self._operation("contribute", epoch) as db:
            for row in rows:
                _known(db, row.run)
            return tuple(_hear(db.contributions[row.run], row) for row in rows)

    def contributions(self, run: str, prefix: str = "") -> tuple[Contribution, ...]:
        """Answers to tasks whose id starts with ``prefix``."""
        with self._operation("contributions") as db:
            heard = db.contributions.get(run, {}).values()
            return tuple(row for row in heard if row.task.startswith(prefix))

    def commit_round(
        self, epoch: int, row: RoundRow, answers: Sequence[Contribution] = ()
    ) -> tuple[Heard, ...]:
        """Write a round and mark its contributions, together."""
        kept = replace(row, record=_copied(row.record))
        name = "commit_round with answers" if answers else "commit_round"
        with self._operation(name, epoch) as db:
            _known(db, row.run)
            heard, taken = dict(db.contributions[row.run]), db.taken[row.run]
            found = tuple(rules.hear(row, one, partial(_hear, heard)) for one in answers)
            last = max((r.number for r in db.rounds[row.run]), default=0)
            rules.allow_round(row, last, {t: taken.get(t) for t in row.tasks if t in heard})
            db.contributions[row.run] = heard
            db.rounds[row.run].append(kept)
            taken.update(dict.fromkeys(row.tasks, row.number))
            return found

    def rounds(self, run: str, after: int = 0) -> tuple[RoundRow, ...]:
        """Rounds with a number larger than ``after``."""
        with self._operation("rounds") as db:
            return tuple(row for row in db.rounds.get(run, ()) if row.number > after)

    def last_round(self, run: str) -> RoundRow | None:
        """The newest round."""
        with self._operation("last_round") as db:
            return next(reversed(db.rounds.get(run, [])), None)

    def kept(self, run: str, client: str) -> str:
        """Id of this client's last train task that went into a round."""
        with self._operation("kept") as db:
            taken, start = db.taken.get(run, {}), rules.train_prefix(run)
            mine = [
                (taken[row.task], place, row.task)
                for place, row in enumerate(db.contributions.get(run, {}).values())
                if row.client == client and row.task in taken and row.task.startswith(start)
            ]
            return max(mine, default=(0, 0, ""))[2]

    # Small blobs

    def hold(self, sha256: str, raw: bytes) -> None:
        """Keep a small blob, durable with the next write."""
        with self._operation("hold"):
            self._pending.hold(sha256, raw)

    def drop(self, sha256: str) -> None:
        """Forget a small blob."""
        with self._operation("drop"):
            self._pending.drop(sha256)

    def held(self, sha256: str) -> bytes | None:
        """The bytes of a small blob."""
        with self._operation("held") as db:
            changes = self._pending.changes()
            return changes[sha256] if sha256 in changes else db.blobs.get(sha256)

    def holdings(self) -> Mapping[str, int]:
        """Digests of all small blobs, with their sizes."""
        with self._operation("holdings") as db:
            seen = {**db.blobs, **self._pending.changes()}
            return {sha256: len(raw) for sha256, raw in seen.items() if raw is not None}

    # Uploads

    def note_uploads(self, epoch: int, rows: Sequence[Upload], gone: Sequence[Upload] = ()) -> None:
        """Keep these, and others no longer."""
        with self._operation("note_uploads", epoch) as db:
            for row in gone:
                db.uploads.pop((row.owner, row.sha256), None)
            db.uploads.update({(row.owner, row.sha256): row for row in rows})

    def uploads(self) -> tuple[Upload, ...]:
        """All that are kept."""
        with self._operation("uploads") as db:
            return tuple(row for _, row in sorted(db.uploads.items()))

    # Log

    def add_event(self, kind: str, text: str, run: str, site: str, now: float) -> None:
        """Append a line to the log."""
        with self._operation("add_event") as db:
            _note(db, kind, rules.readable(text), run, site, now)

    def events(self, run: str | None = None, after: int = 0) -> tuple[Event, ...]:
        """Lines with a number larger than ``after``."""
        with self._operation("events") as db:
            return tuple(e for e in db.events[max(after, 0) :] if run is None or e.run == run)


def _known(db: MemoryDatabase, run: str) -> RunRow:
    if run not in db.runs:
        raise rules.no_run(run)
    return db.runs[run]


def _note(db: MemoryDatabase, kind: str, text: str, run: str, site: str, now: float) -> None:
    db.events.append(Event(len(db.events) + 1, kind, text, run, site, now))


def _hear(heard: dict[str, Contribution], row: Contribution) -> Heard:
    """Keep an answer unless its task has one."""
    if row.task not in heard:
        heard[row.task] = row
        return "new"
    return "same" if heard[row.task].sha256 == row.sha256 else "different"


def _copied(value: Any) -> Any:
    """As it comes back from a database, and not to be changed from outside."""
    return json.loads(rules.plain(value))
