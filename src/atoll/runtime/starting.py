"""How worker processes begin: copied from this one where that is safe, started afresh elsewhere.

A copy (``fork``) shares every page with its parent until one of them writes to it, so it has the data
and the libraries at once and for nothing. It holds only the thread that made it: a lock that another
thread held at that moment stays shut for ever. So a process is copied only when it has no other
threads; two kinds are known to do no harm: OpenBLAS ends its threads before a fork, and jemalloc's
takes its locks around one. A CUDA driver that has been used does not work in a copy either.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_all_start_methods
from pathlib import Path

__all__ = [
    "METHODS",
    "WORKER",
    "copyable",
    "frozen",
    "held_back",
    "method_for",
    "one_thread",
    "open_files",
    "settle",
]

METHODS = ("auto", "fork", "forkserver", "spawn")
"""How processes start; ``auto`` takes the first of the others that is safe here."""
WORKER = "atoll-worker"
"""What the names of worker processes begin with."""

_HARMLESS = frozenset(("jemalloc_bg_thd",))
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def method_for(asked: str) -> str:
    """The start method that ``auto`` stands for at this moment; any other is taken as it is."""
    if asked != "auto":
        return asked
    if copyable():
        return "fork"
    return "forkserver" if "forkserver" in get_all_start_methods() else "spawn"


def copyable() -> bool:
    """Whether a copy of this process is sure to work: no thread but this one could hold a lock."""
    if not sys.platform.startswith("linux") or threading.active_count() > 1:
        return False
    with suppress(OSError):
        if "/libcuda.so" in Path("/proc/self/maps").read_text(errors="replace"):
            return False
    if len(_others()) > 0:
        _probe()
    return all(name in _HARMLESS for name in _others())


def _others() -> list[str]:
    """Names of the native threads beside the calling one; a single unknown where none can be read."""
    own, found = str(threading.get_native_id()), list[str]()
    try:
        for task in Path("/proc/self/task").iterdir():
            if task.name != own:
                found.append(task.joinpath("comm").read_text().strip())
    except OSError:
        return ["unknown"]
    return found


def _probe() -> None:
    """Fork once, so that libraries which end their threads before a fork have done it."""
    with quiet_fork(), suppress(OSError):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)


@contextmanager
def quiet_fork() -> Iterator[None]:
    """Python 3.12 warns of every fork beside other threads; :func:`copyable` has looked at them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*use of fork\(\)", category=DeprecationWarning)
        yield


@contextmanager
def frozen() -> Iterator[None]:
    """Keep the collector off all objects there are, so that copies go on sharing their pages."""
    mine = not gc.get_freeze_count()
    if mine:
        gc.freeze()
    try:
        yield
    finally:
        if mine:
            gc.unfreeze()


@contextmanager
def held_back() -> Iterator[None]:
    """Keep SIGINT waiting meanwhile, in processes that begin meanwhile until :func:`settle`.

    Ctrl-C reaches all processes of a terminal. One that has just begun would end in the middle of its
    imports, with a traceback; so it waits until it can ignore it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Children inherit an environment that asks for one linear-algebra thread."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def open_files() -> list[int]:
    """Descriptors of this process that a copy would hold open too, standard streams left out."""
    with suppress(OSError):
        return [n for n in map(int, os.listdir("/proc/self/fd")) if n > 2]
    return []


def settle(inherited: list[int]) -> None:
    """Make the calling process a worker.

    Args:
        inherited: descriptors that a copy has from its parent and does not need: pipes of other workers,
            whose ends would go unnoticed, and locks on files. They then lead nowhere.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group; the parent ends the round
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))  # see held_back
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    _give_way()
    if inherited:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in inherited:
            with suppress(OSError):  # the listing's own descriptor is gone
                os.fstat(descriptor)
                os.dup2(nowhere, descriptor, inheritable=False)
        os.close(nowhere)
    torch = sys.modules.get("torch")
    if torch is not None:  # a copy has torch with its parent's number of threads
        torch.set_num_threads(1)


def _give_way() -> None:
    """Let the parent keep its processor while it tells other workers to begin.

    A process that is woken takes the processor from the one that woke it, here and there for some
    milliseconds; one that is known to compute (``SCHED_BATCH``) waits for a free one, and has its share.
    """
    with suppress(AttributeError, OSError):  # another system, or not allowed
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
