"""What a caller of ``simulate`` asked for, checked before anything is read or written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from atoll.core.errors import JobError
from atoll.core.ranges import inside
from atoll.job.build import Job
from atoll.job.start import Initial

__all__ = ["RoundObserver", "chosen", "folder_agreed", "told_of_rounds"]

RoundObserver = Callable[[Mapping[str, Any]], None]
"""Is told each round's record."""


def told_of_rounds(observers: Any) -> tuple[RoundObserver, ...]:
    """Who is told of rounds.

    Raises:
        JobError: it is a single function, or something among them is none.
    """
    remedy = "give a list of functions of a round's record, such as observers=[print]"
    if not isinstance(observers, Iterable):
        raise JobError(f"observers is {observers!r:.80}, and no list of functions", remedy=remedy)
    found = tuple(observers)
    for one in found:
        if not callable(one):
            raise JobError(f"{one!r:.80} among the observers is no function", remedy=remedy)
    return found


def folder_agreed(out: Any, resume: bool, overwrite: bool) -> Path | None:
    """The folder that a run goes to; None for none.

    Raises:
        JobError: it is no path, or an earlier run is to be continued and replaced.
    """
    if resume and overwrite:
        raise JobError("resume and overwrite exclude each other", remedy="leave one of the two out")
    if out is not None and not isinstance(out, str | Path):
        raise JobError(f"out is {out!r:.80}, and no path", remedy="name a folder: out='runs/first'")
    return None if out is None else Path(out)


def chosen(job: Any, executor: Any, workers: Any, seed: int | None, initial: Initial | None) -> Job:
    """The job with the choices of the call.

    Raises:
        JobError: it is no job, or a choice is impossible.
    """
    if not isinstance(job, Job):
        remedy = "atoll.load_job(path) reads a job file, atoll.Job(trainer=…) makes one in Python"
        raise JobError(f"{job!r:.80} is no job", remedy=remedy)
    if workers is not None and not inside(workers, "whole [0, inf)"):
        raise JobError(f"{workers!r:.80} workers", remedy="give a whole number; 0 is one per core")
    if not (executor is None or isinstance(executor, str) or callable(executor)):
        remedy = "give a name, such as 'processes', or a function of the run's parts"
        raise JobError(f"{executor!r:.80} is no executor", remedy=remedy)
    if isinstance(executor, str):
        job = replace(job, executor=(executor, *job.executor[1:]))
    job = job if initial is None else job.begun(initial)
    return job if seed is None else _seeded(job, seed)


def _seeded(job: Job, seed: int) -> Job:
    changed = {**job.definition, "seed": seed} if job.definition else {}
    return replace(job, seed=seed, definition=changed)
