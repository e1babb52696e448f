"""The runs that have not ended, and what a site is asked for in any of them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from atoll.core.values import ClientId
from atoll.server.rounds.counter import site_of
from atoll.server.rounds.engine import Engine
from atoll.wire.messages import TaskBody

__all__ = ["Board", "Poll"]


@dataclass(frozen=True)
class Poll:
    """What a site is told.

    Args:
        tasks: open tasks that it does not have.
        gone: those of the ones it has that nobody waits for.
    """

    tasks: list[TaskBody]
    gone: list[str]


class Board:
    """The runs that have not ended. Any thread may ask.

    Attributes:
        engines: by run; changed under :attr:`lock`.
        lock: held while who takes part in what is changed.
    """

    def __init__(self) -> None:
        self.engines: dict[str, Engine] = {}
        self.lock = threading.RLock()

    def of(self, site: ClientId) -> list[Engine]:
        """The runs that ``site`` takes part in."""
        with self.lock:
            engines = list(self.engines.values())
        return [engine for engine in engines if site in engine.sites]

    def asking(self, site: ClientId, task: str) -> Engine | None:
        """The run that a task of ``site`` belongs to; None where it has none of that id."""
        engine = self.engines.get(task.partition(".")[0])
        ours = engine is not None and site in engine.sites and site_of(task) == site
        return engine if ours else None

    def told(self, site: ClientId, have: Collection[str]) -> Poll:
        """What ``site`` is asked for, and what is gone of what it has."""
        tasks = [task for engine in self.of(site) for task in engine.counter.tasks(site, have)]
        return Poll(tasks, [name for name in have if self.gone(name)])

    def gone(self, name: str) -> bool:
        """Whether nobody waits for that run, or for the answer to that task."""
        run, dot, _ = name.partition(".")
        engine = self.engines.get(run)
        # Sites are told of the end before the engine is put away, and look at once.
        return engine is None or engine.ended or (bool(dot) and engine.counter.settled(name))

    def certain(self, found: Poll) -> bool:
        """Whether a server that has taken over since would say the same of what is gone."""
        engines = [(name, self.engines.get(name.partition(".")[0])) for name in found.gone]
        return all(engine is not None and engine.counter.used(name) for name, engine in engines)

    @contextlib.contextmanager
    def unless_held(self, site: ClientId) -> Iterator[bool]:
        """Whether all locks could be had at once that a question of ``site`` takes; they are held inside."""
        held, free = list[threading.RLock](), True
        try:
            for lock in self._locks(site):
                if not (free := lock.acquire(blocking=False)):
                    break
                held.append(lock)
            yield free
        finally:
            for lock in held:
                lock.release()

    def _locks(self, site: ClientId) -> Iterator[threading.RLock]:
        """What a question of ``site`` takes; the runs are looked at once the first is held."""
        yield self.lock
        for engine in self.of(site):
            yield engine.counter.lock
