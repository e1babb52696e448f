"""The store in a database, SQLite or PostgreSQL: the same statements for both."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, Literal, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from atoll.core.errors import AtollError, FenceError, StateError, StorageError
from atoll.server.store import readers, rules, uploads
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
from atoll.server.store.database import Database
from atoll.server.store.driver import Statement
from atoll.server.store.pending import Pending
from atoll.server.store.tables import (
    BLOBS,
    CONTRIBUTIONS,
    EVENTS,
    INVITES,
    LEASE,
    MEMBERS,
    ROUNDS,
    RUNS,
    tasks_from,
)

__all__ = ["SqlStore"]

R = TypeVar("R")

# What is kept as JSON text.
_NESTED = frozenset({"files", "sites", "signed", "record", "tasks"})
_TUPLES = frozenset({"sites", "tasks"})

_KNOWN_RUN = select(RUNS.c.number).where(RUNS.c.id == bindparam("run"))
_THIS = (CONTRIBUTIONS.c.run == bindparam("of")) & (CONTRIBUTIONS.c.task == bindparam("named"))


class _Often:
    """What every round asks of one database."""

    def __init__(self, database: Database) -> None:
        add = (sqlite if database.sqlite else postgresql).insert

        def ready(built: Any, columns: Sequence[str] = ()) -> Statement:
            return Statement(built, database.engine.dialect, columns)

        answer, round_ = ([f.name for f in fields(kind)] for kind in (Contribution, RoundRow))
        self.lease = ready(_all(LEASE, Lease))
        self.epoch = ready(select(LEASE.c.epoch).with_for_update())
        self.known_run = ready(_KNOWN_RUN)
        self.held = ready(select(BLOBS.c.raw).where(BLOBS.c.sha256 == bindparam("digest")))
        self.drop = ready(delete(BLOBS).where(BLOBS.c.sha256 == bindparam("digest")))
        self.add_blob = ready(add(BLOBS).on_conflict_do_nothing(), ("sha256", "raw"))
        self.first = ready(select(CONTRIBUTIONS.c.sha256).where(_THIS))
        self.add_answer = ready(insert(CONTRIBUTIONS), answer)
        self.mark = ready(select(CONTRIBUTIONS.c.round).where(_THIS))
        self.set_mark = ready(update(CONTRIBUTIONS).where(_THIS).values(round=bindparam("into")))
        self.last = ready(select(func.max(ROUNDS.c.number)).where(ROUNDS.c.run == bindparam("of")))
        self.add_round = ready(insert(ROUNDS), round_)


class SqlStore:
    """A :class:`~.contract.Store` in a database.

    Args:
        url: see :class:`~.database.Database`.
    """

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self._often = _Often(self.database)
        self._pending = Pending()
        self._arrived: list[_Arrival] = []
        self._arriving, self._leading = threading.Lock(), threading.Lock()

    def close(self) -> None:
        """Let go of the lock and of all connections."""
        self.database.close()

    @contextlib.contextmanager
    def _writing(self, epoch: int) -> Iterator[Connection]:
        """A transaction of the server's; small blobs become durable with it."""
        changes = self._pending.changes()
        with self.database.writing(epoch) as db:
            self._flush(db.connection.cursor(), changes)
            yield db
        self._pending.done(changes)

    def _flush(self, cursor: Any, changes: Mapping[str, bytes | None]) -> None:
        gone = [{"digest": sha256} for sha256, raw in changes.items() if raw is None]
        new = [{"sha256": sha256, "raw": raw} for sha256, raw in changes.items() if raw is not None]
        self._often.drop.many(cursor, gone)
        self._often.add_blob.many(cursor, new)

    # The lock

    def acquire(self, holder: str, now: float, above: int = 0, start: str = "") -> int:
        """Become the one server on this store; returns the new epoch."""
        if not self.database.lock():
            raise rules.held_by(self.lease().holder)
        try:
            with self.database.writing() as db:
                epoch = max(above, int(db.scalars(select(LEASE.c.epoch)).one())) + 1
                row = {"epoch": epoch, "holder": rules.readable(holder), "since": now}
                db.execute(update(LEASE).values(row))
                uploads.begin(db, epoch, start)
        except BaseException:
            self.database.unlock()
            raise
        return epoch

    def keep_lock(self) -> None:
        """See that this server still holds the store."""
        self.database.keep_lock()

    def lease(self) -> Lease:
        """Who acquired the store last."""
        with self.database.driving() as cursor:
            return Lease(*self._often.lease.run(cursor).fetchone())

    def starts(self) -> Mapping[int, str]:
        """What the latest starts on this store have drawn."""
        with self.database.reading() as db:
            return uploads.starts(db)

    # Members

    def members(self) -> tuple[Member, ...]:
        """All keys ever admitted."""
        with self.database.reading() as db:
            return _rows(db, Member, _members())

    def member(self, fingerprint: str) -> Member | None:
        """The key with this fingerprint."""
        with self.database.reading() as db:
            return _first(db, Member, _members(MEMBERS.c.fingerprint == fingerprint))

    def add_invite(self, invite: Invite) -> None:
        """Keep an invitation."""
        with self.database.writing() as db:
            known = _first(db, Invite, _invites(INVITES.c.secret_hash == invite.secret_hash))
            rules.allow_invite(invite, known, _rows(db, Member, _members()))
            db.execute(insert(INVITES).values(asdict(invite)))

    def invites(self) -> tuple[Invite, ...]:
        """All invitations."""
        with self.database.reading() as db:
            return _rows(db, Invite, _invites())

    def withdraw(self, name: str) -> int:
        """Forget the unused invitations for a name."""
        unused = (INVITES.c.name == name) & INVITES.c.used.is_(None)
        with self.database.writing() as db:
            return db.execute(delete(INVITES).where(unused)).rowcount

    def join(
        self, secret_hash: str, name: str, key: bytes, now: float, role: Role | None = None
    ) -> Member:
        """Admit a key by its invitation."""
        with self.database.writing() as db:
            invite = _first(db, Invite, _invites(INVITES.c.secret_hash == secret_hash))
            known = _rows(db, Member, _members())
            newcomer, used = rules.admit(invite, name, key, now, known, role)
            mine = MEMBERS.c.fingerprint == newcomer.fingerprint
            if any(member.fingerprint == newcomer.fingerprint for member in known):
                db.execute(update(MEMBERS).where(mine).values(asdict(newcomer)))
            else:
                db.execute(insert(MEMBERS).values(asdict(newcomer)))
            this = INVITES.c.secret_hash == secret_hash
            db.execute(update(INVITES).where(this).values(used=used.used, used_by=used.used_by))
            return newcomer

    def set_member(self, name: str, status: Literal["revoked", "left"]) -> Member:
        """Revoke all keys of a name, or let its active key leave."""
        which = MEMBERS.c.name == name
        if status == "left":
            which &= MEMBERS.c.status == "active"
        with self.database.writing() as db:
            ids = db.scalars(select(MEMBERS.c.id).where(which).order_by(MEMBERS.c.id)).all()
            if not ids:
                raise rules.nobody(name)
            db.execute(update(MEMBERS).where(which).values(status=status))
            return _rows(db, Member, _members(MEMBERS.c.id == ids[-1]))[0]

    # Runs

    def add_run(self, epoch: int, row: RunRow) -> None:
        """Keep a new run."""
        values = {**_flat(row), "reason": rules.readable(row.reason)}
        with self._writing(epoch) as db:
            if _first(db, RunRow, _runs(row.id)) is not None:
                raise StateError(f"there is a run {row.id} already")
            db.execute(insert(RUNS).values(values))

    def run(self, id: str) -> RunRow:
        """One run."""
        with self.database.reading() as db:
            found = _first(db, RunRow, _runs(id))
        if found is None:
            raise rules.no_run(id)
        return found

    def runs(self) -> tuple[RunRow, ...]:
        """All runs."""
        with self.database.reading() as db:
            return _rows(db, RunRow, _all(RUNS, RunRow).order_by(RUNS.c.number))

    def set_run(self, epoch: int, id: str, **changes: str) -> None:
        """Change status, reason, plan or phase."""
        checked = rules.run_changes(changes)
        with self._writing(epoch) as db:
            _check_run(db, id)
            if checked:
                db.execute(update(RUNS).where(RUNS.c.id == id).values(checked))

    def share(self, epoch: int, run: str, name: str, now: float) -> bool:
        """Let a researcher read a run."""
        with self._writing(epoch) as db:
            _check_run(db, run)
            return readers.add(db, run, name, now)

    def unshare(self, epoch: int, run: str, name: str, now: float) -> bool:
        """Take that back."""
        with self._writing(epoch) as db:
            _check_run(db, run)
            return readers.remove(db, run, name, now)

    def readers(self, run: str) -> tuple[str, ...]:
        """With whom a run is shared."""
        with self.database.reading() as db:
            return readers.of_run(db, run)

    def shared_with(self, name: str) -> frozenset[str]:
        """Ids of the runs that are shared with a researcher."""
        with self.database.reading() as db:
            return readers.of_name(db, name)

    # Rounds

    def contribute(self, epoch: int, row: Contribution) -> Heard:
        """Keep a site's answer unless its task has one."""
        mine = _Arrival(epoch, row)
        with self._arriving:
            self._arrived.append(mine)
        # Who comes first writes for all who came meanwhile: one commit, and one wait for the disk.
        with self._leading:
            if mine.heard is None:
                with self._arriving:
                    group, self._arrived = self._arrived, []
                self._contribute(group)
        if mine.heard is None or isinstance(mine.heard, AtollError):
            raise mine.heard or StorageError("the store was interrupted", remedy="try again")
        return mine.heard

    def _contribute(self, group: Sequence[_Arrival]) -> None:
        """Write all of a group that may write, or none where the database fails."""
        changes = self._pending.changes()
        try:
            with self.database.driving(write=True) as cursor:
                newest = int(self._often.epoch.run(cursor).fetchone()[0])
                found = [self._heard(cursor, newest, one) for one in group]
                if all(isinstance(heard, AtollError) for heard in found):
                    changes = {}
                self._flush(cursor, changes)
        except AtollError as error:
            found = [error] * len(group)
        else:
            self._pending.done(changes)
        for one, heard in zip(group, found, strict=True):
            one.heard = heard

    def _heard(self, cursor: Any, newest: int, one: _Arrival) -> Heard | AtollError:
        """What becomes of one of several that have nothing to do with each other."""
        try:
            rules.fence(one.epoch, newest)
        except FenceError as error:
            return error
        if self._often.known_run.run(cursor, run=one.row.run).fetchone() is None:
            return rules.no_run(one.row.run)
        return self._hear(cursor, one.row)

    def _hear(self, cursor: Any, row: Contribution) -> Heard:
        """Write an answer where it is new. Nobody else can write meanwhile."""
        often = self._often
        first = often.first.run(cursor, of=row.run, named=row.task).fetchone()
        if first is None:
            often.add_answer.run(cursor, **vars(row))
            return "new"
        return "same" if first[0] == row.sha256 else "different"

    def contribute_all(self, epoch: int, rows: Sequence[Contribution]) -> tuple[Heard, ...]:
        """The same for several answers."""
        changes = self._pending.changes()
        with self.database.driving(epoch, write=True) as cursor:
            for run in dict.fromkeys(row.run for row in rows):
                self._check_known(cursor, run)
            found = tuple(self._hear(cursor, row) for row in rows)
            self._flush(cursor, changes)
        self._pending.done(changes)
        return found

    def _check_known(self, cursor: Any, run: str) -> None:
        if self._often.known_run.run(cursor, run=run).fetchone() is None:
            raise rules.no_run(run)

    def contributions(self, run: str, prefix: str = "") -> tuple[Contribution, ...]:
        """Answers to tasks whose id starts with ``prefix``."""
        query = _all(CONTRIBUTIONS, Contribution).where(CONTRIBUTIONS.c.run == run)
        query = query.where(*tasks_from(prefix)).order_by(CONTRIBUTIONS.c.id)
        with self.database.reading() as db:
            return _rows(db, Contribution, query)

    def commit_round(
        self, epoch: int, row: RoundRow, answers: Sequence[Contribution] = ()
    ) -> tuple[Heard, ...]:
        """Write a round and mark its contributions, together."""
        often, changes = self._often, self._pending.changes()
        with self.database.driving(epoch, write=True) as cursor:
            self._check_known(cursor, row.run)
            heard = tuple(rules.hear(row, one, partial(self._hear, cursor)) for one in answers)
            last = often.last.run(cursor, of=row.run).fetchone()[0]
            marks: dict[str, int | None] = {}
            for task in row.tasks:
                found = often.mark.run(cursor, of=row.run, named=task).fetchone()
                marks |= {} if found is None else {task: found[0]}
            rules.allow_round(row, int(last or 0), marks)
            often.add_round.run(cursor, **_flat(row))
            rows = [{"of": row.run, "named": task, "into": row.number} for task in row.tasks]
            often.set_mark.many(cursor, rows)
            self._flush(cursor, changes)
        self._pending.done(changes)
        return heard

    def rounds(self, run: str, after: int = 0) -> tuple[RoundRow, ...]:
        """Rounds with a number larger than ``after``."""
        query = _all(ROUNDS, RoundRow).where(ROUNDS.c.run == run, ROUNDS.c.number > after)
        with self.database.reading() as db:
            return _rows(db, RoundRow, query.order_by(ROUNDS.c.number))

    def last_round(self, run: str) -> RoundRow | None:
        """The newest round."""
        query = _all(ROUNDS, RoundRow).where(ROUNDS.c.run == run)
        with self.database.reading() as db:
            return _first(db, RoundRow, query.order_by(ROUNDS.c.number.desc()).limit(1))

    def kept(self, run: str, client: str) -> str:
        """Id of this client's last train task that went into a round."""
        rows = CONTRIBUTIONS.c
        query = (
            select(rows.task)
            .where(rows.run == run, rows.client == client, rows.round.is_not(None))
            .where(*tasks_from(rules.train_prefix(run)))
            .order_by(rows.round.desc(), rows.id.desc())
        )
        with self.database.reading() as db:
            found: str | None = db.scalar(query.limit(1))
        return found or ""

    # Small blobs

    def hold(self, sha256: str, raw: bytes) -> None:
        """Keep a small blob, durable with the next write."""
        self.database.check_open()
        self._pending.hold(sha256, raw)

    def drop(self, sha256: str) -> None:
        """Forget a small blob."""
        self.database.check_open()
        self._pending.drop(sha256)

    def held(self, sha256: str) -> bytes | None:
        """The bytes of a small blob."""
        changes = self._pending.changes()
        if sha256 in changes:
            return changes[sha256]
        with self.database.driving() as cursor:
            found = self._often.held.run(cursor, digest=sha256).fetchone()
        return None if found is None else bytes(found[0])

    def holdings(self) -> Mapping[str, int]:
        """Digests of all small blobs, with their sizes."""
        # Before the rows are read: what is written meanwhile is then seen twice, and not missed.
        changes = self._pending.changes()
        with self.database.reading() as db:
            rows = db.execute(select(BLOBS.c.sha256, func.length(BLOBS.c.raw)))
            sizes: dict[str, int] = {row[0]: row[1] for row in rows}
        for sha256, raw in changes.items():
            if raw is None:
                sizes.pop(sha256, None)
            else:
                sizes[sha256] = len(raw)
        return sizes

    def note_uploads(self, epoch: int, rows: Sequence[Upload], gone: Sequence[Upload] = ()) -> None:
        """Keep these, and others no longer."""
        with self._writing(epoch) as db:
            uploads.note(db, rows, gone)

    def uploads(self) -> tuple[Upload, ...]:
        """All that are kept."""
        with self.database.reading() as db:
            return uploads.noted(db)

    # Log

    def add_event(self, kind: str, text: str, run: str, site: str, now: float) -> None:
        """Append a line to the log."""
        row = {"kind": kind, "text": rules.readable(text), "run": run, "site": site, "at": now}
        with self.database.writing() as db:
            db.execute(insert(EVENTS).values(row))

    def events(self, run: str | None = None, after: int = 0) -> tuple[Event, ...]:
        """Lines with a number larger than ``after``."""
        columns = [EVENTS.c.id.label("number"), *(EVENTS.c[f.name] for f in fields(Event)[1:])]
        query = select(*columns).where(EVENTS.c.id > after).order_by(EVENTS.c.id)
        if run is not None:
            query = query.where(EVENTS.c.run == run)
        with self.database.reading() as db:
            return tuple(Event(**row._mapping) for row in db.execute(query))


