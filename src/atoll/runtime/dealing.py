"""Who works on what, and whose partial sum holds what: a round's bookkeeping over workers that get lost.

Items are dealt, dearest first, in chunks that shrink as the round runs dry. Each worker adds what it
does to a partial sum of its own; at the end these are merged pair by pair, first within a node and then
between nodes, until one worker holds everything. Whatever a lost worker held in its sum, or was busy with,
is dealt again: an item is in exactly one living sum, or waits to be dealt.

Nothing here knows a clock, a network or a worker (decision D9): it says which steps are next and is
told how they end.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

__all__ = ["Dealing", "Merge", "Run", "Step", "Take"]


@dataclass(frozen=True)
class Run:
    """``worker`` does ``items``; with a ``fresh`` sum, or on top of the one it holds."""

    worker: int
    items: tuple[int, ...]
    fresh: bool


@dataclass(frozen=True)
class Merge:
    """``worker`` adds the sum of ``source`` to its own; ``source`` keeps what it has."""

    worker: int
    source: int


@dataclass(frozen=True)
class Take:
    """``worker`` hands over its sum, which holds everything."""

    worker: int


Step = Run | Merge | Take


@dataclass(eq=False)
class _Hand:
    node: str
    step: Step | None = None
    held: set[int] = field(default_factory=set)


class Dealing:
    """A round of ``items`` items, numbered from the dearest.

    Args:
        items: how many.
        sums: whether workers add up what they do; else an item is over when its step has ended.

    >>> dealing = Dealing(2, sums=True)
    >>> dealing.join(7, "here"), list(dealing.steps())
    (None, [Run(worker=7, items=(0,), fresh=True)])
    >>> dealing.lost(7), dealing.join(8, "there"), list(dealing.steps())
    ((0,), None, [Run(worker=8, items=(0,), fresh=True)])
    """

    def __init__(self, items: int, *, sums: bool) -> None:
        self._total, self._sums = items, sums
        self._queue = list(range(items))  # a heap, as sorted lists are
        self._hands: dict[int, _Hand] = {}
        self._over: set[int] = set()
        self.strikes = [0] * items
        """How often a worker was lost while it was busy with an item."""
        self.expected = 0
        """How many workers there will be, counting those who have not joined yet."""

    @property
    def finished(self) -> bool:
        """Whether every item has been done and, where there are sums, handed over."""
        return len(self._over) == self._total

    def held(self, worker: int) -> frozenset[int]:
        """The items in the sum of ``worker``."""
        return frozenset(self._hands[worker].held)

    def join(self, worker: int, node: str) -> None:
        """``worker`` is at hand, on ``node``; it holds nothing yet."""
        self._hands[worker] = _Hand(node)

    def steps(self) -> Iterator[Step]:
        """The steps to begin now; each occupies its workers until :meth:`ended` or :meth:`lost`."""
        for worker, hand in self._hands.items():
            if hand.step is None and self._queue:
                hand.step = Run(worker, tuple(self._chunk()), fresh=not hand.held)
                yield hand.step
        if not self._sums or self._queue:
            return
        for worker, source in self._pairs():
            step = Merge(worker, source)
            self._hands[worker].step = self._hands[source].step = step
            yield step
        holders = [w for w, h in self._hands.items() if h.held]
        if len(holders) == 1 and not any(h.step for h in self._hands.values()):
            step_ = Take(holders[0])
            self._hands[holders[0]].step = step_
            yield step_

    def ended(self, worker: int) -> None:
        """The step of ``worker`` has been carried out."""
        hand = self._hands[worker]
        step, hand.step = hand.step, None
        match step:
            case Run(items=items) if self._sums:
                hand.held.update(items)
            case Run(items=items):
                self._over.update(items)
            case Merge(source=source):
                other = self._hands[source]
                hand.held |= other.held
                other.step, other.held = None, set()
            case Take():
                self._over |= hand.held

    def refused(self, worker: int) -> int:
        """The sum that ``worker`` was to merge could not be had; nothing has changed.

        Returns:
            the worker that should have given it; it is to be counted lost.
        """
        hand = self._hands[worker]
        source = hand.step.source if isinstance(hand.step, Merge) else worker
        hand.step = self._hands[source].step = None
        return source

    def lost(self, worker: int) -> tuple[int, ...]:
        """``worker`` is gone, and its sum with it: all of it is dealt again.

        Returns:
            what it was busy with; each has one more strike.
        """
        hand = self._hands.pop(worker)
        busy: tuple[int, ...] = ()
        if isinstance(hand.step, Run):
            busy = hand.step.items
        elif isinstance(hand.step, Merge) and hand.step.worker == worker:
            self._hands[hand.step.source].step = None
        for item in busy:
            self.strikes[item] += 1
        self._queue = sorted({*self._queue, *hand.held, *busy})
        return busy

    def _chunk(self) -> Iterable[int]:
        """The next items for one worker; one that was there when a worker was lost goes alone."""
        size = max(1, len(self._queue) // (2 * max(len(self._hands), self.expected)))
        chunk = [heapq.heappop(self._queue)]
        while len(chunk) < size and not self.strikes[chunk[0]] and not self.strikes[self._queue[0]]:
            chunk.append(heapq.heappop(self._queue))
        return chunk

    def _pairs(self) -> Iterator[tuple[int, int]]:
        """Idle workers whose sums can be merged: neighbours first, then one worker of each node."""
        nodes: dict[str, list[int]] = {}
        for worker, hand in self._hands.items():
            if hand.held and hand.step is None:
                nodes.setdefault(hand.node, []).append(worker)
        at_work = {h.node for h in self._hands.values() if h.step is not None}
        alone: list[int] = []
        for node, idle in nodes.items():
            yield from zip(idle[::2], idle[1::2], strict=False)
            if len(idle) == 1 and node not in at_work:
                alone.append(idle[0])
        yield from zip(alone[::2], alone[1::2], strict=False)
