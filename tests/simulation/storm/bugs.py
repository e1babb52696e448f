"""Bugs that are planted, to see that the checks find them.

Each takes a world and gives a context in which its programs have the bug.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any
from unittest import mock

from storm import kernel as k
from storm.world import World

from atoll.core.errors import AtollError
from atoll.node import fence
from atoll.node.audit.answers import Answers
from atoll.server import office
from atoll.server.epochs import Epochs
from atoll.server.rounds.counter import Counter
from atoll.server.rounds.early import Early
from atoll.server.rounds.folding import TrainFold
from atoll.server.store import rules
from atoll.server.store.memory import MemoryStore
from atoll.wire.messages import ReceiptBody

__all__ = ["BUGS"]

Bug = Callable[[World], AbstractContextManager[Any]]


def dropped_fsync(world: World) -> AbstractContextManager[Any]:
    """The server does not wait for the disk before it acknowledges."""
    return mock.patch.object(world.disk, "fsync")


@contextmanager
def dropped_fsync_at_the_node(world: World) -> Iterator[None]:
    """Nodes send what their disk has not got yet."""
    with ExitStack() as stack:
        for node in world.nodes.values():
            stack.enter_context(mock.patch.object(node.disk, "fsync"))
        yield


@contextmanager
def forgotten_key(world: World) -> Iterator[None]:
    """Which answers were heard is known in memory, and written with the round that uses them."""
    heard: dict[MemoryStore, list[tuple[str, str]]] = {}
    contribute, crash = MemoryStore.contribute, MemoryStore.crash

    def remembered(self: MemoryStore, epoch: int, row: Any) -> Any:
        found = contribute(self, epoch, row)
        if found == "new":
            heard.setdefault(self, []).append((row.run, row.task))
        return found

    def forgotten(self: MemoryStore) -> None:
        for run, task in heard.pop(self, []):
            if task not in self.database.taken[run]:
                self.database.contributions[run].pop(task, None)
        crash(self)

    with (
        mock.patch.object(MemoryStore, "contribute", remembered),
        mock.patch.object(MemoryStore, "crash", forgotten),
    ):
        yield


@contextmanager
def missing_fence(world: World) -> Iterator[None]:
    """A server that was replaced goes on writing."""

    def through(epoch: int, newest: int) -> None:
        """Whoever comes may pass."""

    with mock.patch.object(rules, "fence", through), mock.patch.object(office, "fence", through):
        yield


def acknowledged_first(world: World) -> AbstractContextManager[Any]:
    """A site is told that its answer is there; then it is written."""
    contribute = Counter._contribute

    def early(self: Counter, *arguments: Any) -> bool:
        def late() -> None:
            k.kernel().wait(0.01)
            with suppress(AtollError):
                contribute(self, *arguments)

        k.Thread(late).start()
        return False

    return mock.patch.object(Counter, "_contribute", early)


def acknowledged_before_the_round(world: World) -> AbstractContextManager[Any]:
    """A site is told that its answer is there when it was taken in; it is written with the round."""

    def early(self: Early) -> ReceiptBody:
        return ReceiptBody(task=self.row.task, sha256=self.row.sha256, again=False)

    return mock.patch.object(Early, "receipt", early)


def double_fold(world: World) -> AbstractContextManager[Any]:
    """An answer that is heard twice is added twice."""
    take = TrainFold.take

    def taken(self: TrainFold, task: Any, body: Any, arrays: Any) -> None:
        take(self, task, body, arrays)
        if world.random.random() < 0.05:
            take(self, task, body, arrays)

    return mock.patch.object(TrainFold, "take", taken)


def unwritten_line(world: World) -> AbstractContextManager[Any]:
    """Nodes send what their audit log has not got yet."""
    return mock.patch.object(Answers, "leaving")


def forgotten_epoch(world: World) -> AbstractContextManager[Any]:
    """Nodes know the server's newest epoch in memory only."""
    return mock.patch.object(fence, "keep")


def unread_mark(world: World) -> AbstractContextManager[Any]:
    """A server does not look at which start a site says that it saw."""
    return mock.patch.object(Epochs, "known", return_value=True)


BUGS: dict[str, Bug] = {
    "dropped fsync": dropped_fsync,
    "dropped fsync at the node": dropped_fsync_at_the_node,
    "forgotten key": forgotten_key,
    "missing fence": missing_fence,
    "acknowledged first": acknowledged_first,
    "acknowledged before the round": acknowledged_before_the_round,
    "double fold": double_fold,
    "forgotten epoch": forgotten_epoch,
    "unread mark": unread_mark,
    "unwritten line": unwritten_line,
}
