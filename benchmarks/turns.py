"""Contestants that take turns, each run a process of its own: how one is started, and what is said of many.

A contestant is a module that prints ``RESULT`` and a JSON object. What it has started ends with it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import Background, describe
from benchmarks.peers.environments import ENVIRONMENTS, ensure
from benchmarks.peers.watch import TAG, end
from benchmarks.run import ROOT

__all__ = ["Result", "arguments", "launch", "note", "peers", "remark", "spread"]

Result = dict[str, Any]

_TITLES = {"flower": "Flower", "nvflare": "NVFlare"}
_SINGLE = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}


def launch(module: str, *words: object, interpreter: str = sys.executable, patience: int) -> Result:
    """One run of a module, with one linear-algebra thread in each process.

    Args:
        module: its name below ``benchmarks``.
        words: its arguments.
        interpreter: a Python that has what it needs.
        patience: seconds after which it counts as failed.

    Returns:
        what it printed, and ``busy``, seconds of processors of all its processes that have ended; where it
        gave no result ``failed`` alone, which says why.
    """
    tag = f"{os.getpid()}-{time.monotonic_ns()}"
    before = os.times()
    with tempfile.TemporaryFile("w+", errors="replace") as log:  # a pipe ends with the last of them
        try:
            subprocess.run(
                [interpreter, "-m", f"benchmarks.{module}", *map(str, words)],
                cwd=ROOT,
                env={**os.environ, **_SINGLE, TAG: tag, "PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=patience,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"no result in {patience} s"}
        finally:
            end(tag)
        log.seek(0)
        text = log.read()
    after = os.times()
    told = [x for x in text.splitlines() if x.startswith("RESULT ")]
    if not told:
        print(text[-4000:], file=sys.stderr)
        said = [x.strip() for x in text.splitlines() if x.strip()]
        return {"failed": (said or ["no output"])[-1][:200].replace("|", "/")}
    busy = sum(after[2:4]) - sum(before[2:4])  # of ended children and theirs
    return {**json.loads(told[-1].removeprefix("RESULT ")), "busy": busy}


def note(raw: Path, result: Result) -> None:
    """Keep a raw result, with the time, as a line of a file."""
    raw.parent.mkdir(exist_ok=True)
    with raw.open("a") as file:
        file.write(json.dumps({"at": time.time(), **result}) + "\n")


def spread(ratios: Iterable[float]) -> str:
    """Ratios within turns, for a table: the median (least to most)."""
    found = list(ratios) or [float("nan")]
    return f"{median(found):.3g} ({min(found):.3g} to {max(found):.3g})"


def remark(others: Background, *about: str) -> str:
    """The line below a table: what was measured, when, where, and how busy the machine was meanwhile."""
    share = others.share()
    told = [*about, f"Other processes used {share:.0%} of the machine meanwhile"]
    trust = ": trust the ratios only." if share > 0.1 else "."
    return f"{datetime.now(UTC):%Y-%m-%d}, {describe()}. {' '.join(told)}{trust}"


def arguments(description: str | None, repeats: int, note: str = "") -> argparse.ArgumentParser:
    """What all of them are asked; ``repeats`` is the number of turns when left out."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=repeats, help=f"turns{note}")
    parser.add_argument("--no-page", action="store_true", help="only print")
    return parser


def peers(*names: str) -> tuple[dict[str, str], list[str]]:
    """Interpreters of other systems, without those that do not install here, and what is to be said of them."""
    found, missing = ensure(names)
    said = [f"{_TITLES[name]} {ENVIRONMENTS[name].version}." for name in found]
    said += [f"{_TITLES[name]} is left out: {reason}." for name, reason in missing.items()]
    return {name: str(python) for name, python in found.items()}, said
