"""Starts processes by copying one that has read their modules already.

A command, and a node of a test, reads modules for longer than it works in most tests, and tests start a dozen
of them. Each copy is a process of its own, with the environment, the log and the end that the process would
have; that the installed command starts is the business of the tests of the pilot and of the how-to page.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Copy:
    """One copy; as :class:`subprocess.Popen` has it."""

    def __init__(self, launcher: Launcher, pid: int) -> None:
        self._launcher, self.pid = launcher, pid

    @property
    def returncode(self) -> int | None:
        """Its status; None while it lives."""
        return self._launcher.ended.get(self.pid)

    def poll(self) -> int | None:
        """Its status; None while it lives."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; returns its status."""
        with self._launcher.changed:
            self._launcher.changed.wait_for(lambda: self.poll() is not None, timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(["copy"], timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, if it lives."""
        with contextlib.suppress(ProcessLookupError):  # it may be gone, and not yet told of
            if self.poll() is None:
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Launcher:
    """The process that is copied; it ends with this object.

    Args:
        read: modules that it reads; as ``module:name``, a function of one is called too, without arguments.
        path: folders in which it finds those that are not installed; copies look into them too.
    """

    def __init__(self, read: Sequence[str], path: Sequence[str] = ()) -> None:
        given = json.dumps({"read": list(read), "path": list(path)})
        command = [sys.executable, str(Path(__file__)), given]
        pipe = subprocess.PIPE
        alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # a process with threads is not copied
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=alone)
        self.ended: dict[int, int] = {}
        self.changed = threading.Condition()
        self._begun: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._asking = threading.Lock()
        self._thread = threading.Thread(target=self._hear, name="launcher", daemon=True)
        self._thread.start()

    def start(
        self,
        function: str,
        words: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        *,
        group: bool = False,
    ) -> Copy:
        """A process of its own that writes into ``log``.

        Args:
            function: what it calls, as ``module:name``; without arguments.
            words: its command line, ``sys.argv``.
            log: what it says is added to this file.
            environment: all of it.
            group: whether it and its children are a process group of their own.
        """
        order = {"function": function, "words": list(words), "log": str(log), "group": group}
        with self._asking:
            assert self._process.stdin is not None
            text = json.dumps({**order, "environment": dict(environment)})
            print(text, file=self._process.stdin, flush=True)
            return Copy(self, self._begun.get(timeout=120))

    def close(self) -> None:
        """End it; what it has started goes on."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._thread.join()
        self._process.wait()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                pid, *status = map(int, line.split())
                if not status:
                    self._begun.put(pid)
                    continue
                with self.changed:
                    self.ended[pid] = status[0]
                    self.changed.notify_all()


def _tell(*numbers: int) -> None:
    os.write(1, (" ".join(map(str, numbers)) + "\n").encode())


def _become(order: dict[str, Any], needless: Sequence[int]) -> None:
    """What is different in a copy: standard files, environment, words and signals."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, place in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(number, place)
    for number in (nothing, log, *needless):
        os.close(number)
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = order["words"]


def _serve() -> str:
    """Copy this process whenever that is asked for, and end it at the end of input.

    Returns in the copies: the function that each is to call.
    """
    heard, rung = os.pipe()
    for number in (heard, rung):
        os.set_blocking(number, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(rung, warn_on_full_buffer=False)
    selector = selectors.DefaultSelector()
    for number in (0, heard):
        selector.register(number, selectors.EVENT_READ)
    rest, living = b"", set[int]()
    while True:
        ready = {key.fd for key, _ in selector.select()}
        if heard in ready:
            os.read(heard, 4096)
        for pid in list(living):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                living.discard(pid)
                _tell(pid, os.waitstatus_to_exitcode(status))
        if 0 not in ready:
            continue
        piece = os.read(0, 1 << 16)
        if not piece:
            sys.exit()
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            order = json.loads(line)
            pid = os.fork()
            if order["group"]:  # in both, whichever comes first
                os.setpgid(pid, pid)
            if pid == 0:
                selector.close()  # not its number alone: forgotten later, it would close another's
                _become(order, (heard, rung))
                return str(order["function"])
            living.add(pid)
            _tell(pid)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    sys.path[:1] = given["path"]  # in place of the folder of this file
    for name in given["read"]:
        module, _, function = name.partition(":")
        found = importlib.import_module(module)
        if function:
            getattr(found, function)()
    module, _, function = _serve().partition(":")
    getattr(sys.modules[module], function)()