@dataclass(eq=False)
class _Arrival:
    """A contribution that waits to be written, and what became of it."""

    epoch: int
    row: Contribution
    heard: Heard | AtollError | None = None


def _all(table: Table, kind: type[Any]) -> Select[Any]:
    return select(*(table.c[f.name] for f in fields(kind)))


def _members(*where: ColumnElement[bool]) -> Select[Any]:
    return _all(MEMBERS, Member).where(*where).order_by(MEMBERS.c.id)


def _invites(*where: ColumnElement[bool]) -> Select[Any]:
    return _all(INVITES, Invite).where(*where).order_by(INVITES.c.id)


def _runs(id: str) -> Select[Any]:
    return _all(RUNS, RunRow).where(RUNS.c.id == id)


def _check_run(db: Connection, run: str) -> None:
    if db.scalar(_KNOWN_RUN, {"run": run}) is None:
        raise rules.no_run(run)


def _flat(row: RunRow | RoundRow) -> dict[str, Any]:
    """Values by column, what is nested as JSON text."""
    values = {f.name: getattr(row, f.name) for f in fields(row)}
    return {n: rules.plain(v) if n in _NESTED else v for n, v in values.items()}


def _one(kind: Callable[..., R], values: Mapping[Any, Any]) -> R:
    read = {n: json.loads(v) if n in _NESTED else v for n, v in values.items()}
    return kind(**{n: tuple(v) if n in _TUPLES else v for n, v in read.items()})


def _rows(db: Connection, kind: Callable[..., R], query: Select[Any]) -> tuple[R, ...]:
    return tuple(_one(kind, row._mapping) for row in db.execute(query))


def _first(db: Connection, kind: Callable[..., R], query: Select[Any]) -> R | None:
    return next(iter(_rows(db, kind, query)), None)
