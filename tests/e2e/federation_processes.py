"""A real federation on this machine: a server and sites, each a process of its own, TLS between them.

    with Federation(folder) as federation:
        federation.admit({"east": {"rows": path}, "west": {"rows": other}})
        run = federation.submit("job.toml")
        federation.wait(run)

Founding and joining happen in this process, by the functions behind the commands, because a command
costs half a second; what works is started by the very commands that people type.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).parents[1] / "machine"))

from free_ports import free_port
from process_copies import Copy, Launcher

from atoll.connection import Connection, RunInfo, connect
from atoll.core.errors import Unreachable
from atoll.node.datasets import Datasets
from atoll.node.home import Home
from atoll.node.join import join
from atoll.server import admin

MACHINE = str(Path(__file__).parents[1] / "machine")
ATOLL = str(Path(sys.executable).with_name("atoll"))
READ = (
    *("atoll.cli.main", "atoll.cli.node", "atoll.cli.server"),
    *("atoll.node.agent", "atoll.node.join", "atoll.node.link", "atoll.node.policy.steward"),
    *("atoll.server.web.serving", "atoll.server.store.sql", "worker_copies:read"),
)
"""Modules of a command that works."""
_LOOK = 0.01
launcher: Callable[[], Launcher] | None = None
"""Copies a process instead of starting one for each command; None, as measurements want it: start one."""

T = TypeVar("T")


def until(
    what: Callable[[], Any],
    seconds: float,
    why: str,
    *,
    check: Callable[[], None] = lambda: None,
    every: float = _LOOK,
) -> Any:
    """Wait until ``what`` gives something true; returns it.

    Args:
        what: asked again and again.
        seconds: how long at most.
        why: what did not happen, for the error.
        check: raises when waiting makes no sense any more.
        every: seconds between looks.
    """
    limit = time.monotonic() + seconds
    while not (found := what()):
        check()
        if time.monotonic() > limit:
            raise AssertionError(f"{why}: not within {seconds:g} s")
        time.sleep(every)
    return found


def patiently(what: Callable[[], T]) -> T:
    """Try for a minute: a server lets only so many newcomers in at once from one address."""
    limit = time.monotonic() + 60
    while True:
        try:
            return what()
        except Unreachable:
            if time.monotonic() > limit:
                raise
            time.sleep(1)


class Process:
    """One process and its log; it can be started again after any end.

    Args:
        name: for people.
        command: with arguments.
        log: what it says, of all its lives.
        environment: beside what this process has.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.command, self.log = name, list(command), log
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | Copy | None = None

    @property
    def pid(self) -> int:
        """Of its present life, or of the last."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process.pid

    @property
    def status(self) -> int | None:
        """How it ended; None while it lives."""
        return None if self._process is None else self._process.poll()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, or start it again."""
        if self.alive:
            raise RuntimeError(f"{self.name} runs already")
        kept = {k: v for k, v in os.environ.items() if k.lower() not in ("https_proxy", "no_proxy")}
        own = {**kept, "OMP_NUM_THREADS": "1", **self._environment}
        if launcher is not None and self.command[0] == ATOLL:
            words = ["atoll", *self.command[1:]]
            self._process = launcher().start("atoll.cli.main:app", words, self.log, own)
            return
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=own
            )

    def signal(self, number: int) -> None:
        """Send a signal, if it lives."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """``kill -9``, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def stop(self, seconds: float = 30.0) -> int:
        """SIGTERM, and wait; returns the status."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end {seconds:g} s after SIGTERM") from None

    def said(self) -> str:
        """Its log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Federation:
    """A server, its sites, and one researcher.

    Args:
        folder: an empty one, for everything.
        store: URL of the database; empty: SQLite.
        blobs: URL of the object store; empty: a folder.
        address: that members connect to; empty: this machine's own, where the server listens.

    Attributes:
        server: its process.
        nodes: processes of the sites.
        homes: folders of the sites.
        proxy: through which sites and the researcher join; empty: directly.
    """

    def __init__(
        self, folder: Path, *, store: str = "", blobs: str = "", address: str = ""
    ) -> None:
        self.folder, self.home = folder, folder / "server"
        self.port = free_port()
        listen = f"127.0.0.1:{self.port}"
        asked = admin.Founding("federation", address or listen, listen, store, blobs)
        self.charter = admin.found(self.home, asked, time.time())
        command = [ATOLL, "server", "start", str(self.home)]
        self.server = Process("the server", command, folder / "server.log")
        self.nodes: dict[str, Process] = {}
        self.homes: dict[str, Home] = {}
        self.proxy = ""
        self._researcher: Connection | None = None

    def __enter__(self) -> Federation:
        self.server.start()
        self.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and hasattr(error, "add_note"):
            error.add_note(self.told())
        if self._researcher is not None:
            self._researcher.close()
        processes = [*self.nodes.values(), self.server]
        for process in processes:
            process.signal(signal.SIGCONT)
            process.signal(signal.SIGTERM)
        for process in processes:
            if process.alive:
                with contextlib.suppress(AssertionError):
                    process.stop(10)
            if process.alive:
                process.kill()

    # Founding -----------------------------------------------------------------------------------

    def up(self, seconds: float = 60.0) -> None:
        """Wait until the server's port answers."""

        def answers() -> bool:
            with closing(socket.socket()) as probe:
                probe.settimeout(0.5)
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        until(answers, seconds, "the server does not answer", check=self.check)

    def invite(self, name: str, role: str = "site") -> str:
        """A code."""
        return admin.invite(self.home, name, role, 7.0, time.time())  # type: ignore[arg-type]

    def join(self, site: str, data: Mapping[str, Path]) -> Home:
        """Let a site join, and register its datasets."""
        home = self.homes.get(site) or Home(self.folder / "sites" / site / "node")
        code = self.invite(site)
        patiently(lambda: join(home, code, proxy=self.proxy))
        for name, path in data.items():
            Datasets(home.datasets).add(name, path)
        self.homes[site] = home
        return home

    def node(
        self,
        site: str,
        *,
        before: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """The process of a site that has joined, not yet started.

        Args:
            site: its name.
            before: a command that runs the node, such as ``unshare -n``.
            environment: of it.
        """
        command = [*before, ATOLL, "node", "start", "--home", str(self.homes[site].path)]
        log = self.folder / "sites" / site / "node.log"
        made = self.nodes[site] = Process(f"node {site}", command, log, environment)
        return made

    def admit(self, sites: Mapping[str, Mapping[str, Path]]) -> None:
        """Let sites join and start working."""
        for site, data in sites.items():
            self.join(site, data)
            self.node(site).start()

    def connected(self, *sites: str) -> None:
        """Wait until the server answers nodes."""
        for site in sites or tuple(self.nodes):
            home = self.homes[site]
            until(
                lambda h=home: h.read(h.state).get("state") == "connected",
                60,
                f"node {site} is not connected",
                check=self.check,
            )

    def trouble(self, site: str, words: str) -> None:
        """Wait until a node says what is in its way."""
        home = self.homes[site]
        until(
            lambda: words in home.read(home.state).get("trouble", ""),
            30,
            f"node {site} does not say {words!r}",
        )

    def worker(self, site: str) -> int:
        """The process that runs job code at a site now."""
        home = self.homes[site]

        def found() -> int | None:
            runs = home.read(home.state).get("runs", {})
            return next((run["worker"] for run in runs.values() if run["worker"]), None)

        pid: int = until(found, 60, f"{site} has no worker", check=self.check)
        return pid

    # Jobs ---------------------------------------------------------------------------------------

    @property
    def researcher(self) -> Connection:
        """Ada, who has joined."""
        if self._researcher is None:
            code = self.invite("ada", "researcher")
            self._researcher = patiently(
                lambda: connect(self.folder / "ada", code=code, proxy=self.proxy)
            )
        return self._researcher

    def submit(
        self, job: Path, settings: Iterable[str] = (), sites: Iterable[str] = (), **more: Any
    ) -> str:
        """Hand in a job; the id of its run."""
        return self.researcher.submit(job, settings=settings, sites=sites, **more)

    def wait(self, run: str, seconds: float = 240.0) -> RunInfo:
        """Wait for a run's end, whatever happens to the server meanwhile."""

        def ended() -> RunInfo | None:
            with contextlib.suppress(Exception):
                info = self.researcher.show(run)
                return info if info.ended else None
            return None

        found: RunInfo = until(ended, seconds, f"{run} has not ended", check=self.check, every=0.1)
        return found

    def rounds(self, run: str, number: int, seconds: float = 120.0) -> None:
        """Wait until so many rounds are durable."""
        until(
            lambda: self.committed(run) >= number,
            seconds,
            f"{run} has no {number} rounds",
            check=self.check,
        )

    def result(self, run: str) -> dict[str, Any]:
        """The manifest of a run that has ended, as its researcher gets it."""
        folder = self.researcher.result(run, self.folder / "results" / run)
        found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        return found

    def records(self, run: str) -> list[dict[str, Any]]:
        """The records of all rounds of a run."""
        return [dict(record) for record in self.researcher.watch(run)]

    # Looking ------------------------------------------------------------------------------------

    def rows(self, question: str, *values: Any) -> list[tuple[Any, ...]]:
        """Ask the server's SQLite from outside, without touching it."""
        path = f"file:{self.home / 'atoll.db'}?mode=ro"
        with closing(sqlite3.connect(path, uri=True, timeout=30)) as connection:
            return connection.execute(question, values).fetchall()

    def committed(self, run: str) -> int:
        """Rounds of a run that are durable."""
        return int(self.rows("SELECT count(*) FROM rounds WHERE run = ?", run)[0][0])

    def heard_since(self, moment: float, site: str = "") -> float | None:
        """When the first answer after ``moment`` was acknowledged, of one site or of any."""
        question = "SELECT min(received) FROM contributions WHERE received > ?"
        found = (
            self.rows(f"{question} AND client = ?", moment, site)
            if site
            else self.rows(question, moment)
        )
        return None if found[0][0] is None else float(found[0][0])

    def check(self) -> None:
        """Nobody has ended by itself.

        Raises:
            AssertionError: somebody has; with the log.
        """
        for process in (self.server, *self.nodes.values()):
            if process.status is not None and process.status != -signal.SIGKILL:
                end = process.said()[-3000:]
                raise AssertionError(f"{process.name} ended with {process.status}:\n{end}")

    def told(self, most: int = 1500) -> str:
        """The ends of all logs, for a test that fails."""
        processes = [self.server, *self.nodes.values()]
        return "\n".join(f"--- {p.name} ({p.status})\n{p.said()[-most:]}" for p in processes)
