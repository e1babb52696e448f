"""A room of its own for the process that runs job code: what it sees of the machine, on Linux.

Without rights of an administrator a process may leave the machine's view for one of its own (user, mount,
process and network namespaces, :manpage:`namespaces(7)`). In the room there are

- the system's programs and libraries and this Python, to be read;
- the one dataset, this run's memories, and what its present order names (:mod:`atoll.node.room.view`),
  to be read;
- the worker's own folder, to be written, and nothing else that stays;
- no network, no other process, and nothing of the node's folder beside what is named here.

Three processes stand for one::

    watcher     outside; ends the room when the node has gone, and ends as the worker has ended
    first       the first process of the room: with it all others end, however they have hidden
    worker      carries out orders; its rights over the room were given up before it began

Behind them all is a filter of the kernel's calls (:mod:`atoll.node.room.syscalls`).

The worker itself is ended by limits, or by the node, as one without a room is. Where the machine lets nobody
make such a room, :func:`trouble` says why.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import os
import platform
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field

from atoll.node.room import syscalls

__all__ = ["NOT_MADE", "STOPS", "Room", "Untried", "deaf", "enter", "trouble"]

NOT_MADE = 70
"""Status of a worker for which no room could be made."""

_USER, _MOUNTS, _PROCESSES, _NETWORK = 0x10000000, 0x00020000, 0x20000000, 0x40000000
_IPC, _NAMES = 0x08000000, 0x04000000
_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_PROGRAMS = 1, 2, 4, 8
_REMOUNT, _BIND, _DEEP, _PRIVATE = 32, 4096, 16384, 1 << 18
_DETACH = 2
_DEATH_SIGNAL, _LOOKED_INTO, _DROP_BOUND, _NO_NEW_RIGHTS, _AMBIENT = 1, 4, 24, 38, 47
_CAPABILITIES = 0x20080522
_HERE, _RECURSIVE = -100, 0x8000
_PIVOT = {"x86_64": 155, "aarch64": 41}
_SET_MOUNT = 442
_COUNTED = 6, 14
"""Linux from which on a room has a largest number of processes of its own, not the machine's."""
_RESERVED = 300
"""Numbers that are given out only once."""

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/sys")
_STORES = ("/nix/store", "/gnu/store")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_CARDS = ("/dev/nvidia*", "/dev/dri", "/dev/kfd")

STOPS = (signal.SIGINT, signal.SIGTERM)
"""Signals that all processes of a service get when it is stopped. The node decides when its workers end."""

_KILLED = (*STOPS, signal.SIGHUP, signal.SIGKILL)

_TRIAL = 30.0
"""Seconds that finding out whether rooms can be made may take."""


class Room(BaseModel):
    """What there is in a room, beside the system.

    Args:
        folder: the worker's own, where it begins; it may write there.
        base: an empty folder on which the room is built.
        reads: files and folders that it may read.
        writes: folders that it may write to.
        hides: what is not there, even where it lies in a folder that is; of what lies in one another, the
            innermost counts.
        memory: GiB of the files that it may have in memory.
        processes: processes and threads that there may be in it, where the kernel counts them for each room.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    folder: str
    base: str
    reads: list[str] = Field(default_factory=list)
    writes: list[str] = Field(default_factory=list)
    hides: list[str] = Field(default_factory=list)
    memory: Annotated[float, Field(gt=0)] = 1.0
    processes: Annotated[int, Field(ge=1)] = 1024


class Untried(OSError):
    """Whether this machine makes rooms could not be found out just now."""


@contextmanager
def deaf() -> Iterator[None]:
    """What is started meanwhile does not hear :data:`STOPS`, until it says otherwise."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@functools.lru_cache(maxsize=1)
