"""The statements about starts of the server and about uploads, inside a transaction of the caller's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import Connection, delete, insert, select

from atoll.server.store.contract import Upload
from atoll.server.store.rules import oldest_start
from atoll.server.store.tables import STARTS, UPLOADS

__all__ = ["begin", "note", "noted", "starts"]


def begin(db: Connection, epoch: int, start: str) -> None:
    """Keep what the start of ``epoch`` has drawn; nothing of any start where it has drawn nothing."""
    oldest = oldest_start(epoch) if start else epoch + 1
    db.execute(delete(STARTS).where(STARTS.c.epoch < oldest))
    if start:
        db.execute(insert(STARTS).values(epoch=epoch, start=start))


def starts(db: Connection) -> dict[int, str]:
    """What the latest starts have drawn, by their epoch."""
    rows = db.execute(select(STARTS.c.epoch, STARTS.c.start))
    return {int(epoch): str(start) for epoch, start in rows}


def note(db: Connection, rows: Sequence[Upload], gone: Sequence[Upload]) -> None:
    """Keep these uploads, and others no longer."""
    for row in (*gone, *rows):
        this = (UPLOADS.c.owner == row.owner) & (UPLOADS.c.sha256 == row.sha256)
        db.execute(delete(UPLOADS).where(this))
    for row in rows:
        db.execute(insert(UPLOADS).values(asdict(row)))


def noted(db: Connection) -> tuple[Upload, ...]:
    """All that are kept."""
    columns = UPLOADS.c
    found = db.execute(select(columns.owner, columns.sha256, columns.size, columns.at)).all()
    return tuple(sorted((Upload(*row) for row in found), key=lambda u: (u.owner, u.sha256)))
