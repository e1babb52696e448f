"""What a federation costs and bears: the figures of ``docs/reliability.md``, smaller in tests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from federation_jobs import Task, arrays_task, names, own_task, table_task
from federation_kills import POINTS, Kill, Killer, Point, history
from federation_network import Passing, breaking_line, listening
from federation_processes import ATOLL, Federation, Process, free_port, until

from atoll.core.errors import Unreachable
from atoll.wire.frames import Blob

MIB = 1 << 20
FENCED = 5
"""Exit status of a server that may not use its store."""


# Kills --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Killed:
    """A run whose processes were killed.

    Args:
        kills: in order.
        wrong: what is wrong with its end; empty when nothing is.
        seconds: of the run.
    """

    kills: tuple[Kill, ...]
    wrong: tuple[str, ...]
    seconds: float


def killed_runs(
    folder: Path, large: bool, rng: random.Random, rounds: int = 20
) -> Iterator[Killed]:
    """Runs without end, of a small or a large model, in each of which processes are killed.

    About half of the kills come at random moments, the others where something is half done: all such points
    come in turn.
    """
    sites = 3
    if large:
        task = arrays_task(folder / "job", sites, rounds, features=200_000, algorithm="scaffold")
    else:
        task = table_task(folder / "job", sites, rounds, algorithm="scaffold")
    expected = task.simulated()
    points = [point for point in POINTS if large or not point.large]
    turns = {when: _in_turn([p for p in points if p.when == when], rng) for when in _WHEN}
    with Federation(folder) as federation:
        federation.admit(task.sites)
        killer = Killer(federation, rng)
        while True:
            before, began = len(killer.kills), time.monotonic()
            run = _killed_run(federation, task, killer, turns)
            info = federation.wait(run)
            wrong = history(federation, run, rounds, names(sites))
            if (info.status, info.reason) != ("completed", "completed"):
                wrong.append(f"{info.status}: {info.reason}")
            elif federation.result(run)["model_hash"] != expected:
                wrong.append("another model")
            seconds = time.monotonic() - began
            yield Killed(tuple(killer.kills[before:]), tuple(wrong), seconds)


_WHEN = ("begin", "often", "end")


def _in_turn(points: list[Point], rng: random.Random) -> Iterator[Point]:
    while True:
        yield from rng.sample(points, len(points))


def _killed_run(
    federation: Federation, task: Task, killer: Killer, turns: dict[str, Iterator[Point]]
) -> str:
    rng, submitted = killer.rng, list[str]()

    def begin() -> str:
        if not submitted:
            submitted.append(federation.submit(task.job))
        return submitted[0]

    if rng.random() < 0.2:
        killer.at(next(turns["begin"]), begin)
    run = begin()
    for _ in range(rng.randint(2, 5)):
        if rng.random() < 0.5:
            killer.at_random(run)
        else:
            killer.at(next(turns["often"]), begin, patience=15)
    if rng.random() < 0.3:
        killer.at(next(turns["end"]), begin, patience=120)
    return run


# Sites that are slow, or away ---------------------------------------------------------------------


@dataclass(frozen=True)
class Waited:
    """Rounds that did not wait for some.

    Args:
        rounds: so many lacked somebody.
        beyond: seconds that the longest of them took beyond the deadline.
        named: whether each names those who were missing, and only them.
        status: of the run.
    """

    rounds: int
    beyond: float
    named: bool
    status: str


def stragglers(folder: Path, *, away: float, deadline: float, rounds: int) -> Waited:
    """Ten sites of which three cannot keep up; the others are seven, the quorum.

    Args:
        folder: an empty one.
        away: seconds for which the three are stopped from the second round on; 0: they take a hundred times as
            long as the others.
        deadline: of a round.
        rounds: of the run.
    """
    few = names(10)[:3]
    slow = () if away else few
    task = own_task(folder / "job", 10, rounds, seconds=0.1, slow=slow)
    settings = [f"rounds.deadline={deadline}", "rounds.quorum=7"]
    with Federation(folder) as federation:
        federation.admit(task.sites)
        run = federation.submit(task.job, settings)
        federation.rounds(run, 1)
        if away:
            stopped = time.monotonic()
            for site in few:
                federation.nodes[site].signal(signal.SIGSTOP)
            until(lambda: time.monotonic() > stopped + away, 2 * away, "time stands still")
            for site in few:
                federation.nodes[site].signal(signal.SIGCONT)
        info = federation.wait(run, 600)
        late = [record for record in federation.records(run) if record["missing"]]
    return Waited(
        rounds=len(late),
        beyond=max(record["seconds"] for record in late) - deadline,
        named=all(sorted(r["missing"]) == few and r["committed"] for r in late),
        status=info.reason,
    )


# Two servers --------------------------------------------------------------------------------------


def second_server(federation: Federation, home: Path) -> Process:
    """A server of the same federation with a folder of its own, on the same store; not started."""
    left = shutil.ignore_patterns("atoll.db*", "blobs", "runs", "lock")
    shutil.copytree(federation.home, home, ignore=left)
    charter = json.loads((home / "server.json").read_text())
    charter["store"] = federation.charter.store or str(federation.home / "atoll.db")
    charter["listen"] = f"127.0.0.1:{free_port()}"
    (home / "server.json").write_text(json.dumps(charter))
    return Process("the second server", [ATOLL, "server", "start", str(home)], home / "log")


def fenced(folder: Path, tries: int, store: str = "") -> tuple[int, bool]:
    """Start a second server on the store of one at work, again and again.

    Returns:
        how often it was refused, and whether the run of the first ended in the bits of its simulation.
    """
    task = table_task(folder / "job", 2, 4 * tries)
    refused = 0
    with Federation(folder, store=store) as federation:
        federation.admit(task.sites)
        run = federation.submit(task.job)
        second = second_server(federation, folder / "second")
        for _ in range(tries):
            second.start()
            until(lambda: second.status is not None, 60, "the second server is not refused")
            refused += second.status == FENCED
        info = federation.wait(run, 600)
        same = info.reason == "completed"
        return refused, same and federation.result(run)["model_hash"] == task.simulated()


# Transfers and memory -----------------------------------------------------------------------------


@contextlib.contextmanager
def on_a_breaking_line(folder: Path, cuts: list[int]) -> Iterator[tuple[Federation, Passing]]:
    """A federation whose members reach the server over a line that breaks; see :func:`breaking_line`."""
    listener = listening()
    federation = Federation(folder, address=f"127.0.0.1:{listener.getsockname()[1]}")
    with federation, breaking_line(listener, federation.port, cuts) as line:
        yield federation, line


@dataclass(frozen=True)
class Upload:
    """An upload that was cut.

    Args:
        cuts: how often.
        sent_again: bytes in all that were sent beyond the file's own: twice, or as TLS and headers.
        whole: whether the server has the right bytes.
        seconds: from first to last.
    """

    cuts: int
    sent_again: int
    whole: bool
    seconds: float


def cut_upload(folder: Path, size: int, cuts: int, rng: random.Random) -> Upload:
    """Upload random bytes over a line that is cut at random offsets; go on until they are there."""
    path = folder / "bytes"
    sha = hashlib.sha256()
    with path.open("wb") as file:
        for at in range(0, size, MIB):
            piece = rng.randbytes(min(MIB, size - at))
            sha.update(piece)
            file.write(piece)
    blob, at_once = Blob(sha.hexdigest(), size), list[int]()
    with on_a_breaking_line(folder, at_once) as (federation, line):
        channel = federation.researcher._channel
        broken, before = 0, line.passed
        at_once += sorted(before + rng.randrange(size) for _ in range(cuts))
        began = time.monotonic()
        while True:
            try:
                channel.upload(blob, path, "")
                break
            except Unreachable:
                broken += 1
        seconds = time.monotonic() - began
        kept = federation.home / "blobs" / blob.sha256
        with kept.open("rb") as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest() == blob.sha256
    return Upload(broken, line.passed - before - size, whole, seconds)


def held(pid: int) -> dict[str, int]:
    """Bytes of a process: ``anonymous`` (its own), ``share`` (PSS: with its part of files and shared pages)."""
    status = Path(f"/proc/{pid}/status").read_text()
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {"anonymous": _kib(status, "RssAnon:"), "share": _kib(rollup, "Pss:")}


def _kib(text: str, key: str) -> int:
    line = next(line for line in text.splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


@contextlib.contextmanager
def watched(pid: int, every: float = 0.02) -> Iterator[dict[str, int]]:
    """The most that a process holds meanwhile."""
    most, stop = held(pid), threading.Event()

    def watch() -> None:
        while not stop.wait(every):
            with contextlib.suppress(OSError):
                for kind, size in held(pid).items():
                    most[kind] = max(most[kind], size)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join()


def server_growth(folder: Path, sites: int, values: int, rounds: int) -> dict[str, float]:
    """How far a server's memory grows over a run, in sizes of the model, beside the run's seconds."""
    task = own_task(folder / "job", sites, rounds, size=values)
    with Federation(folder) as federation:
        federation.admit(task.sites)
        federation.connected()
        before = held(federation.server.pid)
        with watched(federation.server.pid) as most:
            began = time.monotonic()
            run = federation.submit(task.job)
            info = federation.wait(run, 1200)
            seconds = time.monotonic() - began
        if info.reason != "completed":
            raise AssertionError(info.reason)
    grown = {kind: (most[kind] - before[kind]) / (4 * values) for kind in before}
    return {**grown, "seconds": seconds}
