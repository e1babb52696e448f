"""A PostgreSQL of its own for tests: on a socket in a temporary folder, under an unprivileged user."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any


def programs() -> Path | None:
    """The folder with ``initdb`` and ``postgres``; None where PostgreSQL is not installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("initdb")
    folders += [Path(found).parent] if found else []
    return next((f for f in folders if (f / "initdb").exists() and (f / "postgres").exists()), None)


@dataclass
class Cluster:
    folder: Path
    programs: Path
    settings: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def url(self, database: str) -> str:
        return f"postgresql://atoll@/{database}?host={self.folder}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"d{next(self.numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        import psycopg

        where = f"host={self.folder} user=atoll dbname={database}"
        with psycopg.connect(where, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Start it, or start it again."""
        options = [f"unix_socket_directories={self.folder}", "listen_addresses="]
        flags = [f for o in (*options, "shared_buffers=16MB", *self.settings) for f in ("-c", o)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.programs / "postgres", "-D", self.folder / "data", *flags],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **_somebody(),
            )
        _wait(self, self.process)

    def stop(self) -> None:
        """End it, and every connection with it."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


def _somebody() -> dict[str, Any]:
    """Arguments of a process that is not root."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise RuntimeError("no unprivileged user to run PostgreSQL under")


@contextlib.contextmanager
def cluster(settings: tuple[str, ...] = ("fsync=off",)) -> Iterator[Cluster]:
    """Start one, end it with everything in it."""
    where = programs()
    if where is None:
        raise FileNotFoundError("initdb")
    somebody = _somebody()
    folder = Path(tempfile.mkdtemp(prefix="atoll-pg-", dir="/tmp"))
    if somebody:
        os.chown(folder, somebody["user"], somebody["group"])
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": folder, **somebody}
    found = Cluster(folder, where, settings)
    try:
        data = folder / "data"
        initdb = [where / "initdb", "-D", data, "-U", "atoll", "-A", "trust", "-E", "UTF8", "-N"]
        subprocess.run(initdb, check=True, **quiet)
        found.start()
        yield found
    finally:
        found.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(found: Cluster, process: subprocess.Popen[bytes]) -> None:
    import psycopg

    deadline = time.monotonic() + 60
    while True:
        try:
            found.execute("SELECT 1")
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((found.folder / "log").read_text()) from None
            time.sleep(0.05)
        else:
            return
