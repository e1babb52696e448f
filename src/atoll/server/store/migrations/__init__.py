"""The database's shape, one step per file in ``versions``; brought up to date when it is opened."""

from __future__ import annotations

import threading
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from atoll.core.errors import StorageError

__all__ = ["HEAD", "upgrade"]

HEAD = "0004"
"""The newest step this version knows."""

# Alembic keeps what it is working on in a global.
_ONE_AT_A_TIME = threading.Lock()


def upgrade(connection: Connection, place: str) -> bool:
    """Take the steps that are missing, inside the caller's transaction; says whether there were any.

    Args:
        connection: to the database, in a transaction that nobody else can enter.
        place: the database in words, for the error.

    Raises:
        StorageError: a newer version of Atoll wrote this database.
    """
    current = _current(connection)
    if current == HEAD:
        return False
    # Only where there is work: starting with an up-to-date database does not need it.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    known = {step.revision for step in ScriptDirectory.from_config(config).walk_revisions()}
    if current is not None and current not in known:
        raise StorageError(
            f"{place} has the shape {current!r}, which this version of Atoll does not know"
            f" (it knows up to {HEAD!r}): a newer version wrote it",
            remedy="start the newer version, or restore the copy made before the upgrade",
        )
    with _ONE_AT_A_TIME:
        command.upgrade(config, "head")
    return True


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return found
