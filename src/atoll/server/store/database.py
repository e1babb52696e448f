"""A database by URL: connections, transactions, the lock that goes with a process, errors in words.

SQLite runs with a write-ahead log and syncs it at every commit; its lock is a lock on a file beside it.
PostgreSQL's lock is an advisory lock of one connection. Both end with the process that holds them. The
lock keeps a second server out; what keeps a server that lost it from writing is the epoch, which every
writing transaction reads and holds still until it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event, exc, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection

from atoll.core.errors import MissingExtra, StateError, StorageError
from atoll.server.store import rules
from atoll.server.store.driver import Statement
from atoll.server.store.migrations import upgrade
from atoll.server.store.tables import LEASE
from atoll.wire.trouble import remedy_of

__all__ = ["DAMAGE", "Database", "read_url", "shown", "told"]

log = logging.getLogger("atoll.server")

# Any number will do that other programs in the same database do not use.
_SERVER_LOCK, _UPGRADE_LOCK = 0x41746F6C6C01, 0x41746F6C6C02

# How long a killed server's connection may take to end at PostgreSQL, and another command at SQLite.
_PATIENCE = 3.0
_BUSY_MILLISECONDS = 30_000

DAMAGE = ("malformed", "not a database", "corrupt", "too big", "unsupported file format")
"""In what SQLite says of a file that is not as it was written; no value of ours is too big for it."""
_SQLITE_REMEDIES = {
    (
        "full",
        "no space",
        "disk i/o",
    ): "free space on its disk; nothing that was acknowledged is lost",
    (
        "readonly",
        "read-only",
        "unable to open",
        "permission",
    ): "let the user that runs the server write there",
    ("locked",): "another program writes for long; end it and try again",
}
_POSTGRESQL_REMEDIES = {
    ("no space", "disk full"): "free space on the database's disk; nothing that was acknowledged"
    " is lost",
    ("read-only transaction",): "this is a standby of the database: the store's URL"
    " must name the primary",
    ("permission denied",): "the role must own the database: ALTER DATABASE name OWNER TO role",
    ("connection slots", "too many clients", "too many connections"): "the database takes no more"
    " connections: raise max_connections there, or end other programs",
    ("password", "authentication", "pg_hba", "role", "does not exist"): "check user, password and"
    " database name in the URL (store in server.json)",
}
"""What to do about an error, by words in what the database says."""

_SETTINGS = (
    # Of a new file: a blob of 400 kB in pages of 4 kB costs a hundred writes.
    "page_size=16384",
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    # Pages of small blobs are used over and over: the longer the log, the fewer copies leave it.
    "wal_autocheckpoint=2000",
    # Some systems overwrite with zeros what is deleted: each blob would be written twice.
    "secure_delete=FAST",
)


class Database:
    """One open database.

    Args:
        url: ``sqlite:////path``, a path, or ``postgresql://user:password@host/name``.

    Raises:
        StorageError: it cannot be opened, is damaged, or was written by a newer version.
        MissingExtra: the driver is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = read_url(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self.place = shown(self.url)
        # The database has a lock of its own, behind which threads would wait less fairly.
        self._one_writer = threading.Lock()
        self._lock_file = -1
        self._lock_connection: Connection | None = None
        self._inside = False
        self._closed = False
        with self._explained():
            self.engine = _engine(self.url) if self.sqlite else _postgresql(self.url)
        self._epoch = Statement(select(LEASE.c.epoch).with_for_update(), self.engine.dialect)
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        if self.sqlite:
            self._touch()
        with self._explained(), self._begin(write=True) as connection:
            if self.sqlite:
                found = connection.scalars(text("PRAGMA quick_check(1)")).all()
                if found != ["ok"]:
                    raise self._damaged(str(found))
            else:
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_UPGRADE_LOCK})"))
            upgrade(connection, self.place)

    def _touch(self) -> None:
        """The file, for its owner's eyes only; the log beside it takes after it."""
        path = Path(self.place)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StorageError(
                f"the store {path} cannot be opened: {error.strerror}",
                remedy="let the user that runs the server write there, or choose another place",
            ) from error

    # Transactions

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one moment's state."""
        with self._explained(), self._begin(write=False) as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self, epoch: int | None = None) -> Iterator[Connection]:
        """A transaction that writes; nobody else can write, or acquire the store, before it ends.

        Args:
            epoch: refused when it is not the newest; None for administrators.
        """
        with self._explained(), self._one_writer, self._begin(write=True) as connection:
            found = connection.scalar(select(LEASE.c.epoch).with_for_update())
            if epoch is not None:
                rules.fence(epoch, int(found or 0))
            yield connection

    @contextlib.contextmanager
    def driving(self, epoch: int | None = None, *, write: bool = False) -> Iterator[Any]:
        """The same transactions on a cursor of the driver's own, for :mod:`.driver`.

        Args:
            epoch: refused when it is not the newest; None to let the caller see to that.
            write: whether anything is written.
        """
        self.check_open()
        with self._explained(), self._one_writer if write else contextlib.nullcontext():
            connection = self._raw()
            try:
                cursor: Any = connection.cursor()
                if self.sqlite:
                    cursor.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                if epoch is not None:
                    found = self._epoch.run(cursor).fetchone()
                    rules.fence(epoch, int(found[0]) if found else 0)
                yield cursor
                connection.commit()
            except BaseException as error:
                with contextlib.suppress(Exception):
                    connection.rollback()
                if getattr(connection.driver_connection, "closed", False):
                    connection.invalidate()  # by the other side: not to be lent to anybody again
                raise self._translated(error) from error
            finally:
                connection.close()

    def _raw(self) -> Any:
        """A connection of the driver's; the toolkit hands on the driver's own error where there is none."""
        try:
            return self.engine.raw_connection()
        except Exception as error:
            raise self._translated(error) from error

    def _translated(self, error: BaseException) -> BaseException:
        """An error of the driver's as the toolkit would give it; others as they are."""
        driver = self.engine.dialect.loaded_dbapi
        if isinstance(error, driver.IntegrityError):
            return exc.IntegrityError(None, None, error)
        if isinstance(error, driver.Error):
            return exc.DBAPIError(None, None, error)
        return error

    @contextlib.contextmanager
    def _begin(self, *, write: bool) -> Iterator[Connection]:
        self.check_open()
        with self.engine.connect() as connection:
            connection.execution_options(atoll_write=write)
            with connection.begin():
                yield connection

    def check_open(self) -> None:
        """Refuse to go on after :meth:`close`."""
        if self._closed:
            raise StorageError("this store is closed", remedy="open the store again")

    # The lock

    def lock(self) -> bool:
        """Take the lock of the one server, for as long as this process lives; False when taken."""
        if self._lock_file >= 0 or self._lock_connection is not None:
            return False
        return self._lock_beside() if self.sqlite else self._lock_inside()

    def _lock_beside(self) -> bool:
        path = Path(f"{self.place}.lock")
        try:
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(
                f"{path} cannot be opened: {error.strerror}", remedy=remedy_of(error)
            ) from error
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(number)
            if isinstance(error, BlockingIOError):
                return False
            raise StorageError(
                f"{path} cannot be locked: {error.strerror}",
                remedy="put the store on a local disk, or use PostgreSQL",
            ) from error
        self._lock_file = number
        return True

    def _lock_inside(self, *, waiting: bool = True) -> bool:
        with self._explained():
            connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            deadline = time.monotonic() + (_PATIENCE if waiting else 0.0)
            try:
                # A killed server's connection is closed by its machine at once, and noticed a moment later.
                while not connection.scalar(text(f"SELECT pg_try_advisory_lock({_SERVER_LOCK})")):
                    if time.monotonic() > deadline:
                        connection.close()
                        return False
                    time.sleep(0.05)
            except BaseException:
                connection.invalidate()
                connection.close()
                raise
        self._lock_connection, self._inside = connection, True
        return True

    def keep_lock(self) -> None:
        """Take the lock again where its connection is gone: PostgreSQL lets go of it then, as at a restart.

        Whoever has taken it meanwhile keeps it: their epoch keeps this server from writing.

        Raises:
            StorageError: the database cannot be reached.
        """
        if not self._inside:
            return
        if self._lock_connection is not None:
            try:
                # What it shows in pg_stat_activity, to whoever looks for the holder.
                self._lock_connection.scalar(text("SELECT 1 /* keeps pg_try_advisory_lock */"))
            except exc.SQLAlchemyError as error:
                log.warning("the store's lock is gone with its connection: %s", _said(error))
                self._let_go()
            else:
                return
        if self._lock_inside(waiting=False):
            log.warning("the store's lock is taken again")

    def unlock(self) -> None:
        """Let go of the lock."""
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1
        self._inside = False
        self._let_go()

    def _let_go(self) -> None:
        connection, self._lock_connection = self._lock_connection, None
        if connection is not None:
            # Not back to the pool, where the connection would keep the lock.
            with contextlib.suppress(exc.SQLAlchemyError):
                connection.invalidate()
                connection.close()

    def close(self) -> None:
        """Let go of everything."""
        self._closed = True
        self.unlock()
        self.engine.dispose()

    # Errors

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except exc.IntegrityError as error:
            raise StateError(
                "another command changed the same rows of the store at the same moment",
                remedy="look at what is there now and try again",
            ) from error
        except exc.DBAPIError as error:
            raise self._storage_error(str(error.orig).strip()) from error
        except sqlite3.Error as error:
            raise self._storage_error(str(error)) from error
        except (
            UnicodeDecodeError
        ) as error:  # what SQLite says has a name in it that is no text any more
            raise self._damaged(told(error)) from error
        except exc.TimeoutError as error:
            raise self._storage_error("all connections are busy") from error
        except ModuleNotFoundError as error:
            raise MissingExtra(
                "PostgreSQL needs psycopg, which is not installed",
                remedy="pip install 'atoll[postgres]'",
            ) from error

    def _storage_error(self, said: str) -> StorageError:
        low = said.lower()
        if self.sqlite and any(word in low for word in DAMAGE):
            return self._damaged(said)
        remedies = _SQLITE_REMEDIES if self.sqlite else _POSTGRESQL_REMEDIES
        remedy = next((r for words, r in remedies.items() if any(w in low for w in words)), "")
        return StorageError(
            f"the store {self.place} cannot be used: {said}",
            remedy=remedy or "check that the database runs and can be reached",
        )

    def _damaged(self, said: str) -> StorageError:
        return StorageError(
            f"the store {self.place} is damaged: {said}",
            remedy="restore it from a backup; move the damaged file away, do not delete it",
        )


