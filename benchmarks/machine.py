"""What the machine is, what a tree of processes holds in memory, and who else is at work (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Background", "busy", "compiled", "describe", "memory", "tree"]

_TICKS = os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER = 36
"""Of ``prctl(2)``: whoever loses its parent below this process becomes its child."""


def compiled() -> None:
    """Compile Atoll and what measures it, as pip does with a package.

    Where Python is told to keep nothing (``PYTHONDONTWRITEBYTECODE``) every run would do it again.
    """
    import compileall

    root = Path(__file__).parents[1]
    for folder in ("src", "benchmarks"):
        compileall.compile_dir(root / folder, quiet=2)


def describe() -> str:
    """Processor, cores and versions in one line."""
    import numpy
    import torch

    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    return (
        f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"NumPy {numpy.__version__}, torch {torch.__version__}"
    )


def tree(root: int) -> list[int]:
    """``root`` and all its descendants."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def memory(root: int) -> float:
    """MB (2^20 bytes) that a tree of processes holds; NaN where /proc cannot tell.

    Each process's proportional share (PSS) of private and file pages, and every block of shared memory
    once and whole: the PSS of such a block grows as workers touch it, though it was filled at the start.
    """
    total, blocks = 0.0, dict[tuple[str, str], int]()
    for pid in tree(root):
        with contextlib.suppress(OSError):
            sizes = dict.fromkeys(("Pss:", "Pss_Shmem:"), 0)
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
                words = line.split()
                if words[0] in sizes:
                    sizes[words[0]] = int(words[1])
            total += (sizes["Pss:"] - sizes["Pss_Shmem:"]) / 1024
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                words = line.split()
                if "s" in words[1] and words[4] != "0":
                    start, end = (int(x, 16) for x in words[0].split("-"))
                    reach = int(words[2], 16) + end - start
                    key = words[3], words[4]
                    blocks[key] = max(blocks.get(key, 0), reach)
    return total + sum(blocks.values()) / 2**20 if total else float("nan")


def busy(root: int) -> float:
    """Processor seconds that a tree of processes has used so far."""
    ticks = 0
    for pid in tree(root):
        with contextlib.suppress(OSError, IndexError, ValueError):
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(words[11]) + int(words[12])
    return ticks / _TICKS


def _busy() -> float:
    """Seconds all cores together have worked since boot."""
    with contextlib.suppress(OSError):
        words = Path("/proc/stat").read_text().splitlines()[0].split()
        user, nice, system, _, _, irq, soft, *_ = map(int, words[1:])
        return (user + nice + system + irq + soft) / _TICKS
    return float("nan")


def _own() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


@dataclass
class Background:
    """Share of the machine that others used since this was made."""

    began: float = field(default_factory=time.perf_counter)
    busy: float = field(default_factory=_busy)
    own: float = field(default_factory=_own)

    def __post_init__(self) -> None:
        """From now on count for own what the processes of another system leave behind when they end."""
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def share(self) -> float:
        """In [0, 1]; counts all that neither this process nor its ended children did.

        Ask when everything that was started has ended and been waited for: what is left is waited for here.
        """
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        cores = os.cpu_count() or 1
        total = (time.perf_counter() - self.began) * cores
        return max(0.0, (_busy() - self.busy - (_own() - self.own)) / total)
