"""A server's folder: whose federation it is, its keys, and everything it must not lose.

::

    server.json     name, address, certificate, store and blobs; written once by ``atoll server init``
    identity.pem    the key that signs answers
    tls/            certificate and its key
    metrics.token   what Prometheus has to show
    atoll.db        the store, where it is no other database
    blobs/          bytes by their digest, where they are in no object store
    runs/           a folder per run, as a simulation leaves it
    incoming/       long bodies while they arrive; emptied at each start
    running.json    the server that runs here: process, epoch, address
    lock            held while a server runs here
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from shlex import quote
from typing import Any, get_args

from atoll.core.errors import NotFound, StorageError
from atoll.server.settings import Runs
from atoll.wire.presence import alone, is_taken
from atoll.wire.trouble import remedy_of, unreadable

__all__ = ["Charter", "ServerHome"]


@dataclass(frozen=True)
class Charter:
    """What ``server.json`` says.

    Args:
        federation: id, as every signature names it.
        name: for people.
        address: ``host:port`` that members connect to.
        listen: ``host:port`` that is bound here.
        store: URL of the database; empty: SQLite in the folder.
        blobs: URL of the object store; empty: the folder ``blobs``.
        certificate: PEM file, relative to the folder.
        key: its private key, likewise.
        founded: seconds since 1970.
        runs: who may read them, ``open`` or ``own``; not in the file while it is ``open``.
    """

    federation: str
    name: str
    address: str
    listen: str
    store: str
    blobs: str
    certificate: str
    key: str
    founded: float
    runs: Runs = "open"


@dataclass(frozen=True)
class ServerHome:
    """The folder at ``path``."""

    path: Path

    @property
    def charter_file(self) -> Path:
        """``server.json``."""
        return self.path / "server.json"

    @property
    def identity(self) -> Path:
        """The key that signs answers."""
        return self.path / "identity.pem"

    @property
    def token(self) -> Path:
        """The token of the page of metrics."""
        return self.path / "metrics.token"

    @property
    def incoming(self) -> Path:
        """Long bodies while they arrive."""
        return self.path / "incoming"

    @property
    def blobs(self) -> Path:
        """Bytes by their digest."""
        return self.path / "blobs"

    def store_url(self, charter: Charter) -> str:
        """Where the store is."""
        return charter.store or str((self.path / "atoll.db").absolute())

    def certificate(self, charter: Charter) -> Path:
        """The certificate's file."""
        return self.path / charter.certificate

    def key(self, charter: Charter) -> Path:
        """The file of its private key."""
        return self.path / charter.key

    def make(self) -> None:
        """Make the folder, readable by its owner alone.

        Raises:
            StorageError: it cannot be made, or a server lives there already.
        """
        if self._read(self.charter_file) is not None:
            raise StorageError(
                f"there is a server in {self.path} already",
                remedy=f"atoll server start {quote(str(self.path))}, or choose another folder",
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(
                f"{self.path} cannot be made: {error.strerror}",
                remedy=remedy_of(error) or "choose another folder",
            ) from error

    def write(self, charter: Charter) -> None:
        """Write ``server.json``; last of all, as it makes the folder a server's."""
        said = {n: v for n, v in asdict(charter).items() if (n, v) != ("runs", "open")}
        self._write(self.charter_file, said)

    def charter(self) -> Charter:
        """What ``server.json`` says.

        Raises:
            NotFound: there is no server in this folder.
            StorageError: the file is damaged.
        """
        raw = self._read(self.charter_file)
        if raw is None:
            raise NotFound(
                f"there is no server in {self.path}",
                remedy=f"atoll server init {quote(str(self.path))}",
            )
        raw.setdefault("runs", "open")
        kinds = {f.name: float if f.name == "founded" else str for f in fields(Charter)}
        if set(raw) != set(kinds) or not all(isinstance(raw[n], k) for n, k in kinds.items()):
            raise StorageError(
                f"{self.charter_file} is damaged: it does not hold {', '.join(kinds)}",
                remedy="restore it from a backup",
            )
        if raw["runs"] not in get_args(Runs):
            raise StorageError(
                f"{self.charter_file} says runs: {raw['runs']!r:.40}", remedy="write open or own"
            )
        return Charter(**raw)

    def tell(self, state: Mapping[str, Any] | None) -> None:
        """Say which server runs here, or that none does any more."""
        path = self.path / "running.json"
        if state is None:
            path.unlink(missing_ok=True)
        else:
            self._write(path, state)

    def running(self) -> dict[str, Any] | None:
        """The server that runs here; None when none does, whatever was left behind.

        Raises:
            StorageError: this user may not look.
        """
        if not is_taken(self.path / "lock"):
            return None
        return self._read(self.path / "running.json") or {}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second server from running in this folder; a killed one holds no lock.

        Raises:
            StorageError: one runs here, or the folder cannot be written.
        """
        with alone(self.path / "lock", f"another server runs in {self.path}", "stop it first"):
            yield

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from error
        if not isinstance(raw, dict):
            raise StorageError(f"{path} is damaged", remedy="restore it from a backup")
        return raw

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        name = ""
        try:
            number, name = tempfile.mkstemp(dir=self.path, prefix=f".{path.name}.")
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.write(json.dumps(content, indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
            folder = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise StorageError(
                f"{path} cannot be written: {error.strerror}", remedy=remedy_of(error)
            ) from error
