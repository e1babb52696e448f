"""A store by its URL."""

from __future__ import annotations

from atoll.core.errors import MissingExtra
from atoll.server.store.contract import Store

__all__ = ["open_store"]


def open_store(url: str) -> Store:
    """Open a store, made or brought up to date where that is needed.

    Args:
        url: a path or ``sqlite:////path`` for SQLite, ``postgresql://user:password@host/name``, or
            ``memory:`` for one that is gone with the process.

    Raises:
        StorageError: it cannot be opened, is damaged, or was written by a newer version.
        MissingExtra: the libraries for it are not installed.
    """
    if url == "memory:":
        from atoll.server.store.memory import MemoryStore

        return MemoryStore()
    try:
        from atoll.server.store.sql import SqlStore
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"the server's store needs {error.name}, which is not installed",
            remedy="pip install 'atoll[server]'",
        ) from error
    return SqlStore(url)
