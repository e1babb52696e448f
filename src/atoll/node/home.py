"""A node's folder: who it is, which federation it belongs to, and what it must not lose.

::

    identity.pem      the site's key; made here, never leaves
    federation.json   server, pinned certificate, name in the federation
    left.json         the same of the federation that was left last; may be absent
    datasets.toml     datasets by name
    peers.json        fingerprints of the other sites' keys that somebody has pinned
    researchers.json  the same of researchers; and of those who were only seen, in researchers_seen.json
    submissions.json  the run of each job that a researcher has handed in; never put an old copy back
    node.toml         limits, policy and further settings; may be absent
    limits.toml       what each dataset may be asked for in all; may be absent
    approvals/        jobs that wait for the steward, and what was decided of each
    queries/          what statistics have been told of each dataset; never put an old copy back
    ledger/           what it has been asked for, and steps of masked rounds; never put an old copy back
    epoch.json        the newest epoch of the server that was seen: an older one is not obeyed
    keys/             secrets of encrypted runs, until they are over
    spool/            finished results until they are settled, and clients' memories
    cache/            downloaded models and plans; may be deleted while the node is stopped
    work/             scratch folders of worker processes; emptied at each start
    logs/             what job code printed, a file a run
    audit/            what has left this site; never put an old copy back
    state.json        what the running node is doing, for ``atoll node status``
    lock              held while a node runs here
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from atoll.core.errors import NotFound, StorageError
from atoll.wire.presence import alone, is_taken
from atoll.wire.trouble import remedy_of, unreadable

__all__ = ["Federation", "Home", "default_home", "write_text"]


@dataclass(frozen=True)
class Federation:
    """What a node knows of the federation it has joined.

    Args:
        federation: the federation's id.
        site: this node's name in it, which is also the client's.
        server: ``host:port``.
        pin: SHA-256 of the server's certificate, in hex.
        server_key: the server's public key, in hex.
        joined: seconds since 1970.
    """

    federation: str
    site: str
    server: str
    pin: str
    server_key: str
    joined: float


def default_home() -> Path:
    """``ATOLL_NODE_HOME``, or ``.atoll/node`` in the user's home."""
    return Path(os.environ.get("ATOLL_NODE_HOME") or Path.home() / ".atoll" / "node")