def told(error: UnicodeDecodeError) -> str:
    """What SQLite said of a file, where that cannot be read as text: it quotes the file."""
    return repr(error.object.decode("utf-8", "backslashreplace"))[1:-1]


def read_url(url: str) -> URL:
    """A store's URL with its driver.

    Args:
        url: a path, ``sqlite:////path`` or ``postgresql://user:password@host/name``.

    Raises:
        StorageError: it is none; the message does not show it, as it may hold a password.
    """
    if "://" not in url:
        return URL.create("sqlite", database=str(Path(url).absolute()))
    try:
        found = make_url(url)
    except (exc.ArgumentError, ValueError) as error:
        raise StorageError(
            "the store's URL cannot be read", remedy="write postgresql://user:password@host/name"
        ) from error
    kind = found.get_backend_name()
    if kind in ("postgresql", "postgres"):
        if "@" in (found.host or ""):
            raise StorageError(
                "the store's URL has more than one @ in it",
                remedy="in a user's name or a password write %40 for @ and %25 for %",
            )
        return found.set(drivername="postgresql+psycopg")
    if kind == "sqlite" and found.database not in (None, "", ":memory:"):
        return URL.create("sqlite", database=str(Path(str(found.database)).absolute()))
    raise StorageError(
        f"{kind!r} is no kind of store", remedy="use a path, sqlite:////path or postgresql://…"
    )


