"""The process executor: workers that map the data once and fold their clients' updates themselves.

Tasks go out longest first, in chunks that shrink as the round runs dry, so workers end together; a
round returns one fold per worker, and merging folds is exact, so neither the number of workers nor
the order of arrival can be seen in the result.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from threadpoolctl import threadpool_limits

from atoll.aggregation.exact import Fold
from atoll.core.contracts import Outcome, Task
from atoll.core.errors import AtollError, ClientError, JobError
from atoll.core.metrics import Metrics
from atoll.core.values import Aggregate, Broadcast, ClientId, Memory
from atoll.runtime.client import Done, Parts, evaluate_client
from atoll.runtime.groups import fold_group, groups
from atoll.runtime.shared import Board, Tray, share_clients

__all__ = ["ProcessExecutor"]

_SLOTS = 4
"""Model versions that workers can see at once; more are worked through in turn."""

_GRACE = 5.0
"""Seconds that workers get to end by themselves."""

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Item = tuple[tuple[Task, ...], int, Mapping[ClientId, Memory]]
"""A group of tasks that are run in one go, the slot of its version, and its clients' memories."""


class ProcessExecutor:
    """Runs tasks in worker processes on this machine.

    Args:
        parts: what is fixed for the run; must be picklable (functions at module level).
        like: a broadcast of the algorithm's initial state: names and shapes of all to come.
        workers: number of processes; 0 means one per core.
        method: how processes start: ``forkserver`` or ``spawn``.

    Raises:
        JobError: ``parts`` cannot be sent to a process.
    """

    def __init__(
        self, parts: Parts, like: Broadcast, *, workers: int = 0, method: str = "forkserver"
    ) -> None:
        self._parts = parts
        self._workers: list[tuple[Any, Connection]] = []
        count = workers or os.cpu_count() or 1
        context: Any = get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload([type(parts.trainer).__module__, __name__])
        self._board = Board(context, like, _SLOTS)
        self._trays = [Tray(context, like) for _ in range(count)]
        shared = replace(
            parts,
            clients=share_clients(context, parts.clients),
            held_out=share_clients(context, parts.held_out),
        )
        try:
            with _one_thread():
                for tray in self._trays:
                    ours, theirs = context.Pipe()
                    process = context.Process(
                        target=_work, args=(theirs, shared, self._board, tray), daemon=True
                    )
                    process.start()
                    theirs.close()
                    self._workers.append((process, ours))
        except Exception as error:
            self.close()
            # PicklingError by name: nothing here imports pickle.
            sent = isinstance(error, (AttributeError, TypeError, ImportError))
            if sent or type(error).__name__ == "PicklingError":
                raise JobError(
                    f"this job cannot be sent to worker processes: {error}",
                    remedy="define models and functions at the top level of a module, or run with "
                    "executor = 'serial'",
                ) from error
            raise
        self._meet()

    def _meet(self) -> None:
        """Wait until every worker has read the job; one that cannot says why on its stderr."""
        for process, connection in self._workers:
            try:
                connection.recv()
            except (EOFError, OSError) as error:
                process.join(timeout=_GRACE)
                code = process.exitcode
                self.close()
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
        total = Fold()
        outcomes: dict[ClientId, Outcome] = {}
        changed: dict[ClientId, Memory] = {}
        versions = sorted({task.version for task in tasks})
        for start in range(0, len(versions), len(self._board)):
            slots = {v: i for i, v in enumerate(versions[start : start + len(self._board)])}
            for version, slot in slots.items():
                self._board.pin(slot, broadcasts[version])
            items: list[Item] = [
                (
                    group,
                    slots[group[0].version],
                    {t.client: memories[t.client] for t in group if t.client in memories},
                )
                for group in groups(self._parts, [t for t in tasks if t.version in slots])
            ]
            for done, kept in self._deal("tasks", items, len(tasks)):
                outcomes[done.client] = done
                if kept is not None:
                    changed[done.client] = kept
            for fold in self._folds():
                total.merge(fold)
        return total.aggregate(), [outcomes[t.client] for t in tasks], changed

    def evaluate(
        self,
        parameters: Broadcast,
        clients: Sequence[ClientId],
        memories: Mapping[ClientId, Memory],
    ) -> Mapping[ClientId, Metrics]:
        """See :class:`~atoll.core.contracts.Executor`."""
        self._board.pin(0, parameters)
        rows = sorted(clients, key=lambda c: len(self._parts.held_out[c]), reverse=True)
        found = dict(self._deal("evaluate", [(c, memories.get(c, {})) for c in rows], len(rows)))
        for client in clients:  # every answer is in: the first error is the serial executor's
            if isinstance(found[client], AtollError):
                raise found[client]
        return {client: found[client] for client in clients}

    def _deal(self, verb: str, items: Sequence[Any], total: int) -> Iterator[Any]:
        """Deal items in shrinking chunks to whoever is free; yield the answers as they come."""
        queue = deque(items)
        busy: dict[Connection, Any] = {}

        def hand(connection: Connection, process: Any) -> None:
            if queue:
                size = max(1, len(queue) // (2 * len(self._workers)))
                chunk = [queue.popleft() for _ in range(min(size, len(queue)))]
                busy[connection] = (process, chunk)
                self._send(connection, process, (verb, (total, chunk)), chunk)

        for process, connection in self._workers:
            hand(connection, process)
        while busy:
            for ready in wait(list(busy)):
                connection = next(c for c in busy if c is ready)
                process, chunk = busy.pop(connection)
                answers = self._receive(connection, process, chunk)
                hand(connection, process)
                yield from answers

    def _folds(self) -> Iterator[Fold]:
        for process, connection in self._workers:
            self._send(connection, process, ("fold", None), [])
        for (process, connection), tray in zip(self._workers, self._trays, strict=True):
            yield tray.lift(*self._receive(connection, process, []))

    def _send(
        self, connection: Connection, process: Any, message: Any, chunk: Sequence[Any]
    ) -> None:
        try:
            connection.send(message)
        except OSError as error:
            raise self._lost(process, chunk) from error

    def _receive(self, connection: Connection, process: Any, chunk: Sequence[Any]) -> Any:
        try:
            return connection.recv()
        except (EOFError, OSError) as error:
            raise self._lost(process, chunk) from error

    def _lost(self, process: Any, chunk: Sequence[Any]) -> ClientError:
        process.join(timeout=_GRACE)
        names = ", ".join(sorted(_name(item) for item in chunk)[:5]) or "no task"
        return ClientError(
            f"a worker process ended with exit code {process.exitcode} while it ran: {names}",
            remedy="if it was killed for memory, use fewer workers; continue with --resume",
        )

    def close(self) -> None:
        """End the workers, by force what is still at work after a while; safe to call twice."""
        for _, connection in self._workers:
            connection.close()  # a worker that reads or writes now sees the end of its pipe
        until = time.monotonic() + _GRACE
        for process, _ in self._workers:
            process.join(timeout=max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()  # SIGTERM is ignored, see _work
                process.join()
            process.close()
        self._workers = []


def _name(item: Any) -> str:
    first = item[0]
    return str(first) if isinstance(first, str) else ", ".join(t.client for t in first)


@contextmanager
def _one_thread() -> Iterator[None]:
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


def _work(connection: Connection, parts: Parts, board: Board, tray: Tray) -> None:
    """A worker's life: read a message, answer it, until told to stop or the parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group; the parent ends the round
    fold: Fold | None = None

    def tasks(given: tuple[int, Sequence[Item]]) -> list[Done]:
        nonlocal fold
        total, items = given
        fold = fold or Fold(total)
        done = list[Done]()
        for group, slot, memories in items:
            broadcast = board.read(slot, group[0].version)
            done += fold_group(parts, group, broadcast, memories, fold)
        return done

    def score(client: ClientId, memory: Memory) -> Metrics | AtollError:
        try:
            return evaluate_client(parts, board.read(0, 0).parameters, client, memory)
        except AtollError as error:
            return error

    def evaluate(
        given: tuple[int, Sequence[tuple[ClientId, Memory]]],
    ) -> list[tuple[ClientId, Metrics | AtollError]]:
        return [(client, score(client, memory)) for client, memory in given[1]]

    def hand_over(_: None) -> tuple[Fold, Mapping[str, tuple[int, int]]]:
        nonlocal fold
        full, fold = fold, None
        return tray.lay(full or Fold())

    verbs: dict[str, Callable[[Any], Any]] = {
        "tasks": tasks,
        "evaluate": evaluate,
        "fold": hand_over,
    }
    # A broken pipe means that the parent is gone or has closed the run: nobody is left to tell.
    with threadpool_limits(1), suppress(EOFError, OSError):
        connection.send("ready")
        while True:
            verb, payload = connection.recv()
            connection.send(verbs[verb](payload))
