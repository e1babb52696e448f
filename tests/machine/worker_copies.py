"""Workers of nodes in tests are copies of a process that has read a worker's modules already.

A worker reads modules for most of a second before it begins, in each run at each node: tests start hundreds.
A process that is a node is given a child, which waits and copies itself whenever the node starts a worker. What
comes of that is a child of the node, in a session of its own, with the words, the pipes, the folder and the
environment that the worker's command is given; from there on it is the worker, with its limits and its room.
That the command itself starts is the business of the tests of workers and of whole federations.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import functools
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import typer.main

from atoll.cli import main as cli
from atoll.node.room import process, sandbox, worker

COMMAND = ("-P", "-m", worker.__name__)
READ = (
    *("atoll.node.room.workplace", "pandas", "pydantic.type_adapter"),
    "cryptography.hazmat.primitives.serialization.ssh",
)
"""What workers and nodes read as late as they can."""
_SUBREAPER = 36
_PIPES = 3


def give_copies() -> None:
    """Let workers of this process, which is a copy itself, be copies. To be called before it has threads."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    owner = os.getpid()
    if os.fork() == 0:
        mine.close()
        _serve(theirs, owner)
    theirs.close()
    process.subprocess = starting(mine)  # type: ignore[attr-defined]


@contextlib.contextmanager
def copier() -> Iterator[SimpleNamespace]:
    """What is to stand for ``subprocess`` in a process that is a node for a while, and may have threads."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    started: list[subprocess.Popen[bytes]] = []

    def begin() -> None:
        if not started:
            number = theirs.fileno()
            command = [sys.executable, __file__, str(number), str(os.getpid())]
            alone = {**os.environ, "OMP_NUM_THREADS": "1"}
            started.append(subprocess.Popen(command, pass_fds=[number], env=alone))
            theirs.close()

    with mine, theirs:
        yield starting(mine, begin)
        mine.shutdown(socket.SHUT_RDWR)  # others may hold it open, copies of this process
    for one in started:
        one.wait()


def starting(way: socket.socket, begin: Callable[[], None] = lambda: None) -> SimpleNamespace:
    """As much of :mod:`subprocess` as the node's side of a worker asks for.

    Args:
        way: to the process that is copied.
        begin: starts it, if it does not run yet.
    """
    one_by_one = threading.Lock()

    def start(command: Sequence[str], **options: Any) -> Any:
        if tuple(command[1 : 1 + len(COMMAND)]) != COMMAND:
            return subprocess.Popen(command, **options)
        with one_by_one:
            begin()
            words, folder = command[1 + len(COMMAND) :], str(options["cwd"])
            return _Copied(way, words, folder, options["env"])

    return SimpleNamespace(Popen=start, PIPE=subprocess.PIPE)


class _Copied:
    """A worker; as much of :class:`subprocess.Popen` as the node's side of it asks for."""

    def __init__(
        self, way: socket.socket, words: Sequence[str], folder: str, environment: Mapping[str, str]
    ) -> None:
        (inside, give), (take, outside), (hear, aloud) = (os.pipe() for _ in range(_PIPES))
        order = {"words": list(words), "folder": folder, "environment": dict(environment)}
        given = array.array("i", [inside, outside, aloud])
        # What a child of the process that is copied leaves behind when it ends is then ours.
        become = ctypes.CDLL(None).prctl
        become(_SUBREAPER, 1, 0, 0, 0)
        try:
            way.sendmsg(
                [json.dumps(order).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, given)]
            )
            self.pid = int(way.recv(32))
        finally:
            become(_SUBREAPER, 0, 0, 0, 0)
            for number in given:
                os.close(number)
        self.stdin, self.stdout = os.fdopen(give, "wb"), os.fdopen(take, "rb")
        self.stderr = os.fdopen(hear, "rb")
        self.returncode: int | None = None

    def wait(self) -> int:
        """Its status, negative for a signal."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


def _serve(way: socket.socket, owner: int) -> None:
    """Copy this process whenever its owner asks; never returns."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        text, given, _, _ = way.recvmsg(1 << 20, socket.CMSG_LEN(4 * _PIPES))
        if not text:
            os._exit(0)
        pipes = array.array("i")
        pipes.frombytes(given[0][2])
        told, tell = os.pipe()
        between = os.fork()
        if between == 0:  # it ends at once, so that its child becomes the owner's
            one = os.fork()
            if one == 0:
                way.close()
                os.close(told)
                os.close(tell)
                _become(json.loads(text), pipes, owner)
            os.write(tell, str(one).encode())
            os._exit(0)
        for number in (tell, *pipes):
            os.close(number)
        os.waitpid(between, 0)
        way.send(os.read(told, 32))
        os.close(told)


def _become(order: dict[str, Any], pipes: Sequence[int], owner: int) -> None:
    """What is different in a copy; never returns."""
    status = 1
    try:
        while os.getppid() != owner:
            time.sleep(0.0005)
        for place, number in enumerate(pipes):
            os.dup2(number, place)
            os.close(number)
        os.setsid()
        os.chdir(order["folder"])
        os.environ.clear()
        os.environ.update(order["environment"])
        tempfile.tempdir = None
        here = os.path.dirname(__file__)
        sys.path[:] = [path for path in sys.path if path != here]
        sys.argv = [str(worker.__file__), *order["words"]]
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        worker.main(*order["words"])
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def read() -> None:
    """All that copies would read; and try, once for them all, whether rooms can be made on this machine."""
    for name in READ:
        importlib.import_module(name)
    sandbox.trouble()
    typer.main.get_command = functools.cache(typer.main.get_command)
    typer.main.get_command(cli.root)


if __name__ == "__main__":
    read()
    _serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
