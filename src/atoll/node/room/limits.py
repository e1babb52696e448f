"""Limits that the worker process puts on itself before any job code runs; a child inherits them.

They keep a mistake in job code from taking the machine down. They are no sandbox.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

from atoll.node.settings import GIB, Limits

__all__ = ["THREADS", "allow", "confine", "crowd", "environment"]

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_PASSED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH")
"""What a Python program may need from the environment and what tells nothing of the site."""

_KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(GIB)}
"""GNU's allocator keeps what is freed for the next model: new pages cost more than their use."""


def environment(scratch: Path, limits: Limits, pass_on: tuple[str, ...]) -> dict[str, str]:
    """The environment of a worker: nothing but what is named here.

    Args:
        scratch: the folder it may write to; its home and its place for temporary files.
        limits: for the number of threads.
        pass_on: what the site lets through beside it.
    """
    seen = {name: os.environ[name] for name in (*_PASSED, *pass_on) if name in os.environ}
    return {
        **seen,
        **dict.fromkeys(THREADS, str(limits.threads)),
        **_KEEPING,
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def confine(limits: Limits) -> None:
    """Put the limits that hold for the life of the process on the calling one, for good."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, limits.files)
    # Address space says little: libraries reserve far more of it than they use. What is written counts.
    _lower(resource.RLIMIT_DATA, round(limits.memory * GIB))
    _lower(resource.RLIMIT_FSIZE, round(limits.file_size * GIB))
    with suppress(OSError):  # when the machine runs out, this process goes first, not the node
        Path("/proc/self/oom_score_adj").write_text("1000")


def crowd(processes: int) -> None:
    """Let the calling process and those it starts be so many at most, threads counted.

    Only in a room are the user's other processes not counted with them (Linux 5.14). A node that runs as root
    is not held to it: see :mod:`atoll.node.room.sandbox` and :mod:`atoll.node.room.usage`.
    """
    _lower(resource.RLIMIT_NPROC, processes)


def _lower(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    least = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (least, least))


def allow(seconds: int) -> None:
    """Let the calling process use so much processor time from now on; then it is ended."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    used = int(own.ru_utime + own.ru_stime) + 1
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = used + seconds
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
