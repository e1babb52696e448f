"""The process executor: workers that map the data once and fold their clients' updates themselves.

Every worker gets the round's list, longest tasks first, and takes the next item whenever it is free, so
workers end together. Each answers once, with one fold of all it did; merging folds is exact, so neither
the number of workers nor the order of arrival can be seen in the result.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from multiprocessing import current_process, get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

from atoll.aggregation.exact import Fold
from atoll.core.contracts import Outcome, Task
from atoll.core.errors import AtollError, ClientError, JobError
from atoll.core.metrics import Metrics
from atoll.core.values import Aggregate, Broadcast, ClientId, Memory
from atoll.data.population import known_rows
from atoll.runtime.client import Parts, added_up
from atoll.runtime.groups import groups
from atoll.runtime.packed import pack
from atoll.runtime.shared import Board, SharedArray, Tray, Turns
from atoll.runtime.shelf import Place, Shelf
from atoll.runtime.starting import (
    WORKER,
    frozen,
    held_back,
    method_for,
    one_thread,
    open_files,
    quiet_fork,
)
from atoll.runtime.worker import Desk, Given, Item, work

__all__ = ["ProcessExecutor"]

_SLOTS = 4
"""Model versions that workers can see at once; more are worked through in turn."""

_GRACE = 5.0
"""Seconds that workers get to end by themselves."""


_CROWD = 64
"""Workers that any machine is trusted with; more than these, or eight for each core, are not started."""


class ProcessExecutor:
    """Runs tasks in worker processes on this machine.

    Args:
        parts: what is fixed for the run; must be picklable (functions at module level) unless
            processes are copied.
        like: a broadcast of the algorithm's initial state: names and shapes of all to come.
        workers: number of processes; 0 means one per core. More than clients,
            or than a machine of this size can bear, are not started.
        method: how processes start: ``fork``, ``forkserver``, ``spawn``, or ``auto`` for the first that
            is safe, see :mod:`atoll.runtime.starting`.

    Attributes:
        timings: seconds of the last :meth:`run`: ``broadcast`` (laying out models and lists),
            ``worker/0`` … (at work), ``train`` (all tasks together), ``wait`` (the longest worker beyond
            the mean) and ``fold`` (merging what came back).

    Raises:
        JobError: ``parts`` cannot be sent to a process.
    """

    def __init__(
        self, parts: Parts, like: Broadcast, *, workers: int = 0, method: str = "auto"
    ) -> None:
        self._parts = parts
        self._workers: list[tuple[Any, Connection]] = []
        self._held = ExitStack()
        self.timings: Mapping[str, float] = {}
        count = _count(parts, workers)
        if getattr(current_process(), "_inheriting", False):  # a copy could be made, and go on so
            raise JobError(
                "a worker process imports this script, which would start workers again",
                remedy="keep the script's calls below `if __name__ == '__main__':`",
            )
        if current_process().daemon:
            raise JobError(
                "this is a process of multiprocessing.Pool or another daemon, which may start no others",
                remedy="run with executor = 'serial' in it, or take concurrent.futures.ProcessPoolExecutor",
            )
        chosen = method_for(method)
        context: Any = get_context(chosen)
        self._board = Board(context, like, _SLOTS)
        self._trays = [Tray(context, like) for _ in range(count)]
        self._turns = Turns(context, count)
        self._shelf = Shelf()
        try:
            if chosen == "fork":
                self._held.enter_context(frozen())
            else:
                lay = partial(SharedArray.laid, context)
                parts = replace(
                    parts, clients=pack(parts.clients, lay), held_out=pack(parts.held_out, lay)
                )
            if chosen == "forkserver":
                needed = type(parts.trainer).__module__, work.__module__
                context.set_forkserver_preload([*needed, "atoll.runtime.preloaded"])
            with one_thread(), quiet_fork():
                for number in range(count):
                    with held_back():  # a worker hears of Ctrl-C when it can ignore it
                        self._start(context, parts, number)
            self._meet()
        except BaseException as error:
            self.close(grace=0.0)
            # PicklingError by name: nothing here imports pickle.
            sent = isinstance(error, (AttributeError, TypeError, ImportError))
            if sent or type(error).__name__ == "PicklingError":
                raise JobError(
                    f"this job cannot be sent to worker processes: {error}",
                    remedy="define models and functions at the top level of a module, or run with "
                    "executor = 'serial'",
                ) from error
            raise

    def _start(self, context: Any, parts: Parts, number: int) -> None:
        ours, theirs = context.Pipe()
        desk = Desk(self._board, self._trays[number], self._turns, self._shelf, number)
        needless = list[int]()
        if context.get_start_method() == "fork":
            keep = {theirs.fileno(), *self._shelf.descriptors}
            needless = [n for n in open_files() if n not in keep]
        name, given = f"{WORKER}-{number}", (theirs, parts, desk, needless)
        process = context.Process(target=work, name=name, args=given, daemon=True)
        process.start()
        theirs.close()
        self._workers.append((process, ours))

    def _meet(self) -> None:
        """Wait until every worker has read the job; one that cannot says why on its stderr."""
        for process, connection in self._workers:
            try:
                connection.recv()
            except (EOFError, OSError) as error:
                process.join(timeout=_GRACE)
                code = process.exitcode
                raise JobError(
                    f"a worker process ended with exit code {code} before it could "
                    "start; its own message is above",
                    remedy="keep a script's calls below `if __name__ == '__main__':`, define models "
                    "and functions in a module that can be imported, or run with "
                    "executor = 'serial'",
                ) from error

    def run(
        self,
        tasks: Sequence[Task],
        broadcasts: Mapping[int, Broadcast],
        memories: Mapping[ClientId, Memory],
    ) -> tuple[Aggregate, Sequence[Outcome], Mapping[ClientId, Memory]]:
        """See :class:`~atoll.core.contracts.Executor`."""
        outcomes: dict[ClientId, Outcome] = {}
        changed: dict[ClientId, Memory] = {}
        folds: list[Fold] = []
        spent = _Spent(len(self._workers))
        versions = sorted({task.version for task in tasks})
        for start in range(0, len(versions), len(self._board)):
            slots = {v: i for i, v in enumerate(versions[start : start + len(self._board)])}
            loose: dict[int, Broadcast] = {}  # a statistic's questions may change their shape
            for version, slot in slots.items():
                if self._board.fits(broadcasts[version]):
                    self._board.pin(slot, broadcasts[version])
                else:
                    loose[slot] = broadcasts[version]
            chosen = [t for t in tasks if t.version in slots]
            rooms = self._shelf.reserve(len(chosen))
            places = {t.client: room for t, room in zip(chosen, rooms, strict=False)}
            items = self._items(chosen, slots, memories, places)
            last = start + len(slots) == len(versions)
            payload = len(tasks), items, last, loose
            for number, (done, folded) in self._deal("tasks", items, payload, spent):
                for outcome, kept in done:
                    outcomes[outcome.client] = outcome
                    if kept is not None:
                        changed[outcome.client] = self._kept(kept, places.get(outcome.client))
                if folded is not None:
                    folds.append(self._trays[number].lift(*folded))
        spent.turn("work")
        aggregate = added_up(self._parts, folds)  # where it lies: nobody else needs it any more
        spent.turn("fold")
        self.timings = spent.told(outcomes.values())
        return aggregate, [outcomes[t.client] for t in tasks], changed

    def _items(
        self,
        tasks: Sequence[Task],
        slots: Mapping[int, int],
        memories: Mapping[ClientId, Memory],
        places: Mapping[ClientId, Place],
    ) -> list[Item]:
        return [
            (
                group,
                slots[group[0].version],
                {t.client: self._given(memories[t.client]) for t in group if t.client in memories},
                {t.client: places[t.client].room for t in group if t.client in places},
            )
            for group in groups(self._parts, tasks)
        ]

    def _given(self, memory: Memory) -> Given:
        return self._shelf.places(memory) or memory

    def _kept(self, kept: Given, place: Place | None) -> Memory:
        if isinstance(kept, tuple):
            return {} if place is None else place.memory(kept)
        return self._shelf.adopt(kept)

    def evaluate(
        self,
        parameters: Broadcast,
        clients: Sequence[ClientId],
        memories: Mapping[ClientId, Memory],
    ) -> Mapping[ClientId, Metrics]:
        """See :class:`~atoll.core.contracts.Executor`."""
        self._board.pin(0, parameters)
        rows = sorted(clients, key=lambda c: known_rows(self._parts.held_out, c) or 0, reverse=True)
        items = [(c, self._given(memories.get(c, {}))) for c in rows]
        found = dict(pair for _, pairs in self._deal("evaluate", items, (items,)) for pair in pairs)
        for client in clients:  # every answer is in: the first error is the serial executor's
            if isinstance(found[client], AtollError):
                raise found[client]
        return {client: found[client] for client in clients}

    def _deal(
        self, verb: str, items: Sequence[Any], payload: tuple[Any, ...], spent: _Spent | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Lay out ``items``, tell every worker, and yield (its number, its answer) as they come."""
        self._turns.deal(len(items))
        message = ForkingPickler.dumps((verb, payload))  # once for all
        for number, (_, connection) in enumerate(self._workers):
            try:
                connection.send_bytes(message)
            except OSError as error:
                raise self._lost(number, items) from error
        if spent is not None:
            spent.turn("broadcast")
        busy = {connection: number for number, (_, connection) in enumerate(self._workers)}
        while busy:
            for ready in wait(list(busy)):
                connection = next(c for c in busy if c is ready)
                number = busy.pop(connection)
                try:
                    seconds, answer = connection.recv()
                except (EOFError, OSError) as error:
                    raise self._lost(number, items) from error
                if spent is not None:
                    spent.busy[number] += seconds
                yield number, answer

    def _lost(self, number: int, items: Sequence[Any]) -> ClientError:
        self._turns.stop()
        process, _ = self._workers[number]
        process.join(timeout=_GRACE)
        at = self._turns.at(number)
        doing = f"while it ran: {_name(items[at])}" if at >= 0 else "while it waited for work"
        return ClientError(
            f"a worker process ended with exit code {process.exitcode} {doing}",
            remedy="if it was killed for memory, use fewer workers; continue with --resume",
        )

    def close(self, grace: float | None = None) -> None:
        """End the workers, by force what is still at work after a while; safe to call twice.

        Args:
            grace: that while in seconds; None for the usual one.
        """
        self._turns.stop()
        for _, connection in self._workers:
            connection.close()  # a worker that reads or writes now sees the end of its pipe
        until = time.monotonic() + (_GRACE if grace is None else grace)
        for process, _ in self._workers:
            process.join(timeout=max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()  # SIGTERM is ignored, see starting.settle
                process.join()
            process.close()
        self._workers = []
        self._shelf.close()
        self._held.close()


class _Spent:
    """Where the time of one call goes."""

    def __init__(self, workers: int) -> None:
        self.busy = [0.0] * workers
        self._seconds = {"broadcast": 0.0, "work": 0.0, "fold": 0.0}
        self._last = time.perf_counter()

    def turn(self, name: str) -> None:
        """Charge the time since the last turn to ``name``."""
        now = time.perf_counter()
        self._seconds[name] += now - self._last
        self._last = now

    def told(self, outcomes: Iterable[Outcome]) -> dict[str, float]:
        """What :attr:`ProcessExecutor.timings` tells."""
        mean = sum(self.busy) / len(self.busy)
        return {
            "broadcast": self._seconds["broadcast"],
            "train": sum(o.seconds for o in outcomes),
            "wait": max(self.busy) - mean,
            "fold": self._seconds["fold"],
            **{f"worker/{i}": seconds for i, seconds in enumerate(self.busy)},
        }


def _name(item: Any) -> str:
    first = item[0]
    if isinstance(first, str):
        return first
    names = sorted(task.client for task in first)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _count(parts: Parts, workers: int) -> int:
    """How many workers are of use here; a slip such as 5000 must not take the machine down."""
    cores = os.cpu_count() or 1
    return min(workers or cores, max(len(parts.clients), 1), max(_CROWD, 8 * cores))
