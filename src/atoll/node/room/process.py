"""The node's side of a worker process: start it, hand it an order, hear how it ended."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from atoll.core.errors import StorageError, WireError
from atoll.node.near import Seen
from atoll.node.orders import Order, Report, check_memory, read_result, receive, send
from atoll.node.policy.redaction import without_paths
from atoll.node.room.limits import environment
from atoll.node.room.sandbox import NOT_MADE, Room, deaf
from atoll.node.room.scratch import clear, size_of, taken
from atoll.node.room.usage import usage_of
from atoll.node.room.view import View, view_of
from atoll.node.settings import GIB, Settings
from atoll.wire.messages import read_body
from atoll.wire.trouble import takes_nothing

__all__ = ["Ended", "Log", "Worker", "fresh_folder"]

logger = logging.getLogger("atoll.node")

_LAST = 1.0
"""Seconds that a process which has closed its pipe is given to end by itself."""
_GLANCE = 1.0
"""Seconds between looks at a worker that says nothing: whether it lives, and how much it holds."""
_SHARE, _LONGEST = 20, 10.0
"""Looking may take one part in so many of a core, but nobody goes unseen for longer than so many seconds."""
_PATIENCE = 60.0
"""Seconds that a worker is given to begin reading an order."""
_WAITING = 2
"""Processes of a room that wait for the worker, and are not counted with it."""


@dataclass(frozen=True)
class Ended:
    """A worker that is no more.

    Args:
        reason: why, for people; no data and no paths.
    """

    reason: str


def fresh_folder(work: Path, name: str) -> Path:
    """A new folder for a worker; the one that a worker with this name had may still be in use.

    Raises:
        OSError: it cannot be made.
    """
    work.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Path(tempfile.mkdtemp(dir=work, prefix=f"{name}-"))


class Log:
    """What job code of one run prints: a file that does not outgrow its limit, and the one before it.

    Args:
        path: of the file.
        most: bytes of both together.
    """

    def __init__(self, path: Path, most: int) -> None:
        self._path, self._most = path, most // 2
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file: IO[bytes] = path.open("ab", buffering=0)

    def write(self, text: bytes) -> None:
        """Add to the log; a full disk loses what is printed, not the run."""
        with contextlib.suppress(OSError, ValueError):
            if self._file.tell() + len(text) > self._most:
                self._file.close()
                self._path.replace(self._path.with_suffix(".old"))
                self._file = self._path.open("ab", buffering=0)
            self._file.write(text[-self._most :])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Worker:
    """One worker process and the two threads that listen to it.

    Args:
        folder: a new folder: its home, its code, its results; gone with it, like :attr:`aside` next to it.
        settings: limits, and what it may see.
        log: where what it prints goes.
        heard: told each report and the end, from a thread of this object; the last call is the end.
        room: what it sees of the machine; None for all that its user may see.

    Attributes:
        aside: a folder out of its sight, for the copies of what it reports.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        log: Log,
        heard: Callable[[Worker, Report | Ended], None],
        room: Room | None = None,
    ) -> None:
        self.folder, self._log, self._heard = folder, log, heard
        self._limits = settings.limits
        self.code, self.aside = folder / "code", folder.with_name(f"{folder.name}.out")
        for place in (self.code, self.aside):
            place.mkdir(parents=True, mode=0o700)
        self._view = None if room is None else View(folder)
        self._why = ""
        self._asked: Order | None = None
        self._next_look = time.monotonic() + _GLANCE
        command = [sys.executable, "-P", "-m", "atoll.node.room.worker"]
        inside = [] if room is None else [room.model_dump_json()]
        with deaf():
            self._process = subprocess.Popen(  # noqa: S603  # our own module, arguments of our own
                [*command, settings.limits.model_dump_json(), str(self.code), *inside],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=folder,
                env=environment(folder, settings.limits, settings.pass_on),
                start_new_session=True,
            )
        os.set_blocking(_number(self._process.stdin), False)
        self._lock, self._reaped = threading.Lock(), False
        self._threads = [
            threading.Thread(target=listen, name=f"worker {folder.name}", daemon=True)
            for listen in (self._hear, self._pump)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def order(self, order: Order) -> bool:
        """Hand over an order; False when the process was gone before and has seen nothing of it.

        Once it is reported, its result and memory lie where it says: copies, which job code cannot change.

        Args:
            order: of what the worker is to do; its files to be written are in :attr:`aside`.
        """
        with self._lock, contextlib.suppress(OSError):
            if not self._reaped:  # else its pipe is closed, and the number may be another file's
                self._asked = order
                result, keep = self._own(order)
                told = order.model_copy(update={"result": result, "keep": keep})
                told = told if self._view is None else self._view.seen(told)
                try:
                    send(_number(self._process.stdin), told, _PATIENCE)
                except TimeoutError:  # job code keeps it from reading; its end is heard as usual
                    self._why = self._why or "did not read its order"
                    os.killpg(self._process.pid, signal.SIGKILL)
                return True
        return False

    def show(self, files: Iterable[str]) -> None:
        """Let its room hold these files of the cache, and no others, until its next report.

        Raises:
            OSError: the disk does not take their names.
        """
        with self._lock:
            if self._view is not None and not self._reaped:
                self._view.show(files)

    def _own(self, order: Order) -> tuple[str, str]:
        """Where it writes a result and a memory: over those of its last task of the kind."""
        kind = order.task.kind
        return str(self.folder / f"{kind}.result"), str(self.folder / f"{kind}.memory")

    def end(self, why: str = "") -> None:
        """End the process now, with all its children; its end is heard as usual."""
        self._why = self._why or why or "was ended by the node"
        self._kill()

    def join(self, seconds: float) -> bool:
        """Wait until it is gone with its folders, not longer than so many seconds; whether it is."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _kill(self) -> None:
        """End the whole group, unless its number may belong to others by now."""
        with self._lock, contextlib.suppress(ProcessLookupError, PermissionError):
            if not self._reaped:
                os.killpg(self._process.pid, signal.SIGKILL)

    def _hear(self) -> None:
        try:
            self._listen()
        finally:  # whatever a worker does, somebody waits for its end
            code = self._reap()
            self._heard(self, Ended(self._why or _reason(code, self._limits.cpu)))

    def _listen(self) -> None:
        answers = _number(self._process.stdout)
        said = select.poll()
        said.register(answers, select.POLLIN)
        with contextlib.suppress(EOFError, OSError):
            try:
                while True:
                    report = read_body(Report, receive(answers, lambda: self._wait_for(said)))
                    self._take(report)
                    self._heard(self, report)
            except WireError as error:
                self.end(f"wrote what is no answer: {without_paths(error.message)}")
            except StorageError as error:
                logger.warning("the result of a worker cannot be kept: %s", error)
                self.end("gave a result that the disk of this site does not take")

    def _take(self, report: Report) -> None:
        """Believe a report, once; what it speaks of is copied to where job code does not come.

        Raises:
            WireError: there is no such thing, or it is not valid: who wrote it gets no other task.
            StorageError: it cannot be copied.
            EOFError: the worker was ended while the disk had no room for it.
        """
        asked, self._asked = self._asked, None
        if asked is None or asked.task.id != report.task:
            raise WireError("of a task that it was not given")
        self.show(())
        result, keep = self._own(asked)
        if report.kept:
            if not self._copied(keep, asked.keep):
                raise WireError("without the memory that it speaks of")
            check_memory(Path(asked.keep), report.task)
        if not self._copied(result, asked.result):
            raise WireError("without a result")
        read_result(Seen(Path(asked.result)), report.task)
        if asked.task.kind != "train":  # the next one is seldom as large
            with contextlib.suppress(OSError):
                os.unlink(result)

    def _copied(self, path: str, place: str) -> bool:
        """Copy a file as soon as the disk has room for it; False: there is none."""
        told = False
        while not self._why:
            try:
                return taken(path, Path(place), self._limits.disk * GIB)
            except StorageError as error:
                if not takes_nothing(error):
                    raise
                if not told:
                    logger.warning("a worker's result waits for the disk: %s", error)
                told = True
            time.sleep(_GLANCE)
        raise EOFError(self._why)

    def _wait_for(self, said: select.poll) -> None:
        """Until the worker says something. It may be gone although others hold its pipe open.

        Raises:
            EOFError: it is gone.
        """
        while True:
            self._look()
            if said.poll(1000 * _GLANCE):
                return
            if _has_ended(self._process.pid) and not said.poll(0):
                raise EOFError("the process has ended")

    def _look(self) -> None:
        """End a worker that takes more of the machine than it may."""
        if time.monotonic() < self._next_look:
            return
        began = time.thread_time()  # on a busy machine a look lasts for long and costs little
        if why := self._beyond():
            self.end(f"{why} that it may at this site")
        spent = time.thread_time() - began
        self._next_look = time.monotonic() + min(max(_GLANCE, _SHARE * spent), _LONGEST)

    def _beyond(self) -> str:
        """What it has too much of; empty for nothing."""
        limits, in_room = self._limits, self._view is not None
        used = usage_of(self._process.pid, self.folder, limits.memory * GIB, in_room)
        if size_of(self.folder) + used.unnamed > limits.disk * GIB:
            return f"wrote more than the {limits.disk:.3g} GiB"
        if used.memory > limits.memory * GIB:
            return f"held more than the {limits.memory:.3g} GiB of memory"
        if used.tasks > limits.processes + _WAITING:
            return f"ran more than the {limits.processes} processes and threads"
        return ""

    def _reap(self) -> int:
        if not _wait(self._process.pid, _LAST):  # it has closed its pipe and gone on
            self._why = self._why or "closed its pipe to the node"
        self._kill()  # it may have left children
        with self._lock:
            self._reaped = True
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                _file(pipe).close()
        for folder in (self.folder, self.aside, view_of(self.folder)):
            clear(folder)
        return code

    def _pump(self) -> None:
        log = _file(self._process.stderr)
        with log:
            while text := os.read(log.fileno(), 1 << 16):
                self._log.write(text)


def _wait(pid: int, seconds: float) -> bool:
    """Wait for the end of a child, which stays known by its number; whether it came."""
    until = time.monotonic() + seconds
    while not _has_ended(pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _file(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise OSError("the process has no such pipe")
    return pipe


def _number(pipe: IO[bytes] | None) -> int:
    return _file(pipe).fileno()


def _reason(code: int, cpu: int) -> str:
    """Why a process that nobody ended has ended."""
    if code == -signal.SIGXCPU:
        return f"used more than the {cpu} s of processor time that a task may take at this site"
    if code == -signal.SIGKILL:
        return "was killed from outside, most likely because the machine ran out of memory"
    if code == NOT_MADE:
        return "could be given no sandbox; the log of this site's node says why"
    if code < 0:
        return f"crashed ({signal.Signals(-code).name})"
    return f"ended by itself with status {code}"