def trouble() -> str:
    """Why no room can be made on this machine; empty where one can. Tried until there is an answer.

    Raises:
        Untried: there is none: the trial took too long, or was ended from outside.
        OSError: it could not begin.
    """
    if sys.platform != "linux" or platform.machine() not in _PIVOT:
        return f"{platform.system()} on {platform.machine()} has no such rooms here"
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        base.mkdir()
        room = Room(folder=folder, base=str(base))
        command = [sys.executable, "-P", "-m", "atoll.node.room.sandbox", room.model_dump_json()]
        code, told = _trial(command)
    if -code in _KILLED:
        raise Untried(
            f"the trial of a sandbox was ended from outside ({signal.Signals(-code).name})"
        )
    said = told.decode("utf-8", "replace").strip().splitlines()
    return "" if code == 0 else (said[-1] if said else f"status {code}")


def _trial(command: list[str]) -> tuple[int, bytes]:
    """How a command ended, and what it said."""
    with deaf():
        process = subprocess.Popen(  # noqa: S603  # our own module
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    with process:
        try:
            _, told = process.communicate(timeout=_TRIAL)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise Untried(f"the trial of a sandbox took longer than {_TRIAL:g} s") from error
    return process.returncode, told


def enter(room: Room, inbox: int, outbox: int) -> None:
    """Go on inside ``room``; returns in the worker only. To be called before there are threads.

    Args:
        room: see there.
        inbox: pipe from the node; when its other end is closed, all of the room ends.
        outbox: pipe to the node; only the worker keeps it.
    """
    told, tell = os.pipe()
    try:
        node = os.pidfd_open(os.getppid())
        users = os.getuid(), os.getgid()
        _call("unshare", _USER | _MOUNTS | _PROCESSES | _NETWORK | _IPC | _NAMES)
        _be(*users)
        first = os.fork()
    except OSError as error:
        _not_made(error)
    if first:
        os.close(tell)
        os.close(outbox)
        _watch(first, inbox, told, node)
    os.close(told)
    os.close(node)
    try:
        _call("prctl", _DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        _build(room)
        _give_up_rights()
        _call("prctl", _DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        # Before there is a worker: if it could trace this one, it could have it forget to end with the node.
        _call("prctl", _LOOKED_INTO, 0, 0, 0, 0)
        worker = os.fork()
        if not worker:
            _call("prctl", _LOOKED_INTO, 1, 0, 0, 0)
    except OSError as error:
        _not_made(error)
    if worker:
        os.close(inbox)
        os.close(outbox)
        _stand_for(worker, tell)
    os.close(tell)
    os.setsid()  # signals that job code sends to its own group reach nobody outside
    if not syscalls.trouble():
        syscalls.forbid()


def _not_made(error: OSError) -> NoReturn:
    sys.stderr.write(f"no room of its own: {error}\n")
    sys.stderr.flush()
    os._exit(NOT_MADE)


# The system's calls ---------------------------------------------------------------------------------


def _call(name: str, *arguments: Any) -> int:
    """A function of the C library.

    Raises:
        OSError: it failed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    plain = [a.encode() if isinstance(a, str) else a for a in arguments]
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in plain]
    found = int(getattr(libc, name)(*wide))
    if found < 0:
        number = ctypes.get_errno()
        about = next((a for a in reversed(arguments) if isinstance(a, str) and "/" in a), "")
        raise OSError(number, f"{name}: {os.strerror(number)}", about or None)
    return found


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    _call("mount", source, target, kind, flags, options or None)


def _limited(path: str, *, flags: int) -> None:
    """Take rights from a mount and from all below it."""
    attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
    size = ctypes.sizeof(attributes)
    _call("syscall", _SET_MOUNT, _HERE, path, _RECURSIVE, ctypes.byref(attributes), size)


def _be(user: int, group: int) -> None:
    """Be the same user and group in the new namespace, and nobody else."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        Path(f"/proc/self/{name}").write_text(text)


# The room -------------------------------------------------------------------------------------------


def _build(room: Room) -> None:
    base = room.base
    _mount("none", "/", None, _DEEP | _PRIVATE)
    _mount("room", base, "tmpfs", _NO_SUID | _NO_DEVICES, "size=16m,mode=755")
    seen = {os.path.abspath(path) for path in (*_system(), *room.reads)}
    hidden = _hidden(room, seen)
    inside = _below(seen, hidden)
    loose = _below(seen, ["/tmp"]) - inside  # noqa: S108  # in the room
    _show_all(base, seen - inside - loose - hidden)
    _scratch(base, "/tmp", 1 / 16)  # noqa: S108  # before what may lie below it
    _show_all(base, loose - hidden)
    for path in sorted(hidden):
        _hide(base, path)
    _show_all(base, inside - hidden)
    for path in sorted(_below(hidden, inside)):
        _hide(base, path)
    for path in (*room.writes, room.folder):
        _show(base, path, writes=True)
    _devices(base, room.memory)
    _processes(base, room.processes)
    os.chdir(base)
    _call("syscall", _PIVOT[platform.machine()], ".", ".")
    _call("umount2", ".", _DETACH)
    os.chdir("/")
    _mount("none", "/", None, _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_DEVICES)
    os.chdir(room.folder)


def _system() -> list[str]:
    """Where programs, libraries and this Python lie."""
    program = Path(sys.executable)
    own = [sys.prefix, sys.base_prefix, sys.exec_prefix, str(program.resolve().parents[1])]
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    found = [*_SYSTEM, *_STORES, *own, *sys.path, *libraries]
    return [os.path.abspath(path) for path in found if path and os.path.exists(path)]


def _hidden(room: Room, seen: Iterable[str]) -> set[str]:
    """All places where what is to be hidden would be seen, through links too; what is read is none of it."""
    found = set[str]()
    for one in room.hides:
        lies = os.path.realpath(one)
        found |= {one, lies}
        for path in seen:
            real = os.path.realpath(path)
            if lies != real and Path(lies).is_relative_to(real):
                found.add(os.path.join(path, os.path.relpath(lies, real)))
    reads = [os.path.abspath(path) for path in room.reads]
    return found - {*reads, *map(os.path.realpath, reads)}


def _below(paths: Iterable[str], folders: Iterable[str]) -> set[str]:
    """Those that lie in one of the folders, and are none of them."""
    folders = list(folders)
    lies = ((p, f) for p in paths for f in folders if p != f and Path(p).is_relative_to(f))
    return {path for path, _ in lies}


def _show_all(base: str, paths: Iterable[str]) -> None:
    for path in _outermost(paths):
        _show(base, path)


def _outermost(paths: Iterable[str]) -> list[str]:
    """Paths that lie in no other one, each once, in order."""
    kept = list[str]()
    for path in sorted(set(paths), key=lambda p: (len(Path(p).parts), p)):
        if path != "/" and not any(Path(path).is_relative_to(other) for other in kept):
            kept.append(path)
    return kept


def _show(base: str, path: str, *, writes: bool = False) -> None:
    """Let a file or folder be seen at its own place."""
    target = base + path
    if os.path.islink(path) and not writes and os.path.dirname(path) == "/":
        os.symlink(os.readlink(path), target)  # such as /lib, where that is /usr/lib
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    elif os.path.exists(path):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.exists(target):
            Path(target).touch()
    else:
        return
    _mount(path, target, None, _BIND if writes else _BIND | _DEEP)
    _limited(target, flags=_NO_SUID | _NO_DEVICES | (0 if writes else _READ_ONLY))


def _hide(base: str, path: str) -> None:
    """Put something empty in a place that may be there."""
    target = base + path
    if not Path(os.path.realpath(target)).is_relative_to(os.path.realpath(base)):
        return  # a link, to what is another place in the room
    if os.path.isdir(target):
        _mount("none", target, "tmpfs", _NO_SUID | _NO_DEVICES, "size=1m,mode=755")
    elif os.path.exists(target):
        _mount("/dev/null", target, None, _BIND)


def _scratch(base: str, path: str, memory: float) -> None:
    """A folder of files in memory, so many GiB of them."""
    os.makedirs(base + path, exist_ok=True)
    size = f"size={max(1, int(memory * 1024))}m,mode=1777"
    _mount("scratch", base + path, "tmpfs", _NO_SUID | _NO_DEVICES, size)


def _devices(base: str, memory: float) -> None:
    os.makedirs(f"{base}/dev", exist_ok=True)
    cards = [path for pattern in _CARDS for path in glob.glob(pattern)]
    for path in (*(f"/dev/{name}" for name in _DEVICES), *cards):
        target = base + path
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            Path(target).touch()
        _mount(path, target, None, _BIND | _DEEP)
    for name, place in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{place}", f"{base}/dev/{name}")
    _scratch(base, "/dev/shm", memory)  # noqa: S108  # in the room


def _processes(base: str, most: int) -> None:
    """Show the room's processes; where parts of the machine's list are covered, that list itself.

    The kernel then shows no fresh one: they would be uncovered in it. In the old one a room sees that there
    are others, and can neither look into them nor signal them: they have no numbers here, and rights in another
    user namespace would be needed.
    """
    os.makedirs(f"{base}/proc", exist_ok=True)
    try:
        _mount("proc", f"{base}/proc", "proc", _NO_SUID | _NO_DEVICES | _NO_PROGRAMS)
    except PermissionError:
        _mount("/proc", f"{base}/proc", None, _BIND | _DEEP)
    with suppress(OSError):  # nobody makes a room in the room
        Path(f"{base}/proc/sys/user/max_user_namespaces").write_text("0")
    if _kernel() >= _COUNTED:
        with suppress(OSError):
            Path(f"{base}/proc/sys/kernel/pid_max").write_text(str(_RESERVED + most))
    _limited(f"{base}/proc", flags=_READ_ONLY | _NO_SUID | _NO_DEVICES)


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])


def _give_up_rights() -> None:
    """Whoever makes a room has all rights over it; from here on nobody has, nor can get any."""
    _call("prctl", _NO_NEW_RIGHTS, 1, 0, 0, 0)
    _call("prctl", _AMBIENT, 4, 0, 0, 0)
    for number in range(64):
        try:
            _call("prctl", _DROP_BOUND, number, 0, 0, 0)
        except OSError:  # the kernel knows no more of them
            break
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
    _call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


# Those who wait -------------------------------------------------------------------------------------


def _watch(first: int, inbox: int, told: int, node: int) -> NoReturn:
    """Outside: wait for the room's end, or the node's, and end as the worker did.

    Job code may open the other end of its own pipe, so that this never hangs up.
    """
    ending, events = os.pidfd_open(first), select.poll()
    events.register(inbox, 0)  # nothing but "hung up"
    for process in (ending, node):
        events.register(process, select.POLLIN)
    while ending not in dict(events.poll()):
        os.kill(first, signal.SIGKILL)
        for ended in (inbox, node):
            with suppress(KeyError):
                events.unregister(ended)
    status = os.waitpid(first, 0)[1]
    said = os.read(told, 8)
    _end_as(int.from_bytes(said, "little") if len(said) == 8 else status)


def _stand_for(worker: int, tell: int) -> NoReturn:
    """Inside: the first process. It takes in who has lost its parent, and ends with the worker."""
    while True:
        ended, status = os.wait()
        if ended == worker:
            os.write(tell, status.to_bytes(8, "little"))
            os._exit(0)


def _end_as(status: int) -> NoReturn:
    """End in the same way as another process."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        time.sleep(10)
    os._exit(os.waitstatus_to_exitcode(status))


def _try(room: str) -> None:
    """Make a room, and see whether this program can go on in it."""
    inbox, _ = os.pipe()  # nobody closes its other end
    enter(Room.model_validate_json(room), inbox, os.dup(1))
    import json.tool  # noqa: F401  # whatever was not loaded before

    if missing := [path for path in (sys.executable, __file__) if not os.path.exists(path)]:
        sys.exit(f"{missing[0]} cannot be seen in it")
    os._exit(0)


if __name__ == "__main__":
    _try(sys.argv[1])
