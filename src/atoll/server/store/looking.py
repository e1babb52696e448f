"""Looking at a store from outside: nothing is made, locked or brought up to date.

:func:`~atoll.server.store.opening.open_store` upgrades what it opens; whoever only wants to know how
things stand, beside a server that may be of another version, looks instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, Executable, create_engine, exc, func, inspect, select, text
from sqlalchemy.engine import Engine

from atoll.core.errors import MissingExtra, NotFound, StorageError
from atoll.server.store.contract import Event, Lease
from atoll.server.store.database import _SERVER_LOCK, DAMAGE, read_url, shown, told
from atoll.server.store.migrations import HEAD
from atoll.server.store.tables import CONTRIBUTIONS, EVENTS, LEASE, MEMBERS, RUNS

__all__ = ["Look", "look_at"]


@dataclass(frozen=True)
class Look:
    """How a store stands.

    Args:
        place: the database in words, without a password.
        shape: the newest step of its migrations; empty where it has none.
        newest: the newest step that this version knows.
        held: whether a server holds the lock.
        lease: the last server that acquired it; None before the first.
        sites: when each active site joined.
        open_runs: for each run that has not ended its sites, with when each last answered in it, or
            when it was submitted.
        answered: when each site last answered, in any run.
        told: lines of the log of the kinds that were asked for.
    """

    place: str
    shape: str
    newest: str = HEAD
    held: bool = False
    lease: Lease | None = None
    sites: Mapping[str, float] | None = None
    open_runs: Mapping[str, Mapping[str, float]] | None = None
    answered: Mapping[str, float] | None = None
    told: tuple[Event, ...] = ()

    @property
    def up_to_date(self) -> bool:
        """Whether it has the shape that this version works with."""
        return self.shape == self.newest


def look_at(url: str, ended: Collection[str], kinds: Collection[str] = ()) -> Look:
    """Read how a store stands.

    Args:
        url: as in ``server.json``.
        ended: words for a run's status that mean that it is over.
        kinds: of lines of the log that are wanted.

    Raises:
        StorageError: it cannot be read, or is damaged.
        NotFound: there is none.
        MissingExtra: the driver is not installed.
    """
    found, place = _engine(url)
    try:
        with _explained(place), found.connect() as connection:
            look = _look(connection, place, ended)
            return replace(look, told=_told(connection, kinds)) if look.up_to_date else look
    finally:
        found.dispose()


def _engine(url: str) -> tuple[Engine, str]:
    parts = read_url(url)
    if parts.get_backend_name() != "sqlite":
        settings = {"connect_timeout": 10, "options": "-c default_transaction_read_only=on"}
        try:
            engine = create_engine(parts, connect_args=settings)
        except ModuleNotFoundError as error:
            raise MissingExtra(
                "PostgreSQL needs psycopg, which is not installed",
                remedy="pip install 'atoll[postgres]'",
            ) from error
        return engine, shown(parts)
    path = Path(str(parts.database)).absolute()
    if not path.exists():
        raise NotFound(
            f"there is no store in {path}", remedy="restore it from a backup, or correct its path"
        )
    readonly = f"file:{quote(str(path))}?mode=ro"
    return (
        create_engine("sqlite://", creator=lambda: sqlite3.connect(readonly, uri=True, timeout=10)),
        str(path),
    )


@contextlib.contextmanager
def _explained(place: str) -> Iterator[None]:
    try:
        yield
    except exc.SQLAlchemyError as error:
        said = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        if any(word in said for word in DAMAGE):
            raise StorageError(f"{place} is damaged: {said}", remedy=_FROM_BACKUP) from error
        remedy = _DATABASE if "://" in place else _FILE
        raise StorageError(f"{place} cannot be read: {said}", remedy=remedy) from error
    except UnicodeDecodeError as error:
        raise StorageError(f"{place} is damaged: {told(error)}", remedy=_FROM_BACKUP) from error


_FROM_BACKUP = "restore it from a backup; move the damaged file away, do not delete it"
_DATABASE = "does the database run? Are user, password, host and name in the URL right?"
_FILE = "look as the user whom it belongs to; where its disk is mounted read-only, mend that first"


def _look(connection: Connection, place: str, ended: Collection[str]) -> Look:
    sqlite = connection.dialect.name == "sqlite"
    if sqlite:
        found = connection.scalars(text("PRAGMA quick_check(1)")).all()
        if found != ["ok"]:
            raise StorageError(
                f"{place} is damaged: {found}",
                remedy=_FROM_BACKUP,
            )
    if not inspect(connection).has_table("alembic_version"):
        return Look(place, "")
    shape = str(connection.scalar(text("SELECT version_num FROM alembic_version")) or "")
    held = _held_beside(place) if sqlite else _held_inside(connection)
    if shape != HEAD:
        return Look(place, shape, held=held)
    lease = connection.execute(select(LEASE.c.epoch, LEASE.c.holder, LEASE.c.since)).first()
    sites = select(MEMBERS.c.name, MEMBERS.c.joined).where(
        MEMBERS.c.role == "site", MEMBERS.c.status == "active"
    )
    return Look(
        place,
        shape,
        held=held,
        lease=Lease(*lease) if lease is not None and lease[0] else None,
        sites=_pairs(connection, sites),
        open_runs=_open_runs(connection, ended),
        answered=_answered(connection, None),
    )


def _told(connection: Connection, kinds: Collection[str]) -> tuple[Event, ...]:
    columns = [EVENTS.c.id, *(EVENTS.c[field.name] for field in fields(Event)[1:])]
    asked = select(*columns).where(EVENTS.c.kind.in_(list(kinds))).order_by(EVENTS.c.id)
    return tuple(Event(*row) for row in connection.execute(asked))


def _open_runs(connection: Connection, ended: Collection[str]) -> dict[str, dict[str, float]]:
    asked = select(RUNS.c.id, RUNS.c.sites, RUNS.c.created)
    rows = connection.execute(asked.where(RUNS.c.status.not_in(list(ended)))).all()
    return {
        run: {**dict.fromkeys(json.loads(sites), created), **_answered(connection, run)}
        for run, sites, created in rows
    }


def _answered(connection: Connection, run: str | None) -> dict[str, float]:
    """When each client last answered, in one run or in any."""
    asked = select(CONTRIBUTIONS.c.client, func.max(CONTRIBUTIONS.c.received))
    if run is not None:
        asked = asked.where(CONTRIBUTIONS.c.run == run)
    return _pairs(connection, asked.group_by(CONTRIBUTIONS.c.client))


def _pairs(connection: Connection, asked: Executable) -> dict[str, float]:
    return {str(name): float(at) for name, at in connection.execute(asked)}


def _held_beside(place: str) -> bool:
    """Whether somebody holds the lock of an SQLite store; it is free again when this returns."""
    try:
        number = os.open(f"{place}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(number)
    return False


def _held_inside(connection: Connection) -> bool:
    """Whether a connection holds the advisory lock of the server in this PostgreSQL database."""
    asked = text(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND ((classid::bigint << 32) | objid::bigint) = :number"
    )
    return bool(connection.scalar(asked, {"number": _SERVER_LOCK}))
