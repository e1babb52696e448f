"""With whom runs are shared, in a database: each change is written with its line in the log."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select

from atoll.server.store.rules import SHARED, UNSHARED
from atoll.server.store.tables import EVENTS, READERS

__all__ = ["add", "of_name", "of_run", "remove"]


def add(db: Connection, run: str, name: str, now: float) -> bool:
    """Let ``name`` read ``run``, which is there; whether that is new."""
    if name in of_run(db, run):
        return False
    db.execute(insert(READERS).values(run=run, name=name, since=now))
    _note(db, SHARED, run, name, now)
    return True


def remove(db: Connection, run: str, name: str, now: float) -> bool:
    """Take that back; whether there was anything to take back."""
    if name not in of_run(db, run):
        return False
    db.execute(delete(READERS).where(READERS.c.run == run, READERS.c.name == name))
    _note(db, UNSHARED, run, name, now)
    return True


def of_run(db: Connection, run: str) -> tuple[str, ...]:
    """With whom a run is shared, in alphabetical order."""
    return tuple(sorted(db.scalars(select(READERS.c.name).where(READERS.c.run == run))))


def of_name(db: Connection, name: str) -> frozenset[str]:
    """Ids of the runs that are shared with a researcher."""
    return frozenset(db.scalars(select(READERS.c.run).where(READERS.c.name == name)))


def _note(db: Connection, kind: str, run: str, name: str, now: float) -> None:
    row = {"kind": kind, "text": f"with {name}", "run": run, "site": "", "at": now}
    db.execute(insert(EVENTS).values(row))