@dataclass(frozen=True)
class Home:
    """The folder at ``path``; made private to its owner when it is first written."""

    path: Path

    @property
    def identity(self) -> Path:
        """The key."""
        return self.path / "identity.pem"

    @property
    def federation(self) -> Path:
        """The record of joining."""
        return self.path / "federation.json"

    @property
    def left(self) -> Path:
        """The record of the federation that was left last."""
        return self.path / "left.json"

    @property
    def datasets(self) -> Path:
        """Registered datasets."""
        return self.path / "datasets.toml"

    @property
    def peers(self) -> Path:
        """Pinned fingerprints."""
        return self.path / "peers.json"

    @property
    def researchers(self) -> Path:
        """The same of researchers."""
        return self.path / "researchers.json"

    @property
    def researchers_seen(self) -> Path:
        """Fingerprints of researchers that were the first to be seen under a name."""
        return self.path / "researchers_seen.json"

    @property
    def submissions(self) -> Path:
        """The run of each submission that this site has worked for."""
        return self.path / "submissions.json"

    @property
    def settings(self) -> Path:
        """The site's settings."""
        return self.path / "node.toml"

    @property
    def settings_state(self) -> int:
        """What tells one state of the site's settings from the next; 0 where there are none."""
        try:
            return self.settings.stat().st_mtime_ns
        except OSError:
            return 0

    @property
    def budgets(self) -> Path:
        """What datasets may be asked for in all."""
        return self.path / "limits.toml"

    @property
    def ledger(self) -> Path:
        """What they have been asked for."""
        return self.path / "ledger" / "ledger.jsonl"

    @property
    def pledges(self) -> Path:
        """What was done in masked rounds."""
        return self.path / "ledger" / "pledges.jsonl"

    @property
    def approvals(self) -> Path:
        """Jobs that wait for the steward, and what was decided."""
        return self.path / "approvals"

    @property
    def epoch(self) -> Path:
        """Which epoch of the server was seen."""
        return self.path / "epoch.json"

    @property
    def keys(self) -> Path:
        """Secrets of encrypted runs."""
        return self.path / "keys"

    @property
    def spool(self) -> Path:
        """What must not be lost."""
        return self.path / "spool"

    @property
    def cache(self) -> Path:
        """What can be downloaded again."""
        return self.path / "cache"

    @property
    def work(self) -> Path:
        """Workers' scratch folders."""
        return self.path / "work"

    @property
    def logs(self) -> Path:
        """What job code printed."""
        return self.path / "logs"

    @property
    def audit(self) -> Path:
        """What has left."""
        return self.path / "audit"

    @property
    def state(self) -> Path:
        """What the running node is doing."""
        return self.path / "state.json"

    def make(self) -> None:
        """Make the folder, readable by its owner only.

        Raises:
            StorageError: it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(
                f"{self.path} cannot be made: {error.strerror}",
                remedy=remedy_of(error) or "choose another --home",
            ) from error

    def joined(self) -> Federation:
        """The federation this node belongs to.

        Raises:
            NotFound: it has not joined one.
            StorageError: the record is damaged.
        """
        raw = self.read(self.federation)
        if not raw:
            raise NotFound(
                f"the node in {self.path} has not joined a federation",
                remedy="ask the federation's server for a code, then: atoll node join CODE",
            )
        names = {f.name for f in fields(Federation)}
        if set(raw) != names:
            raise StorageError(
                f"{self.federation} is damaged: it does not hold {', '.join(sorted(names))}",
                remedy="restore it, or ask for a new code and join again",
            )
        return Federation(**raw)

    def join(self, federation: Federation) -> None:
        """Write the record of joining, durably; the server's epochs count from the beginning.

        What is here of runs of another federation is removed: its results are nobody else's, and this one may
        call a run the same.

        Raises:
            StorageError: the folder cannot be written.
        """
        self.make()
        another = self.read(self.left).get("federation") != federation.federation
        try:
            self.epoch.unlink(missing_ok=True)
            for folder in (self.spool, self.keys) if another else ():
                if folder.exists():
                    shutil.rmtree(folder)
        except OSError as error:
            raise StorageError(
                f"{error.filename} cannot be removed: {error.strerror}", remedy=remedy_of(error)
            ) from error
        self.move(federation)

    def move(self, federation: Federation) -> None:
        """Write, durably, where the server is to be found now.

        Raises:
            StorageError: the folder cannot be written.
        """
        write_text(self.federation, json.dumps(asdict(federation), indent=2) + "\n")

    def read(self, path: Path) -> dict[str, Any]:
        """A JSON object of this folder; empty where there is none.

        Raises:
            StorageError: damaged, or not readable.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from error
        if not isinstance(raw, dict):
            raise StorageError(f"{path} is damaged", remedy="restore it")
        return raw

    def tell(self, state: Mapping[str, Any]) -> None:
        """Say what the node is doing; need not survive a crash of the machine."""
        with contextlib.suppress(StorageError):
            write_text(self.state, json.dumps(state, indent=2) + "\n", durable=False)

    @contextlib.contextmanager
    def locked(self) -> Iterator[Callable[[], bool]]:
        """Keep a second node from running here; a killed one holds no lock.

        Gives what tells whether the folder is still where it was.

        Raises:
            StorageError: another node runs here, or the folder cannot be written.
        """
        self.make()
        refusal = f"another node runs in {self.path}"
        remedy = "stop it first, or give this one a --home of its own"
        with alone(self.path / "lock", refusal, remedy) as here:
            yield here

    @property
    def running(self) -> bool:
        """Whether a node runs here now.

        Raises:
            StorageError: this user may not look.
        """
        return is_taken(self.path / "lock")


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a file by ``text`` in one step, readable by its owner only.

    Raises:
        StorageError: the folder cannot be written.
    """
    name = ""
    try:
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(name, path)
        if durable:
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise StorageError(
            f"{path} cannot be written: {error.strerror}",
            remedy=remedy_of(error) or "mend the folder",
        ) from error
