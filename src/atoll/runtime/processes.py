"""The process executor: workers that map the data once and fold their clients' updates themselves.

Tasks go out longest first, in chunks that shrink as the round runs dry, so workers end together; a
round returns one fold per worker, and merging folds is exact, so neither the number of workers nor
the order of arrival can be seen in the result.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from atoll.runtime.client import Parts, evaluate_client, fold_task
from atoll.runtime.shared import Board, share_clients

__all__ = ["ProcessExecutor"]

_SLOTS = 4
"""Model versions that workers can see at once; more are worked through in turn."""

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Item = tuple[Task, int, Memory]


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
        shared = replace(
            parts,
            clients=share_clients(context, parts.clients),
            held_out=share_clients(context, parts.held_out),
        )
        try:
            with _one_thread():
                for _ in range(count):
                    ours, theirs = context.Pipe()
                    process = context.Process(
                        target=_work, args=(theirs, shared, self._board), daemon=True
                    )
                    process.start()
                    theirs.close()
                    self._workers.append((process, ours))
        except (AttributeError, TypeError, ImportError) as error:
            self.close()
            raise JobError(
                f"this job cannot be sent to worker processes: {error}",
                remedy="define models and functions at the top level of a module, or run with "
                "executor = 'serial'",
            ) from error
        except Exception as error:
            self.close()
            if type(error).__name__ == "PicklingError":
                raise JobError(
                    f"this job cannot be sent to worker processes: {error}",
                    remedy="define models and functions at the top level of a module, or run "
                    "with executor = 'serial'",
                ) from error
            raise

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
                (task, slots[task.version], memories.get(task.client, {}))
                for task in sorted(tasks, key=self._parts.cost, reverse=True)
                if task.version in slots
            ]
            for done, kept in self._deal("tasks", items):
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
        found = dict(self._deal("evaluate", [(c, memories.get(c, {})) for c in rows]))
        return {client: found[client] for client in clients}

    def _deal(self, verb: str, items: Sequence[Any]) -> Iterator[Any]:
        """Deal items in shrinking chunks to whoever is free; yield the answers as they come."""
        queue = deque(items)
        busy: dict[Connection, Any] = {}

        def hand(connection: Connection, process: Any) -> None:
            if queue:
                size = max(1, len(queue) // (2 * len(self._workers)))
                chunk = [queue.popleft() for _ in range(min(size, len(queue)))]
                busy[connection] = (process, chunk)
                self._send(connection, process, (verb, chunk))

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
            self._send(connection, process, ("fold", None))
        for process, connection in self._workers:
            yield self._receive(connection, process, [])

    def _send(self, connection: Connection, process: Any, message: Any) -> None:
        try:
            connection.send(message)
        except OSError as error:
            raise self._lost(process, []) from error

    def _receive(self, connection: Connection, process: Any, chunk: Sequence[Any]) -> Any:
        try:
            kind, payload = connection.recv()
        except (EOFError, OSError) as error:
            raise self._lost(process, chunk) from error
        if kind == "error":
            raise payload
        return payload

    def _lost(self, process: Any, chunk: Sequence[Any]) -> ClientError:
        process.join(timeout=5)
        names = ", ".join(sorted(_name(item) for item in chunk)[:5]) or "no task"
        return ClientError(
            f"a worker process ended with exit code {process.exitcode} while it ran: {names}",
            remedy="if it was killed for memory, use fewer workers; continue with --resume",
        )

    def close(self) -> None:
        """End the workers; safe to call twice."""
        for _, connection in self._workers:
            try:
                connection.send(("stop", None))
            except OSError:
                continue  # it ended before us
        for process, connection in self._workers:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()
                process.join(timeout=5)
            connection.close()
        self._workers = []


def _name(item: Any) -> str:
    first = item[0]
    return first.client if isinstance(first, Task) else str(first)


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


def _work(connection: Connection, parts: Parts, board: Board) -> None:
    """A worker's life: read a message, answer it, until told to stop or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the round, not the worker
    fold = Fold()

    def tasks(items: Sequence[Item]) -> list[tuple[Outcome, Memory | None]]:
        return [
            fold_task(parts, task, board.read(slot, task.version), memory, fold)
            for task, slot, memory in items
        ]

    def evaluate(items: Sequence[tuple[ClientId, Memory]]) -> list[tuple[ClientId, Metrics]]:
        model = board.read(0, 0).parameters
        return [(c, evaluate_client(parts, model, c, memory)) for c, memory in items]

    def hand_over(_: None) -> Fold:
        nonlocal fold
        full, fold = fold, Fold()
        return full

    verbs: dict[str, Callable[[Any], Any]] = {
        "tasks": tasks,
        "evaluate": evaluate,
        "fold": hand_over,
    }
    with threadpool_limits(1):
        while True:
            try:
                verb, payload = connection.recv()
            except EOFError:
                return
            if verb == "stop":
                return
            try:
                connection.send(("answer", verbs[verb](payload)))
            except AtollError as error:
                connection.send(("error", error))
