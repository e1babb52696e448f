"""What happens inside a worker process: read a list of work, take turns at it, answer once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from threadpoolctl import threadpool_limits

from atoll.aggregation.exact import Fold
from atoll.core.contracts import Outcome, Task
from atoll.core.errors import AtollError
from atoll.core.metrics import Metrics
from atoll.core.values import Broadcast, ClientId, Memory
from atoll.runtime.client import Parts, evaluate_client
from atoll.runtime.groups import fold_group
from atoll.runtime.shared import Board, Tray, Turns
from atoll.runtime.shelf import Places, Shelf
from atoll.runtime.starting import settle

__all__ = ["Desk", "Given", "Item", "Kept", "work"]

Given = Memory | Places
"""A client's memory as it crosses the pipe, or where it lies on the shelf."""

Kept = Memory | Places | None
"""What becomes of it: None when there is nothing to keep."""

Item = tuple[tuple[Task, ...], int, Mapping[ClientId, Given], Mapping[ClientId, tuple[int, int]]]
"""A group of tasks to run in one go, the slot of its version, its clients' memories, and room for the
new ones."""

Folded = tuple[Fold, Mapping[str, tuple[int, int]]]
"""A fold whose numbers lie on the tray."""


@dataclass(frozen=True, eq=False)
class Desk:
    """What a worker shares with its parent.

    Args:
        board: models to start from.
        tray: where it forms its sums.
        turns: which item is next.
        shelf: clients' memories.
        number: of this worker.
    """

    board: Board
    tray: Tray
    turns: Turns
    shelf: Shelf
    number: int


_NONE: Mapping[int, Broadcast] = {}


@dataclass(eq=False)
class _Worker:
    parts: Parts
    desk: Desk
    fold: Fold | None = None

    def tasks(
        self,
        total: int,
        items: Sequence[Item],
        last: bool,
        loose: Mapping[int, Broadcast] = _NONE,
    ) -> tuple[list[tuple[Outcome, Kept]], Folded | None]:
        """Run the tasks that come to this worker; the fold goes with the round's ``last`` list.

        A broadcast among the ``loose`` ones, by slot, came with the list and not on the board.
        """
        done: list[tuple[Outcome, Kept]] = []
        desk = self.desk
        while (turn := desk.turns.take(desk.number)) is not None:
            if self.fold is None:
                self.fold = desk.tray.fold(total)
            group, slot, given, rooms = items[turn]
            memories = {client: self._read(memory) for client, memory in given.items()}
            broadcast = loose.get(slot) or desk.board.read(slot, group[0].version)
            for outcome, memory in fold_group(self.parts, group, broadcast, memories, self.fold):
                done.append((outcome, self._keep(memory, rooms.get(outcome.client))))
        if not last or self.fold is None:
            return done, None
        full, self.fold = self.fold, None
        return done, desk.tray.lay(full)

    def evaluate(
        self, items: Sequence[tuple[ClientId, Given]]
    ) -> list[tuple[ClientId, Metrics | AtollError]]:
        """Evaluate the clients that come to this worker."""
        found = list[tuple[ClientId, Metrics | AtollError]]()
        while (turn := self.desk.turns.take(self.desk.number)) is not None:
            client, given = items[turn]
            parameters = self.desk.board.read(0, 0).parameters
            try:
                memory = self._read(given)
                found.append((client, evaluate_client(self.parts, parameters, client, memory)))
            except AtollError as error:
                found.append((client, error))
        return found

    def _read(self, given: Given) -> Memory:
        return self.desk.shelf.fetch(given) if isinstance(given, tuple) else given

    def _keep(self, memory: Memory | None, room: tuple[int, int] | None) -> Kept:
        if memory is None or room is None:
            return memory
        return self.desk.shelf.lay(room, memory) or memory


def work(connection: Connection, parts: Parts, desk: Desk, inherited: list[int]) -> None:
    """A worker's life: read a message, answer it, until told to stop or the parent is gone.

    Args:
        connection: to the parent. An answer is (seconds at work, result).
        parts: what is fixed for the run.
        desk: what is shared with the parent.
        inherited: see :func:`~atoll.runtime.starting.settle`.
    """
    settle(inherited)
    worker = _Worker(parts, desk)
    verbs: dict[str, Callable[..., Any]] = {"tasks": worker.tasks, "evaluate": worker.evaluate}
    # A broken pipe means that the parent is gone or has closed the run: nobody is left to tell.
    with threadpool_limits(1), suppress(EOFError, OSError):
        connection.send("ready")
        while True:
            verb, given = connection.recv()
            began = time.perf_counter()
            result = verbs[verb](*given)
            connection.send((time.perf_counter() - began, result))
