"""``kill -9`` of a federation's processes: at random moments, and where something is half done.

The product knows nothing of these tests. Where a process stands is seen from outside: it writes files, and
the kernel tells of each (inotify). A :class:`Point` names a moment by the file whose coming, change or going
marks it; the process is killed within a fraction of a millisecond of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import select
import signal
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from federation_processes import Federation, Process, until

CREATED, CHANGED, NAMED, GONE, CLOSED = 0x100, 0x2, 0x80, 0x200 | 0x40, 0x8
"""Of inotify; a file is gone when it was removed or moved elsewhere, to be written over later."""
_FOLDER, _ALL = 0x40000000, CREATED | CHANGED | NAMED | GONE | CLOSED


@dataclass(frozen=True)
class Point:
    """A moment at which something is half done.

    Args:
        name: what has just happened, and what not yet.
        who: whose moment it is.
        event: what happens to the file: one of the numbers above.
        path: of the file, a regular expression, relative to the folder of the process.
        large: whether only models larger than a small blob come by.
        when: whether it comes again and again, or at the begin or the end of a run only.
    """

    name: str
    who: Literal["server", "node"]
    event: int
    path: str
    large: bool = False
    when: Literal["begin", "often", "end"] = "often"


_MODEL, _MANIFEST = r"runs/[^/]+/\w+\.safetensors", r"runs/[^/]+/manifest\.json"
_NOTE = r"spool/[^/]+/run\.json"
_TEMP = r"blobs/new/.*"
_BLOB = r"blobs/[0-9a-f]{64}"
_RESULT, _MEMORY = r"spool/[^/]+/[^/]+\.result", r"spool/[^/]+/[^/]+\.memory"

POINTS = (
    Point("the store's log is being written", "server", CHANGED, r"atoll\.db-wal"),
    Point("a round is recorded, not committed", "server", CHANGED, r"runs/[^/]+/metrics\.jsonl"),
    Point("bytes are written, not named", "server", CLOSED, _TEMP, large=True),
    Point("bytes are named, not in the store", "server", NAMED, _BLOB, large=True),
    Point("a useless blob is dropped, others are not", "server", GONE, _BLOB, large=True),
    Point("an upload has begun", "server", CREATED | NAMED, r"blobs/uploads/.*", large=True),
    Point("the model is written, the run not ended", "server", NAMED, _MODEL, when="end"),
    Point("the manifest is written, the run not ended", "server", NAMED, _MANIFEST, when="end"),
    Point("a model is being downloaded", "node", CREATED | NAMED, r"cache/.*\.partial", large=True),
    Point("a model was downloaded", "node", NAMED, r"cache/[^/]+", large=True),
    Point("the worker writes its answer", "node", CREATED, r"work/[^/]+/\d+\.result"),
    Point("the worker writes the memory", "node", CREATED, r"work/[^/]+/\d+\.memory"),
    Point("the memory is kept, the answer not", "node", NAMED, _MEMORY),
    Point("the answer is kept, not sent", "node", NAMED, _RESULT),
    Point("an answer is settled", "node", GONE, _RESULT),
    Point("an old memory is dropped", "node", GONE, _MEMORY),
    Point("a run is noted, none of its answers kept", "node", NAMED, _NOTE, when="begin"),
    Point("a run's note goes, its end being known", "node", GONE, _NOTE, when="end"),
)
"""Every step of the protocol that leaves a trace on a disk."""


class Tripwire:
    """Does something as soon as a file below a folder comes, changes or goes.

    Args:
        folder: watched with all below it, also what is made later.
        event: one of the numbers above.
        path: which files, relative to ``folder``.
        skip: so many times nothing is done.
        act: called once, from a thread of this object.
    """

    def __init__(
        self, folder: Path, event: int, path: str, skip: int, act: Callable[[], None]
    ) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._folder, self._event, self._path = folder, event, re.compile(path)
        self._left, self._act = skip, act
        self._watched: dict[int, Path] = {}
        self._stop = False
        self.fired = threading.Event()
        self._watch(folder)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def __enter__(self) -> Tripwire:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join()
        os.close(self._fd)

    def _watch(self, folder: Path) -> None:
        number = self._libc.inotify_add_watch(self._fd, os.fsencode(folder), _ALL)
        if number < 0:
            return  # gone already
        self._watched[number] = folder
        with contextlib.suppress(OSError):
            for below in folder.iterdir():
                if below.is_dir() and not below.is_symlink():
                    self._watch(below)

    def _listen(self) -> None:
        while not self._stop and not self.fired.is_set():
            if select.select([self._fd], [], [], 0.05)[0]:
                self._read(os.read(self._fd, 1 << 16))

    def _read(self, raw: bytes) -> None:
        at = 0
        while at < len(raw) and not self.fired.is_set():
            number, mask, _, size = struct.unpack_from("iIII", raw, at)
            name = raw[at + 16 : at + 16 + size].rstrip(b"\0").decode()
            at += 16 + size
            folder = self._watched.get(number)
            if folder is None:
                continue
            if mask & _FOLDER:
                if mask & (CREATED | NAMED):
                    self._watch(folder / name)
                continue
            path = (folder / name).relative_to(self._folder).as_posix()
            if mask & self._event and self._path.fullmatch(path):
                if self._left <= 0:
                    self._act()
                    self.fired.set()
                self._left -= 1


@dataclass(frozen=True)
class Kill:
    """One ``kill -9``.

    Args:
        victim: name of the process.
        point: where it stood; empty for a random moment.
        seconds: from its new start to the first answer that the server acknowledged after it, from this
            site or, for the server, from any; nan when another kill came between.
    """

    victim: str
    point: str
    seconds: float


class Killer:
    """Kills processes of one federation while a run goes on.

    Args:
        federation: up and running, on SQLite.
        rng: chooses.
    """

    def __init__(self, federation: Federation, rng: random.Random) -> None:
        self.federation, self.rng = federation, rng
        self.kills: list[Kill] = []

    def over(self, run: str) -> bool:
        """Whether the run has ended."""
        found = self.federation.rows("SELECT status FROM runs WHERE id = ?", run)
        return found[0][0] not in ("open", "cancelling")

    def somebody(self) -> Process:
        """The server as often as all the others together."""
        nodes = list(self.federation.nodes.values())
        return self.rng.choice([*[self.federation.server] * len(nodes), *nodes])

    def at_random(self, run: str, longest: float = 1.5) -> bool:
        """Kill somebody somewhere in the next moments; False when the run was over before."""
        time.sleep(self.rng.uniform(0, longest))
        if self.over(run):
            return False
        victim = self.somebody()
        victim.kill()
        self._again(run, victim, "")
        return True

    def at(
        self,
        point: Point,
        begin: Callable[[], str],
        most_skipped: int = 5,
        patience: float = 30.0,
    ) -> bool:
        """Kill whose moment has come; False when it did not come.

        Args:
            point: the moment.
            begin: gives the run; called when all is ready for the moment.
            most_skipped: so many of these moments may pass before.
            patience: seconds to wait for it.
        """
        federation = self.federation
        if point.who == "server":
            victim, folder = federation.server, federation.home
        else:
            site = self.rng.choice(sorted(federation.nodes))
            victim, folder = federation.nodes[site], federation.homes[site].path

        def act() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGKILL)

        skip = self.rng.randint(0, most_skipped) if point.when == "often" else 0
        with Tripwire(folder, point.event, point.path, skip, act) as wire:
            run, limit = begin(), time.monotonic() + patience
            while not wire.fired.wait(0.02):
                over = self.over(run)
                # What comes with the end of a run may come a moment after it.
                if time.monotonic() > limit or (over and not wire.fired.wait(3)):
                    return False
        victim.kill()
        self._again(run, victim, point.name)
        return True

    def _again(self, run: str, victim: Process, point: str) -> None:
        """Start it, and see when it is back at work; sometimes another is killed before that."""
        began = time.time()
        victim.start()
        if self.rng.random() < 0.2:
            self.kills.append(Kill(victim.name, point, float("nan")))
            time.sleep(self.rng.uniform(0, 2))
            victim, point, began = self.somebody(), "soon after another", time.time()
            victim.kill()
            victim.start()
        self.kills.append(Kill(victim.name, point, self._back(run, victim, began)))

    def _back(self, run: str, victim: Process, since: float) -> float:
        """Seconds until it is at work, or the run is over."""
        federation = self.federation
        site = next((s for s, node in federation.nodes.items() if node is victim), "")

        def heard() -> float | None:
            found = federation.heard_since(since, site)
            return time.time() if found is None and self.over(run) else found

        found: float = until(
            heard, 120, f"{victim.name} is not back at work", check=federation.check
        )
        return found - since


def history(federation: Federation, run: str, rounds: int, sites: Sequence[str]) -> list[str]:
    """What is wrong with what a run has left in the store; empty when nothing is.

    Every round must be there once and hold one answer of every site, the one that was acknowledged, and
    nobody may have answered one task in two ways.
    """
    found = federation.rows("SELECT number, record, tasks FROM rounds WHERE run = ?", run)
    wrong = []
    if sorted(row[0] for row in found) != list(range(1, rounds + 1)):
        wrong.append(f"rounds {sorted(row[0] for row in found)}")
    question = "SELECT task, client, round, status FROM contributions WHERE run = ?"
    answers: Mapping[str, tuple[str, int, str]] = {
        task: (client, number, status)
        for task, client, number, status in federation.rows(question, run)
    }
    trains = {task for task in answers if ".train." in task}
    for number, _, tasks in found:
        own = [task for task in trains if answers[task][1] == number]
        if sorted(answers[task][0] for task in own) != sorted(sites):
            wrong.append(f"round {number} holds {own}, and says {tasks}")
    wrong += [f"{task} was {answers[task][2]}" for task in trains if answers[task][2] != "done"]
    alarms = federation.rows("SELECT text FROM events WHERE run = ? AND kind = 'equivocation'", run)
    return [*wrong, *(text for (text,) in alarms)]