def shown(url: URL) -> str:
    """A store in words: a path, or a URL without anything secret."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    secret = [name for name in url.query if "password" in name.lower()]
    return url.difference_update_query(secret).set(drivername="postgresql").render_as_string()


def _said(error: exc.SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


def _engine(url: URL) -> Any:
    engine = create_engine(url, connect_args={"timeout": _BUSY_MILLISECONDS / 1000})

    @event.listens_for(engine, "connect")
    def _settings(connection: DBAPIConnection, record: object) -> None:
        # Transactions are begun below and not, too late, by the driver.
        connection.isolation_level = None
        cursor = connection.cursor()
        for setting in _SETTINGS:
            cursor.execute(f"PRAGMA {setting}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("atoll_write", False)
        # The driver's own connection: the toolkit's takes ten times as long for a statement.
        driver: Any = connection.connection.driver_connection
        driver.execute("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _postgresql(url: URL) -> Any:
    settings = {
        # A server's machine that vanished is given up within half a minute, and its lock with it.
        "tcp_keepalives_idle": 10,
        "tcp_keepalives_interval": 5,
        "tcp_keepalives_count": 3,
        "default_transaction_isolation": "read\\ committed",
    }
    given = url.query.get("options", "")
    options = [f"-c {name}={value}" for name, value in settings.items()]
    arguments = {
        "options": " ".join([*options, *([given] if isinstance(given, str) else given)]).strip(),
        "connect_timeout": 10,
        # So is a database's: without these a call waits a quarter of an hour for one that vanished.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
    }
    known = {
        name: value
        for name, value in arguments.items()
        if name == "options" or name not in url.query
    }
    engine = create_engine(url, connect_args=known, pool_pre_ping=True)

    @event.listens_for(engine, "connect")
    def _durable(connection: DBAPIConnection, record: object) -> None:
        # Acknowledged means durable, however the database is set up.
        cursor = connection.cursor()
        cursor.execute(
            "SELECT set_config('synchronous_commit', 'on', false)"
            " WHERE current_setting('synchronous_commit') = 'off'"
        )
        cursor.close()
        connection.commit()

    return engine
