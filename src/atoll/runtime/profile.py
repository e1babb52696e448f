"""Where a run's time went: a stopwatch that the loop holds when it is asked to, and its account.

Phases are exclusive: what an inner phase takes is not the outer's, so all phases and the rest add up to
the whole. An executor may say more of its last ``run`` in an optional attribute ``timings``, ``{name:
seconds}``: ``broadcast``, ``fold`` and ``wait`` (for the slowest worker) are seconds of the call that
were not local training; ``worker/0``, ``worker/1`` … how long each worker was at work.

Whatever an executor does not tell stays with ``training`` (as long as its outcomes say) or ``dispatch``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from atoll.core.contracts import Outcome

__all__ = ["PHASES", "Phase", "Profile", "Stopwatch", "timed"]

PHASES = {
    "job": "reading the job",
    "data": "data set-up",
    "model": "model set-up and checks",
    "start": "starting workers",
    "cohort": "planning, drawing the cohort",
    "broadcast": "broadcast",
    "training": "local training",
    "wait": "waiting for the slowest worker",
    "fold": "folding updates",
    "dispatch": "handing out tasks, collecting",
    "server": "the algorithm's server step",
    "evaluation": "evaluation",
    "record": "round record, model hash",
    "observers": "metrics.jsonl, progress",
    "checkpoint": "checkpoints",
    "stop": "ending workers",
    "finish": "results and report",
    "rest": "the rest",
}
"""Name -> words for people, in the order of a run."""


@dataclass(frozen=True)
class Phase:
    """The time of one phase.

    Args:
        name: a key of :data:`PHASES`.
        seconds: in all.
        first: in the first round that was watched, in which caches fill and code is compiled.
        later: mean over the rounds after it; 0 when there are none.
    """

    name: str
    seconds: float
    first: float
    later: float


@dataclass(frozen=True)
class Profile:
    """Where a run's time went.

    Args:
        total: seconds from the stopwatch's start.
        rounds: rounds watched; a resumed run counts its own.
        phases: in the order of a run; they add up to ``total``.
        tasks: tasks that were run.
        working: seconds of all tasks together, over all workers.
        longest: seconds of the longest task.
        workers: share of the executor's time in which each worker was at work; empty if it does not say.
        path: the way local training took, which a stopwatch cannot know: whoever holds the run's parts
            fills it in. Empty if nobody says.
    """

    total: float
    rounds: int
    phases: tuple[Phase, ...]
    tasks: int
    working: float
    longest: float
    workers: tuple[float, ...]
    path: str = ""

    def to_plain(self) -> dict[str, Any]:
        """JSON-able form, as ``profile.json`` holds it."""
        return {
            "total": self.total,
            "rounds": self.rounds,
            "phases": [
                {
                    "name": p.name,
                    "words": PHASES[p.name],
                    "seconds": p.seconds,
                    "share": p.seconds / self.total if self.total else 0.0,
                    "first": p.first,
                    "later": p.later,
                }
                for p in self.phases
            ],
            "tasks": self.tasks,
            "working": self.working,
            "longest": self.longest,
            "workers": list(self.workers),
            "path": self.path,
        }


class Stopwatch:
    """Adds up exclusive seconds by phase; runs from the moment it is made.

    Args:
        clock: seconds that only grow.

    >>> ticks = iter(range(100))
    >>> watch = Stopwatch(lambda: float(next(ticks)))  # started at 0
    >>> with watch.phase("finish"):                    # 1
    ...     with watch.phase("evaluation"):            # 2
    ...         pass                                   # 3
    >>> {p.name: p.seconds for p in watch.profile().phases}  # finish ended at 4, read at 5
    {'evaluation': 1.0, 'finish': 2.0, 'rest': 2.0}
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began = self._turned = clock()
        self._open = ["rest"]
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._at_first: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._rounds = self._tasks = 0
        self._working = self._longest = self._ran = 0.0
        self._busy: dict[str, float] = {}

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time goes to ``name``, a key of :data:`PHASES`, as long as the context lasts."""
        return _Running(self, name)

    def round(self) -> AbstractContextManager[None]:
        """One round, from before its cohort is drawn to after its checkpoint."""
        return _Round(self)

    def seconds(self, name: str) -> float:
        """Seconds of ``name`` so far."""
        return self._seconds[name]

    def executed(self, executor: object, outcomes: Sequence[Outcome], before: float) -> None:
        """Split the executor's last call, which was charged to ``training`` since ``before``.

        Args:
            executor: may have ``timings``.
            outcomes: of its tasks.
            before: :meth:`seconds` of ``training`` before the call.
        """
        seconds = self._seconds
        left = called = seconds["training"] - before
        timings: Mapping[str, float] = getattr(executor, "timings", {})
        busy = {name: t for name, t in timings.items() if name.startswith("worker/")}
        told = dict(timings)
        if busy and "wait" not in told:
            told["wait"] = max(busy.values()) - sum(busy.values()) / len(busy)
        for name in ("broadcast", "fold", "wait"):
            part = min(max(told.get(name, 0.0), 0.0), left)
            seconds[name] += part
            left -= part
        working = sum(o.seconds for o in outcomes)
        training = min(left, working / max(len(busy), 1))
        seconds["training"] = before + training
        seconds["dispatch"] += left - training
        self._ran += called
        for name, t in busy.items():
            self._busy[name] = self._busy.get(name, 0.0) + t
        self._tasks += len(outcomes)
        self._working += working
        self._longest = max([self._longest, *(o.seconds for o in outcomes)])

    def profile(self) -> Profile:
        """The account up to now."""
        self._turn()
        return Profile(
            total=self._turned - self._began,
            rounds=self._rounds,
            phases=tuple(self._phase(name) for name, s in self._seconds.items() if s > 0),
            tasks=self._tasks,
            working=self._working,
            longest=self._longest,
            workers=tuple(
                self._busy[name] / self._ran
                for name in sorted(self._busy, key=lambda n: int(n.partition("/")[2]))
            ),
        )

    def _phase(self, name: str) -> Phase:
        first = self._first.get(name, 0.0)
        rounds = self._last.get(name, 0.0) - self._at_first.get(name, 0.0)
        later = (rounds - first) / (self._rounds - 1) if self._rounds > 1 else 0.0
        return Phase(name, self._seconds[name], first, later)

    def _turn(self) -> None:
        """Charge the time since the last turn to the innermost open phase."""
        now = self._clock()
        self._seconds[self._open[-1]] += now - self._turned
        self._turned = now


class _Running:
    """A phase while it is open; a class, because a generator would cost three times as much."""

    __slots__ = ("_name", "_watch")

    def __init__(self, watch: Stopwatch, name: str) -> None:
        self._watch, self._name = watch, name

    def __enter__(self) -> None:
        self._watch._turn()
        self._watch._open.append(self._name)

    def __exit__(self, *error: object) -> None:
        self._watch._turn()
        self._watch._open.pop()


class _Round:
    """A round while it is open."""

    __slots__ = ("_watch",)

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    def __enter__(self) -> None:
        watch = self._watch
        watch._turn()
        if not watch._rounds:
            watch._at_first = dict(watch._seconds)

    def __exit__(self, *error: object) -> None:
        watch = self._watch
        watch._turn()
        watch._rounds += 1
        watch._last = dict(watch._seconds)
        if watch._rounds == 1:
            watch._first = {n: s - watch._at_first[n] for n, s in watch._seconds.items()}


_OFF: AbstractContextManager[None] = nullcontext()


def timed(watch: Stopwatch | None, name: str) -> AbstractContextManager[None]:
    """``watch.phase(name)``, or nothing at all without a watch."""
    return _OFF if watch is None else watch.phase(name)
